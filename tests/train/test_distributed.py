"""Two processes train as one does: the same gradients, the same errors, one checkpoint."""

import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from negah import ranks
from negah.errors import OutputError, TrainingError
from negah.train import Batches, Objective, fit
from negah.train.callbacks import Callback
from negah.train.ema import EMA


class Quadratic(Objective):
    """A small network whose loss is a mean over items, so that two halves of a batch average to the whole."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, batch) -> dict[str, Tensor]:
        x, y = batch
        return {"loss": (self.net(x).squeeze(-1) - y).square().mean()}


class Blocks(Objective):
    """A network of blocks, and the moving average of it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2))
        self.last = nn.Linear(3, 1)
        self.average = EMA(self.last, 0.9)

    def forward(self, batch) -> dict[str, Tensor]:
        x, y = batch
        for block in self.blocks:
            x = block(x)
        return {"loss": (self.last(x).squeeze(-1) - y).square().mean()}

    def after_step(self, progress: float) -> None:
        self.average.update(self.last, progress)


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


def train_blocks(folder: Path, **options) -> dict[str, Tensor]:
    """Six steps of `Blocks`; the weights are those of the checkpoint, which are whole."""
    settings = {"steps": 6, "lr": 0.1, "optimizer": partial(AdamW, weight_decay=0.1), "clip": 0.5, "accumulate": 2}
    fit(Blocks(), Batches(items(), 8, seed=4), out=folder, checkpoint_every=3, **(settings | options))
    return torch.load(folder / "checkpoint.pt")["objective"]


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
    train_blocks(folder / "sharded", shard=True)
    try:
        train_blocks(folder / "half", shard=True, callbacks=[CrashAfter(4)])
    except RuntimeError:
        pass
    torch.save(found, folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


# Ends right after collectives, holding the group as sharded parameters do, and giving other threads of the process the
# lock of Python only where it waits.
LEAVING = """
import sys
import torch.distributed
from negah import ranks
sys.setswitchinterval(100)
ranks.join()
held = torch.distributed.group.WORLD
assert all(ranks.gather("x") == ["x", "x"] for _ in range(200))
"""


def test_processes_end_well_while_gloo_lets_go_of_the_last_tensors(tmp_path):
    (tmp_path / "leaving.py").write_text(LEAVING)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for _ in range(3):  # without a wait at the end about every second time one of them aborts
        done = subprocess.run([*torchrun, tmp_path / "leaving.py"], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr


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

    alone = train_blocks(tmp_path / "alone")
    sharded = torch.load(tmp_path / "sharded" / "checkpoint.pt")["objective"]
    torch.testing.assert_close(sharded, alone)
    # A run that two processes began together is ended by one.
    torch.testing.assert_close(train_blocks(tmp_path / "half", callbacks=[CrashAfter(99)]), alone)

    batches = Batches(items(), 8, seed=4)
    bad = next(k for k in range(6) if 9 in batches.indices(k))
    for found in (first, second):  # the item is in one process's half; both must stop
        assert f"step {bad + 1}, batch {bad} " in found["error"]
        assert "in the way" in found["unwritable"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
