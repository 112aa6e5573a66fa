"""Two processes train as one does: the same gradients, the same errors, one checkpoint."""

import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD

from negah import ranks
from negah.errors import OutputError, TrainingError
from negah.train import Batches, Objective, fit
from negah.train.callbacks import Callback


class Quadratic(Objective):
    """A small network whose loss is a mean over items, so that two halves of a batch average to the whole."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, batch) -> dict[str, Tensor]:
        x, y = batch
        return {"loss": (self.net(x).squeeze(-1) - y).square().mean()}


class CrashAfter(Callback):
    def __init__(self, step: int):
        self.step = step

    def after_step(self, run) -> None:
        if run.step == self.step:
            raise RuntimeError("crash")


def items(spoilt: int | None = None) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(5))
    if spoilt is not None:
        x[spoilt] = math.nan
    return list(zip(x, x.prod(1)))


def train(**options):
    objective = Quadratic()
    settings = {"steps": 6, "lr": 0.1, "optimizer": partial(SGD, momentum=0.9), "clip": 0.5, "log_every": 1}
    result = fit(objective, Batches(items(), 8, seed=4), **(settings | options))
    return {"weights": list(objective.parameters()), "history": result.history, "scores": result.scores}


def main(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    found = {"plain": train(), "accumulated": train(accumulate=2)}
    # A measurement that differs between the processes must not make their callbacks disagree.
    found["scored"] = train(scores={"rank": lambda: float(ranks.rank())}, score_every=3)
    try:
        fit(Quadratic(), Batches(items(spoilt=9), 8, seed=4), steps=6, lr=0.1)
    except TrainingError as error:
        found["error"] = str(error)
    try:
        train(out=folder / "run", checkpoint_every=3, callbacks=[CrashAfter(4)])
    except RuntimeError:
        found["resumed"] = train(out=folder / "run", callbacks=[CrashAfter(99)])
    try:
        train(out=folder / "in the way" / "run")
    except OutputError as error:
        found["unwritable"] = str(error)
    torch.save(found, folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


def test_two_processes_under_torchrun_equal_one(tmp_path):
    (tmp_path / "in the way").write_text("a file, where a folder is wanted")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))

    for name, options in (("plain", {}), ("accumulated", {"accumulate": 2}), ("resumed", {})):
        alone = train(**options)
        torch.testing.assert_close(first[name]["weights"], alone["weights"])
        for row, expected in zip(first[name]["history"], alone["history"], strict=True):
            torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-7)
    for name in ("plain", "accumulated", "scored"):  # the processes end with the same bits
        assert all(torch.equal(a, b) for a, b in zip(first[name]["weights"], second[name]["weights"]))
    assert (
        first["scored"]["scores"] == second["scored"]["scores"] == [{"step": 3, "rank": 0.0}, {"step": 6, "rank": 0.0}]
    )

    batches = Batches(items(), 8, seed=4)
    bad = next(k for k in range(6) if 9 in batches.indices(k))
    for found in (first, second):  # the item is in one process's half; both must stop
        assert f"step {bad + 1}, batch {bad} " in found["error"]
        assert "in the way" in found["unwritable"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
