"""Crops of several sizes through one transformer, as training with many crops needs it: fast, and in little memory.

Oquab et al. 2023, "DINOv2", arXiv:2304.07193, section 5.  What it does to the plain loop over sizes:

- Packing.  The tokens of all crops stand in one list, which norms and linear layers take as one matrix.  Attention runs
  over the crops of one size at a time, so that no mask has to keep the others apart.
- Stochastic depth.  A branch is computed only for the crops that it is kept for: at a rate of 0.3 that saves 30 % of
  time and memory.  How many are kept is fixed for each size; which ones is drawn from torch's global generator.
- What is cheap is computed again in the backward pass instead of kept: the outputs of norms and of the activation.
- Layer scale is multiplied into the weights of the layer before it, g * (W x + b) = (g W) x + g b.
- Products are those of `negah.nn.linear`, which is faster on some CPUs.

Up to rounding, values and gradients are those of the plain loop.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from negah.nn.linear import product

if TYPE_CHECKING:
    from negah.nn.vit import Block, LayerScale

Shape = tuple[int, int]  # crops, tokens of each


def pack(groups: Sequence[Float[Tensor, "_ _ dim"]]) -> tuple[Float[Tensor, "all dim"], list[Shape]]:
    """Crops, [crop, token, dim] for each size, as one list of tokens, and their shapes."""
    return torch.cat([x.flatten(0, 1) for x in groups]), [(len(x), x.shape[1]) for x in groups]


def unpack(x: Float[Tensor, "all dim"], shapes: Sequence[Shape]) -> list[Float[Tensor, "_ _ dim"]]:
    """The crops of each size again."""
    return [part.unflatten(0, shape) for part, shape in zip(x.split([c * t for c, t in shapes]), shapes)]


def through(block: "Block", x: Float[Tensor, "all dim"], shapes: Sequence[Shape]) -> Float[Tensor, "all dim"]:
    """One block over packed tokens."""
    x = residual(block, x, shapes, attention)
    return residual(block, x, shapes, feed_forward)


def residual(
    block: "Block", x: Float[Tensor, "all dim"], shapes: Sequence[Shape], branch: Callable
) -> Float[Tensor, "all dim"]:
    """x + branch(x), in training only for some crops, scaled so that the mean stays."""
    if not block.training or block.drop_path == 0:
        return x + branch(block, x, shapes).to(x.dtype)
    kept = [(max(1, round(crops * (1 - block.drop_path))), tokens) for crops, tokens in shapes]
    rows = kept_rows(shapes, kept, x.device)
    gains = [crops / k for (crops, _), (k, _) in zip(shapes, kept)]
    y = branch(block, x.index_select(0, rows), kept)
    return _Add.apply(x, y, rows, [k * tokens for k, tokens in kept], gains)  # pyright: ignore[reportReturnType]


def kept_rows(shapes: Sequence[Shape], kept: Sequence[Shape], device: torch.device) -> Int[Tensor, " rows"]:
    """Numbers, in the packed list, of the tokens of crops drawn at random, as many of each size as `kept` says."""
    rows, start = [], 0
    for (crops, tokens), (k, _) in zip(shapes, kept):
        drawn = torch.randperm(crops, device=device)[:k]
        rows.append((start + drawn[:, None] * tokens + torch.arange(tokens, device=device)).flatten())
        start += crops * tokens
    return torch.cat(rows)


class _Add(torch.autograd.Function):
    """x with gain * y added to some of its rows, a gain for each part of y; unlike `index_add`, it does not keep y."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, rows: Tensor, sizes: list[int], gains: list[float]) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.sizes, ctx.gains, ctx.dtype = sizes, gains, y.dtype
        found = x.clone()
        for part, to, gain in zip(y.split(sizes), rows.split(sizes), gains):
            found.index_add_(0, to, part.to(x.dtype), alpha=gain)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):
        of_y = grads[0].index_select(0, *ctx.saved_tensors)
        for part, gain in zip(of_y.split(ctx.sizes), ctx.gains):
            part.mul_(gain)
        return grads[0], of_y.to(ctx.dtype), None, None, None


def attention(block: "Block", x: Float[Tensor, "all dim"], shapes: Sequence[Shape]) -> Float[Tensor, "all dim"]:
    """The attention branch of a block: each token attends to its own crop."""
    attn = block.attn
    qkv = again(lambda x: product(block.norm1(x), attn.qkv.weight, attn.qkv.bias), x)
    mixed = []
    for part in unpack(qkv, shapes):
        q, k, v = part.unflatten(2, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed.append(attn.collect(q, k, v).flatten(0, 1))
    return again(lambda *mixed: scaled(attn.proj, block.ls1, torch.cat(mixed)), *mixed)


def feed_forward(block: "Block", x: Float[Tensor, "all dim"], shapes: Sequence[Shape]) -> Float[Tensor, "all dim"]:
    """The feed-forward branch of a block, which looks at one token at a time."""
    first, last = block.mlp.layers()
    hidden = again(lambda x: product(block.norm2(x), first.weight, first.bias), x)
    return again(lambda hidden: scaled(last, block.ls2, block.mlp.activation(hidden)), hidden)


def again(part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """part(*inputs), keeping only the inputs for the backward pass.

    That runs `part` again as far as the last tensor it needs: up to a linear layer at the end, but not through it.
    """
    return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]


def scaled(layer: nn.Linear, gain: "LayerScale | nn.Identity", x: Float[Tensor, "all inner"]) -> Tensor:
    """gain(layer(x)) without the product in between."""
    if isinstance(gain, nn.Identity):
        return product(x, layer.weight, layer.bias)
    return product(x, gain.gamma.unsqueeze(1) * layer.weight, gain.gamma * layer.bias)
