"""Panels drawn onto real pictures: positives with exact masks on backgrounds that were really photographed.

Each image gets one to three arrays of modules (rows x columns of about 1.0 x 1.65 m, some missing, with frames between
them) in the colours that panels have from above, and about as many plain rectangles that are not panels (skylights,
tarpaulins, flat roofs, shadows), so that being a pasted rectangle says nothing.  Coverage is supersampled, so a mask
holds the fraction of each pixel that is panel.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MODULE_M = (1.0, 1.65)  # short and long side of a common residential module
SUPERSAMPLE = 2


def paste_panels(
    images: Float[Tensor, "batch 3 h w"],
    *,
    gsd_m: float,
    generator: torch.Generator,
    arrays: int = 2,
    decoys: int = 2,
    large: float = 0.0,
) -> tuple[Float[Tensor, "batch 3 h w"], Float[Tensor, "batch 1 h w"]]:
    """Images in [0, 1] with up to `arrays` panel arrays and `decoys` plain rectangles each; and the panels' masks.

    gsd_m: metres per pixel, which fixes the size of a module.  large: share of the arrays that are as large as those on
    halls, hundreds of square metres.  Returns new tensors.
    """
    masks = torch.zeros(len(images), 1, *images.shape[-2:])
    brightness = images.mean((1, 2, 3), keepdim=True)
    for i in range(arrays + decoys):
        panel = i >= decoys
        cover, lines = draw_arrays(
            images.shape, gsd_m=gsd_m, generator=generator, panel=panel, certain=i == decoys, large=large
        )
        colour, frame = colours(len(images), panel=panel, brightness=brightness, generator=generator)
        surface = torch.lerp(colour, frame, lines) if panel else colour.expand_as(images)
        images = torch.lerp(images, surface, cover)
        masks = torch.maximum(masks, cover) if panel else masks * (1 - cover)
    return images.clamp(0, 1), masks


def colours(b: int, *, panel: bool, brightness: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A surface colour and a frame colour per image."""

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(b, channels, 1, 1).uniform_(low, high, generator=generator)

    if not panel:
        return draw(0.2, 1.8) * brightness * draw(0.85, 1.15, 3), brightness
    blue = draw(0.0, 1.0)  # from black monocrystalline to blue polycrystalline, some hazy and bright
    tint = torch.cat([1 - 0.25 * blue, 1 - 0.08 * blue, 1.05 + 0.35 * blue], 1)
    surface = torch.lerp(draw(0.28, 0.85) * brightness * tint, brightness, draw(0.0, 0.3))
    return surface, torch.lerp(surface, brightness * draw(0.9, 1.6), draw(0.05, 0.7))


def draw_arrays(
    shape: torch.Size, *, gsd_m: float, generator: torch.Generator, panel: bool, certain: bool, large: float = 0.0
) -> tuple[Float[Tensor, "batch 1 h w"], Float[Tensor, "batch 1 h w"]]:
    """Coverage of one rectangle of modules per image, and the share of each pixel taken by lines between modules."""
    b, _, h, w = shape

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(b, 1, 1).uniform_(low, high, generator=generator)

    angle = draw(0, math.pi)
    cy, cx = draw(0.12, 0.88) * h, draw(0.12, 0.88) * w
    columns = (draw(0, 1).square() * 10 + 2).floor() if panel else draw(1, 8).floor()
    rows = (draw(0, 1).square() * 4 + 1).floor()
    if large and panel:
        huge = draw(0, 1) < large
        columns = torch.where(huge, (draw(0, 1) * 40 + 10).floor(), columns)
        rows = torch.where(huge, (draw(0, 1) * 20 + 5).floor(), rows)
    flip = draw(0, 1) < 0.5
    stretch = draw(0.9, 1.1)
    short, long = MODULE_M[0] / gsd_m * stretch, MODULE_M[1] / gsd_m * stretch
    across, down = torch.where(flip, short, long), torch.where(flip, long, short)
    s = SUPERSAMPLE
    y = (torch.arange(h * s) + 0.5).view(1, -1, 1) / s - cy
    x = (torch.arange(w * s) + 0.5).view(1, 1, -1) / s - cx
    u = (angle.cos() * x + angle.sin() * y) / across + columns / 2
    v = (-angle.sin() * x + angle.cos() * y) / down + rows / 2
    inside = (u >= 0) & (u < columns) & (v >= 0) & (v < rows)
    if panel:  # a few modules are missing at the corners, as around vents and hips
        missing = (
            torch.rand(b, 14 * 6, generator=generator) < 0.08 * torch.rand(b, 1, generator=generator) * 2
        ).float()
        index = (v.long() % 6 * 14 + u.long() % 14).flatten(1)
        inside = inside & (missing.gather(1, index).view_as(u) < 0.5)
    there = torch.ones(b, 1, 1) if certain else (draw(0, 1) < 0.4).float()
    cover = inside.float() * there
    gap = 0.06
    line = (((u - u.floor() - 0.5).abs() > 0.5 - gap * 1.2) | ((v - v.floor() - 0.5).abs() > 0.5 - gap)).float()
    both = torch.stack([cover, line], 1)
    both = F.avg_pool2d(both, s)
    return both[:, :1], both[:, 1:]
