"""The one training loop.

    result = fit(objective, Batches(dataset, 64), steps=1000, lr=1e-3, out="runs/first")

A step is: set the schedules, `before_step`, `accumulate` batches forward and backward, clip, optimiser, `after_step`,
scores, callbacks, checkpoint.  With `out`, the same call again continues where the run was; on a CPU it ends in the
same bits as a run that nothing disturbed.  Under torchrun the same script trains on all processes: DDP, or FSDP2 with
`shard`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from negah import ranks
from negah.errors import TrainingError
from negah.train import checkpoint, shards
from negah.train.batches import BatchSource, Repeated
from negah.train.callbacks import Callback
from negah.train.interrupt import Interrupts
from negah.train.objective import Groups, Objective, check_groups
from negah.train.run import Row, Run
from negah.train.schedules import Schedule, cosine, warmed
from negah.train.surroundings import mode, progress_bar, randomness, to_device

Scores = Mapping[str, Callable[[], float]] | Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class FitResult:
    """What came of `fit`; the objective itself is trained in place."""

    step: int  # steps done, over all the calls that the run took
    history: list[Row]
    scores: list[Row]
    stopped: str  # why a callback ended the run early, or ""
    checkpoint: Path | None


def fit(
    objective: Objective,
    batches: BatchSource | Iterable[Any],
    *,
    steps: int,
    lr: float,
    optimizer: Callable[[Groups], Optimizer] = AdamW,
    weight_decay: float | Schedule = 0.0,
    warmup: int = 0,
    schedule: Schedule | None = None,
    clip: float | None = None,
    accumulate: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    shard: bool = False,
    device: str | torch.device | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
    scores: Scores | None = None,
    score_every: int | None = None,
    log_every: int = 10,
) -> FitResult:
    """Train `objective` in place for `steps` steps of the optimiser.

    Args:
        batches: a `Batches`, or anything that can be gone through again (a list of batches, a DataLoader).
        lr: peak learning rate; a group's is lr * lr_scale * (warm-up, then `schedule`, by default a cosine to 0).
        optimizer: groups to an optimiser; options by `functools.partial(SGD, momentum=0.9)`.
        weight_decay: of the groups that do not set their own; a number or a schedule of progress.
        warmup: steps over which the learning rate rises linearly to `lr`.
        clip: largest gradient norm of each part (see `Objective.param_groups`); None leaves gradients alone.
        accumulate: batches whose gradients are averaged into a step.
        precision: "bf16" runs forward under autocast; parameters, gradients and optimiser stay fp32.
        shard: spread parameters and optimiser state over the processes (see `train.shards`) instead of keeping a copy
            on each; the objective stays spread afterwards, and the checkpoint holds it whole.  One process: no effect.
        device: where to train; by default where the objective is.
        seed: of dropout and the like (torch's global generators are restored afterwards).  `Batches` has its own.
        out: folder of `checkpoint.pt`; without one nothing is saved.
        checkpoint_every: steps between checkpoints; one is also saved at the end and on SIGTERM or Ctrl-C.
        resume: continue from the checkpoint in `out`; False starts again and replaces it.
        scores: named measurements, or one function that takes several at once and names them; in evaluation mode,
            without gradients and with a random state of their own.
        score_every: steps between scores, which are also taken after the last step.
        log_every: steps between rows of the history, each the mean over them.

    Raises:
        TrainingError: the loss or a gradient is not finite, a parameter is in no group, nothing to learn.
        OutputError: a checkpoint cannot be written, or `out` holds a run with other settings.
        SystemExit(143), KeyboardInterrupt: SIGTERM or Ctrl-C came; with `out`, the step was finished and saved.

    Examples:
        >>> class Mean(Objective):  # the number that is nearest to what it is shown
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.mean = torch.nn.Parameter(torch.zeros(()))
        ...     def forward(self, batch):
        ...         return {"loss": (batch - self.mean).square().mean()}
        >>> objective = Mean()
        >>> result = fit(objective, [torch.tensor([1.0, 3.0])], steps=100, lr=0.1)
        >>> round(objective.mean.item(), 1), result.history[-1]["loss"] < result.history[0]["loss"]
        (2.0, True)
    """
    source = batches if isinstance(batches, BatchSource) else Repeated(batches)
    ranks.join()
    where = torch.device(device) if device is not None else next(objective.parameters()).device
    objective.to(where)
    spread = shard and ranks.world() > 1
    if spread:
        shards.apply(objective, bf16=precision == "bf16")  # makes new parameters, so before the groups
    groups = objective.param_groups()
    check_groups(objective, groups)
    inherit = ["weight_decay" not in group for group in groups]
    schedule = schedule or cosine()
    settings = {"steps": steps, "lr": lr, "accumulate": accumulate, "precision": precision, "seed": seed}
    settings |= {"callbacks": ", ".join(type(callback).__name__ for callback in callbacks), **source.settings()}
    path = Path(out) / "checkpoint.pt" if out is not None else None

    run = Run(objective, optimizer(groups), steps)
    run.optimizer.zero_grad()
    autocast = torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16")
    with (
        randomness(where, seed + ranks.rank()),
        mode(objective, training=True),
        Interrupts(path) as interrupts,
    ):
        if path and resume and path.exists():
            checkpoint.continue_run(run, path, settings, callbacks, where)
        model = objective if spread or ranks.world() == 1 else _replicated(objective)
        stream = source.start(run.step * accumulate)
        with progress_bar(run) as show:
            while run.step < steps and not run.stop:
                progress = run.step / steps
                rate = lr * warmed(run.step, steps, warmup, schedule)
                decay = weight_decay(progress) if callable(weight_decay) else weight_decay
                for group, inherits in zip(run.optimizer.param_groups, inherit):
                    group["lr"] = rate * group.get("lr_scale", 1.0)
                    group["weight_decay"] = decay if inherits else group["weight_decay"]

                objective.before_step(progress)
                losses, entries = _gradients(model, stream, accumulate, autocast, where)
                entries["grad_norm"] = _clip(run.optimizer, clip)
                row, interrupted = _agree(entries, interrupts.pending)
                _check_finite(row, losses, run.step, source)
                run.optimizer.step()
                run.optimizer.zero_grad()
                objective.after_step(progress)
                run.step += 1

                _log({"step": run.step, "lr": rate} | row, run, log_every)
                if scores and (run.step == steps or (score_every and run.step % score_every == 0)):
                    run.scores.append(_measure(run, scores, where))
                for callback in callbacks:
                    callback.after_step(run)
                show(row["loss"])
                due = checkpoint_every is not None and run.step % checkpoint_every == 0
                if path and (due or interrupted or run.stop or run.step == steps):
                    checkpoint.save_run(run, path, settings, callbacks, where)
                if interrupted:
                    interrupts.leave(run.step, steps)
        for callback in callbacks:
            callback.end(run)
        if interrupts.pending:  # it came after the last step
            interrupts.leave(run.step, steps)
    return FitResult(run.step, run.history, run.scores, run.stop, path)


class _WithSpare(nn.Module):
    def __init__(self, objective: Objective):
        super().__init__()
        self.objective = objective
        self.spare = nn.Parameter(torch.zeros((), device=next(objective.parameters()).device))

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self.objective(batch)


def _replicated(objective: Objective) -> DistributedDataParallel:
    """A copy on each process, whose gradients are averaged.

    DDP is told to look for parameters without a gradient, as the last layer of a head that is frozen for a while, or a
    transformer's mask token where nothing is masked.  The spare one is never used, since DDP warns of a search that
    finds none.
    """
    return DistributedDataParallel(_WithSpare(objective), find_unused_parameters=True)


def _gradients(
    model: nn.Module, stream: Iterator, accumulate: int, autocast, where
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Add up the gradients of the mean loss of `accumulate` batches; the losses, and the mean of every entry."""
    losses: list[Tensor] = []
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=where))
    for part in range(accumulate):
        batch = to_device(next(stream), where)
        # Gradients are averaged over the processes in the last backward, once for all parts.
        waits = part < accumulate - 1
        if shards.is_sharded(model):
            model.set_requires_gradient_sync(not waits)  # pyright: ignore[reportCallIssue]
        with model.no_sync() if waits and isinstance(model, DistributedDataParallel) else nullcontext():
            with autocast:
                entries = model(batch)
            if not entries["loss"].requires_grad:
                raise TrainingError("the loss does not depend on any parameter that requires a gradient")
            (entries["loss"] / accumulate).backward()
        losses.append(entries["loss"].detach())
        for name, value in entries.items():
            sums[name] += value.detach().float() / accumulate
    return losses, dict(sums)


def _clip(optimizer: Optimizer, clip: float | None) -> Tensor:
    """Norm of all gradients, before each part with a norm above `clip` is scaled down to it."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for group in optimizer.param_groups:
        parts[group.get("part", "")] += [p for p in group["params"] if p.grad is not None]
    norms = [torch.nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in parts.values()]
    if clip is not None:
        for part, norm in zip(parts.values(), norms):
            torch.nn.utils.clip_grads_with_norm_(part, clip, norm)
    return torch.stack([shards.full(norm).float() for norm in norms]).norm()


def _agree(entries: dict[str, Tensor], interrupted: bool) -> tuple[Row, bool]:
    """Mean of each entry over the processes, and whether any of them was told to stop; one wait for the device."""
    values = [*entries.values(), entries["loss"].new_tensor(float(interrupted))]
    *means, told = ranks.mean(torch.stack(values)).tolist()
    return dict(zip(entries, means)), told > 0


def _check_finite(row: Row, losses: list[Tensor], step: int, source: BatchSource) -> None:
    """Raise TrainingError, before the optimiser spoils the weights, unless loss and gradients are finite."""
    wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(row[name])]
    if not wrong:
        return
    first = step * len(losses)
    bad = [first + i for i, loss in enumerate(losses) if not loss.isfinite()] or [first]
    others = [name for name, value in row.items() if not math.isfinite(value) and name not in wrong]
    raise TrainingError(
        f"{wrong[0]} is {row[wrong[0]]} at step {step + 1}, batch {bad[0]} ({source.describe(bad[0])})"
        + (f"; not finite either: {', '.join(others)}" if others else "")
        + "; look at these items, or lower lr"
    )


def _log(row: Row, run: Run, every: int) -> None:
    """Add the mean of the rows since the last one to the history, every so many steps and at the end."""
    run.unlogged.append(row)
    if run.step % every == 0 or run.step == run.steps:
        n = len(run.unlogged)
        run.history.append({name: sum(r[name] for r in run.unlogged) / n for name in row} | {"step": run.step})
        run.unlogged.clear()


def _measure(run: Run, scores: Scores, where: torch.device) -> Row:
    """All scores now; process 0's values, so that callbacks on all processes decide alike."""
    with randomness(where, run.step), mode(run.objective, training=False), torch.no_grad():
        found = scores() if callable(scores) else {name: score() for name, score in scores.items()}
        values = {name: float(value) for name, value in found.items()}
    return {"step": run.step} | ranks.gather(values)[0]
