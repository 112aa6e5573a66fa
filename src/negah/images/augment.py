"""Batched random views of aerial tiles, with the mask moved along: seen from above, there is no right way up.

One affine resampling does flips, turns, scale and shift together; one pass of per-image gains does the colours.  All
randomness comes from the generator that is passed in.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def move(
    images: UInt8[Tensor, "batch 3 h w"],
    masks: Float[Tensor, "batch 1 h w"],
    *,
    size: int,
    generator: torch.Generator,
    zoom: tuple[float, float] = (0.85, 1.15),
    turn_deg: float = 10.0,
    shift: float = 0.04,
    exact: float = 0.0,
) -> tuple[Float[Tensor, "batch 3 size size"], Float[Tensor, "batch 1 size size"]]:
    """Flip, quarter turns, small turn, zoom and shift; the borders are reflected.  Pixels come back in [0, 1].

    zoom: factors between which objects grow or shrink; shift: largest move, as a share of the side; exact: share of the
    images that are only flipped and turned by quarters, so that a model also learns from pixels that no resampling has
    blurred: at 0.3 m a panel is few of them.
    """
    b = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(b).uniform_(low, high, generator=generator)

    loose = (torch.rand(b, generator=generator) >= exact).float()
    quarter = torch.randint(4, (b,), generator=generator) * (math.pi / 2)
    angle = quarter + loose * uniform(-turn_deg, turn_deg) * (math.pi / 180)
    scale = (loose * uniform(math.log(zoom[0]), math.log(zoom[1]))).exp().reciprocal()
    flip = torch.randint(2, (b,), generator=generator) * 2.0 - 1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cos * flip, -sin, loose * uniform(-shift, shift)], 1),
        torch.stack([sin * flip, cos, loose * uniform(-shift, shift)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [b, 4, size, size], align_corners=False)
    both = torch.cat([images.float() / 255, masks], 1)
    both = F.grid_sample(both, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return both[:, :3], both[:, 3:]


def recolour(
    images: Float[Tensor, "batch 3 h w"], *, generator: torch.Generator, strength: float = 1.0
) -> Float[Tensor, "batch 3 h w"]:
    """Exposure, contrast, gamma, white balance, saturation, blur and noise, each drawn per image; clipped to [0, 1].

    strength: 1 goes as far as cameras and weather do; there small panels often drown, and a detector that sees nothing
    else learns less than from milder views.
    """
    b = len(images)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return strength * torch.empty(b, channels, 1, 1).uniform_(low, high, generator=generator)

    x = images.clamp(1e-4, 1) ** draw(-0.35, 0.35).exp()
    x = x * (1 + draw(-0.25, 0.25)) * (1 + draw(-0.08, 0.08, channels=3))
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (1 + draw(-0.25, 0.3)) + mean
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + draw(-0.5, 0.4))
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, draw(-0.5, 0.9))  # negative: sharpened
    noise = torch.randn(x.shape, generator=generator) * draw(0.0, 0.03)
    return (x + noise).clamp(0, 1)
