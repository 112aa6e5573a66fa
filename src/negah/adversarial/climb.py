"""The one loop of all attacks by gradients: climb a loss from a start, and keep the best point met on the way.

    x_0 = clip(start),   x_{t+1} = clip(step(x_t, gradient of the loss at x_t)),
    clip(x) = the nearest point of the ball around the image, then of [0, 1]

An attack is a start, a `Step` and a loss.  The best point is one that is misclassified, and among equals the one of the
highest loss; the last point is looked at as well.  Images that are fooled leave the batch: they cannot get any better.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from negah.adversarial.norms import Eps, Norm
from negah.adversarial.target import Loss, Model, gradient, logits_of

Keep = Literal["best", "last"]
SHRINK = 0.8  # a batch is made smaller when less than this share of it is still to be fooled: each size costs anew


@dataclass(frozen=True)
class Ball:
    """Where an attack may go: ||x - image|| <= eps, and 0 <= x <= 1."""

    images: Float[Tensor, "batch 3 h w"]
    eps: Eps
    norm: Norm

    def clip(self, x: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
        """Projected to the ball, then clipped to [0, 1], which brings no value further from the image."""
        return (self.images + self.norm.project(x - self.images, self.eps)).clamp(0, 1)

    def start(self, generator: torch.Generator | None) -> Float[Tensor, "batch 3 h w"]:
        """A random point."""
        return (self.images + self.norm.start(self.images, self.eps, generator)).clamp(0, 1)

    def __getitem__(self, kept: Tensor) -> "Ball":
        return Ball(self.images[kept], self.eps[kept] if isinstance(self.eps, Tensor) else self.eps, self.norm)


@runtime_checkable
class Step(Protocol):
    """How an attack moves."""

    def __call__(
        self, ball: Ball, x: Float[Tensor, "batch 3 h w"], slope: Float[Tensor, "batch 3 h w"],
        losses: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch 3 h w"]:  # fmt: skip
        """The next point, inside the ball."""
        ...

    def __getitem__(self, kept: Tensor) -> "Step":
        """The same for some of the images."""
        ...


@dataclass
class Best:
    """The best point of each image so far, over starts and attacks."""

    images: Float[Tensor, "batch 3 h w"]
    fooled: Bool[Tensor, " batch"]
    losses: Float[Tensor, " batch"]

    @classmethod
    def of(cls, images: Float[Tensor, "batch 3 h w"]) -> "Best":
        """The clean images, which anything is better than."""
        n = len(images)
        return cls(
            images.clone(), torch.zeros(n, dtype=torch.bool, device=images.device), images.new_full((n,), -torch.inf)
        )

    def offer(self, index: Tensor, x: Tensor, fooled: Tensor, losses: Tensor) -> None:
        """Take up the points of images `index` that are better."""
        was, before = self.fooled[index], self.losses[index]
        losses = losses.to(before.dtype)
        # Among equals the later one: where the loss has vanished in rounding, it still is further along.
        better = (fooled & ~was) | ((fooled == was) & (losses >= before))
        at = index[better]
        self.images[at], self.fooled[at], self.losses[at] = x[better], fooled[better], losses[better]


def climb(
    model: Model, best: Best, index: Int[Tensor, " some"], ball: Ball, x: Float[Tensor, "some 3 h w"],
    labels: Int[Tensor, " some"], aim: Int[Tensor, "some *aim"], step: Step, steps: int, loss: Loss,
    *, keep: Keep = "best",
) -> None:  # fmt: skip
    """Climb from x, and write what is found for images `index` into `best`.

    labels: true classes, by which a point is misclassified.  aim: the loss's second argument, mostly the labels too.
    keep: "last" goes all the way with all images and takes the last point, better or not, without asking about it.
    """
    for _ in range(steps):
        logits, losses, slope = gradient(model, x, aim, loss)
        if keep == "best":
            fooled = logits.argmax(1) != labels
            best.offer(index, x, fooled, losses)
            left = (~fooled).nonzero().squeeze(1)
            if not len(left):
                return
            if len(left) <= SHRINK * len(x):
                index, x, labels, aim, slope, losses = (part[left] for part in (index, x, labels, aim, slope, losses))
                ball, step = ball[left], step[left]
        x = step(ball, x, slope, losses)
    if keep == "last":
        best.images[index] = x
        return
    with torch.no_grad():
        logits = logits_of(model, x)
        best.offer(index, x, logits.argmax(1) != labels, loss(logits, aim))
