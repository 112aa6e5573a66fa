"""Linear layers in fp32 on CPUs by the faster of the two libraries that PyTorch brings.

PyTorch gives products of fp32 matrices to MKL, and convolutions to oneDNN.  On the one processor where both were
measured, an AMD EPYC, oneDNN took 0.4 to 0.7 of the time forward, and never longer backward, with one thread
and with two ("products" in benchmarks/results/ssl_step.json); other makes are not measured.

So a product is written as a convolution with kernels of 1x1, over a picture of one line in which each row is a pixel.
With one thread PyTorch would send that to MKL as well, but not if it is dilated, which changes nothing for a kernel of
one pixel.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FEWEST = 256  # rows; below, bringing the weights into the library's order takes longer than it saves


def product(
    x: Float[Tensor, "row inner"], weight: Float[Tensor, "outer inner"], bias: Float[Tensor, " outer"] | None = None
) -> Float[Tensor, "row outer"]:
    """F.linear, up to rounding; the same call where the product is not of many rows in fp32 on a CPU."""
    plain = x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32
    if plain or len(x) < FEWEST or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    pixels = x.contiguous().view(1, 1, *x.shape).permute(0, 3, 1, 2)  # channels last: nothing is copied
    return F.conv2d(pixels, weight[:, :, None, None], bias, dilation=2).permute(0, 2, 3, 1).flatten(0, 2)


class Linear(nn.Linear):
    """nn.Linear on matrices, through `product`."""

    def forward(self, input: Float[Tensor, "row inner"]) -> Float[Tensor, "row outer"]:
        return product(input, self.weight, self.bias)
