"""A run that was stopped, killed or out of disk goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from negah.errors import InputError, OutputError
from negah.train import Batches, FitResult, Objective, checkpoint, fit
from negah.train.callbacks import Callback, KeepBest
from negah.train.ema import EMA
from negah.train.schedules import cosine


class Dropped(Objective):
    """Dropout, batch norm, a teacher: all kinds of state that a restart can lose."""

    def __init__(self, width: int = 6):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))
        self.teacher = EMA(self.model, cosine(0.9, 1.0))

    def forward(self, batch) -> dict[str, Tensor]:
        x, y = batch
        return {"loss": (self.model(x).squeeze(-1) - y + 0.1 * self.teacher(x).squeeze(-1)).square().mean()}

    def after_step(self, progress: float) -> None:
        self.teacher.update(self.model, progress)


def noisy(items, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.stack([x for x, _ in items])
    return x + 0.1 * torch.randn(x.shape, generator=generator), torch.stack([y for _, y in items])


def batches(**options) -> Batches:
    x = torch.randn(22, 3, generator=torch.Generator().manual_seed(1))
    return Batches(list(zip(x, x.sum(1))), 4, collate=noisy, **options)


class At(Callback):
    """Does something after one step."""

    def __init__(self, step: int, do):
        self.step, self.do = step, do

    def after_step(self, run) -> None:
        if run.step == self.step:
            self.do()


def train(out: Path | None = None, *, do=None, at: int = 7, **changes) -> tuple[Objective, FitResult]:
    """13 steps of 2 batches of 4 items; an epoch is 5.5 batches, so every stop is in the middle of one."""
    objective = changes.pop("objective", None) or Dropped()
    source = changes.pop("source", None) or batches()
    options = {
        "steps": 13, "lr": 0.05, "warmup": 3, "accumulate": 2, "clip": 1.0, "weight_decay": 0.1, "out": out,
        "callbacks": [At(at, do or (lambda: None))], "log_every": 5, "score_every": 4,
        "scores": {"norm": lambda: float(objective.model[0].weight.norm())},
    }  # fmt: skip
    return objective, fit(objective, source, **(options | changes))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, partial(SGD, momentum=0.9)])
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(tmp_path, optimizer):
    plain, expected = train(optimizer=optimizer)
    with pytest.raises(Crash):
        train(tmp_path, do=crash, checkpoint_every=3, optimizer=optimizer)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 6
    torch.rand(5)  # another process has another random state
    objective, result = train(tmp_path, checkpoint_every=3, optimizer=optimizer)
    assert same(objective, plain)
    assert (result.history, result.scores) == (expected.history, expected.scores)


def test_a_finished_run_is_loaded_and_not_trained_again(tmp_path):
    plain, expected = train(tmp_path)
    objective, result = train(tmp_path, do=crash)
    assert same(objective, plain) and result.history == expected.history and result.step == 13


def test_without_resume_it_starts_again(tmp_path):
    plain, _ = train(tmp_path)
    objective, result = train(tmp_path, resume=False)
    assert result.step == 13 and same(objective, plain)
    with pytest.raises(Crash):  # the step is reached again
        train(tmp_path, resume=False, do=crash)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_finishes_the_step_saves_and_leaves(tmp_path, capfd, number, error):
    plain, _ = train()
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(error) as caught:
        train(tmp_path, do=lambda: os.kill(os.getpid(), number))
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    line = capfd.readouterr().err if number == signal.SIGTERM else str(caught.value)
    assert f"stopped after step 8 of 13, saved in {tmp_path / 'checkpoint.pt'}" in line
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    objective, _ = train(tmp_path)
    assert same(objective, plain)


KILLED_WHILE_SAVING = """
import os, pathlib, signal, sys
from negah.train import checkpoint
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # all is written, nothing is renamed
checkpoint.save({"step": 2}, pathlib.Path(sys.argv[1]))
"""


def test_kill_9_while_saving_leaves_the_last_one(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save({"step": 1}, path)
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(path)], timeout=600)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoint.pt.partial").exists()  # it did get as far as writing
    assert checkpoint.load(path) == {"step": 1}
    checkpoint.save({"step": 2}, path)
    assert checkpoint.load(path) == {"step": 2} and os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_failed_rename_leaves_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save({"step": 1}, path)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        checkpoint.save({"step": 2}, path)
    assert checkpoint.load(path) == {"step": 1} and os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_full_disk_is_an_error_that_names_the_path_and_loses_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="limits on file size need POSIX")
    plain, _ = train()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:  # no file may grow any more: the kernel refuses the write as it does on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        with pytest.raises(OutputError) as caught:
            train(tmp_path, do=fill, checkpoint_every=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert str(tmp_path / "checkpoint.pt") in message and "\n" not in message
    assert "File too large" in message
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    objective, _ = train(tmp_path, checkpoint_every=3)
    assert same(objective, plain)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        train(tmp_path / "file" / "run")


def test_another_runs_folder_is_refused_by_what_differs(tmp_path):
    train(tmp_path)
    with pytest.raises(OutputError, match=r"lr 0\.05 \(now 0\.1\)"):
        train(tmp_path, lr=0.1)
    with pytest.raises(OutputError, match=r"data seed 0 \(now 1\)"):
        train(tmp_path, source=batches(seed=1))
    with pytest.raises(OutputError, match=r"callbacks At \(now \)"):
        train(tmp_path, callbacks=[])
    with pytest.raises(OutputError, match="another objective") as caught:
        train(tmp_path, objective=Dropped(width=7))
    assert "\n" not in str(caught.value)


def test_a_spoilt_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    train(tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"cannot read checkpoint .*checkpoint\.pt") as caught:
        train(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_would_run_code_is_not_read(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": 1, "code": os.system}, path)
    with pytest.raises(InputError, match="cannot read"):
        checkpoint.load(path)


def test_callbacks_continue_too(tmp_path):
    falling = {"score": lambda: 0.0}

    def keep() -> KeepBest:
        return KeepBest("score", patience=4)

    plain, expected = train(callbacks=[keep()], scores=falling, score_every=2)
    assert expected.step == 10 and "since step 2" in expected.stopped
    with pytest.raises(Crash):
        train(tmp_path, callbacks=[keep(), At(7, crash)], scores=falling, score_every=2, checkpoint_every=1)
    objective, result = train(tmp_path, callbacks=[keep(), At(99, crash)], scores=falling, score_every=2)
    assert result.stopped == expected.stopped and result.step == 10
    assert same(objective, plain)
