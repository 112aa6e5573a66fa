"""A patch that could be printed and laid on a roof: one square that makes a model name the class of our choice.

Brown et al. 2017, "Adversarial Patch", arXiv:1712.09665: for random images x and random placements t,

    patch = argmin E_{x, t} cross_entropy(model(t(patch) laid over x), target)            values in a printable range

Thys et al. 2019, "Fooling automated surveillance cameras", arXiv:1904.08653, hide what a detector looks for in this
way, and add a total variation, since printers and cameras lose what differs from pixel to pixel:

    + smooth * mean |patch_i - patch_j| over neighbouring pixels i, j

What a share means: report it on images that the patch was not made of, beside those of a grey and of a random patch of
the same side, which cover as much of the image.

Departures: printable is a range of values, not a set of inks; perspective, blur and shadow are not drawn.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from negah.adversarial.norms import uniform
from negah.adversarial.target import Model, check, logits_of, still
from negah.errors import InputError

Images = Float[Tensor, "n channel h w"]
Patch = Float[Tensor, "channel side side"]


@dataclass(frozen=True)
class Placement:
    """How a patch lies in an image, drawn anew for each.

    at: row and column of its upper left corner; None draws them, such that it lies inside before it is turned.
    turn_deg: largest turn about its centre, either way.  light: largest relative change of its brightness.
    """

    at: tuple[int, int] | None = None
    turn_deg: float = 10.0
    light: float = 0.1


ANYWHERE = Placement()


def adversarial_patch(
    model: Model, images: Images, *, target: int, side: int, placement: Placement = ANYWHERE, steps: int = 100,
    batch: int = 16, step_size: float = 0.05, smooth: float = 0.0, printable: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Patch:  # fmt: skip
    """Make a patch, from grey, by `steps` of Adam, each on a random batch of the images.

    Args:
        target: class that the model shall name; give images of which it names another.
        side: of the patch, in pixels.
        smooth: weight of the total variation.
        printable: range of its values.

    Raises InputError for what cannot be attacked, a patch that does not fit, and a range outside of [0, 1].
    """
    low, high = printable
    if not 0 <= low <= high <= 1:
        raise InputError(f"printable values lie in 0 to 1, not {low:g} to {high:g}")
    _fits(side, images, placement)
    patch = torch.full_like(images[0, :, :side, :side], (low + high) / 2, requires_grad=True)
    labels = torch.full((len(images),), target, device=images.device)
    adam = torch.optim.Adam([patch], lr=step_size)
    with still(model):
        check(model, images, labels, 0.0)
        for _ in range(steps):
            some = torch.randperm(len(images), generator=generator)[:batch].to(images.device)
            with torch.enable_grad():
                logits = logits_of(model, patched(images[some], patch, placement, generator))
                loss = F.cross_entropy(logits, labels[some]) + smooth * total_variation(patch)
                (patch.grad,) = torch.autograd.grad(loss, patch)
            adam.step()
            with torch.no_grad():
                patch.clamp_(low, high)
    return patch.detach()


def patched(
    images: Images, patch: Float[Tensor, "_ _ _"], placement: Placement = ANYWHERE,
    generator: torch.Generator | None = None,
) -> Images:  # fmt: skip
    """The patch laid over each image; all other pixels stay as they are.  A turned corner may lie over the edge.

    Raises InputError for a patch that is not square, has other channels, or does not fit.
    """
    side, (height, width) = patch.shape[-1], images.shape[-2:]
    if patch.shape != (images.shape[1], side, side):
        raise InputError(f"a patch is [{images.shape[1]}, side, side], as the images' channels, not {[*patch.shape]}")
    _fits(side, images, placement)
    down, across, turn, light = uniform(images.new_empty(len(images), 4), generator).split(1, dim=1)
    if placement.at is None:
        row, col = (down * (height - side + 1)).floor(), (across * (width - side + 1)).floor()
    else:
        row, col = (torch.full_like(turn, corner) for corner in placement.at)
    turn = (2 * turn - 1) * placement.turn_deg * math.pi / 180
    # Pixel centres, seen from the patch's centre, in units of half its side: -1 to 1 inside, as grid_sample counts.
    y = (torch.arange(height, device=images.device) + 0.5 - row - side / 2)[:, :, None] * 2 / side
    x = (torch.arange(width, device=images.device) + 0.5 - col - side / 2)[:, None, :] * 2 / side
    cos, sin = turn.cos()[:, :, None], turn.sin()[:, :, None]
    places = torch.stack([cos * x + sin * y, cos * y - sin * x], -1)
    laid = F.grid_sample(
        patch.expand(len(images), -1, -1, -1), places, padding_mode="border", align_corners=False
    )  # fmt: skip
    laid = (laid * (1 + placement.light * (2 * light - 1))[..., None, None]).clamp(0, 1)
    return torch.where((places.abs() <= 1).all(-1).unsqueeze(1), laid, images)


@torch.no_grad()
def named(
    model: Model, images: Images, patch: Patch, target: int, placement: Placement = ANYWHERE,
    generator: torch.Generator | None = None,
) -> float:  # fmt: skip
    """Share of the images of which the model names the target with the patch laid over them."""
    with still(model):
        parts = [logits_of(model, patched(part, patch, placement, generator)).argmax(1) for part in images.split(64)]
    return (torch.cat(parts) == target).double().mean().item()


def total_variation(patch: Patch) -> Float[Tensor, ""]:
    """Mean difference between neighbours, across and down."""
    return (patch.diff(dim=-1).abs().sum() + patch.diff(dim=-2).abs().sum()) / patch.numel()


def _fits(side: int, images: Images, placement: Placement) -> None:
    height, width = images.shape[-2:]
    if not 1 <= side <= min(height, width):
        raise InputError(f"a patch of {side} px does not fit into images of {width} x {height} px")
    row, col = placement.at or (0, 0)
    if not (0 <= row <= height - side and 0 <= col <= width - side):
        raise InputError(
            f"a patch of {side} px at row {row}, column {col} lies outside images of {width} x {height} px"
        )
