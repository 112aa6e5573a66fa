"""What `fit` trains: a module whose forward turns a batch into a loss.

    class Regression(Objective):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, batch):
            x, y = batch
            return {"loss": (self.model(x) - y).square().mean()}

Everything that has to survive a restart must be in the module's `state_dict` (parameters, buffers, or
`get_extra_state`), for a resumed run to equal an uninterrupted one.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from negah.errors import TrainingError

Groups = list[dict[str, Any]]


class Objective(nn.Module):
    """Base of everything that `fit` trains; only `forward` has to be written."""

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Scalars of one batch: "loss" is minimised, every entry is logged.

        It is `forward`, and not a name of our own, so that DDP and FSDP see it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch) -> {{'loss': ...}}")

    def param_groups(self) -> Groups:
        """Optimiser groups; together they hold every parameter that requires a gradient, each once.

        Beside what the optimiser knows, `fit` reads from a group:
            lr_scale: factor on the learning rate (layer decay), 1 if absent.
            weight_decay: kept as it is; a group without one gets `fit`'s.
            part: parameters of one part are clipped together, apart from the other parts.
        """
        return decay_matrices_only(self)

    def units(self) -> Iterable[nn.Module]:
        """Modules, beside the children of ModuleLists, that `fit(shard=True)` spreads over the processes as units.

        What is called outside of `forward`, such as a backbone by a score, must be one.
        """
        return ()

    def before_step(self, progress: float) -> None:
        """Called before the step's first forward, with progress = step / steps in [0, 1): temperatures, freezing."""

    def after_step(self, progress: float) -> None:
        """Called after the optimiser, with the same progress: moving averages."""


def decay_matrices_only(module: nn.Module) -> Groups:
    """Two groups: matrices and kernels with weight decay; biases, norms and scales (one dimension or none) without."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    return [g for g in ({"params": matrices}, {"params": others, "weight_decay": 0.0}) if g["params"]]


def check_groups(module: nn.Module, groups: Iterable[dict[str, Any]]) -> None:
    """Raise TrainingError unless each parameter that requires a gradient is in one group, and in one only."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    seen: set[nn.Parameter] = set()
    for parameter in (p for group in groups for p in group["params"]):
        if parameter in seen:
            raise TrainingError(f"parameter {names.get(parameter, '(unnamed)')} is in two optimiser groups")
        seen.add(parameter)
    left_out = [name for parameter, name in names.items() if parameter.requires_grad and parameter not in seen]
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        raise TrainingError(
            f"{type(module).__name__}.param_groups() leaves out {', '.join(left_out[:5])}{more}:"
            " put them in a group or set requires_grad to False"
        )
    if not seen:
        raise TrainingError(f"{type(module).__name__} has no parameter that requires a gradient: nothing to learn")
