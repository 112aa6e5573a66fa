"""Dropout that takes less time and memory on CPUs.

PyTorch's draws each number of the mask by a generator for Bernoulli's distribution and keeps the mask in the type of
the input.  Uniform numbers come out of vector instructions, and comparing them gives a mask of one byte each,
a quarter of what F.dropout keeps for the backward pass of fp32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """Zeros at random places, a share of `rate` in [0, 1); the rest is divided by 1 - rate.

    Draws from torch's global generator, as F.dropout does, but other places than it.
    """
    if not training or rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    return _Masked.apply(x, (torch.rand(x.shape) >= rate).view(torch.uint8), 1 / (1 - rate))  # pyright: ignore[reportReturnType]


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * scale).mul_(kept)  # masked_fill_ would take three times as long

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _Masked.apply(grads[0], kept, ctx.scale), None, None  # pyright: ignore[reportReturnType]
