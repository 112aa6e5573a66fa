"""A model that is watched while it is attacked: how often it was asked, and what the attack has seen on the way."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from negah.adversarial.climb import Ball
from negah.adversarial.target import Model

SLACK = 1e-5  # relative; fp32 images are known to 6e-8, which sums over an image can multiply


class Watched(nn.Module):
    """Passes on what the model says.  Counts are in images.

    forwards, backwards: images whose logits, or gradients, were asked for.
    met: images that were misclassified at some point inside the ball, as far as whole batches were asked for: an attack
    that has met such a point must return one.
    """

    def __init__(self, model: Model, ball: Ball, labels: Tensor):
        super().__init__()
        self.model, self.ball, self.labels = model, ball, labels
        self.forwards, self.backwards = 0, 0
        self.met: Bool[Tensor, " batch"] = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        self.train(model.training if isinstance(model, nn.Module) else False)

    def forward(self, images: Float[Tensor, "some channel h w"]) -> Float[Tensor, "some classes"]:
        self.forwards += len(images)
        if images.requires_grad:
            images.register_hook(self._count)
        logits = self.model(images)
        if len(images) == len(self.labels):
            with torch.no_grad():
                self.met |= (logits.argmax(1) != self.labels) & inside(self.ball, images)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def inside(ball: Ball, images: Float[Tensor, "batch channel h w"]) -> Bool[Tensor, " batch"]:
    """Whether images lie in the ball and in [0, 1], in float64, up to what fp32 can tell."""
    delta = images.detach().double() - ball.images.double()
    rounding = 1.2e-7 * ball.norm.size(torch.ones_like(delta[:1]))  # of every value
    near = ball.norm.size(delta) <= torch.as_tensor(ball.eps).to(delta) * (1 + SLACK) + rounding
    return near & (images.flatten(1).amin(1) >= 0) & (images.flatten(1).amax(1) <= 1)
