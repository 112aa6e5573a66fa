"""Colour and focus of whole batches, with a factor for each image; pixels in [0, 1] before and after.

Brightness, contrast, saturation, hue and blur are those of torchvision's transforms, which take one factor for all
images; the tests hold them against each other.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601


def luminance(x: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 1 h w"]:
    red, green, blue = x.split(1, 1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def brighten(x: Float[Tensor, "batch 3 h w"], factor: Float[Tensor, " batch"]) -> Float[Tensor, "batch 3 h w"]:
    """Times the factor, clipped."""
    return (x * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def contrast(x: Float[Tensor, "batch 3 h w"], factor: Float[Tensor, " batch"]) -> Float[Tensor, "batch 3 h w"]:
    """Away from (factor > 1) or towards the image's mean grey, clipped."""
    return luminance(x).mean((1, 2, 3), keepdim=True).lerp(x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def saturate(x: Float[Tensor, "batch 3 h w"], factor: Float[Tensor, " batch"]) -> Float[Tensor, "batch 3 h w"]:
    """Away from (factor > 1) or towards each pixel's grey, clipped."""
    return luminance(x).lerp(x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def turn_hue(x: Float[Tensor, "batch 3 h w"], turn: Float[Tensor, " batch"]) -> Float[Tensor, "batch 3 h w"]:
    """Hue of HSV moved by `turn` of the colour circle; value and saturation stay.

    With the hue h in sixths of the circle, chroma c and value v, channel n = 5, 3, 1 (red, green, blue) is
    v - c * clip(2 - |(n + h) mod 6 - 2|, 0, 1): the usual table of six cases without its cases.
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    divisor = chroma.clamp(min=1e-12)  # where there is no chroma, there is no hue to tell
    greenish, bluish = blue - red + 2 * divisor, red - green + 4 * divisor
    hue = torch.where(value == red, green - blue, torch.where(value == green, greenish, bluish))
    hue = hue.div_(divisor).add_(6 * turn.view(-1, 1, 1))
    out = torch.empty_like(x)
    for channel, n in enumerate((5, 3, 1)):
        k = hue + n
        k.sub_((k / 6).floor_(), alpha=6)  # k mod 6, in a third of the time that % takes
        share = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
        out[:, channel] = value - chroma * share
    return out


def blur(
    x: Float[Tensor, "batch 3 h w"], sigma: Float[Tensor, " batch"], *, reach: int
) -> Float[Tensor, "batch 3 h w"]:
    """Gaussian of each image's sigma (pixels), cut off beyond `reach` pixels, with reflected borders."""
    reach = min(reach, x.shape[-2] - 1, x.shape[-1] - 1)  # reflection has no more to give
    taps = torch.arange(-reach, reach + 1, device=x.device) / sigma[:, None]
    kernel = (-0.5 * taps.square()).softmax(1)[..., None, None, None]
    for axis, edges in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        length = x.shape[axis]
        padded = F.pad(x, edges, mode="reflect")
        # Shifted copies, those at one distance together: faster on a CPU than convolutions with a kernel per image.
        x = x * kernel[:, reach]
        for i in range(reach):
            x.addcmul_(padded.narrow(axis, i, length) + padded.narrow(axis, 2 * reach - i, length), kernel[:, i])
    return x
