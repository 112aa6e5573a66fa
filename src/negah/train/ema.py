"""The one moving average of a model: a teacher, a key encoder, or smoother weights to evaluate.

    average <- m average + (1 - m) model        m a number, or a schedule of the run's progress

Starts as a copy, so at step 0 teacher and student agree exactly; no bias correction is needed then.  Only parameters
are averaged.  Buffers (running statistics, counters, position tables) are copied: an average of batch statistics under
averaged weights is neither network's, and integers have no average.
"""

import copy

import torch
from torch import Tensor, nn

from negah.train.schedules import Schedule


class EMA(nn.Module):
    """Exponential moving average of `model`, in `.model`, which never asks for gradients.

    As a submodule of an objective it is in the objective's `state_dict`, and so in its checkpoints.  It keeps the mode
    (train or eval) that `model` had; `objective.train()` reaches it as it reaches any submodule.

    Args:
        momentum: m above; a schedule such as `cosine(0.996, 1.0)` is called with the run's progress.
    """

    def __init__(self, model: nn.Module, momentum: float | Schedule):
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.momentum = momentum

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)

    @torch.no_grad()
    def update(self, model: nn.Module, progress: float = 0.0) -> None:
        """Move the average towards `model`, which must have the names and shapes of the one copied at the start."""
        m = self.momentum(progress) if callable(self.momentum) else self.momentum
        average, now = _named(self.model.named_parameters()), _named(model.named_parameters())
        if average.keys() != now.keys():
            raise ValueError(f"the averaged model has other parameters: {sorted(average.keys() ^ now.keys())[:5]}")
        torch._foreach_lerp_(list(average.values()), [now[name] for name in average], 1 - m)  # pyright: ignore
        buffers = _named(model.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])


def _named(pairs) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in pairs}
