"""Square attack: random search by squares, without any gradient, so that no model can hide behind a broken one.

Andriushchenko et al. 2019, "Square Attack: a query-efficient black-box adversarial attack via random search",
arXiv:1912.00049.  A change is kept if the margin grows.

    Linf (algorithm 2)   start   vertical stripes one pixel wide, each channel of each at +-eps
                         change  a square at a random place, each channel of it at +-eps
    L2 (algorithm 3)     start   five by five tiles of a hill beside a pit, each channel of each with its own sign
                         change  one square is emptied, and what length it had goes to another: to what that one held
                                 already and a hill beside a pit, in equal parts

Squares take the share p of the image, from `share` down by halves at fixed steps (section 5.1, given for 10,000 steps
and scaled here).  Departures: none; there is no form for L1.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from negah.adversarial.climb import Best
from negah.adversarial.losses import margin
from negah.adversarial.norms import L2, LINF, Eps, Norm, per_image, uniform
from negah.adversarial.target import Model, check, logits_of, still
from negah.errors import InputError

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 steps
SHARES = {"Linf": 0.8, "L2": 0.1}  # the paper's
TILES = 5  # along a side, of the start in L2

Batch = Float[Tensor, "batch channel h w"]
Radius = Float[Tensor, "batch 1 1 1"]
Start = Callable[[Batch, Radius, torch.Generator | None], Batch]
Change = Callable[[Batch, Batch, Radius, int, torch.Generator | None], Batch]


def square(
    model: Model, images: Batch, labels: Int[Tensor, " batch"], *, eps: Eps, norm: Norm = LINF, steps: int = 1000,
    share: float | None = None, generator: torch.Generator | None = None,
) -> Batch:  # fmt: skip
    """`steps` queries of the model for each image that is not fooled.  share: None is the paper's of that norm.

    Raises InputError as other attacks do.
    """
    if norm.name not in SHARES:
        raise InputError(f"square attacks in {' and '.join(SHARES)} only, not in {norm.name}")
    share = SHARES[norm.name] if share is None else share
    if steps < 1 or not 0 < share <= 1:
        raise InputError(f"square needs steps of 1 or more and a share in (0, 1], not {steps} and {share}")
    start, change = MOVES[norm.name]
    with still(model), torch.no_grad():
        check(model, images, labels, eps)
        best = Best.of(images)
        index = torch.arange(len(images), device=images.device)
        radius = per_image(eps, images).expand(len(images), 1, 1, 1)
        x = start(images, radius, generator)
        for step in range(steps):
            logits = logits_of(model, x)
            best.offer(index, x, logits.argmax(1) != labels[index], margin(logits, labels[index]))
            index = (~best.fooled).nonzero().squeeze(1)
            if not len(index) or step == steps - 1:
                break
            length = side(step / steps, share, images)
            x = change(best.images[index], images[index], radius[index], length, generator)
    return best.images


def side(done: float, share: float, images: Batch) -> int:
    """Of the squares, in pixels, 1 at least and below the image's."""
    halvings = sum(done * 10_000 > at for at in HALVED_AT)
    h, w = images.shape[2:]
    return max(1, min(round(math.sqrt(share / 2**halvings * h * w)), min(h, w) - 1))


def stripes(images: Batch, radius: Radius, generator: torch.Generator | None) -> Batch:
    return (images + radius * _signs(images[:, :, :1], generator)).clamp(0, 1)


def paint(x: Batch, images: Batch, radius: Radius, side: int, generator: torch.Generator | None) -> Batch:
    """A square of each image at +-eps."""
    at = _somewhere(x, side, generator)
    signs = _signs(x[:, :, :1, :1], generator)
    x = x.clone()
    x[at] = (images[at] + radius * signs).clamp(0, 1)
    return x


def tiles(images: Batch, radius: Radius, generator: torch.Generator | None) -> Batch:
    """Hills and pits all over, as far as whole tiles reach."""
    h, w = images.shape[2:]
    length = max(1, min(h, w) // TILES)
    delta = torch.zeros_like(images)
    for top in range(h % length // 2, h - length + 1, length):
        for left in range(w % length // 2, w - length + 1, length):
            tile = _hills(images, length, generator) * _signs(images[:, :, :1, :1], generator)
            delta[:, :, top : top + length, left : left + length] = tile
    return (images + radius * L2().direction(delta)).clamp(0, 1)


def carry(x: Batch, images: Batch, radius: Radius, side: int, generator: torch.Generator | None) -> Batch:
    """Length from one square to another, and what of the radius is not used yet."""
    side = min(max(3, side + 1 - side % 2), *(s for s in x.shape[2:]))  # odd, so that a square has a middle
    delta = x - images
    there, here = _somewhere(x, side, generator), _somewhere(x, side, generator)
    both = torch.zeros_like(delta)
    both[there] = both[here] = 1
    held = (delta * both).square().sum((2, 3), keepdim=True)  # squared lengths, by channel
    unused = (radius.square() - delta.square().sum((1, 2, 3), keepdim=True)).clamp(min=0) / x.shape[1]
    old = delta[here]
    new = _of_length_1(old) + _hills(x, side, generator) * _signs(x[:, :, :1, :1], generator)
    delta[there] = 0
    delta[here] = _of_length_1(new) * (held + unused).sqrt()
    return (images + radius * L2().direction(delta)).clamp(0, 1)


MOVES: dict[str, tuple[Start, Change]] = {"Linf": (stripes, paint), "L2": (tiles, carry)}


def hill(h: int, w: int) -> Float[Tensor, "h w"]:
    """Highest in the middle, falling as sum over k >= d of 1 / (k + 1)^2 with the distance d from it (section 3.4)."""
    rows, columns = (torch.arange(h) - h // 2).abs(), (torch.arange(w) - w // 2).abs()
    distance = torch.maximum(rows.unsqueeze(1), columns)
    terms = 1 / (torch.arange(max(h, w) // 2 + 1) + 1.0).square()
    found = terms.flip(0).cumsum(0).flip(0)[distance]
    return found / found.square().sum().sqrt()


def _hills(like: Batch, side: int, generator: torch.Generator | None) -> Float[Tensor, "batch 1 side side"]:
    """A hill beside a pit, or above it, of length 1."""
    parts = [hill(side // 2, side), -hill(side - side // 2, side)] if side > 1 else [torch.ones(1, 1)]
    found = _of_length_1(torch.cat(parts)[None, None].to(like))
    upright = uniform(like[:, :1, :1, :1], generator) < 0.5
    return torch.where(upright, found, found.mT)


def _of_length_1(x: Float[Tensor, "... h w"]) -> Float[Tensor, "... h w"]:
    """In each channel by itself; 0 stays 0."""
    return x / x.square().sum((-2, -1), keepdim=True).sqrt().clamp(min=1e-10)


def _somewhere(x: Batch, side: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices of a square of each image."""
    n, _, h, w = x.shape
    where = uniform(x.new_empty(n, 2), generator)
    rows = (where[:, :1] * (h - side + 1)).long() + torch.arange(side, device=x.device)
    columns = (where[:, 1:] * (w - side + 1)).long() + torch.arange(side, device=x.device)
    batch, channel = torch.arange(n, device=x.device), torch.arange(x.shape[1], device=x.device)
    return batch.view(n, 1, 1, 1), channel.view(1, -1, 1, 1), rows.view(n, 1, side, 1), columns.view(n, 1, 1, side)


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return 2.0 * (uniform(like, generator) < 0.5).to(like) - 1
