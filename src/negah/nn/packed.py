"""Transformer blocks for CPUs that multiply bfloat16 matrices in hardware: inference only.

Such a multiplication wants its weights in another order than PyTorch keeps them in.  A plain `nn.Linear` brings them
into it anew at every call, which costs a small model as much as its smaller products do; here it is done once, and the
GELU behind the MLP's first layer is applied while the product is still in the cache.  The operators are those that
PyTorch's own compiler puts in the place of linear layers (torch/_inductor/mkldnn_lowerings.py).  They are not public,
so ask `available` first.
"""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from negah.nn.vit import Block, Mlp, SwiGLU

ROWS = 2048  # of a product, about: the order of the weights is chosen for it; any other number works, too


class PackedLinear(nn.Module):
    """A linear layer of bfloat16 weights, and the exact GELU behind it if asked for."""

    def __init__(self, layer: nn.Linear, *, gelu: bool = False):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self.bias = layer.bias.detach()
        self.then = ("gelu", "none") if gelu else ("none", "")  # what, and its approximation

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        what, approximation = self.then
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, what, [], approximation)


class PackedMlp(nn.Module):
    """Linear and GELU in one, then linear."""

    def __init__(self, mlp: Mlp):
        super().__init__()
        self.fc1 = PackedLinear(mlp.fc1, gelu=True)
        self.fc2 = PackedLinear(mlp.fc2)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.fc2(self.fc1(x.to(self.fc1.weight.dtype)))


@cache
def available() -> bool:
    """Whether this PyTorch, on this CPU, has the operators, and they do what they should."""
    layer = nn.Linear(64, 64, device="meta", dtype=torch.bfloat16).to_empty(device="cpu")  # draws no random numbers
    with torch.inference_mode():
        layer.weight.copy_(torch.linspace(-0.2, 0.2, 64 * 64).reshape(64, 64))
        layer.bias.copy_(torch.linspace(-1, 1, 64))
        x = torch.linspace(-1, 1, 8 * 64).reshape(8, 64).bfloat16()
        try:
            found = PackedLinear(layer, gelu=True)(x)
        except (AttributeError, RuntimeError):
            return False
        return torch.allclose(found.float(), F.gelu(layer(x)).float(), rtol=0.02, atol=0.02)


def pack(block: Block) -> None:
    """Exchange a block's linear layers, of bfloat16 weights on the CPU, for packed ones."""
    parts: dict[str, nn.Module] = {"attn.qkv": PackedLinear(block.attn.qkv), "attn.proj": PackedLinear(block.attn.proj)}
    if isinstance(block.mlp, SwiGLU):
        parts |= {"mlp.w12": PackedLinear(block.mlp.w12), "mlp.w3": PackedLinear(block.mlp.w3)}
    elif block.mlp.quick:
        parts |= {"mlp.fc1": PackedLinear(block.mlp.fc1), "mlp.fc2": PackedLinear(block.mlp.fc2)}
    else:
        parts["mlp"] = PackedMlp(block.mlp)
    for name, part in parts.items():
        block.set_submodule(name, part)
