"""Linear layers and convolutions with weights in the order that a CPU multiplies them in: inference only.

PyTorch keeps them in another order.  A plain `nn.Linear` of bfloat16 and a plain `nn.Conv2d` bring them into it anew at
every call, which costs a small model, or a convolution over few pixels, as much as the product itself does; here it is
done once, and the GELU behind an MLP's first layer is applied while the product is still in the cache.  Convolutions
by 3 x 3 kernels over many pixels of float32 take the way of `negah.nn.winograd`.

The operators are those that PyTorch's own compiler puts in the place of such layers
(torch/_inductor/mkldnn_lowerings.py).  They are not public, so ask `available` first; no gradient passes them.
"""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from negah.nn import winograd
from negah.nn.vit import Block, Mlp, SwiGLU

ROWS = 2048  # of a product, about: the order of the weights is chosen for it; any other number works, too


class PackedLinear(nn.Module):
    """A linear layer, and the exact GELU behind it if asked for."""

    def __init__(self, layer: nn.Linear, *, gelu: bool = False):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.then = ("gelu", "none") if gelu else ("none", "")  # what, and its approximation

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        what, approximation = self.then
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, what, [], approximation)


class PackedConv2d(nn.Module):
    """A convolution.  Which way it takes, and so the order of its weights, is settled by the first input it gets."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        self.weight = layer.weight.detach()
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.how = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
        self.small = layer.kernel_size == (3, 3) and self.how == ([1, 1], [1, 1], [1, 1], 1)
        self.settled = False

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out rows columns"]:
        worthwhile = self.small and x.dtype == torch.float32 and winograd.worthwhile(x, len(self.weight))
        padding, stride, dilation, groups = self.how
        if not self.settled:
            self.settled = True
            if not worthwhile:
                self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                    self.weight, padding, stride, dilation, groups, list(x.shape)
                )
        if self.weight.is_mkldnn:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, padding, stride, dilation, groups, "none", [], ""
            )
        if worthwhile:
            return winograd.conv3x3(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, padding=1)


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
    with torch.inference_mode():
        values = torch.linspace(-0.2, 0.2, 64 * 64).reshape(64, 64)
        x, bias = torch.linspace(-1, 1, 8 * 64).reshape(8, 64), torch.linspace(-1, 1, 64)
        layer, filters = nn.Linear(64, 64, device="meta"), nn.Conv2d(64, 64, 1, device="meta")  # no random numbers
        try:
            for dtype in (torch.bfloat16, torch.float32):
                for net, weight in ((layer, values), (filters, values[..., None, None])):
                    net.weight, net.bias = (nn.Parameter(t.to(dtype), requires_grad=False) for t in (weight, bias))
                wanted = layer(x.to(dtype)).float()
                found = [
                    PackedLinear(layer)(x.to(dtype)),
                    PackedConv2d(filters)(x.to(dtype)[..., None, None])[..., 0, 0],
                ]
                gelu = PackedLinear(layer, gelu=True)(x.to(dtype)).float()
                same = [torch.allclose(one.float(), wanted, rtol=0.02, atol=0.02) for one in found]
                if not all(same) or not torch.allclose(gelu, F.gelu(wanted), rtol=0.02, atol=0.02):
                    return False
        except (AttributeError, RuntimeError):
            return False
        return True


def pack_layers(net: nn.Module) -> None:
    """Exchange all linear layers and convolutions of a network on the CPU, except ones of classes made from these."""
    for name, layer in list(net.named_modules()):
        if type(layer) is nn.Linear:
            net.set_submodule(name, PackedLinear(layer))
        elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            net.set_submodule(name, PackedConv2d(layer))


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
