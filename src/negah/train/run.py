"""The state of a run: what callbacks see, and what a checkpoint holds."""

from dataclasses import dataclass, field

from torch.optim import Optimizer

from negah.train.objective import Objective

Row = dict[str, float]


@dataclass
class Run:
    """A run as callbacks see it."""

    objective: Objective
    optimizer: Optimizer
    steps: int
    step: int = 0  # steps done
    history: list[Row] = field(default_factory=list)  # step, lr, grad_norm and the objective's entries
    scores: list[Row] = field(default_factory=list)  # step and the scores taken after it
    stop: str = ""  # why to stop before the last step
    unlogged: list[Row] = field(default_factory=list)  # rows since the last one of the history
