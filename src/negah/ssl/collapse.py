"""The collapse doctor: has the network stopped telling images apart, in which way, and why?

A self-supervised loss can be low for a network that says nothing, which has several ways of doing so:

    complete         every image has the same embedding
    dimensional      embeddings differ, but in a few directions only, and no teacher makes much of these
    equal views      two views of an image are one point, though images differ: there was nothing to learn
    uniform teacher  the teacher's distribution over its K prototypes is flat: teacher_entropy ln K, loss ln K
    one prototype    the teacher gives every image the same prototype: teacher_kl ln K, loss near 0

A teacher in good health is in between: entropy well below ln K, and a mean over the images that is near uniform.

`diagnose` tells these apart in any features, by the figures of `negah.ssl.figures`.  `CollapseDoctor` is the callback
that does so while a run goes on.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from negah import ranks
from negah.errors import InputError, TrainingError
from negah.ssl.figures import FEWEST, embedding_figures, input_figures, logit_figures, teacher_figures
from negah.train.callbacks import Callback
from negah.train.run import Run

Kind = Literal["none", "one prototype", "uniform teacher", "complete", "dimensional", "equal views"]

ROWS = 512  # most images that are looked at: their pairs and singular values cost well below a step
VALUES = 2**24  # most teacher probabilities that are looked at (64 MB)


class Sign(NamedTuple):
    """A figure that is near 0 in one kind of collapse, and nowhere near it in good health."""

    kind: Kind
    figure: str
    below: float


# In this order: a flat teacher goes with constant embeddings, and the first that is found says what happened.
SIGNS = (
    # Of 256 images, .1 is fewer than two prototypes in use; ten clusters have .4.
    Sign("one prototype", "usage", 0.1),
    # At .02 logits over temperature deviate by less than .6 (H is ln K less half their variance): hardly a lesson.
    Sign("uniform teacher", "sharpness", 0.02),
    # Mean cosine of two images .9975 and more.  A narrow cone of ReLU features, of mean cosine .95, has .2.
    Sign("complete", "embedding_std", 0.05),
    # A teacher can say the same of all images without being flat or sharp.
    Sign("complete", "information", 0.01),
    # As if the variance were in 1.7 of 8 directions, 4 of 256, 7 of 2048: logarithmic, for good networks use a few
    # dozen of 2048, and have 9 or so when they see ten classes in the images.
    # Where a teacher answers with prototypes, see INFORMED as well.
    Sign("dimensional", "rank_share", 0.25),
    # Cosine of two views .999 and more; trained networks, which augmentation keeps busy, have .8 to .98.
    Sign("equal views", "view_distance", 1e-3),
)

# Prototypes tell images apart also along one line: the head of DINO in good health may have nine tenths of its variance
# in one direction.  So few directions are a collapse there only if the teacher's answers say little as well.  In the
# runs of `negah lab collapse` they say .19 and more of what they could, and .004 or less where a part is missing.
INFORMED = 0.05


@dataclass(frozen=True)
class Settings:
    """What of a method bears on collapse; None where it does not apply, or is not known."""

    predictor: bool | None = None
    stop_gradient: bool | None = None
    centering: bool | None = None  # or Sinkhorn: whether something balances the prototypes
    temperature: float | None = None  # of a contrastive loss
    student_temperature: float | None = None
    teacher_temperature: float | None = None
    adam_lr: float | None = None  # the highest so far, where the optimiser scales steps as Adam does
    norm_per_process: bool = False  # batch norms that see one process's part of the batch

    @classmethod
    def of(cls, run: Run) -> "Settings":
        """As far as the objective's attributes and the optimiser tell: `predictor`, `stop_gradient`, `center` and
        `balanced`, `temperature`, `student_temperature` and `teacher_temperature` under these names."""
        has: Mapping[str, Any] = vars(run.objective) | dict(run.objective.named_children())
        teacher: Any = has.get("teacher_temperature")
        teacher = teacher(run.step / run.steps) if callable(teacher) else teacher
        rates = [row["lr"] for row in run.history if "lr" in row]
        return cls(
            predictor=not isinstance(has["predictor"], nn.Identity) if "predictor" in has else None,
            stop_gradient=has.get("stop_gradient"),
            centering=has.get("balanced", False) or has["center"].momentum < 1 if "center" in has else None,
            temperature=has.get("temperature") if teacher is None else None,  # DINO's is the teacher's of the step
            student_temperature=has.get("student_temperature"),
            teacher_temperature=teacher,
            adam_lr=max(rates, default=None) if "adam" in type(run.optimizer).__name__.lower() else None,
            norm_per_process=ranks.world() > 1
            and any(type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) for module in run.objective.modules()),
        )


@dataclass(frozen=True)
class Diagnosis:
    """What was found."""

    kind: Kind
    cause: str  # the likely one; "" where there is no collapse
    figures: dict[str, float]  # those of `negah.ssl.figures`, as far as there was something to read them from
    text: str  # all of it in one line


class CollapseWarning(UserWarning):
    """A run collapses."""


class CollapseDoctor(Callback):
    """Reads `objective.seen`, warns once if the network collapses, and can stop the run.

    `seen` holds detached tensors of the last batch: "embedding" [view batch dim], "teacher_probs" and "teacher_logits"
    [view batch prototype], "images" [view batch ...], each of them optional.  Figures go to `readings`, and to the row
    of the history of the same step; so `TensorBoard` must come after the doctor in the list of callbacks to show them.

    A new network looks collapsed, for its outputs hardly depend on the image, and some methods rest on a plateau while
    the learning rate warms up.  So nothing is said in the first `grace` of the run, nor before `patience` readings in a
    row show the same kind, nor while its figure is on the way up.

    Args:
        every: fewest steps between two readings, which are taken when the history gets a row; by default a hundredth
            of the run, and at most 100.
        grace: share of the run, by default that of the usual warm-up.
        stop: end the run rather than only warn.

    Raises TrainingError when the objective leaves nothing to be seen.
    """

    def __init__(self, *, every: int | None = None, grace: float = 0.1, patience: int = 5, stop: bool = False):
        self.every, self.grace, self.patience, self.stop = every, grace, patience, stop
        self.readings: list[dict[str, Any]] = []  # step, kind and figures
        self.warning = ""  # what was warned of
        self.streak: dict[str, Any] = {"kind": "none", "length": 0, "start": 0.0}

    def after_step(self, run: Run) -> None:
        if not run.history or run.history[-1]["step"] != run.step:
            return
        every = self.every or max(1, min(100, run.steps // 100))
        last = self.readings[-1]["step"] if self.readings else 0
        if run.step - last < every and run.step < run.steps:
            return
        found = diagnose(**_seen(run), settings=Settings.of(run))
        self.readings.append({"step": run.step, "kind": found.kind} | found.figures)
        run.history[-1].update(found.figures)
        if self._lasts(found) and run.step >= self.grace * run.steps and not self.warning:
            self.warning = f"{found.text} (since step {self.readings[-self.patience]['step']})"
            if ranks.rank() == 0:
                warnings.warn(self.warning, CollapseWarning, stacklevel=2)
            if self.stop:
                run.stop = self.warning

    def _lasts(self, found: Diagnosis) -> bool:
        """Whether this kind was found `patience` times in a row, without a recovery."""
        met = _met(found.figures)
        depth = found.figures[met[0].figure] / met[0].below if met else 1.0
        if found.kind != self.streak["kind"] or depth > self.streak["start"] + 0.1:
            self.streak = {"kind": found.kind, "length": 0, "start": depth}
        self.streak["length"] += 1
        return bool(met) and self.streak["length"] >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"readings": self.readings, "warning": self.warning, "streak": self.streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.readings, self.warning, self.streak = list(state["readings"]), state["warning"], dict(state["streak"])


@torch.no_grad()
def diagnose(
    *,
    embedding: Float[Tensor, "*view batch dim"] | None = None,
    teacher_probs: Float[Tensor, "*views rows prototype"] | None = None,
    teacher_logits: Float[Tensor, "*views rows prototype"] | None = None,
    images: Num[Tensor, "_ _ *pixels"] | None = None,
    settings: Settings = Settings(),
) -> Diagnosis:
    """What kind of collapse, if any, features of one batch show; of more than 512 images, evenly spread ones count.

    Args:
        embedding: of each view, or of one; scaled to length 1 here.
        teacher_probs, teacher_logits: what the teacher says of each image; the latter only helps to name a cause.
        images: the pixels that the embeddings are of, to tell what is in the data from what the network made of them.

    Raises InputError when a tensor is not finite.

    Examples:
        >>> diagnose(embedding=torch.ones(64, 8)).kind  # every picture has the same embedding
        'complete'
        >>> diagnose(embedding=torch.randn(64, 8, generator=torch.Generator().manual_seed(0))).kind
        'none'
    """
    given = {"embedding": embedding, "teacher_probs": teacher_probs, "teacher_logits": teacher_logits}
    for name, x in given.items():
        if x is not None and not x.isfinite().all():
            raise InputError(f"{name} is not finite: nothing can be read from it")
    figures: dict[str, float] = {}
    if embedding is not None:
        figures |= embedding_figures(_thinned(embedding, ROWS).cpu())
    if teacher_probs is not None:
        figures |= teacher_figures(_thinned(teacher_probs, _rows(teacher_probs)))
    if teacher_logits is not None:
        figures |= logit_figures(_thinned(teacher_logits, _rows(teacher_logits)))
    if images is not None:
        figures |= input_figures(_thinned(_pixels(images), ROWS).cpu())
    met = _met(figures)
    if not met:
        return Diagnosis("none", "", figures, _line("no collapse", figures))
    kind = met[0].kind
    cause = _cause(kind, figures, settings)
    return Diagnosis(kind, cause, figures, f"{_line(_NAMES[kind], figures)}; likely: {cause}")


def _seen(run: Run) -> dict[str, Tensor]:
    """The last batch of all processes, thinned before it travels; so all come to the same diagnosis."""
    seen: Mapping[str, Tensor] = getattr(run.objective, "seen", {})
    found = {}
    for name in ("embedding", "teacher_probs", "teacher_logits", "images"):
        if name in seen:
            x = seen[name].detach()
            x = _pixels(x) if name == "images" else x
            most = _rows(x) if name.startswith("teacher") else ROWS
            mine = _thinned(x, max(1, most // ranks.world()))
            found[name] = ranks.all_gather(mine.transpose(0, 1).contiguous()).transpose(0, 1)
    if not found:
        raise TrainingError(
            f"{type(run.objective).__name__}.seen holds nothing of the last batch that the collapse doctor could read:"
            " it needs an embedding or teacher_probs"
        )
    return found


def _rows(x: Tensor) -> int:
    """Images of [view batch prototype] that are looked at."""
    return max(FEWEST, min(ROWS, VALUES * x.shape[-2] // max(1, x.numel())))


def _thinned(x: Num[Tensor, "*view batch dim"], rows: int) -> Float[Tensor, "views some dim"]:
    """At most so many images of the batch, evenly spread, in fp32."""
    x = x.reshape(-1, *x.shape[-2:])
    n = x.shape[1]
    return (x if n <= rows else x[:, torch.arange(rows, device=x.device) * n // rows]).float()


def _pixels(images: Num[Tensor, "view batch *pixels"]) -> Num[Tensor, "view batch some"]:
    """As many of each image, evenly spread, as a picture of 32 x 32 has."""
    flat = images.flatten(2)
    return flat[..., :: max(1, -(-flat.shape[2] // 3072))]


def _met(figures: Mapping[str, float]) -> list[Sign]:
    informed = figures.get("information", 0.0) >= INFORMED
    return [
        sign for sign in SIGNS
        if figures.get(sign.figure, math.inf) < sign.below and not (informed and sign.kind == "dimensional")
    ]  # fmt: skip


_NAMES: dict[Kind, str] = {
    "one prototype": "one-prototype collapse: the teacher gives every image the same prototype",
    "uniform teacher": "uniform collapse: the teacher's distribution is flat",
    "complete": "complete collapse: the same is said of every image",
    "dimensional": "dimensional collapse: embeddings use few of their directions",
    "equal views": "equal views: two views of an image have one embedding",
}


def _line(head: str, figures: Mapping[str, float]) -> str:
    """The head and the figures that a reader judges it by."""
    told = []
    if "embedding_std" in figures:
        told.append(f"embedding std {figures['embedding_std']:.3f} (uniform: 1)")
        told.append(f"effective rank {figures['effective_rank']:.1f}")
    if "alignment" in figures:
        told.append(f"alignment {figures['alignment']:.2g}, uniformity {figures['uniformity']:.2f}")
    if "teacher_entropy" in figures:
        told.append(
            f"of ln K = {figures['ln_k']:.2f} teacher entropy {figures['teacher_entropy']:.2f}"
            f" and KL of its mean from uniform {figures['teacher_kl']:.2f}"
        )
    if figures.get("duplicates", 0.0) >= 0.01:
        inputs = f", {figures['duplicate_inputs']:.0%} of the images'" if "duplicate_inputs" in figures else ""
        told.append(f"{figures['duplicates']:.0%} of the pairs of embeddings are duplicates{inputs}")
    return f"{head}; {', '.join(told)}" if told else f"{head} is seen, but nothing can be in fewer than {FEWEST} images"


def _cause(kind: Kind, figures: Mapping[str, float], s: Settings) -> str:
    """The first that applies of what is known to bring this kind about."""
    if kind == "equal views":
        if figures.get("equal_inputs", 0.0) > 0.5:
            return "the two views are the same pixels: augmentation is off"
        if s.norm_per_process:
            return "batch norms see one process's part of the batch, which gives partners away: use global batch norm"
        return "both views show the same pixels, or a mark that survives augmentation (border, stamp): look at them"
    if s.stop_gradient is False:
        return "there is no stop-gradient, so the target runs towards the prediction: detach the target"
    if s.predictor is False:
        return "there is no predictor, and nothing else keeps a method without negatives from the constant"
    if s.centering is False and kind in ("one prototype", "complete"):
        return "the teacher is neither centred nor balanced by Sinkhorn, so nothing keeps one prototype from winning"
    teacher, student = s.teacher_temperature, s.student_temperature or 0.1
    if kind == "uniform teacher" and teacher is not None and teacher >= student:
        return f"teacher temperature {teacher:g} is not below the student's {student:g}: nothing sharpens; try .04"
    if s.adam_lr is not None and s.adam_lr >= 5e-3:
        return f"a learning rate of {s.adam_lr:g} is high for Adam, whose recipes stay below 0.002: lower it"
    if kind == "one prototype":
        if teacher is not None and teacher < 0.02:
            return f"teacher temperature {teacher:g} leaves one choice: .04 to .07 is usual"
        return "the center follows the teacher too slowly: lower the learning rate or the center's momentum"
    if kind == "uniform teacher":
        if figures.get("logit_variation", 1.0) < 0.01 or figures.get("embedding_std", 1.0) < 0.05:
            return "all images have the same logits, which centring makes flat: lower the learning rate, warm up longer"
        return "too little sharpening for logits this small: lower the teacher's temperature"
    if kind == "complete":
        if s.temperature is not None and s.temperature > 2:
            return f"temperature {s.temperature:g} makes all negatives count alike: .1 to .5 is usual"
        return (
            "what should rule the constant out (negatives; predictor and stop-gradient; centring) is too weak,"
            " or the learning rate too high"
        )
    if s.temperature is not None and s.temperature < 0.03:
        return f"temperature {s.temperature:g} heeds the nearest negative alone: .1 to .5 is usual"
    return (
        "augmentation stronger than what images differ by, a batch too small for the width, a projector without a"
        " hidden layer, or too much weight decay"
    )
