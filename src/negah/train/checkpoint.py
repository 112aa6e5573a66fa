"""Checkpoints that are whole or not there: written beside, flushed to the disk, then renamed over the last one.

Whatever happens before the rename (kill -9, power cut, full disk) leaves the previous checkpoint as it was; the rename
itself is atomic.  Files are read with `weights_only=True`, so one from elsewhere cannot run code.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from negah import ranks
from negah.errors import InputError, OutputError
from negah.train import shards
from negah.train.callbacks import Callback
from negah.train.run import Run

_PLAIN = ("step", "history", "scores", "stop", "unlogged")  # what a checkpoint takes from a Run as it is


def save(state: dict[str, Any], path: Path) -> Path:
    """Write `state` (tensors, numbers, strings, and lists and dicts of them) to `path`, and return it.

    Raises OutputError naming the path when it cannot be written; the file that was there is then still whole.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns the OSError of a full disk into a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _root(error)
        _remove(partial)
        raise OutputError(f"cannot write checkpoint {path}: {reason}; the last one, if any, is intact") from error
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.  Raises InputError when it cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its readers do: OSError, RuntimeError, UnpicklingError, EOFError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot read checkpoint {path}: {reason}; delete it to start again") from error


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of torch's global generators that a training step draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def restore_rng(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Undo all draws since `rng_state`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def save_run(run: Run, path: Path, settings: dict, callbacks: Sequence[Callback], where: torch.device) -> None:
    """Write a checkpoint from process 0; if that fails, all processes stop."""
    generators = ranks.gather(rng_state(where))
    weights, optimizer = shards.whole(run.objective.state_dict()), shards.whole(run.optimizer.state_dict())
    failure = None
    if ranks.rank() == 0:
        state = {name: getattr(run, name) for name in _PLAIN} | {
            "settings": settings,
            "objective": weights,
            "optimizer": optimizer,
            "callbacks": [callback.state_dict() for callback in callbacks],
            "generators": generators,
        }
        try:
            save(state, path)
        except OutputError as error:
            failure = error
    failure = ranks.gather(failure)[0]
    if failure:
        raise failure


def continue_run(run: Run, path: Path, settings: dict, callbacks: Sequence[Callback], where: torch.device) -> None:
    """Take up everything from the checkpoint at `path`, unless it is another run's."""
    state = load(path)
    then = state.get("settings", {})
    differ = [k for k in settings.keys() | then.keys() if settings.get(k) != then.get(k)]
    if differ:
        was = ", ".join(f"{k} {then.get(k)} (now {settings.get(k)})" for k in sorted(differ))
        raise OutputError(f"{path} is from a run with {was}: give another folder, or resume=False to replace it")
    try:
        shards.load(run.objective, run.optimizer, state["objective"], state["optimizer"])
        for callback, saved in zip(callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise OutputError(f"{path} is from another objective, optimiser or set of callbacks: {reason}") from error
    for name in _PLAIN:
        setattr(run, name, state[name])
    if ranks.rank() < len(state["generators"]):  # a process that was not there before keeps its fresh seed
        restore_rng(state["generators"][ranks.rank()], where)


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; Windows cannot open a folder, and needs it not."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(partial: Path) -> None:
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        pass  # what failed first is what the user should read


def _root(error: BaseException) -> str:
    """First line of the first cause in a chain of exceptions."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return (str(error) or type(error).__name__).splitlines()[0]
