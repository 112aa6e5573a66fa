"""What may look at a run, steer it, and survive its restarts."""

import copy
from pathlib import Path
from typing import Any, Literal

from negah import ranks
from negah.errors import InputError, TrainingError
from negah.train.run import Run

Better = Literal["higher", "lower"]


class Callback:
    """Base of all callbacks: every method may be left as it is."""

    def after_step(self, run: Run) -> None:
        """After each step, its log line and its scores, before a checkpoint.  `run.stop = "why"` ends the run."""

    def end(self, run: Run) -> None:
        """Once, after the last checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors, numbers, strings, lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""


class KeepBest(Callback):
    """Roll back to the best score: at the end the objective has the weights with which `score` was best.

    With `patience` it also stops the run once that many scores in a row were no better.
    """

    def __init__(self, score: str, *, better: Better = "higher", patience: int | None = None):
        self.score, self.better, self.patience = score, better, patience
        self.best: dict[str, Any] = {}  # value, step and weights; empty before the first score
        self.worse_since = 0

    def after_step(self, run: Run) -> None:
        if not run.scores or run.scores[-1]["step"] != run.step:
            return
        if self.score not in run.scores[-1]:
            raise TrainingError(f"KeepBest looks at {self.score!r}, but the scores are {sorted(run.scores[-1])[:9]}")
        value = run.scores[-1][self.score]
        if not self.best or (value > self.best["value"] if self.better == "higher" else value < self.best["value"]):
            self.best = {"value": value, "step": run.step, "weights": copy.deepcopy(run.objective.state_dict())}
            self.worse_since = 0
        else:
            self.worse_since += 1
        if self.patience is not None and self.worse_since >= self.patience:
            run.stop = f"{self.score} has not improved on {self.best['value']:.4g} since step {self.best['step']}"

    def end(self, run: Run) -> None:
        if self.best:
            run.objective.load_state_dict(self.best["weights"])

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "worse_since": self.worse_since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.worse_since = state["best"], state["worse_since"]


class TensorBoard(Callback):
    """Every logged value and score as TensorBoard curves in `folder`; needs the `tensorboard` package."""

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, so only where it is asked for
        except ImportError as error:
            raise InputError("TensorBoard is not installed: pip install tensorboard") from error
        self.writer = SummaryWriter(str(folder)) if ranks.rank() == 0 else None
        self.written = {"history": 0, "scores": 0}

    def after_step(self, run: Run) -> None:
        for kind, rows in (("history", run.history), ("scores", run.scores)):
            for row in rows[self.written[kind] :]:
                for name, value in row.items():
                    if self.writer and name != "step":
                        self.writer.add_scalar(f"{kind}/{name}", value, int(row["step"]))
            if self.writer and len(rows) > self.written[kind]:
                self.writer.flush()  # a run may end at any time, and the curves are there to see how it did
            self.written[kind] = len(rows)

    def end(self, run: Run) -> None:
        if self.writer:
            self.writer.close()

    def state_dict(self) -> dict[str, Any]:
        return {"written": self.written}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.written = dict(state["written"])
