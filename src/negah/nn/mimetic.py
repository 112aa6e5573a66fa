"""Mimetic initialisation: start a vision transformer where trained ones end up, so that few images are enough.

Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers", arXiv:2305.09828.  In trained ViTs the
products of a head's weights are close to multiples of the identity, positive for query-key (a token attends to what is
like it and near it), negative for value-projection.  So, with Z of independent normal entries of variance 1/d,

    Wq^T Wk = alpha1 Z + beta1 I        truncated to the head's rank
    Wproj Wv = alpha2 Z - beta2 I

each factored by its singular value decomposition; positions start as fixed sines and cosines of row and column.
Departure from the paper: positions are scaled to half, since ours are added to patches of unit variance.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from negah.nn.vit import Block, ViT


@torch.no_grad()
def mimetic_(vit: ViT, *, generator: torch.Generator, scale: float = 0.5) -> ViT:
    """Set attention weights and positions of `vit` in place, and return it.

    Raises ValueError where the width is not a multiple of 4 (rows and columns, sine and cosine).
    """
    for block in vit.blocks:
        assert isinstance(block, Block)
        dim, heads = vit.dim, vit.heads
        rank = dim // heads
        weight = block.attn.qkv.weight
        for head in range(heads):
            left, right = factors(near_identity(dim, 0.7, 0.7, generator), rank)
            weight[head * rank : (head + 1) * rank] = left.T
            weight[dim + head * rank : dim + (head + 1) * rank] = right.T
        left, right = factors(near_identity(dim, 0.4, -0.4, generator), dim)
        block.attn.proj.weight.copy_(left)
        weight[2 * dim :] = right.T
    vit.pos_embed[0, 1:] = scale * sines(*vit.grid, vit.dim)
    return vit


def near_identity(dim: int, alpha: float, beta: float, generator: torch.Generator) -> Float[Tensor, "dim dim"]:
    """alpha Z + beta I."""
    return alpha * torch.randn(dim, dim, generator=generator) / dim**0.5 + beta * torch.eye(dim)


def factors(matrix: Float[Tensor, "dim dim"], rank: int) -> tuple[Float[Tensor, "dim rank"], Float[Tensor, "dim rank"]]:
    """A, B with A B^T the best approximation of `matrix` of that rank."""
    u, s, vt = torch.linalg.svd(matrix)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, vt[:rank].T * root


def sines(rows: int, columns: int, dim: int) -> Float[Tensor, "position dim"]:
    """Sines and cosines of column and row at dim / 4 frequencies from 1 down to 1/10,000, row-major over the grid."""
    if dim % 4:
        raise ValueError(f"positions in sines need a width that is a multiple of 4, not {dim}")
    frequency = 10_000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(rows).float(), torch.arange(columns).float(), indexing="ij")
    phases = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
    return torch.cat([wave(phase) for phase in phases for wave in (torch.sin, torch.cos)], dim=1)
