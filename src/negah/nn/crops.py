"""Crops of several sizes through one transformer, as training with many crops needs it: fast, and in little memory.

Oquab et al. 2023, "DINOv2", arXiv:2304.07193, section 5.  What it does to the plain loop over sizes:

- Packing.  The tokens of all crops stand in one list, which norms and linear layers take as one matrix.  Attention runs
  over the crops of one size at a time, so that no mask has to keep the others apart.
- Stochastic depth.  A branch is computed only for the crops that it is kept for: at a rate of 0.3 that saves 30 % of
  time and memory.  How many are kept is fixed for each size; which ones is drawn from torch's global generator.
- What is cheap is computed again in the backward pass instead of kept: the outputs of norms and of the activation.
- Layer scale is multiplied into the weights of the layer before it, g * (W x + b) = (g W) x + g b.

Up to rounding, values and gradients are those of the plain loop.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from negah.nn.vit import Block, LayerScale

Shape = tuple[int, int]  # crops, tokens of each


def encode(
    blocks: Iterable[Any], norm: nn.Module, groups: Sequence[Float[Tensor, "_ _ dim"]]
) -> list[Float[Tensor, "_ _ dim"]]:
    """Embedded crops, [batch, token, dim] for each size, through all blocks and the last norm."""
    shapes = [(len(x), x.shape[1]) for x in groups]
    x = torch.cat([x.flatten(0, 1) for x in groups])
    for block in blocks:
        x = residual(block, x, shapes, attention)
        x = residual(block, x, shapes, feed_forward)
    parts = norm(x).split([crops * tokens for crops, tokens in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes)]


def residual(
    block: "Block", x: Float[Tensor, "all dim"], shapes: Sequence[Shape], branch: Callable
) -> Float[Tensor, "all dim"]:
    """x + branch(x), in training only for some crops, scaled so that the mean stays."""
    if not block.training or block.drop_path == 0:
        return x + branch(block, x, shapes).to(x.dtype)
    kept = [max(1, round(crops * (1 - block.drop_path))) for crops, _ in shapes]
    rows = kept_rows(shapes, kept, x.device)
    y = branch(block, x.index_select(0, rows), [(k, tokens) for k, (_, tokens) in zip(kept, shapes)])
    parts = y.to(x.dtype).split([k * tokens for k, (_, tokens) in zip(kept, shapes)])
    y = torch.cat([part * (crops / k) for part, k, (crops, _) in zip(parts, kept, shapes)])
    return x.index_add(0, rows, y)


def kept_rows(shapes: Sequence[Shape], kept: Sequence[int], device: torch.device) -> Int[Tensor, " rows"]:
    """Numbers, in the packed list, of the tokens of crops drawn at random, `kept` of each size."""
    rows, start = [], 0
    for (crops, tokens), k in zip(shapes, kept):
        drawn = torch.randperm(crops, device=device)[:k]
        rows.append((start + drawn[:, None] * tokens + torch.arange(tokens, device=device)).flatten())
        start += crops * tokens
    return torch.cat(rows)


def attention(block: "Block", x: Float[Tensor, "all dim"], shapes: Sequence[Shape]) -> Float[Tensor, "all dim"]:
    """The attention branch of a block: each token attends to its own crop."""
    attn = block.attn
    qkv = again(lambda x: attn.qkv(block.norm1(x)), x)
    mixed = []
    for part, (crops, tokens) in zip(qkv.split([crops * tokens for crops, tokens in shapes]), shapes):
        q, k, v = part.view(crops, tokens, 3, attn.heads, -1).permute(2, 0, 3, 1, 4)
        mixed.append(attn.collect(q, k, v).flatten(0, 1))
    return again(lambda *mixed: scaled(attn.proj, block.ls1, torch.cat(mixed)), *mixed)


def feed_forward(block: "Block", x: Float[Tensor, "all dim"], shapes: Sequence[Shape]) -> Float[Tensor, "all dim"]:
    """The feed-forward branch of a block, which looks at one token at a time."""
    hidden = again(lambda x: block.mlp.first(block.norm2(x)), x)
    return again(lambda hidden: scaled(block.mlp.last, block.ls2, block.mlp.activation(hidden)), hidden)


def again(part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """part(*inputs), keeping only the inputs for the backward pass.

    That runs `part` again as far as the last tensor it needs: up to a linear layer at the end, but not through it.
    """
    return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]


def scaled(layer: nn.Linear, gain: "LayerScale | nn.Identity", x: Float[Tensor, "all inner"]) -> Tensor:
    """gain(layer(x)) without the product in between."""
    if isinstance(gain, nn.Identity):
        return layer(x)
    return F.linear(x, gain.gamma.unsqueeze(1) * layer.weight, gain.gamma * layer.bias)
