"""What keeps a network that sees no labels from saying the same of every picture?

Methods that only pull views together would be content with a constant.  Each panel takes away what rules it out, or
weakens it, or puts something else in its place, and looks at what becomes of the features.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from negah.images.views import View
from negah.lab.conclusions import by_label, collapses, error, gains, trend, versus
from negah.lab.page import Page, Panel, figure
from negah.lab.training import (
    LR,
    Effort,
    Learned,
    Pictures,
    learn_all,
    legend,
    plot_curves,
    plot_points,
    small_crops,
    small_views,
    summary,
)
from negah.losses.distill import Center, sinkhorn
from negah.nn.backbone import Backbone
from negah.ssl import BYOL, DINO, SimCLR
from negah.ssl.collapse import CollapseDoctor
from negah.ssl.figures import FEWEST
from negah.ssl.simclr import nt_xent
from negah.ssl.teacher import Teacher
from negah.train.schedules import constant

HIDDEN, DIM = 128, 64  # of all heads, and of BYOL's and SimCLR's
PROTOTYPES, BOTTLENECK = 256, 32
MOMENTUM, DINO_MOMENTUM = 0.95, 0.98  # teachers that are 20 and 50 steps behind, in runs of a few hundred
TEMPERATURE, TEACHER_TEMPERATURE = 0.2, 0.04  # of SimCLR, and of DINO's teacher
CHECKS = 10  # of runs in which the teacher is compared with the student
BACKBONES: dict[str, Callable[[Any], nn.Module]] = {
    "knn": lambda objective: objective.backbone,
    "teacher": lambda objective: objective.teacher.model[0],
}

small_byol = partial(BYOL, hidden=HIDDEN, dim=DIM, momentum=MOMENTUM)
small_simclr = partial(SimCLR, hidden=HIDDEN, dim=DIM, temperature=TEMPERATURE)


def small_dino(backbone: Backbone, kind: type[DINO] = DINO, **changes: Any) -> DINO:
    """DINO with a head of its own size for a small network, or a subclass of it."""
    options = {
        "prototypes": PROTOTYPES, "hidden": HIDDEN, "bottleneck": BOTTLENECK, "head_norm": True,
        "momentum": DINO_MOMENTUM, "teacher_temperature": constant(TEACHER_TEMPERATURE), "freeze_last": 0.0,
    }  # fmt: skip
    return kind(backbone, **(options | changes))


class NoStopGradient(BYOL):
    """BYOL whose target learns as well: gradients go through both sides."""

    def __init__(self, backbone: Backbone, **options: Any):
        super().__init__(backbone, **options)
        self.stop_gradient = False  # for the doctor to know of

    def target(self, views: Sequence[Float[Tensor, "batch 3 h w"]]) -> list[Float[Tensor, "batch dim"]]:
        return self.online(views)


class FewNegatives(SimCLR):
    """SimCLR that contrasts a view only with those of a `group` of its batch's pictures.

    Batch, batch norms and number of steps stay as they are: nothing but the number of negatives, 2 (group - 1), is
    another.  Where the batch is not a multiple of it, groups are larger by one picture or so.
    """

    def __init__(self, backbone: Backbone, *, group: int, **options: Any):
        super().__init__(backbone, **options)
        self.group = group

    def forward(self, views: Sequence[Float[Tensor, "batch 3 h w"]]) -> dict[str, Tensor]:
        projections = self.projector(self.backbone(torch.cat(list(views)))).unflatten(0, (len(views), -1))
        self.seen = {"embedding": projections.detach()}
        groups = projections.tensor_split(max(1, projections.shape[1] // self.group), dim=1)
        return {"loss": torch.stack([nt_xent(group, temperature=self.temperature) for group in groups]).mean()}


class Balanced(DINO):
    """DINO whose targets Sinkhorn-Knopp balances over the batch, in place of a center."""

    def __init__(self, backbone: Backbone, **options: Any):
        super().__init__(backbone, **options)
        self.balanced = True  # for the doctor to know of

    def targets(self, logits: Float[Tensor, "view batch prototype"]) -> Float[Tensor, "view batch prototype"]:
        return sinkhorn(logits.flatten(0, 1), self.temperature).view_as(logits)


def run(out: Path, effort: Effort) -> Page:
    """All panels into the folder `out`."""
    pictures = Pictures.of(effort)
    page = Page("collapse", "What keeps a network from saying nothing?", out, effort.settings())
    of_byol = byols(pictures, effort)
    page.add(byol(of_byol, pictures))
    page.add(negatives(pictures, effort))
    of_dino = dinos(pictures, effort)
    page.add(dino(of_dino, pictures))
    page.add(teacher([run for run in of_byol + of_dino if run.label in ("BYOL", "DINO")], pictures))
    with_sinkhorn = {"Sinkhorn-Knopp": partial(small_dino, kind=Balanced)}
    balanced = learn_all(with_sinkhorn, pictures, small_crops(), effort)
    others = {"DINO": "centering", "no centering": "neither"}
    page.add(balance(balanced + [replace(run, label=others[run.label]) for run in of_dino if run.label in others],
                     pictures))  # fmt: skip
    return page


def byols(pictures: Pictures, effort: Effort) -> list[Learned]:
    """BYOL with and without predictor, moving average and stop-gradient."""
    whole = learn_all({"BYOL": small_byol}, pictures, [small_views()] * 2, effort, scored=BACKBONES, checks=CHECKS)
    without = {
        "no predictor": partial(small_byol, predictor=nn.Identity()),
        "no moving average": partial(small_byol, momentum=0.0),
        "neither": partial(small_byol, momentum=0.0, predictor=nn.Identity()),
        "no stop-gradient": partial(NoStopGradient, hidden=HIDDEN, dim=DIM),
    }
    return whole + learn_all(without, pictures, [small_views()] * 2, effort)


def byol(runs: Sequence[Learned], pictures: Pictures) -> Panel:
    """What becomes of BYOL without one of its parts."""
    plot, (left, right) = figure(2)
    plot_curves(left, runs, "embedding_std", title="spread of embeddings", floor=1.0)
    plot_curves(right, runs, "knn", title="kNN accuracy")
    legend(right)
    return Panel(
        name="byol", title="BYOL without its parts",
        asks="BYOL predicts what a moving average of the network says of another view of a picture. A constant would"
        " do that without error. Here the parts that are said to keep it from there are taken away, one at a time:"
        " the predictor; the moving average (the target is then the network itself); both; and the stop-gradient, so"
        " that the target moves towards the prediction as well. Left: the spread of the embeddings of a batch, 1 when"
        " they point in all directions (dashed) and 0 when all are one. Right: how many test pictures their 20 nearest"
        " training pictures, by the backbone's features, name rightly. The paper expects that predictor and"
        " stop-gradient are needed, and SimSiam found that the moving average is not. A lagging target slows the"
        " collapse of a network without predictor, so it may be under way only when the run ends. Spread is read behind"
        " the projector and kNN accuracy in front of it, so a collapsed run may still beat the untrained network.",
        found=f"{collapses(runs)} {gains(runs, pictures)}",
        rows=summary(runs, ["knn", "embedding_std", "effective_rank", "loss"]), figure=plot,
        code=[BYOL, NoStopGradient, CollapseDoctor],
    )  # fmt: skip


def negatives(pictures: Pictures, effort: Effort) -> Panel:
    """SimCLR against batch size, and against the number of negatives at one batch size."""
    views, batch = [small_views()] * 2, effort.batch
    sized: dict[int, list[Learned]] = {}
    for size in sorted({max(FEWEST, batch // 4), batch, 4 * batch}):
        its = replace(effort, batch=size, steps=max(1, effort.steps * batch // size))
        sized[size] = learn_all({f"batch {size}": small_simclr}, pictures, views, its, lr=LR * math.sqrt(size / batch))
    grouped = {batch: [replace(run, label=f"{2 * batch - 2} negatives") for run in sized[batch]]}
    for group in sorted({2, max(2, batch // 8)} - {batch}):
        made = partial(FewNegatives, group=group, hidden=HIDDEN, dim=DIM, temperature=TEMPERATURE)
        grouped[group] = learn_all({f"{2 * group - 2} negatives": made}, pictures, views, effort)
    by_negatives = {2 * group - 2: runs for group, runs in sorted(grouped.items())}
    plot, (left, right) = figure(2)
    start = sized[batch][0].first("knn")
    for axis, by, title in ((left, sized, "pictures in a batch"), (right, by_negatives, "negatives of a view")):
        plot_points(axis, by, "knn", title="kNN accuracy", xlabel=title, floor=start)
    runs = [run for some in (*sized.values(), *by_negatives.values()) for run in some]
    return Panel(
        name="negatives", title="SimCLR against batch size and number of negatives",
        asks=f"SimCLR tells a view's partner from the other views of the batch, its negatives. Left: batches of other"
        f" sizes, each run on as many pictures in all, so that smaller batches take more steps; the learning rate"
        f" grows with the square root of the batch, as suits Adam. Right: a batch of {batch} in every run, of whose"
        f" views each is contrasted with fewer, so that steps, rate and batch norm stay the same and nothing but the"
        f" number of negatives changes. Dashed: the network before training. The paper expects more to be better,"
        f" and less so the longer the training.",
        found=f"kNN accuracy by pictures in a batch: {trend(sized, pictures)}."
        f" By negatives of a view: {trend(by_negatives, pictures)}.",
        rows=summary(runs, ["knn", "embedding_std", "effective_rank", "loss"]), figure=plot,
        code=[SimCLR, FewNegatives, nt_xent],
    )  # fmt: skip


def dinos(pictures: Pictures, effort: Effort) -> list[Learned]:
    """DINO with and without centering, sharpening and local crops."""
    crops, two = small_crops(), small_crops(0)
    options = {"scored": BACKBONES, "checks": CHECKS}
    runs = learn_all({"DINO": small_dino}, pictures, crops, effort, **options)
    flat = constant(0.1)  # the student's
    without = {
        "no centering": partial(small_dino, center_momentum=1.0),
        "no sharpening": partial(small_dino, teacher_temperature=flat),
        "neither": partial(small_dino, center_momentum=1.0, teacher_temperature=flat),
    }
    runs += learn_all(without, pictures, crops, effort)
    longer = replace(effort, steps=round(effort.steps * _pixels(crops) / _pixels(two)))
    return runs + learn_all({"two crops": small_dino}, pictures, two, longer)


def dino(runs: Sequence[Learned], pictures: Pictures) -> Panel:
    """What becomes of DINO without one of its parts."""
    ln_k = runs[0].last("ln_k")
    means = {label: [mean(run.last(name) for run in mine) for name in ("teacher_entropy", "teacher_kl")]
             for label, mine in by_label(runs).items()}  # fmt: skip
    read = "; ".join(f"{label} {entropy:.2f} and {kl:.2f}" for label, (entropy, kl) in means.items())
    return Panel(
        name="dino", title="DINO without its parts",
        asks=f"DINO's teacher answers with probabilities over K = {round(math.exp(ln_k))} prototypes. Centering takes"
        f" away what all pictures have in common; sharpening, a temperature below the student's, makes each answer"
        f" decided. Without centering one prototype should win everywhere (the mean answer is then as far from"
        f" uniform as can be, ln K, and each answer has entropy 0); without sharpening all answers should become"
        f" uniform (entropy ln K). In good health entropy is well below ln K while the mean stays near uniform."
        f" Without multi-crop the student sees the two whole crops alone, in more steps, so that as many pixels pass"
        f" through the networks; the paper expects worse features of it.",
        found=f"{collapses(runs)} Of ln K = {ln_k:.2f}, entropy and KL at the end: {read}. {gains(runs, pictures)}"
        f" {versus(runs, 'two crops', 'DINO', pictures)}",
        rows=summary(runs, ["knn", "teacher_entropy", "teacher_kl", "embedding_std", "loss"]),
        figure=_teacher_figure(runs), code=[DINO, Center, CollapseDoctor],
    )  # fmt: skip


def teacher(runs: Sequence[Learned], pictures: Pictures) -> Panel:
    """Whether the average of past networks is ahead of the network."""
    groups = by_label(runs)
    plot, axes = figure(len(groups))
    rows, found = [], []
    for axis, (label, mine) in zip(axes, groups.items()):
        for name, shown, style in (("knn", "student", "-"), ("teacher", "teacher", "--")):
            plot_curves(
                axis, [replace(run, label=shown) for run in mine], name, title=f"kNN accuracy, {label}", style=style
            )
        checks = [
            {"setting": label, "step": scores[0]["step"], "student": mean(row["knn"] for row in scores),
             "teacher": mean(row["teacher"] for row in scores)}
            for scores in zip(*(run.scores for run in mine))
        ]  # fmt: skip
        rows += checks
        early = checks[1 : 1 + len(checks) // 2]
        leads = [check["teacher"] - check["student"] for check in early]
        found.append(
            f"In the first half of {label} the teacher is ahead of the student at {sum(lead > 0 for lead in leads)} of"
            f" {len(leads)} checks, by {mean(leads):+.3f} on average; at the end by"
            f" {checks[-1]['teacher'] - checks[-1]['student']:+.3f}."
        )
    legend(axes[-1])
    return Panel(
        name="teacher", title="The teacher against its student, early in training",
        asks="The teacher is a moving average of the student, so one might expect it to be behind. DINO's paper finds"
        " it ahead all through training, as averages of weights often are, and takes that for the reason why its"
        " answers are worth learning. Both backbones are scored by nearest neighbours in the same run.",
        found=f"{' '.join(found)} Two standard errors of one check are"
        f" {error(rows[-1]['teacher'], len(pictures.test)):.3f}.",
        rows=rows, figure=plot, code=[Teacher, BYOL, DINO],
    )  # fmt: skip


def balance(runs: Sequence[Learned], pictures: Pictures) -> Panel:
    """Sinkhorn-Knopp against centering."""
    return Panel(
        name="sinkhorn", title="Sinkhorn-Knopp against centering",
        asks="Centering subtracts a moving average of the teacher's logits, which balances the prototypes in the long"
        " run; Sinkhorn-Knopp, as in DINOv2's longer recipe, gives each prototype the same share of each batch. The"
        " same DINO with one, the other and neither. Sinkhorn-Knopp should hold the mean answer at uniform from the"
        " first step; the papers report features about as good.",
        found=f"{collapses(runs)} {versus(runs, 'Sinkhorn-Knopp', 'centering', pictures)} {gains(runs, pictures)}",
        rows=summary(runs, ["knn", "teacher_entropy", "teacher_kl", "embedding_std", "loss"]),
        figure=_teacher_figure(runs), code=[sinkhorn, Balanced, Center],
    )  # fmt: skip


def _teacher_figure(runs: Sequence[Learned]) -> Figure:
    """How the teacher uses its prototypes, against ln K, and what the features are worth."""
    plot, (left, middle, right) = figure(3, width=4.2)
    ln_k = runs[0].last("ln_k")
    for axis, name, title in (
        (left, "teacher_entropy", "entropy of the teacher's answers"),
        (middle, "teacher_kl", "KL of their mean from uniform"),
    ):
        plot_curves(axis, runs, name, title=title, floor=ln_k)
        axis.set_ylim(-0.05 * ln_k, 1.12 * ln_k)
        axis.text(0, 1.02 * ln_k, "ln K", color="#666", fontsize=8)
    plot_curves(right, runs, "knn", title="kNN accuracy")
    legend(right)
    return plot


def _pixels(views: Sequence[View]) -> int:
    """That pass through the networks for each picture, in passes: the student's count thrice, for their gradients."""
    return 3 * sum(view.size**2 for view in views) + sum(view.size**2 for view in views[:2])
