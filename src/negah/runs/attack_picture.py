"""One picture, attacked: what a classifier says of it before and after, and what was changed.

    found = attack_picture("roof.png", method="PGD", eps=2 / 255)
    found.before, found.after, found.chances            pixels in [0, 1], what the model says of each

The class that the model names is taken as the right one: the question is whether it can be moved, not whether it is
right.  `negah.runs.attack` asks many labelled pictures, and says whether its figures can be trusted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from negah.adversarial import apgd, fgsm, pgd, square
from negah.adversarial.target import logits_of, still
from negah.errors import InputError
from negah.images.pool import Picture
from negah.images.sources import find_source
from negah.runs.attack import NORMS
from negah.runs.classifiers import classifier
from negah.runs.record import compute_device

METHODS = ("FGSM", "PGD", "APGD", "Square")


@dataclass(frozen=True)
class Attacked:
    """before, after: what the model was shown.  chances: of both, by class.  largest: change of a pixel, in [0, 1].
    length: of the perturbation, in its norm."""

    before: Float[Tensor, "3 h w"]
    after: Float[Tensor, "3 h w"]
    chances: Float[ndarray, "2 classes"]
    classes: tuple[str, ...]
    largest: float
    length: float

    @property
    def named(self) -> tuple[str, str]:
        """The class that the model names, before and after."""
        before, after = self.chances.argmax(1)
        return self.classes[before], self.classes[after]

    @property
    def fooled(self) -> bool:
        """Whether it names another class."""
        return self.named[0] != self.named[1]


def attack_picture(
    path: str | Path, *, model: str = "negah/aerial-tiny", method: str = "PGD", norm: str = "Linf",
    eps: float = 2 / 255, steps: int = 20, seed: int = 0,
) -> Attacked:  # fmt: skip
    """Attack the middle square of a picture, within `eps` of it.

    Args:
        model: as `classifiers.classifier` takes it.
        method: one of METHODS.  norm: "Linf", "L2" or "L1"; FGSM takes one step, and Square has no L1.
        steps: gradients of PGD and APGD, queries of Square.

    Raises InputError for what cannot be read or attacked.
    """
    if method not in METHODS or norm not in NORMS:
        raise InputError(f"{method} in {norm}: the methods are {', '.join(METHODS)}, the norms {', '.join(NORMS)}")
    source = find_source(path)
    with source.open() as raster:
        short = min(raster.width, raster.height)
    judged = classifier(model, device=compute_device())
    before = judged.prepare(Picture(source).pixels(short).rgb).to(judged.device)[None]
    generator = torch.Generator(judged.device).manual_seed(seed)
    attack = {
        "FGSM": fgsm,
        "PGD": partial(pgd, steps=steps, generator=generator),
        "APGD": partial(apgd, steps=steps, generator=generator),
        "Square": partial(square, steps=steps, generator=generator),
    }[method]  # fmt: skip
    said = _said(judged.model, before)
    after = attack(judged.model, before, said.argmax(1), eps=eps, norm=NORMS[norm]())
    delta = (after - before)[0].flatten()
    orders: dict[str, float] = {"Linf": torch.inf, "L2": 2, "L1": 1}
    chances = torch.cat([said, _said(judged.model, after)]).cpu().numpy()
    names = judged.classes or tuple(f"class {number}" for number in range(chances.shape[1]))
    return Attacked(
        before[0].cpu(), after[0].cpu(), chances, names, float(delta.abs().max()),
        float(torch.linalg.vector_norm(delta, orders[norm])),
    )  # fmt: skip


def _said(model: Callable[[Tensor], Tensor], images: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 classes"]:
    with still(model), torch.no_grad():
        return logits_of(model, images).softmax(1)
