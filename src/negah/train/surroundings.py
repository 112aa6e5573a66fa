"""What a step runs in: device, random generators, modes, all put back as they were afterwards; the progress bar."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from negah import ranks
from negah.train.run import Run


def to_device(batch: Any, where: torch.device) -> Any:
    """The batch with every tensor in it on the device; lists, tuples, named tuples and dicts are gone through."""
    if isinstance(batch, Tensor):
        return batch.to(where, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, where) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, where) for value in batch))
    return type(batch)(to_device(value, where) for value in batch) if isinstance(batch, (list, tuple)) else batch


@contextmanager
def randomness(where: torch.device, seed: int) -> Iterator[None]:
    """Torch's global generators seeded inside, as they were outside."""
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if where.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


@contextmanager
def mode(objective: nn.Module, training: bool) -> Iterator[None]:
    """The objective in that mode inside; each of its modules in its own again afterwards."""
    before = {module: module.training for module in objective.modules()}
    objective.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


@contextmanager
def progress_bar(run: Run) -> Iterator[Callable[[float], None]]:
    """A bar with loss and remaining time, on a terminal and on process 0 only."""
    console = Console(stderr=True)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    hidden = not console.is_terminal or ranks.rank() > 0
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden) as bar:
        task = bar.add_task("training", total=run.steps, completed=run.step, told="")
        yield lambda loss: bar.update(task, completed=run.step, told=f"loss {loss:.4g}")
