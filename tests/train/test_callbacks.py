"""Rolling back, stopping early, curves."""

import pytest
import torch
from torch import Tensor, nn

from negah.errors import TrainingError
from negah.train import Objective, fit
from negah.train.callbacks import KeepBest, TensorBoard
from negah.train.schedules import constant


class Counter(Objective):
    """Its weight is the number of steps: gradient -1, learning rate 1."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(()))

    def forward(self, batch) -> dict[str, Tensor]:
        return {"loss": -self.steps}


def count(callback, scores: list[float]):
    objective = Counter()
    taken = iter(scores)
    result = fit(
        objective, [0], steps=len(scores), lr=1.0, schedule=constant(), optimizer=torch.optim.SGD,
        callbacks=[callback], scores={"score": lambda: next(taken)}, score_every=1,
    )  # fmt: skip
    return objective.steps.item(), result


@pytest.mark.parametrize(("better", "best"), [("higher", 3), ("lower", 1)])
def test_the_best_weights_come_back(better, best):
    steps, result = count(KeepBest("score", better=better), [0.1, 0.5, 0.9, 0.9, 0.2])
    assert steps == best and result.step == 5 and not result.stopped


def test_patience_stops_and_says_why():
    steps, result = count(KeepBest("score", patience=2), [0.1, 0.5, 0.4, 0.3, 0.9])
    assert steps == 2 and result.step == 4
    assert result.stopped == "score has not improved on 0.5 since step 2"


def test_a_score_that_is_not_there_is_named():
    with pytest.raises(TrainingError, match="'auc'"):
        count(KeepBest("auc"), [0.1])


def test_tensorboard_holds_every_row_once(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    count(TensorBoard(tmp_path), [0.25, 0.5])
    curves = events.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in curves.Scalars("scores/score")] == [(1, 0.25), (2, 0.5)]
    assert [e.step for e in curves.Scalars("history/loss")] == [2]
