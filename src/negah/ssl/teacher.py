"""The teacher of self-distillation: MoCo's key encoder, BYOL's target, the teachers of DINO and DINOv2.

It is the one moving average, `train.ema.EMA`, in the mode of a network that works while it is trained:

Batch norms follow the objective's mode, so in training they use the statistics of the teacher's own batch.  Their
running statistics are the teacher's own too, and are not copied from the student, whose weights are others: then the
teacher can be evaluated at any moment.  (Weights that are averaged but never run have no statistics of their own;
for those EMA's copy is the better choice.)

All else (dropout, stochastic depth) is always off: noise helps a student, and only blurs a target.

Gradients never reach it, for its parameters ask for none.  The schedules of the papers are those of
`train.schedules`: BYOL's m = 1 - (1 - m0) (1 + cos(pi p)) / 2, for one, is `cosine(m0, 1.0)`.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from negah.train.ema import EMA
from negah.train.schedules import Schedule


class Teacher(EMA):
    """Moving average of `model` that makes targets in training; equal to it at the start, see EMA."""

    def __init__(self, model: nn.Module, momentum: float | Schedule):
        super().__init__(model, momentum)
        self.train(model.training)

    def train(self, mode: bool = True) -> "Teacher":
        """Batch norms in this mode, everything else in evaluation."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        self.training = mode
        return self

    @torch.no_grad()
    def update(self, model: nn.Module, progress: float = 0.0) -> None:
        """Move the average towards `model`; the teacher's own buffers stay."""
        own = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        super().update(model, progress)
        for buffer, value in own:
            buffer.copy_(value)
