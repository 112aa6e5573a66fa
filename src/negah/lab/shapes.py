"""Small pictures of ten shapes, with their class and the exact pixels of the object: what the lab trains on by default.

A class is a shape with a pattern of its own.  Colours, place, size, turn and background are drawn for each picture, so
that neighbours in pixels say next to nothing of it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

CLASSES = ("disc", "ring", "triangle", "square", "hexagon", "cross", "star", "half disc", "crescent", "bars")
FINE = 3  # samples along a pixel's side
CHUNK = 512


@dataclass(frozen=True)
class Shapes:
    """Pictures, what they show, and which share of each pixel belongs to the object."""

    images: UInt8[Tensor, "n 3 side side"]
    labels: Int[Tensor, " n"]
    masks: Float[Tensor, "n side side"]


def shapes(n: int, side: int = 32, *, seed: int = 0) -> Shapes:
    """n pictures of side x side pixels, the same for the same arguments; classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % len(CLASSES)
    parts = [_draw(part, side, generator) for part in labels.split(CHUNK)]
    return Shapes(torch.cat([image for image, _ in parts]), labels, torch.cat([mask for _, mask in parts]))


def _draw(
    labels: Int[Tensor, " n"], side: int, generator: torch.Generator
) -> tuple[UInt8[Tensor, "n 3 side side"], Float[Tensor, "n side side"]]:
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    at = (torch.arange(side * FINE) + 0.5) / (side * FINE)
    radius, turn = uniform(0.26, 0.4, 1, 1), uniform(0, 2 * math.pi, 1, 1)
    y = (at[:, None] - uniform(0.4, 0.6, 1, 1)) / radius
    x = (at[None, :] - uniform(0.4, 0.6, 1, 1)) / radius
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    inside, pattern = torch.empty(2, n, len(at), len(at))
    for number, name in enumerate(CLASSES):
        mine = labels == number
        inside[mine] = _inside(name, u[mine], v[mine]).float()
        pattern[mine] = _pattern(number, u[mine], v[mine])
    mask, pattern = F.avg_pool2d(inside.unsqueeze(1), FINE), F.avg_pool2d(pattern.unsqueeze(1), FINE)

    # Two colours that differ by .35 or more in brightness, each with a slow change of its own over the picture.
    dark, gap = uniform(0.1, 0.5, 1, 1, 1), uniform(0.35, 0.5, 1, 1, 1)
    swapped = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    levels = torch.where(swapped, dark + gap, dark), torch.where(swapped, dark, dark + gap)
    object_, ground = (level + uniform(-0.15, 0.15, 3, 1, 1) + _clouds(n, side, generator) for level in levels)
    pixels = torch.lerp(ground, object_ + 0.35 * pattern, mask) + 0.03 * torch.randn(
        n, 3, side, side, generator=generator
    )
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8), mask.squeeze(1)


def _clouds(n: int, side: int, generator: torch.Generator) -> Float[Tensor, "n 3 side side"]:
    coarse = 0.05 * torch.randn(n, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)


def _pattern(number: int, u: Float[Tensor, "n h w"], v: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """-1 to 1: stripes, checks or rings of two to four waves across the object."""
    waves = math.pi * (2 + number % 3)
    if number % 4 == 0:
        return torch.zeros_like(u)
    if number % 4 == 1:
        return (waves * u).sin()
    return (waves * u).sin() * (waves * v).sin() if number % 4 == 2 else (waves * torch.hypot(u, v)).cos()


def _inside(name: str, u: Float[Tensor, "n h w"], v: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Whether points of a plane, in which the object has radius 1, belong to it."""
    r, angle = torch.hypot(u, v), torch.atan2(v, u)
    if name == "disc":
        return r < 0.9
    if name == "ring":
        return (r < 1) & (r > 0.55)
    if name in ("triangle", "square", "hexagon"):
        part = 2 * math.pi / {"triangle": 3, "square": 4, "hexagon": 6}[name]
        return r * (angle.remainder(part) - part / 2).cos() < math.cos(part / 2)
    if name == "cross":
        return (torch.minimum(u.abs(), v.abs()) < 0.28) & (torch.maximum(u.abs(), v.abs()) < 0.95)
    if name == "star":
        part = 2 * math.pi / 5
        return r < 1 - 0.62 * (angle.remainder(part) - part / 2).abs() / (part / 2)
    if name == "half disc":
        return (r < 1) & (v > -0.1)
    if name == "crescent":
        return (r < 1) & (torch.hypot(u - 0.45, v) > 0.8)
    return (torch.maximum(u.abs(), v.abs()) < 0.9) & ((v * 1.67).remainder(1.0) < 0.55)
