"""Square attack: random search by squares, without any gradient, so that no model can hide behind a broken one.

Andriushchenko et al. 2019, "Square Attack: a query-efficient black-box adversarial attack via random search",
arXiv:1912.00049, algorithm 2 (Linf):

    start    vertical stripes one pixel wide, each channel of each at +-eps
    step     a square of side sqrt(p h w) at a random place, each channel at +-eps; kept if the margin grows

with the share p from `share` down by halves at fixed steps (section 5.1, given for 10,000 steps and scaled here).
Departures: none; only Linf.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from negah.adversarial.climb import Best
from negah.adversarial.losses import margin
from negah.adversarial.norms import LINF, Eps, Norm, per_image, uniform
from negah.adversarial.target import Model, check, logits_of, still
from negah.errors import InputError

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 steps


def square(
    model: Model, images: Float[Tensor, "batch channel h w"], labels: Int[Tensor, " batch"], *, eps: Eps,
    norm: Norm = LINF, steps: int = 1000, share: float = 0.8, generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channel h w"]:  # fmt: skip
    """`steps` queries of the model for each image that is not fooled.  Raises InputError as other attacks do."""
    if norm.name != "Linf":
        raise InputError(f"square attacks in Linf only, not in {norm.name}")
    if steps < 1 or not 0 < share <= 1:
        raise InputError(f"square needs steps of 1 or more and a share in (0, 1], not {steps} and {share}")
    with still(model), torch.no_grad():
        check(model, images, labels, eps)
        best = Best.of(images)
        index = torch.arange(len(images), device=images.device)
        radius = per_image(eps, images).expand(len(images), 1, 1, 1)
        x = (images + radius * _signs(images[:, :, :1], generator)).clamp(0, 1)
        for step in range(steps):
            logits = logits_of(model, x)
            best.offer(index, x, logits.argmax(1) != labels[index], margin(logits, labels[index]))
            index = (~best.fooled).nonzero().squeeze(1)
            if not len(index) or step == steps - 1:
                break
            x = best.images[index].clone()
            _paint(x, images[index], radius[index], side(step / steps, share, images), generator)
    return best.images


def side(progress: float, share: float, images: Float[Tensor, "batch channel h w"]) -> int:
    """Of the squares, in pixels, 1 at least and below the image's."""
    halvings = sum(progress * 10_000 > at for at in HALVED_AT)
    h, w = images.shape[2:]
    return max(1, min(round(math.sqrt(share / 2**halvings * h * w)), min(h, w) - 1))


def _paint(
    x: Float[Tensor, "batch channel h w"], images: Float[Tensor, "batch channel h w"],
    radius: Float[Tensor, "batch 1 1 1"], side: int, generator: torch.Generator | None,
) -> None:  # fmt: skip
    """A square of each image at +-eps, in place."""
    n, _, h, w = x.shape
    where = uniform(x.new_empty(n, 2), generator)
    rows = (where[:, :1] * (h - side + 1)).long() + torch.arange(side, device=x.device)
    columns = (where[:, 1:] * (w - side + 1)).long() + torch.arange(side, device=x.device)
    batch, channel = torch.arange(n, device=x.device), torch.arange(x.shape[1], device=x.device)
    at = (batch.view(n, 1, 1, 1), channel.view(1, -1, 1, 1), rows.view(n, 1, side, 1), columns.view(n, 1, 1, side))
    signs = _signs(x[:, :, :1, :1], generator)
    x[at] = (images[at] + radius * signs).clamp(0, 1)


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return 2.0 * (uniform(like, generator) < 0.5).to(like) - 1
