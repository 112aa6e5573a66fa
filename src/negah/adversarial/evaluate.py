"""How robust a model is, with the evidence that the answer can be trusted.

    found = evaluate(model, images, labels, eps=(1 / 255, 2 / 255, 4 / 255))
    found.curve, found.verdicts, found.alarms

Every image faces a ladder of attacks, the cheapest first, until one fools it; robust accuracy is the share that none
has fooled, of all images.  An image counts as fooled when the model, asked again in fp32, misclassifies a point that
lies in the ball and in [0, 1].  Radii rise, and what fools in a small ball does so in a larger one.

`verdicts.verdicts` look for what is known to make such a figure too high.  They are taken at the radius that about half
of the images withstand, for there both a weak attack and a broken one show.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor, nn

from negah.adversarial.climb import Ball
from negah.adversarial.gradient import apgd, apgd_targeted, fgsm, pgd
from negah.adversarial.losses import dlr, margin
from negah.adversarial.norms import LINF, Norm
from negah.adversarial.square import SHARES, square
from negah.adversarial.target import Attack, Model, check, logits_of, still
from negah.adversarial.verdicts import Verdict, verdicts
from negah.adversarial.watch import Watched, inside
from negah.errors import InputError
from negah.progress import Progress, silent

RADII = {"Linf": (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255), "L2": (0.125, 0.25, 0.5, 1.0), "L1": (3.0, 6.0, 12.0)}

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


@dataclass(frozen=True)
class Point:
    """One radius: the share of the images that withstand all attacks, its 95 % interval, what the attacks did."""

    eps: float
    robust: float
    low: float
    high: float
    gradients: float  # for each image that was rightly classified, so far
    rungs: list[Rung]


@dataclass(frozen=True)
class Robustness:
    """What an evaluation found.

    clean: share of the images that are rightly classified as they are.  curve: a point for each radius, rising.
    verdicts: taken at `verdicts_eps`, on `sample` of the rightly classified images.
    fooled_at: the smallest radius at which each image was fooled: 0 as it is, inf at none.
    images: the points that did it; the clean image where none did.
    """

    norm: str
    clean: float
    curve: list[Point]
    verdicts: list[Verdict]
    verdicts_eps: float
    sample: int
    fooled_at: Float[Tensor, " n"]
    images: Images

    @property
    def alarms(self) -> list[Verdict]:
        """Verdicts that say that the figures may be too high."""
        return [verdict for verdict in self.verdicts if verdict.alarm]

    def figures(self) -> dict[str, Any]:
        """All but the pictures, as JSON takes it; an image that withstands all has no radius."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("images", "fooled_at")}
        plain |= {name: [asdict(one) for one in plain[name]] for name in ("curve", "verdicts")}
        radii = [eps if eps < float("inf") else None for eps in self.fooled_at.tolist()]
        return {"images": len(radii), **plain, "fooled_at": radii}


def ladder(classes: int, norm: Norm = LINF, *, steps: int = 50) -> dict[str, Attack]:
    """The usual attacks, the cheapest first: one step, PGD, APGD on two losses, targeted, and one without gradients.

    Of two classes the cross-entropy rises with the margin and has its direction, so APGD climbs the margin alone.
    """
    found: dict[str, Attack] = {"FGSM": fgsm, "PGD": partial(pgd, steps=max(1, steps // 5))}
    if classes == 2:
        found |= {"APGD": partial(apgd, steps=steps, loss=margin)}
    else:
        found |= {"APGD-CE": partial(apgd, steps=steps), "APGD-DLR": partial(apgd, steps=steps, loss=dlr)}
    if classes > 3:
        found |= {"APGD-T": partial(apgd_targeted, steps=steps, targets=min(9, classes - 1))}
    if norm.name in SHARES:
        found |= {"Square": partial(square, steps=4 * steps)}
    return found


def evaluate(
    model: Model, images: Images, labels: Int[Tensor, " n"], *, eps: float | Sequence[float] | None = None,
    norm: Norm = LINF, attacks: Mapping[str, Attack] | None = None, steps: int = 50, batch: int = 128,
    bf16: bool = False, sample: int = 64, seed: int = 0, progress: Progress = silent,
) -> Robustness:  # fmt: skip
    """Robust accuracy at each radius, and whether that figure can be trusted.

    Args:
        eps: one radius or several, where the range of a pixel is 1; none are RADII of the norm.
        attacks: by default `ladder`, whose longer attacks take `steps`.
        bf16: search in bfloat16; what counts is still fp32.
        sample: images that verdicts are taken on, at most.
        seed: of random starts and of the sample.

    Raises InputError for what cannot be attacked, also for a model that classifies no image rightly.
    """
    radii = tuple(sorted({float(e) for e in ([eps] if isinstance(eps, float | int) else eps or RADII[norm.name])}))
    if not radii[0] > 0:
        raise InputError(f"eps {radii[0]:g}: a radius is above 0, where the range of a pixel is 1")
    if norm.name == "Linf" and radii[-1] > 1:
        raise InputError(f"eps {radii[-1]:g} is more than the range of a pixel, which is 1: grey levels are eps / 255")
    for name, value in (("steps", steps), ("batch", batch), ("sample", sample)):
        if value < 1:
            raise InputError(f"{name} {value}: give 1 or more")
    with still(model):
        check(model, images, labels, radii[-1])
    said = _said(model, images, batch)
    right = (said.argmax(1) == labels).nonzero().squeeze(1)
    if not len(right):
        raise InputError(f"the model classifies none of {len(images)} images rightly: there is nothing to attack")
    attacks = ladder(said.shape[1], norm, steps=steps) if attacks is None else attacks
    total, outcome, spent = len(radii) * len(attacks), None, 0.0
    curve: list[Point] = []
    fooled_at = torch.full_like(labels, torch.inf, dtype=torch.float64)
    for i, radius in enumerate(radii):
        before = i * len(attacks)
        outcome = attacked(
            model, images, labels, eps=radius, norm=norm, attacks=attacks, batch=batch, bf16=bf16, seed=seed,
            start=outcome, progress=lambda stage, done, _, before=before: progress(stage, before + done, total),
        )  # fmt: skip
        spent += outcome.gradients
        curve.append(Point(radius, outcome.robust, *outcome.interval, spent, outcome.rungs))
        fooled_at[outcome.fooled & fooled_at.isinf()] = radius
    assert outcome is not None
    fooled_at[~outcome.right] = 0.0
    half = min(curve, key=lambda point: abs(point.robust - outcome.clean / 2)).eps
    drawn = torch.randperm(len(right), generator=torch.Generator().manual_seed(seed))[:sample]
    some = right[drawn.to(right.device)]
    found = verdicts(
        model, images[some], labels[some], eps=half, norm=norm, attacks=attacks, seed=seed, progress=progress
    )  # fmt: skip
    return Robustness(norm.name, outcome.clean, curve, found, half, len(some), fooled_at, outcome.images)


def attacked(
    model: Model, images: Images, labels: Int[Tensor, " n"], *, eps: float, norm: Norm = LINF,
    attacks: Mapping[str, Attack] | None = None, batch: int = 256, bf16: bool = False, seed: int = 0,
    start: Outcome | None = None, progress: Progress = silent,
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
        progress("attacks", len(rungs), len(attacks))
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
