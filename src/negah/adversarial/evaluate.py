"""How robust a model is, with the evidence that the answer can be trusted.

    found = attacked(model, images, labels, eps=8 / 255)
    found.robust, found.interval

Every image faces a ladder of attacks, the cheapest first, until one fools it; robust accuracy is the share that none
has fooled, of all images.  An image counts as fooled when the model, asked again in fp32, misclassifies a point that
lies in the ball and in [0, 1].  `verdicts.verdicts` look for what is known to make such a figure too high.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor, nn

from negah.adversarial.climb import Ball
from negah.adversarial.gradient import apgd, apgd_targeted, fgsm, pgd
from negah.adversarial.losses import dlr, margin
from negah.adversarial.norms import LINF, Norm
from negah.adversarial.square import SHARES, square
from negah.adversarial.target import Model, check, logits_of, still
from negah.adversarial.watch import Watched, inside

Attack = Callable[..., Float[Tensor, "batch channel h w"]]
Images = Float[Tensor, "n channel h w"]


@dataclass(frozen=True)
class Rung:
    """What one attack of the ladder did.

    tried, fooled: images that it was given, and that it fooled.  outside: images that it returned outside the ball or
    [0, 1], which never count.  lost: images of which it has met a misclassified point and returned another.
    forwards, backwards: images asked for.  unverified: fooled in the search's precision, and not in fp32.
    """

    name: str
    tried: int
    fooled: int
    outside: int
    lost: int
    unverified: int
    forwards: int
    backwards: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a ladder did: the points found (the clean image where none was), which fool, and each attack's part."""

    images: Images
    fooled: Bool[Tensor, " n"]  # misclassified as they are, or by an attack
    right: Bool[Tensor, " n"]  # rightly classified as they are
    rungs: list[Rung] = field(default_factory=list)

    @property
    def clean(self) -> float:
        """Share of the images that are rightly classified as they are."""
        return self.right.double().mean().item()

    @property
    def robust(self) -> float:
        """Share of the images that are rightly classified whatever was tried."""
        return (~self.fooled).double().mean().item()

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of `robust` over images drawn as these were (Wilson)."""
        found = binomtest(int((~self.fooled).sum()), len(self.fooled)).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    @property
    def gradients(self) -> float:
        """Cost: gradients for each image that was rightly classified."""
        return sum(rung.backwards for rung in self.rungs) / max(1, int(self.right.sum()))


def ladder(classes: int, norm: Norm = LINF, *, steps: int = 50) -> dict[str, Attack]:
    """The usual attacks, the cheapest first: one step, PGD, APGD on two losses, targeted, and one without gradients."""
    found: dict[str, Attack] = {
        "FGSM": fgsm, "PGD": partial(pgd, steps=steps // 5), "APGD-CE": partial(apgd, steps=steps)
    }  # fmt: skip
    found |= {"APGD-DLR": partial(apgd, steps=steps, loss=dlr if classes > 2 else margin)}
    if classes > 3:
        found |= {"APGD-T": partial(apgd_targeted, steps=steps, targets=min(9, classes - 1))}
    if norm.name in SHARES:
        found |= {"Square": partial(square, steps=10 * steps)}
    return found


def attacked(
    model: Model, images: Images, labels: Int[Tensor, " n"], *, eps: float, norm: Norm = LINF,
    attacks: Mapping[str, Attack] | None = None, batch: int = 256, bf16: bool = False, seed: int = 0,
    start: Outcome | None = None,
) -> Outcome:  # fmt: skip
    """Each image through the ladder until it is fooled.

    Args:
        attacks: name to `attack(model, images, labels, eps=, norm=, generator=) -> images`; by default `ladder`.
        bf16: search in bfloat16; what counts is still fp32.
        start: of a smaller eps: what fooled there does so here.

    Raises InputError for what cannot be attacked.
    """
    with still(model):
        check(model, images, labels, eps)
    said = _said(model, images, batch)
    attacks = ladder(said.shape[1], norm) if attacks is None else attacks
    right = said.argmax(1) == labels
    found, fooled = (images.clone(), ~right) if start is None else (start.images.clone(), start.fooled.clone())
    search = Bf16(model) if bf16 else model
    rungs: list[Rung] = []
    for name, attack in attacks.items():
        generator = torch.Generator().manual_seed(seed)
        index = (~fooled).nonzero().squeeze(1)
        counts = {"fooled": 0, "outside": 0, "lost": 0, "unverified": 0, "forwards": 0, "backwards": 0}
        started = time.perf_counter()
        for part in index.split(batch) if len(index) else ():
            x, y = images[part], labels[part]
            ball = Ball(x, eps, norm)
            watched = Watched(search, ball, y)
            points = attack(watched, x, y, eps=eps, norm=norm, generator=generator).detach()
            valid, wrong = inside(ball, points), _said(model, points, batch).argmax(1) != y
            success = valid & wrong
            found[part] = torch.where(success.view(-1, 1, 1, 1), points, found[part])
            fooled[part] = success
            if bf16:
                with still(search):
                    claimed = _said(search, points, batch).argmax(1) != y
                counts["unverified"] += int((claimed & ~wrong & valid).sum())
            counts["fooled"] += int(success.sum())
            counts["outside"] += int((~valid).sum())
            counts["lost"] += int((watched.met & ~success).sum()) if not bf16 else 0
            counts["forwards"] += watched.forwards
            counts["backwards"] += watched.backwards
        rungs.append(Rung(name, len(index), seconds=time.perf_counter() - started, **counts))
    return Outcome(found, fooled, right, rungs)


class Bf16(nn.Module):
    """The model under autocast: faster to search with, and not what counts."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        self.train(model.training if isinstance(model, nn.Module) else False)

    def forward(self, images: Float[Tensor, "some channel h w"]) -> Float[Tensor, "some classes"]:
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images).float()


@torch.no_grad()
def _said(model: Model, images: Images, batch: int) -> Float[Tensor, "n classes"]:
    with still(model):
        return torch.cat([logits_of(model, part) for part in images.split(batch)])
