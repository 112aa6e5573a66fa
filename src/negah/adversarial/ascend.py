"""Climb any figure that can be read off an image, not only a class: the highest that a small change reaches.

    x = argmax score(x)   over ||x - image|| <= eps, 0 <= x <= 1

by the steps of APGD (`gradient.Halving`; Croce and Hein 2020, arXiv:2003.01690) from the image itself, keeping the
best point met.  Nothing is random, and nothing counts as fooled: every image goes all the way.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from negah.adversarial.climb import Ball, Best
from negah.adversarial.evaluate import Bf16
from negah.adversarial.gradient import Halving
from negah.adversarial.norms import LINF, Norm
from negah.adversarial.target import check, gradient, logits_of, still
from negah.errors import InputError

Images = Float[Tensor, "batch channel h w"]
Score = Callable[[Images], Float[Tensor, " batch"]]


def ascend(
    score: Score, images: Images, *, eps: float, norm: Norm = LINF, steps: int = 20, bf16: bool = False
) -> Images:  # fmt: skip
    """For each image the point of highest score that was met, the image itself where there is none.

    score: differentiable; a module is put into evaluation mode, and left as it was.  bf16: search in bfloat16, by whose
    rounding the point that is kept may be a little lower than the image.
    Raises InputError as attacks do, and for scores that are not finite.
    """
    if steps < 1:
        raise InputError(f"steps is a count, 1 or more, not {steps}")
    model = Bf16(AsLogits(score)) if bf16 else AsLogits(score)
    index = torch.arange(len(images), device=images.device)
    aim = torch.ones_like(index)
    none = torch.zeros_like(index, dtype=torch.bool)
    with still(model):
        check(model, images, aim, eps)
        ball, best, step, x = Ball(images, eps, norm), Best.of(images), Halving.of(steps, eps, images), images
        for _ in range(steps):
            _, scores, slope = gradient(model, x, aim, second)
            best.offer(index, x, none, scores)
            x = step(ball, x, slope, scores)
        with torch.no_grad():
            best.offer(index, x, none, second(logits_of(model, x), aim))
    return best.images


class AsLogits(nn.Module):
    """A score as the logit of a second class, the first one's being 0: what attacks ask of a model."""

    def __init__(self, score: Score):
        super().__init__()
        self.score = score
        self.train(score.training if isinstance(score, nn.Module) else False)

    def forward(self, images: Images) -> Float[Tensor, "batch 2"]:
        score = self.score(images)
        return torch.stack([torch.zeros_like(score), score], 1)


def second(logits: Float[Tensor, "batch 2"], _: Tensor) -> Float[Tensor, " batch"]:
    """The score again, as a loss."""
    return logits[:, 1]
