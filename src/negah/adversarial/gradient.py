"""Attacks that follow the gradient: FGSM, PGD and APGD.  Plain functions, from images in [0, 1] to such images.

FGSM: Goodfellow et al. 2014, "Explaining and Harnessing Adversarial Examples", arXiv:1412.6572:

    x = image + eps * direction(gradient)                           direction: sign for Linf, see `norms`

PGD: Madry et al. 2017, "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv:1706.06083: from a random
point of the ball, many such steps of `step_size`, each projected back, several times over.

APGD: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks", arXiv:2003.01690, algorithm 1: steps begin at 2 eps, with momentum 0.75, and are halved, from the best point,
where the loss has stopped rising:

    z = clip(x_t + eta * direction(gradient)),   x_{t+1} = clip(x_t + 0.75 (z - x_t) + 0.25 (x_t - x_{t-1}))

How an attack can fail unnoticed: the gradient is zero or noise (saturated or quantised models), the loss is flat where
the model is sure (take `losses.dlr`), steps are too short or too few.  `adversarial.verdicts` looks for all of these.

Departures: the best point is returned, not the last; images that are fooled are not attacked any further; eps may
differ by image.  All attacks leave the model as it was (`target.still`) and draw from `generator` alone.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from negah.adversarial.climb import Ball, Best, Keep, climb
from negah.adversarial.losses import cross_entropy, targeted_dlr
from negah.adversarial.norms import LINF, Eps, Norm, per_image
from negah.adversarial.target import Loss, Model, check, logits_of, still
from negah.errors import InputError

Images = Float[Tensor, "batch channel h w"]
Labels = Int[Tensor, " batch"]


def fgsm(
    model: Model, images: Images, labels: Labels, *, eps: Eps, norm: Norm = LINF, loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
) -> Images:  # fmt: skip
    """One step of length eps; nothing is random.  Raises InputError for what cannot be attacked, as all attacks do.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> images, labels = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])
        >>> found = fgsm(model, images, labels, eps=8 / 255)
        >>> f"{(found - images).abs().max() * 255:.0f}"
        '8'
    """
    return pgd(
        model, images, labels, eps=eps, norm=norm, steps=1, step_size=eps, loss=loss, random=False, keep="last",
        generator=generator,
    )  # fmt: skip


def pgd(
    model: Model, images: Images, labels: Labels, *, eps: Eps, norm: Norm = LINF, steps: int = 20,
    step_size: Eps | None = None, restarts: int = 1, random: bool = True, loss: Loss = cross_entropy,
    keep: Keep = "best", generator: torch.Generator | None = None,
) -> Images:  # fmt: skip
    """Projected gradient ascent.

    Args:
        step_size: by default 2.5 eps / steps, as in the paper's code: from any point the ball's other side is in reach.
        restarts: random starts, one after the other, for the images that are not fooled yet.
        random: start at a random point of the ball, instead of at the image.
        keep: "last" returns the last point even if an earlier one was better, as other libraries do.

    Raises InputError for what cannot be attacked, and for restarts of which only the last point would be kept.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> images = torch.rand(2, 3, 2, 2)
        >>> labels = model(images).argmax(1)  # an attack begins where the model is right
        >>> found = pgd(model, images, labels, eps=8 / 255, steps=5, generator=torch.Generator().manual_seed(0))
        >>> bool((cross_entropy(model(found), labels) >= cross_entropy(model(images), labels)).all())
        True
    """
    _positive(steps=steps, restarts=restarts)
    if keep == "last" and restarts > 1:
        raise InputError(f'{restarts} restarts and keep="last" would return the last start alone: keep the best')
    step = Fixed(2.5 * eps / steps if step_size is None else step_size)
    return _attack(model, images, labels, eps, norm, step, steps, restarts, random, loss, keep, generator)


def apgd(
    model: Model, images: Images, labels: Labels, *, eps: Eps, norm: Norm = LINF, steps: int = 100,
    restarts: int = 1, loss: Loss = cross_entropy, generator: torch.Generator | None = None,
) -> Images:  # fmt: skip
    """Auto-PGD, without a step size to choose; with `losses.dlr` it is APGD-DLR."""
    _positive(steps=steps, restarts=restarts)
    step = Halving.of(steps, eps, images)
    return _attack(model, images, labels, eps, norm, step, steps, restarts, True, loss, "best", generator)


def apgd_targeted(
    model: Model, images: Images, labels: Labels, *, eps: Eps, norm: Norm = LINF, steps: int = 100, targets: int = 9,
    generator: torch.Generator | None = None,
) -> Images:  # fmt: skip
    """APGD on the targeted DLR loss, towards each of the `targets` classes that are likeliest after the true one.

    Raises InputError for a model of fewer than four classes.
    """
    _positive(steps=steps, targets=targets)
    with still(model):
        check(model, images, labels, eps)
        with torch.no_grad():
            logits = logits_of(model, images)
        others = logits.scatter(1, labels.unsqueeze(1), -torch.inf).argsort(1, descending=True)[:, :-1]
        best, ball = Best.of(images), Ball(images, eps, norm)
        for rank in range(min(targets, others.shape[1])):
            left = (~best.fooled).nonzero().squeeze(1)
            if not len(left):
                break
            some, aim = ball[left], torch.stack([labels[left], others[left, rank]], 1)
            x, step = some.start(generator), Halving.of(steps, some.eps, some.images)
            climb(model, best, left, some, x, labels[left], aim, step, steps, targeted_dlr)
    return best.images


@dataclass(frozen=True)
class Fixed:
    """Steps of one length along the steepest direction."""

    size: Eps

    def __call__(self, ball: Ball, x: Images, slope: Images, losses: Tensor) -> Images:
        return ball.clip(x + per_image(self.size, x) * ball.norm.direction(slope))

    def __getitem__(self, kept: Tensor) -> "Fixed":
        return Fixed(self.size[kept]) if isinstance(self.size, Tensor) else self


@dataclass
class Halving:
    """APGD's steps.  All tensors are [batch] or images; `checkpoints` are steps at which the loss is looked at."""

    checkpoints: list[int]
    size: Float[Tensor, " batch"]
    best: Float[Tensor, " batch"]  # highest loss
    best_x: Images
    best_slope: Images
    last_losses: Float[Tensor, " batch"]
    rises: Float[Tensor, " batch"]  # since the last checkpoint
    size_then: Float[Tensor, " batch"]  # at the last checkpoint, before it was halved
    best_then: Float[Tensor, " batch"]
    before: Images | None = None  # the last point
    number: int = 0  # of the step

    MOMENTUM, RISING = 0.75, 0.75

    @classmethod
    def of(cls, steps: int, eps: Eps, images: Images) -> "Halving":
        """At the start: steps of 2 eps."""
        size = 2 * per_image(eps, images).flatten().expand(len(images)).clone()
        low = torch.full_like(size, -torch.inf)
        return cls(
            checkpoints(steps), size, best=low, best_x=images, best_slope=torch.zeros_like(images),
            last_losses=-low, rises=torch.zeros_like(size), size_then=size, best_then=low,
        )  # fmt: skip

    def __call__(self, ball: Ball, x: Images, slope: Images, losses: Tensor) -> Images:
        higher = losses > self.best
        self.rises = self.rises + (losses > self.last_losses)
        self.last_losses = losses
        self.best = torch.where(higher, losses, self.best)
        self.best_x = torch.where(_flag(higher, x), x, self.best_x)
        self.best_slope = torch.where(_flag(higher, x), slope, self.best_slope)
        before = self.before
        if self.number in self.checkpoints[1:]:
            at = self.checkpoints.index(self.number)
            length = self.number - self.checkpoints[at - 1]
            stuck = (self.rises < self.RISING * length) | (
                (self.size_then == self.size) & (self.best_then == self.best)
            )
            self.size_then, self.best_then = self.size, self.best
            self.rises = torch.zeros_like(self.rises)
            self.size = torch.where(stuck, self.size / 2, self.size)
            x = torch.where(_flag(stuck, x), self.best_x, x)
            slope = torch.where(_flag(stuck, x), self.best_slope, slope)
        z = ball.clip(x + per_image(self.size, x) * ball.norm.direction(slope))
        if before is not None:
            z = ball.clip(x + self.MOMENTUM * (z - x) + (1 - self.MOMENTUM) * (x - before))
        self.before, self.number = x, self.number + 1
        return z

    def __getitem__(self, kept: Tensor) -> "Halving":
        parts = {name: value[kept] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **parts)


def checkpoints(steps: int) -> list[int]:
    """w_j = ceil(p_j steps), p_0 = 0, p_1 = .22, p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06): section 3.2."""
    hundredths = [0, 22]  # in whole numbers: ceil must not see 70.00000000000001
    while hundredths[-1] < 100:
        hundredths.append(hundredths[-1] + max(hundredths[-1] - hundredths[-2] - 3, 6))
    return sorted({-(-share * steps // 100) for share in hundredths if share <= 100})


def _attack(
    model: Model, images: Images, labels: Labels, eps: Eps, norm: Norm, step, steps: int, restarts: int,
    random: bool, loss: Loss, keep: Keep, generator: torch.Generator | None,
) -> Images:  # fmt: skip
    """`restarts` climbs, each for the images that are not fooled yet."""
    with still(model):
        check(model, images, labels, eps)
        best, ball = Best.of(images), Ball(images, eps, norm)
        for _ in range(restarts):
            left = (~best.fooled).nonzero().squeeze(1)
            if not len(left):
                break
            some = ball[left]
            x = some.start(generator) if random else some.images
            climb(model, best, left, some, x, labels[left], labels[left], step[left], steps, loss, keep=keep)
    return best.images


def _flag(flags: Bool[Tensor, " batch"], like: Tensor) -> Tensor:
    """Shaped so that it chooses images."""
    return flags.view(-1, *[1] * (like.dim() - 1))


def _positive(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is a count, 1 or more, not {value}")
