"""What a norm supplies to an attack: a random start, the steepest direction, and the projection to its ball.

For the ball ||delta|| <= eps of one image, with g the gradient of the loss,

          start                          direction d, ||d|| = 1, of highest <g, d>     projection
    Linf  uniform in the cube            sign(g)                                       clamp each entry to +-eps
    L2    uniform in the ball            g / ||g||                                     scale to length eps
    L1    uniform in the ball            sign of the largest entry of g, 0 elsewhere   Duchi et al. 2008, fig. 1

Everything works on batches of images, [batch, ...], each image by itself; eps is one number, or one for each image.
L1's steepest direction moves one value of one pixel; attacks take `spread` of the largest entries at once, as Tramer
and Boneh 2019, arXiv:1904.13000, section 3.1, do.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Eps = float | Float[Tensor, " batch"]


@runtime_checkable
class Norm(Protocol):
    """What an attack asks of a norm."""

    name: str

    def size(self, delta: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """||delta|| of each image."""
        ...

    def start(
        self, images: Float[Tensor, "batch ..."], eps: Eps, generator: torch.Generator | None
    ) -> Float[Tensor, "batch ..."]:
        """A random delta, uniform in the ball."""
        ...

    def direction(self, gradient: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The steepest ascent of norm 1; zero where the gradient is zero."""
        ...

    def project(self, delta: Float[Tensor, "batch ..."], eps: Eps) -> Float[Tensor, "batch ..."]:
        """The nearest point (in L2) of the ball."""
        ...


class Linf:
    """max |delta_i|."""

    name = "Linf"

    def size(self, delta: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        return delta.flatten(1).abs().amax(1)

    def start(
        self, images: Float[Tensor, "batch ..."], eps: Eps, generator: torch.Generator | None
    ) -> Float[Tensor, "batch ..."]:
        return (2 * uniform(images, generator) - 1) * per_image(eps, images)

    def direction(self, gradient: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        return gradient.sign()

    def project(self, delta: Float[Tensor, "batch ..."], eps: Eps) -> Float[Tensor, "batch ..."]:
        if isinstance(eps, float | int):
            return delta.clamp(-eps, eps)
        return delta.minimum(per_image(eps, delta)).maximum(-per_image(eps, delta))


class L2:
    """sqrt(sum delta_i^2)."""

    name = "L2"

    def size(self, delta: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        return torch.linalg.vector_norm(delta.flatten(1), dim=1)

    def start(
        self, images: Float[Tensor, "batch ..."], eps: Eps, generator: torch.Generator | None
    ) -> Float[Tensor, "batch ..."]:
        d = images[0].numel()
        ray = normal(images, generator)
        radius = uniform(images.flatten(1)[:, 0], generator) ** (1 / d)
        return self.direction(ray) * per_image(radius, images) * per_image(eps, images)

    def direction(self, gradient: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        # Scaled first: the squares of a gradient of 1e-23 are zero in fp32.
        scaled = gradient / _positive(gradient.flatten(1).abs().amax(1), gradient)
        return scaled / _positive(self.size(scaled), gradient)

    def project(self, delta: Float[Tensor, "batch ..."], eps: Eps) -> Float[Tensor, "batch ..."]:
        size = per_image(self.size(delta), delta)
        return torch.where(size > per_image(eps, delta), delta * (per_image(eps, delta) / size.clamp(min=1e-30)), delta)


class L1:
    """sum |delta_i|.

    Args:
        spread: share of an image's values that a step moves, by equal amounts; the steepest direction moves one.
    """

    name = "L1"

    def __init__(self, spread: float = 0.01):
        if not 0 < spread <= 1:
            raise ValueError(f"spread is a share of an image's values, above 0 and at most 1, not {spread}")
        self.spread = spread

    def size(self, delta: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        return delta.flatten(1).abs().sum(1)

    def start(
        self, images: Float[Tensor, "batch ..."], eps: Eps, generator: torch.Generator | None
    ) -> Float[Tensor, "batch ..."]:
        """Exponential variables over their sum are uniform on the simplex; signs and a radius make it the ball."""
        d = images[0].numel()
        exponential = -torch.log1p(-uniform(images, generator))
        signs = 2.0 * (uniform(images, generator) < 0.5) - 1
        ray = signs * exponential
        radius = uniform(images.flatten(1)[:, 0], generator) ** (1 / d)
        return ray / _positive(self.size(ray), ray) * per_image(radius, images) * per_image(eps, images)

    def direction(self, gradient: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        flat = gradient.flatten(1)
        moved = max(1, math.floor(self.spread * flat.shape[1]))
        largest = flat.abs().topk(moved, dim=1)
        signs = flat.gather(1, largest.indices).sign()
        found = torch.zeros_like(flat).scatter(1, largest.indices, signs)
        return (found / found.abs().sum(1, keepdim=True).clamp(min=1)).view_as(gradient)

    def project(self, delta: Float[Tensor, "batch ..."], eps: Eps) -> Float[Tensor, "batch ..."]:
        """Each |delta_i| less one threshold, 0 at least, such that the sum is eps."""
        flat = delta.flatten(1)
        radius = per_image(eps, flat)
        ordered = flat.abs().sort(dim=1, descending=True).values
        count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
        thresholds = (ordered.cumsum(1) - radius) / count
        kept = (ordered > thresholds).sum(1, keepdim=True).clamp(min=1)
        threshold = thresholds.gather(1, kept - 1).clamp(min=0)
        shrunk = flat.sign() * (flat.abs() - threshold).clamp(min=0)
        return torch.where(flat.abs().sum(1, keepdim=True) > radius, shrunk, flat).view_as(delta)


LINF = Linf()


def per_image(value: Eps, like: Float[Tensor, "batch ..."]) -> Tensor:
    """A number for each image, shaped so that it multiplies images."""
    if not isinstance(value, Tensor):
        return like.new_tensor(value)
    return value.to(like).view(-1, *[1] * (like.dim() - 1))


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """In [0, 1), of that shape, type and device, drawn where the generator is."""
    where = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=where, dtype=like.dtype).to(like.device)


def normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal, likewise."""
    where = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=where, dtype=like.dtype).to(like.device)


def _positive(size: Float[Tensor, " batch"], like: Tensor) -> Tensor:
    """Sizes to divide by, 1 in place of 0."""
    return per_image(torch.where(size > 0, size, 1.0), like)
