"""What the experiments share: pictures with classes, a small network, one short training run and what it measured."""

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from negah.images.pool import Pool, folder_labels
from negah.images.views import View, Views
from negah.lab.shapes import CLASSES, shapes
from negah.nn.backbone import Backbone, ConvBackbone
from negah.nn.resnet import ResNet, Stem
from negah.probe.evaluate import embed, knn_accuracy
from negah.progress import Say
from negah.ssl.collapse import CollapseDoctor, CollapseWarning
from negah.train import Batches, Objective, fit
from negah.train.objective import Groups

SIDE = 32
CROP = 24  # of a view: half the time of a step on 32 px, and as good features
TRAIN, TEST = 4000, 2000
LR = 3e-3  # of AdamW, for all methods
KNOWN = 2000  # training pictures that test pictures are compared with


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much an experiment runs.

    data: a folder or archive of pictures, a folder for each class; empty: generated shapes.  steps: of each run.
    seeds: runs of each setting.  batch: pictures in a step.  full: what an experiment reduces by default in full, with
    steps and batches of its own, on an accelerator where there is one.
    """

    data: tuple[str, ...] = ()
    steps: int = 200
    seeds: int = 1
    batch: int = 64
    full: bool = False
    say: Say = field(default=print, compare=False, repr=False)

    def settings(self) -> dict[str, Any]:
        """What a page says of it."""
        return {
            "data": ", ".join(self.data) or f"{TRAIN} generated shapes", "steps": self.steps, "seeds": self.seeds,
            "batch": self.batch,
        }  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures to train on (labels are for the measuring alone) and to measure on."""

    train: UInt8[Tensor, "n 3 side side"]
    train_labels: Int[Tensor, " n"]
    test: UInt8[Tensor, "m 3 side side"]
    test_labels: Int[Tensor, " m"]
    classes: Sequence[str] = CLASSES

    @classmethod
    def of(cls, effort: Effort, *, train: int | None = None, test: int | None = None) -> "Pictures":
        """Shapes, or a random part of the data: so many at most of either kind, TRAIN and TEST where nothing is said.

        Test pictures are those below a folder, or in an archive, that is called test, where there are some; else a
        part of all.  Raises InputError where the data have no classes.
        """
        train, test = train or TRAIN, test or TEST
        if not effort.data:
            known, others = shapes(train, SIDE, seed=0), shapes(test, SIDE, seed=1)
            return cls(known.images, known.labels, others.images, others.labels)
        pool = Pool([Path(path) for path in effort.data], SIDE)
        labels, classes = folder_labels(pool.names)
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
        is_test = torch.tensor([any(Path(part).stem == "test" for part in Path(n).parts) for n in pool.names])[order]
        if is_test.any() and not is_test.all():
            parts = order[~is_test][:train], order[is_test][:test]
        else:
            order = order[: train + test]
            held = max(1, len(order) * test // (train + test))
            parts = order[held:], order[:held]
        (known, others) = (torch.stack([pool[int(i)] for i in part]) for part in parts)
        return cls(known, labels[parts[0]], others, labels[parts[1]], classes)

    def knn(self, backbone: nn.Module) -> float:
        """Share of the test pictures whose class their 20 nearest of the first KNOWN training pictures name."""
        known, labels = self.train[:KNOWN], self.train_labels[:KNOWN]
        return knn_accuracy(embed(backbone, known), labels, embed(backbone, self.test), self.test_labels)


@dataclass(frozen=True)
class Learned:
    """One run.  history: rows of `fit` with the doctor's figures; scores: `step` and each score, before it and on the
    way; kind: of collapse, that the doctor read last; warning: its line, or ""."""

    label: str
    seed: int
    history: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    kind: str
    warning: str
    seconds: float

    def first(self, name: str) -> float:
        """The value of a score before the first step."""
        return self.scores[0][name]

    def last(self, name: str) -> float:
        """The last value of a score, or of an entry of the history."""
        return next(row[name] for row in reversed([*self.history, *self.scores]) if name in row)


def small_resnet(seed: int = 0, *, stem: Stem = "fine") -> ConvBackbone:
    """Three stages, on maps of 16, 8 and 4 for pictures of 32 px: a few seconds for a hundred steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvBackbone(ResNet(widths=(16, 32, 64), depths=(1, 1, 1), stem=stem))


def small_views(size: int = CROP, *, low: float = 0.4, high: float = 1.0) -> View:
    """Crops from a share `low` to `high` of the picture, any turn, and colours that say nothing."""
    return View(
        size, scale=(low, high), turns=True, jitter=1.0, brightness=0.6, contrast=0.6, saturation=0.6, hue=0.5, grey=0.3
    )


def small_crops(locals: int = 2) -> list[View]:
    """Two views of most of the picture, then `locals` of a small part of it, for methods with many crops."""
    return [small_views()] * 2 + [small_views(16, low=0.3, high=0.6)] * locals


def learn(
    make: Callable[[Backbone], Objective],
    pictures: Pictures,
    views: Sequence[View],
    effort: Effort,
    *,
    label: str,
    seed: int = 0,
    network: Callable[[int], Backbone] = small_resnet,
    optimizer: Callable[[Groups], Optimizer] = AdamW,
    weight_decay: float = 1e-4,
    lr: float = LR,
    scored: dict[str, Callable[[Any], nn.Module]] | None = None,
    checks: int = 5,
) -> Learned:
    """Train `make(network(seed))` on the pictures' views, and score backbones on the way.

    Args:
        scored: name of a score to the backbone, of the objective, whose kNN accuracy it is; by default
            "knn": the student's.
        checks: scores on the way, at equal distances.

    A run whose loss is no longer finite raises TrainingError, as in `fit`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = make(network(seed))
    scored = scored or {"knn": lambda objective: objective.backbone}
    scores = {name: partial(_score, pictures, of, objective) for name, of in scored.items()}
    first = {"step": 0, **{name: score() for name, score in scores.items()}}
    doctor = CollapseDoctor()
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # to bring collapse about is what some experiments are for
        done = fit(
            objective, Batches(pictures.train, effort.batch, seed=seed, collate=Views(tuple(views))),
            steps=effort.steps, lr=lr, warmup=effort.steps // 10, optimizer=optimizer, weight_decay=weight_decay,
            seed=seed, callbacks=[doctor], scores=scores,
            score_every=max(1, effort.steps // checks), log_every=max(1, effort.steps // 60),
        )  # fmt: skip
    seconds = time.perf_counter() - started
    found = Learned(
        label, seed, copy.deepcopy(done.history), [first, *map(dict, done.scores)], str(doctor.readings[-1]["kind"]),
        doctor.warning, seconds,
    )  # fmt: skip
    effort.say(f"{label}, seed {seed}: {_told(found)}, {seconds:.0f} s")
    return found


def learn_all(
    settings: Mapping[str, Callable[[Backbone], Objective]], pictures: Pictures, views: Sequence[View], effort: Effort,
    **options: Any,
) -> list[Learned]:  # fmt: skip
    """Each setting by its label, with each seed; options are those of `learn`."""
    return [
        learn(make, pictures, views, effort, label=label, seed=seed, **options)
        for label, make in settings.items() for seed in range(effort.seeds)
    ]  # fmt: skip


def summary(runs: Sequence[Learned], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each label: over its seeds, the mean of each last value and, of two or more, `NAME ±` its deviation;
    the kinds of collapse that the doctor read last; and seconds of a run."""
    rows: list[dict[str, Any]] = []
    for label in dict.fromkeys(run.label for run in runs):
        mine = [run for run in runs if run.label == label]
        row: dict[str, Any] = {"setting": label, "seeds": len(mine)}
        for name in names:
            values = [run.last(name) for run in mine]
            row[name] = mean(values)
            if len(values) > 1:
                row[f"{name} ±"] = stdev(values)
        kinds = ", ".join(sorted({run.kind for run in mine}))
        rows.append(row | {"collapse": kinds, "seconds": round(mean(run.seconds for run in mine), 1)})
    return rows


def over_seeds(setting: str, runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """A row of means, and where there are several seeds of their deviations, `NAME ±`."""
    row: dict[str, Any] = {"setting": setting}
    for name in runs[0]:
        row[name] = mean(run[name] for run in runs)
        if len(runs) > 1:
            row[f"{name} ±"] = stdev(run[name] for run in runs)
    return row


def plot_curves(
    axis: Any, runs: Sequence[Learned], name: str, *, title: str, floor: float | None = None, style: str = "-"
) -> None:
    """One line for each label, the mean over its seeds, of an entry of the history or of the scores.

    floor: a horizontal line to read them against.  style: matplotlib's, of all lines.
    """
    for label in dict.fromkeys(run.label for run in runs):
        mine = [run for run in runs if run.label == label]
        lines = [[(row["step"], row[name]) for row in [*run.scores, *run.history] if name in row] for run in mine]
        steps = [step for step, _ in lines[0]]
        axis.plot(steps, [mean(line[i][1] for line in lines) for i in range(len(steps))], style, label=label)
    if floor is not None:
        axis.axhline(floor, color="#999", linewidth=0.8, linestyle="--")
    axis.set(title=title, xlabel="step")


def legend(axis: Any) -> None:
    """Of the lines' labels, beside the plot: inside it would cover some of them."""
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def plot_points(
    axis: Any, by: Mapping[int, Sequence[Learned]], name: str, *, title: str, xlabel: str, floor: float | None = None
) -> None:  # fmt: skip
    """The last value of a score, or of an entry of the history, against a number: each run, and a line of their means.

    floor: as in `plot_curves`.
    """
    numbers = sorted(by)
    axis.plot(numbers, [mean(run.last(name) for run in by[number]) for number in numbers], color="C0")
    axis.plot([n for n in numbers for _ in by[n]], [run.last(name) for n in numbers for run in by[n]], "o", color="C0")
    if floor is not None:
        axis.axhline(floor, color="#999", linewidth=0.8, linestyle="--")
    axis.set_xscale("log")
    axis.set_xticks(numbers, [str(number) for number in numbers])
    axis.minorticks_off()
    axis.set(title=title, xlabel=xlabel)


def plot_bars(axis: Any, runs: Sequence[Learned], name: str, *, title: str, floor: float | None = None) -> None:
    """A bar for each label from top to bottom, the mean of the last values, and a dot for each run.

    floor: as in `plot_curves`, upright.
    """
    labels = list(dict.fromkeys(run.label for run in runs))
    for place, label in enumerate(labels):
        values = [run.last(name) for run in runs if run.label == label]
        axis.barh(place, mean(values), color=f"C{place}", alpha=0.6)
        axis.plot(values, [place] * len(values), ".", color="#333")
    if floor is not None:
        axis.axvline(floor, color="#999", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set(title=title)


def _score(pictures: Pictures, of: Callable[[Any], nn.Module], objective: Objective) -> float:
    return pictures.knn(of(objective))


def _told(run: Learned) -> str:
    values = [f"{name} {value:.3f}" for name, value in run.scores[-1].items() if name != "step"]
    return ", ".join([f"loss {run.last('loss'):.3f}", *values, f"collapse: {run.kind}"])
