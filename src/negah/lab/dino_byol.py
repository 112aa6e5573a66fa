"""What turns BYOL into DINO?  Both predict what a slower copy of the network says of another view.

They differ in the head behind the backbone, in how far two answers are apart, in what rules a constant answer out, and
in the crops.  `Between` has a switch for each: it is `negah.ssl.BYOL` at one end, and `negah.ssl.DINO` at the other.
With p what the student says of a crop, z what the teacher says of a whole one, c the center, q a predictor,

                        BYOL                       DINO
    head                MLP to K numbers           MLP, length 1, cosines with K prototypes
    distance            2 (2 - 2 cos(q(p), z - c)) -sum_k softmax((z - c) / tau_t)_k log softmax(q(p) / tau_s)_k
    against constants   a predictor q; c is 0      a moving average c of z; q is the identity
    crops               two whole ones             and local ones, for the student only

where the distance is averaged over all pairs of a whole crop and another crop (BYOL adds up its two: twice the mean).
Batch norms see one crop of BYOL at a time, and all crops of one size together behind DINO's head, as in these methods.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from negah.lab.collapse import BOTTLENECK, DINO_MOMENTUM, HIDDEN, PROTOTYPES, TEACHER_TEMPERATURE
from negah.lab.conclusions import by_label, collapses, gains, versus
from negah.lab.page import Page, Panel, figure
from negah.lab.training import (
    Effort,
    Learned,
    Pictures,
    learn_all,
    legend,
    plot_bars,
    plot_curves,
    small_crops,
    summary,
)
from negah.losses.distill import Center, pairs_cross_entropy, sharpened
from negah.nn.backbone import Backbone
from negah.nn.norm import globalise
from negah.ssl import BYOL, DINO
from negah.ssl.byol import regression
from negah.ssl.dino_head import DINOHead
from negah.ssl.heads import projector
from negah.ssl.teacher import Teacher
from negah.train import Objective


class Between(Objective):
    """Objective on batches of crops, the first two whole; the defaults are BYOL's.

    Args:
        prototypes: DINO's head in place of BYOL's projector.
        probabilities: cross-entropy of softmaxes in place of the distance of directions.
        predictor: whether the student predicts, through an MLP of its own.
        centering: whether the teacher's mean answer is taken away.
        hidden, dim, bottleneck: widths of the heads; K is dim.
    """

    def __init__(
        self, backbone: Backbone, *, prototypes: bool = False, probabilities: bool = False, predictor: bool = True,
        centering: bool = False, hidden: int = HIDDEN, dim: int = PROTOTYPES, bottleneck: int = BOTTLENECK,
        momentum: float = DINO_MOMENTUM, student_temperature: float = 0.1,
        teacher_temperature: float = TEACHER_TEMPERATURE,
    ):  # fmt: skip
        super().__init__()
        globalise(backbone)
        self.backbone = backbone
        self.head = (
            DINOHead(backbone.width, dim, hidden=hidden, bottleneck=bottleneck, norm=True)
            if prototypes
            else projector(backbone.width, hidden, dim)
        )
        self.predictor = projector(dim, hidden, dim) if predictor else nn.Identity()
        self.teacher = Teacher(self._student(), momentum)
        self.center = Center(dim, 0.9 if centering else 1.0)
        self.probabilities = probabilities
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.seen: dict[str, Tensor] = {}

    def forward(self, crops: Sequence[Float[Tensor, "batch 3 _ _"]]) -> dict[str, Tensor]:
        embedding, student = answers(self.backbone, self.head, crops)
        predicted = torch.stack([self.predictor(answer) for answer in student])
        with torch.no_grad():
            average: Any = self.teacher.model
            _, teacher = answers(average[0], average[1], crops[:2])
        self.seen = {"embedding": embedding[:2].detach()}
        if self.probabilities:
            targets = sharpened(teacher, self.teacher_temperature, self.center.center)
            loss = pairs_cross_entropy(predicted, targets, temperature=self.student_temperature)
            self.seen |= {"teacher_logits": teacher, "teacher_probs": targets}
        else:
            targets = teacher - self.center.center
            pairs = [(v, g) for g in range(2) for v in range(len(crops)) if v != g]
            loss = 2 * torch.stack([regression(predicted[v], targets[g]) for v, g in pairs]).mean()
        if self.training:
            self.center.update(teacher)
        return {"loss": loss}

    def after_step(self, progress: float) -> None:
        self.teacher.update(self._student(), progress)

    def _student(self) -> nn.Sequential:
        """What the teacher averages."""
        return nn.Sequential(self.backbone, self.head)


def answers(
    backbone: Backbone, head: nn.Module, crops: Sequence[Float[Tensor, "batch 3 _ _"]]
) -> tuple[Float[Tensor, "view batch _"], Float[Tensor, "view batch dim"]]:
    """What a method calls the embedding of each crop, and what the head says of it."""
    if not isinstance(head, DINOHead):
        said = torch.stack([head(backbone(crop)) for crop in crops])
        return said, said
    projected = head.project(torch.cat(backbone.many(crops)))
    return (
        projected.unflatten(0, (len(crops), -1)),
        F.linear(projected, head.directions()).unflatten(0, (len(crops), -1)),
    )


class Step(NamedTuple):
    """A setting on the way: switches of `Between`, and how many local crops the student sees."""

    label: str
    locals: int
    switches: dict[str, bool]


LOCALS = 2
READ = ("knn", "embedding_std", "effective_rank", "loss")
ALL = {"prototypes": True, "probabilities": True, "predictor": False, "centering": True}
CHAIN = (
    Step("BYOL", 0, {}),
    Step("DINO's head", 0, {"prototypes": True}),
    Step("cross-entropy", 0, {"prototypes": True, "probabilities": True}),
    Step("centering for predictor", 0, ALL),
    Step("DINO", LOCALS, ALL),
)
SWAPS = (
    Step("BYOL with multi-crop", LOCALS, {}),
    Step("DINO with MSE", LOCALS, ALL | {"probabilities": False}),
    Step("DINO with a predictor", LOCALS, ALL | {"predictor": True}),
)


def run(out: Path, effort: Effort) -> Page:
    """All panels into the folder `out`."""
    pictures = Pictures.of(effort)
    page = Page("dino-byol", "What turns BYOL into DINO?", out, effort.settings())
    chain = trained(CHAIN, pictures, effort)
    page.add(path(chain, pictures))
    ends = [run for run in chain if run.label in ("BYOL", "DINO")]
    page.add(swaps(ends + trained(SWAPS, pictures, effort), pictures))
    return page


def trained(steps: Sequence[Step], pictures: Pictures, effort: Effort) -> list[Learned]:
    """Each step's runs; all with the same rate, teacher, widths and number of steps."""
    return [
        run
        for label, locals, switches in steps
        for run in learn_all({label: partial(Between, **switches)}, pictures, small_crops(locals), effort)
    ]


def path(runs: Sequence[Learned], pictures: Pictures) -> Panel:
    """From BYOL to DINO."""
    labels = list(by_label(runs))
    steps = " ".join(versus(runs, after, before, pictures) for before, after in pairwise(labels))
    return Panel(
        name="path", title="From BYOL to DINO, one change at a time",
        asks="Each step keeps the changes before it. BYOL; with DINO's head, so that answers are cosines with"
        " prototypes; with the cross-entropy of softmaxes (the teacher's the sharper one) in place of the distance of"
        " directions; with centering in place of the predictor; with local crops for the student, which is DINO. Only"
        " what changes, changes: learning rate, teacher, widths and number of steps are one for all, and more crops"
        " cost more time. The bars are kNN accuracy, with a dot for each seed and a dashed line for the network before"
        " training; on the right the spread of the embeddings tells whether a step collapses.",
        found=f"{collapses(runs)} {steps} {gains(runs, pictures)}",
        rows=summary(runs, READ), figure=_figure(runs), code=[Between, BYOL, DINO],
    )  # fmt: skip


def swaps(runs: Sequence[Learned], pictures: Pictures) -> Panel:
    """What the two ends make of each other's parts."""
    against_ends = [("BYOL with multi-crop", "BYOL"), ("DINO with MSE", "DINO"), ("DINO with a predictor", "DINO")]
    said = " ".join(versus(runs, label, end, pictures) for label, end in against_ends)
    return Panel(
        name="swaps", title="One part of the other method",
        asks="Multi-crop on BYOL; and DINO with the distance of directions (MSE) in place of cross-entropy, the center"
        " then being taken off the answers that directions are compared of; and DINO with a predictor beside its"
        " centering. DINO's paper (table 7) finds DINO with MSE far worse, and that a predictor changes little.",
        found=f"{collapses(runs)} {said} {gains(runs, pictures)}",
        rows=summary(runs, READ), figure=_figure(runs), code=[Between],
    )  # fmt: skip


def _figure(runs: Sequence[Learned]) -> Figure:
    plot, (left, right) = figure(2, width=5.6)
    plot_bars(left, runs, "knn", title="kNN accuracy", floor=mean(run.first("knn") for run in runs))
    plot_curves(right, runs, "embedding_std", title="spread of embeddings", floor=1.0)
    right.set_ylim(0, 1.05)
    legend(right)
    return plot
