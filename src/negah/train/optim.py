"""LARS: stochastic gradient descent in which every tensor moves in proportion to its own size.

You et al. 2017, "Large Batch Training of Convolutional Networks", arXiv:1708.03888, eq. 6 and algorithm 1.  With
weights w of one tensor, their gradient g and weight decay b,

    rate     = trust * |w| / (|g| + b |w|)
    velocity = momentum * velocity + rate * (g + b w)
    w        = w - lr * velocity

A step is about trust * lr of the tensor's norm whatever the gradient's size, so that with the large learning rates of
large batches no layer is torn apart while others stand still.  Biases and norms take no part: `lars_groups`.

Departures: the learning rate stands outside of the velocity, as in torch's SGD, so a change of it acts at once; a
tensor whose gradient is zero gets no decay either (the equation would shrink it by trust * lr, however small b is).
SimCLR's and BYOL's own code has |g + b w| in place of |g| + b |w|: the same as b goes to 0.
"""

# pyright: reportPrivateImportUsage=false
# torch._foreach_* run one kernel over a whole list of tensors; torch's own optimisers are built on them.

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from negah.train import shards
from negah.train.objective import Groups, decay_matrices_only


class LARS(Optimizer):
    """LARS as SimCLR and BYOL use it; the default rate is SimCLR's for a batch of 256, and `fit` sets its own.

    Beside the arguments, a group knows `adapt`: False leaves out the rate, which makes it SGD with momentum.

    Args:
        trust: size of a step over that of the tensor, at lr 1.
    """

    def __init__(
        self, params: Any, lr: float = 0.3, *, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; `closure`, if there is one, computes loss and gradients first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            decay = group["weight_decay"]
            for p in weights:
                if not self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
            velocities = [self.state[p]["velocity"] for p in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            if group["adapt"]:
                w, g = _norms(weights), _norms(gradients)
                rates = (group["trust"] * w / (g + decay * w)).where(w > 0, 1.0).where(g > 0, 0.0)
                torch._foreach_addcmul_(velocities, gradients, list(rates))
                torch._foreach_addcmul_(velocities, weights, list(rates * decay))
            else:
                torch._foreach_add_(velocities, gradients)
                torch._foreach_add_(velocities, weights, alpha=decay)
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])
        return loss


def lars_groups(module: nn.Module) -> Groups:
    """`decay_matrices_only`, whose second group (biases, norms, scales) is also left out of the adaptation."""
    return [group | {"adapt": False} if "weight_decay" in group else group for group in decay_matrices_only(module)]


def _norms(tensors: list[Tensor]) -> Float[Tensor, " tensor"]:
    """Norm of each tensor, of the whole one where it is spread over processes."""
    norms = torch.stack(torch._foreach_norm(tensors))
    return shards.full(norms)
