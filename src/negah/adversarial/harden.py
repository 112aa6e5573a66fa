"""Adversarial training: learn from images that are made to fool the network as it is now.

    objective = Hardening(model, eps=8 / 255, craft=pgd_start)
    fit(objective, batches, steps=..., lr=..., scores=held_out(model, images, labels, eps=8 / 255),
        score_every=..., callbacks=[OverfittingWatch(), KeepBest("robust")])

Batches are (images in [0, 1], labels).  What is learned from is made by `craft`, for a ball of radius eps:

    fgsm_start    one step of eps from the image                        Goodfellow et al. 2014, arXiv:1412.6572
    random_start  one step of 1.25 eps from a random point, projected   Fast-AT, Wong et al. 2020, arXiv:2001.03994
    noisy_start   one step of eps from noise in +-2 eps, unprojected    N-FGSM, de Jorge et al. 2022, arXiv:2202.01181
    pgd_start     ten steps of eps / 4 from a random point              Madry et al. 2017, arXiv:1706.06083

and `Trades`, Zhang et al. 2019, arXiv:1901.08573, eq. 5, climbs and learns another loss:

    CE(z(x), y) + beta * KL(p(x) || p(x')),     x' by ten steps on the KL alone

How it fails: one-step training can overfit catastrophically, to robustness against one step alone, from one epoch to
the next.  `OverfittingWatch` sees it on held-out images, in evaluation mode, by five steps, and goes back.

Departures: images are made in evaluation mode (as in TRADES' code, not in Fast-AT's), so batch norms see an image once.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah.adversarial.climb import Ball
from negah.adversarial.gradient import Fixed, pgd
from negah.adversarial.losses import cross_entropy
from negah.adversarial.norms import LINF, Norm, per_image, uniform
from negah.adversarial.target import Model, gradient, logits_of, still
from negah.errors import InputError, TrainingError
from negah.train import Objective
from negah.train.callbacks import Callback
from negah.train.ema import EMA
from negah.train.run import Run

Images = Float[Tensor, "batch channel h w"]
Labels = Int[Tensor, " batch"]
Batch = Sequence[Tensor]  # images, labels


def fgsm_start(
    model: Model, images: Images, labels: Labels, eps: float, norm: Norm, generator: torch.Generator
) -> Images:
    """FGSM from the image itself."""
    return pgd(model, images, labels, eps=eps, norm=norm, steps=1, step_size=eps, random=False, keep="last")


def random_start(
    model: Model, images: Images, labels: Labels, eps: float, norm: Norm, generator: torch.Generator
) -> Images:
    """Fast-AT."""
    return pgd(
        model, images, labels, eps=eps, norm=norm, steps=1, step_size=1.25 * eps, keep="last", generator=generator
    )


def noisy_start(
    model: Model, images: Images, labels: Labels, eps: float, norm: Norm, generator: torch.Generator
) -> Images:
    """N-FGSM: the only one that leaves the ball, up to 3 eps, by design."""
    noisy = (images + norm.start(images, 2 * eps, generator)).clamp(0, 1)
    with still(model):
        _, _, slope = gradient(model, noisy, labels, cross_entropy)
    return (noisy + per_image(eps, images) * norm.direction(slope)).clamp(0, 1)


def pgd_start(
    model: Model, images: Images, labels: Labels, eps: float, norm: Norm, generator: torch.Generator, *,
    steps: int = 10,
) -> Images:  # fmt: skip
    """PGD, with steps of 2/255 where eps is 8/255."""
    return pgd(
        model, images, labels, eps=eps, norm=norm, steps=steps, step_size=2.5 * eps / steps, keep="last",
        generator=generator,
    )  # fmt: skip


Craft = Callable[[Model, Images, Labels, float, Norm, torch.Generator], Images]


class Hardening(Objective):
    """Cross-entropy of images that `craft` has made to be hard.

    Args:
        model: images in [0, 1] to logits; trained in place.
        average: momentum of the moving average of the weights, `averaged.model`, or None for none.
    """

    def __init__(
        self, model: nn.Module, *, eps: float, craft: Craft = pgd_start, norm: Norm = LINF,
        average: float | None = None,
    ):  # fmt: skip
        super().__init__()
        if not eps >= 0:
            raise InputError(f"eps is the radius of a ball, 0 or more, not {eps}")
        self.model, self.eps, self.craft, self.norm = model, eps, craft, norm
        self.averaged = None if average is None else EMA(model, average)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        # From the global generator, which `fit` seeds and keeps: `still` puts it back after each attack.
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return self.loss(images, labels, generator)

    def loss(self, images: Images, labels: Labels, generator: torch.Generator) -> dict[str, Tensor]:
        hard = self.craft(self.model, images, labels, self.eps, self.norm, generator)
        logits = self.model(hard)
        right = (logits.detach().argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "right": right}

    def after_step(self, progress: float) -> None:
        if self.averaged is not None:
            self.averaged.update(self.model, progress)


class Trades(Hardening):
    """Trade accuracy for robustness by `beta`: 6 is the paper's for CIFAR-10."""

    def __init__(self, model: nn.Module, *, eps: float, beta: float = 6.0, steps: int = 10, norm: Norm = LINF,
                 average: float | None = None):  # fmt: skip
        super().__init__(model, eps=eps, norm=norm, average=average)
        self.beta, self.steps = beta, steps

    def loss(self, images: Images, labels: Labels, generator: torch.Generator) -> dict[str, Tensor]:
        hard = self.climb(images, generator)
        clean, logits = self.model(torch.cat([images, hard])).chunk(2)
        apart = divergence(clean, logits).mean()
        right = (logits.detach().argmax(1) == labels).float().mean()
        clean_loss = F.cross_entropy(clean, labels)
        return {
            "loss": clean_loss + self.beta * apart,
            "clean": clean_loss.detach(),
            "kl": apart.detach(),
            "right": right,
        }

    def climb(self, images: Images, generator: torch.Generator) -> Images:
        """x': from a point next to the image, where the KL's gradient is not zero, by steps of eps / 4."""
        ball, step = Ball(images, self.eps, self.norm), Fixed(2.5 * self.eps / self.steps)
        with still(self.model):
            with torch.no_grad():
                target = logits_of(self.model, images)
            x = (images + 1e-3 * (2 * uniform(images, generator) - 1)).clamp(0, 1)
            aim = torch.arange(len(images), device=images.device)
            for _ in range(self.steps):
                _, losses, slope = gradient(self.model, x, aim, lambda logits, aim: divergence(target[aim], logits))
                x = step(ball, x, slope, losses)
        return x


def divergence(
    p: Float[Tensor, "batch classes"], q: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:  # fmt: skip
    """KL(softmax(p) || softmax(q)) of logits."""
    p, q = p.log_softmax(1), q.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def held_out(
    model: Model, images: Images, labels: Labels, *, eps: float, norm: Norm = LINF, steps: int = 5, batch: int = 256
) -> dict[str, Callable[[], float]]:
    """Scores for `fit`: "clean" and "robust" accuracy on held-out images, in evaluation mode; robust against PGD.

    Classes count alike, however many images they have: always to say the commonest would be robust, and useless.
    """
    counts = labels.bincount()
    weights = (1 / (counts * (counts > 0).sum()))[labels].double()

    def accuracy(eps: float) -> float:
        found, generator = 0.0, torch.Generator().manual_seed(0)
        for x, y, weight in zip(images.split(batch), labels.split(batch), weights.split(batch)):
            points = pgd(model, x, y, eps=eps, norm=norm, steps=steps, generator=generator) if eps else x
            with still(model), torch.no_grad():
                found += float((logits_of(model, points).argmax(1) == y).double() @ weight)
        return found

    return {"clean": partial(accuracy, 0.0), "robust": partial(accuracy, eps)}


class OverfittingWatch(Callback):
    """Catastrophic overfitting: when held-out robust accuracy falls by more than `drop` between two scores, put back
    the weights of the earlier one and stop."""

    def __init__(self, score: str = "robust", *, drop: float = 0.2):
        self.score, self.drop = score, drop
        self.last: dict[str, Any] = {}  # value, step, weights

    def after_step(self, run: Run) -> None:
        if not run.scores or run.scores[-1]["step"] != run.step:
            return
        if self.score not in run.scores[-1]:
            raise TrainingError(
                f"OverfittingWatch looks at {self.score!r}, but scores are {sorted(run.scores[-1])[:9]}"
            )
        value = run.scores[-1][self.score]
        if self.last and value < self.last["value"] - self.drop:
            run.objective.load_state_dict(self.last["weights"])
            run.stop = (
                f"catastrophic overfitting: held-out {self.score} fell from {self.last['value']:.3f} to {value:.3f}"
                f" at step {run.step}; weights are those of step {self.last['step']}"
            )
            return
        self.last = {"value": value, "step": run.step, "weights": copy.deepcopy(run.objective.state_dict())}

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = state["last"]
