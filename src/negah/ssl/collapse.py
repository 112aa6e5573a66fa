"""The collapse doctor: has the network stopped telling images apart, in which way, and why?

A self-supervised loss can be low for a network that says nothing.  It does not say nothing in one way only:

    complete         every image has the same embedding
    dimensional      embeddings differ, but in a few directions only
    equal views      two views of an image are one point, though images differ: there was nothing to learn
    uniform teacher  the teacher's distribution over its K prototypes is flat, the loss ln K
    one prototype    the teacher gives every image the same prototype, the loss near 0

With z the embeddings, scaled to length 1, and s the singular values of z less its mean, of n images in d dimensions:

    embedding_std   sqrt(d) * standard deviation of each dimension, averaged: 1 when directions are uniform
    effective_rank  exp(H(s / sum s)), Roy and Vetterli 2007
    alignment       mean |z_a - z_b|^2 over views a, b of an image        Wang and Isola 2020, arXiv:2005.10242
    uniformity      log mean exp(-2 |z_i - z_j|^2) over images i != j     0 when complete, about -4 when uniform
    duplicates      share of pairs of images whose cosine is above .9999

and with p_i the teacher's probabilities of image i, p their mean, H the entropy, u the uniform distribution:

    teacher_entropy mean H(p_i)        ln K: uniform teacher
    teacher_kl      KL(p || u)         ln K: one prototype; near 0 in a healthy teacher, whose H(p_i) is not ln K

`diagnose` reads all this from any features.  `CollapseDoctor` is the callback that does so while a run goes on.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from negah import ranks
from negah.errors import InputError, TrainingError
from negah.train.callbacks import Callback
from negah.train.run import Run

Kind = Literal["none", "one prototype", "uniform teacher", "complete", "dimensional", "equal views"]

ROWS = 512  # most images that are looked at: their pairs and singular values cost well below a step
LOGITS = 2**24  # most teacher probabilities that are looked at (64 MB)
FEWEST = 4  # images below which nothing can be said
SAME = 0.9999  # cosine of a duplicate


class Sign(NamedTuple):
    """A figure in [0, 1], or above, that is near 0 in one kind of collapse and nowhere near it in health."""

    kind: Kind
    figure: str
    below: float


# In this order: a flat teacher goes with constant embeddings, and the first that is found names what happened.
SIGNS = (
    # H(p) over its largest value: .1 of 256 images is fewer than two prototypes in use.  Ten clusters have .4.
    Sign("one prototype", "usage", 0.1),
    # 1 - H(p_i) / ln K: at .02 the logits, over the temperature, deviate by less than .6, and teach as good as nothing.
    Sign("uniform teacher", "sharpness", 0.02),
    # Mean cosine of two images .9975 and more.  ReLU features of a new network, which are in a narrow cone, have .2.
    Sign("complete", "embedding_std", 0.05),
    # What p_i tells of i, H(p) - H(p_i), over the most that it could: the teacher may be constant between the extremes.
    Sign("complete", "information", 0.01),
    # ln of the effective rank over ln of the largest possible: at .3 two dimensions of 8, five of 256, ten of 2048.
    # Logarithmic, since networks in good health use a few dozen of 2048.
    Sign("dimensional", "rank_share", 0.3),
    # Distance of two views over distance of two images: cosine .999.  Trained networks reach .8 to .98.
    Sign("equal views", "view_distance", 1e-3),
)


@dataclass(frozen=True)
class Settings:
    """What of a method bears on collapse; None where it does not apply, or is not known."""

    predictor: bool | None = None
    stop_gradient: bool | None = None
    centering: bool | None = None  # or Sinkhorn: whatever balances the prototypes
    temperature: float | None = None  # of a contrastive loss
    student_temperature: float | None = None
    teacher_temperature: float | None = None
    lr: float | None = None  # the highest so far
    adam: bool | None = None  # whether the optimiser scales steps as Adam does
    norm_per_process: bool | None = None  # batch norms that see one process's part of the batch

    @classmethod
    def of(cls, run: Run) -> "Settings":
        """From the optimiser, and from the objective's attributes of these names: a module or None is True or False,
        and a schedule is taken at the run's progress."""
        known: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            value = getattr(run.objective, name, ...)
            if value is None or isinstance(value, nn.Module):
                known[name] = not (value is None or isinstance(value, nn.Identity))
            elif isinstance(value, (bool, int, float)):
                known[name] = value
            elif value is not ... and callable(value):
                known[name] = float(value(run.step / run.steps))  # pyright: ignore[reportArgumentType]
        return cls(**known | {
            "lr": max([row["lr"] for row in run.history if "lr" in row], default=None),
            "adam": "adam" in type(run.optimizer).__name__.lower(),
            "norm_per_process": ranks.world() > 1
            and any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in run.objective.modules()),
        })  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """What was found.  figures: those of the module's docstring, as far as there was something to read them from."""

    kind: Kind
    cause: str  # likely; "" where there is no collapse
    figures: dict[str, float]
    text: str  # all of it in one line


class CollapseWarning(UserWarning):
    """A run collapses."""


class CollapseDoctor(Callback):
    """Reads `objective.seen`, warns once if the network collapses, and can stop the run.

    `seen` holds detached tensors of the last batch: "embedding" [view batch dim], "teacher_probs" and "teacher_logits"
    [view batch K], "images" [view batch ...], each of them optional.  Figures go to `readings`, and to the row of the
    history of the same step, so the doctor stands before `TensorBoard` in the list of callbacks.

    A new network looks collapsed (its outputs hardly depend on the image), and some methods rest on a plateau while the
    learning rate warms up.  So nothing is said in the first `grace` of the run, nor before `patience` readings in a row
    show the same kind, nor while its figure is on the way up.

    Args:
        every: fewest steps between two readings, which are taken where the history gets a row; by default a hundredth
            of the run, and at most 100.
        grace: share of the run, by default that of the usual warm-up.
        stop: end the run rather than only warn.

    Raises TrainingError when the objective leaves nothing to be seen.
    """

    def __init__(self, *, every: int | None = None, grace: float = 0.1, patience: int = 5, stop: bool = False):
        self.every, self.grace, self.patience, self.stop = every, grace, patience, stop
        self.readings: list[dict[str, float | str]] = []  # step, kind and figures
        self.warning = ""  # what was warned of, or ""
        self.streak: dict[str, Any] = {"kind": "none", "length": 0, "start": 0.0}

    def after_step(self, run: Run) -> None:
        if not run.history or run.history[-1]["step"] != run.step:
            return
        every = self.every or max(1, min(100, run.steps // 100))
        last = int(self.readings[-1]["step"]) if self.readings else 0
        if run.step - last < every and run.step < run.steps:
            return
        found = diagnose(**_seen(run), settings=Settings.of(run))
        self.readings.append({"step": run.step, "kind": found.kind} | found.figures)
        run.history[-1].update(found.figures)
        if run.step >= self.grace * run.steps and self._lasts(found) and not self.warning:
            self.warning = f"{found.text} (since step {self.readings[-self.patience]['step']})"
            if ranks.rank() == 0:
                warnings.warn(self.warning, CollapseWarning, stacklevel=2)
            if self.stop:
                run.stop = self.warning

    def _lasts(self, found: Diagnosis) -> bool:
        """Whether this kind was found `patience` times in a row, without a recovery."""
        figure = min(
            [found.figures[s.figure] / s.below for s in _met(found.figures) if s.kind == found.kind], default=1
        )
        recovers = figure > self.streak["start"] + 0.1  # in units of the threshold
        if found.kind != self.streak["kind"] or recovers:
            self.streak = {"kind": found.kind, "length": 0, "start": figure}
        self.streak["length"] += 1
        return found.kind != "none" and self.streak["length"] >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"readings": self.readings, "warning": self.warning, "streak": self.streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.readings, self.warning, self.streak = list(state["readings"]), state["warning"], dict(state["streak"])


@torch.no_grad()
def diagnose(
    *,
    embedding: Float[Tensor, "*view batch dim"] | None = None,
    teacher_probs: Float[Tensor, "*view batch prototype"] | None = None,
    teacher_logits: Float[Tensor, "*view batch prototype"] | None = None,
    images: Num[Tensor, "view batch *pixels"] | None = None,
    settings: Settings = Settings(),
) -> Diagnosis:
    """What kind of collapse, if any, features of one batch show; of more than 512 images, evenly spread ones count.

    Args:
        embedding: of each view, or of one; scaled to length 1 here.
        teacher_probs, teacher_logits: what the teacher says of each image; the latter only helps to name a cause.
        images: the pixels that the embeddings are of, to tell copies in the data from collapse.

    Raises InputError when a tensor is not finite.
    """
    figures: dict[str, float] = {}
    for name, x in (("embedding", embedding), ("teacher_probs", teacher_probs), ("teacher_logits", teacher_logits)):
        if x is not None and not x.isfinite().all():
            raise InputError(f"{name} is not finite: nothing can be read from it")
    images_seen = 0
    if embedding is not None:
        images_seen = embedding.shape[-2]
        figures |= _embedding_figures(_thinned(embedding, ROWS).cpu())
    if teacher_probs is not None:
        images_seen = teacher_probs.shape[-2]
        figures |= _teacher_figures(_thinned(teacher_probs, _rows(teacher_probs)))
    if teacher_logits is not None:
        figures |= _logit_figures(_thinned(teacher_logits, _rows(teacher_logits)))
    if images is not None:
        figures |= _pixel_figures(_thinned(images.flatten(2), ROWS).cpu())
    met = _met(figures)
    if not met:
        return Diagnosis("none", "", figures, _line("no collapse", figures, images_seen))
    cause = _cause(met[0].kind, figures, settings, images_seen)
    return Diagnosis(
        met[0].kind, cause, figures, _line(_NAMES[met[0].kind], figures, images_seen) + f"; likely: {cause}"
    )


def duplicates(x: Float[Tensor, "n dim"], *, cosine: float = SAME) -> float:
    """Share of the pairs of rows whose cosine is above `cosine`; O(n^2) memory."""
    z = F.normalize(x.float(), dim=1)
    same = (z @ z.T > cosine).sum().item() - (z.square().sum(1) > cosine).sum().item()
    return same / (len(z) * (len(z) - 1))


def effective_rank(x: Float[Tensor, "n dim"]) -> float:
    """exp of the entropy of the singular values of x less its mean row (Roy and Vetterli 2007), 1 to min(n - 1, dim).

    1 also where all rows are the same.
    """
    x = x.double() - x.double().mean(0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # the smaller of the two; its eigenvalues are s^2
    s = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return math.exp(_entropy(s / s.sum()).item()) if s.sum() > 0 else 1.0


def alignment(a: Float[Tensor, "n dim"], b: Float[Tensor, "n dim"]) -> float:
    """Mean squared distance of two views of the same images, whose embeddings have length 1: 0 to 4."""
    return (a - b).square().sum(1).mean().item()


def uniformity(z: Float[Tensor, "n dim"], *, t: float = 2.0) -> float:
    """log of the mean of exp(-t |z_i - z_j|^2) over the pairs of different rows of length 1: -4 t to 0."""
    squared = torch.pdist(z).square()
    return (torch.logsumexp(-t * squared, 0) - math.log(len(squared))).item()


def _embedding_figures(embedding: Float[Tensor, "view batch dim"]) -> dict[str, float]:
    _, n, d = embedding.shape
    if n < FEWEST:
        return {}
    views = F.normalize(embedding, dim=2)
    mean = views.mean(1, keepdim=True)
    spread = n / (n - 1) * (views - mean).square().sum(2).mean(1)  # of each view: half a mean squared distance
    # Figures of one view's images, averaged over the views: rows of several views would not be independent.
    rank = sum(effective_rank(z) for z in views) / len(views)
    figures = {
        "embedding_std": math.sqrt(d) * (views.std(1).mean().item()),
        "effective_rank": rank,
        "uniformity": sum(uniformity(z) for z in views) / len(views),
        "duplicates": sum(duplicates(z) for z in views) / len(views),
    }
    if min(n - 1, d) > 2:
        figures["rank_share"] = math.log(rank) / math.log(min(n - 1, d))
    if len(views) > 1:
        pairs = list(combinations(views, 2))
        figures["alignment"] = sum(alignment(a, b) for a, b in pairs) / len(pairs)
        if spread.mean() > 0:
            figures["view_distance"] = figures["alignment"] / (2 * spread.mean().item())
    return figures


def _teacher_figures(probs: Float[Tensor, "view batch prototype"]) -> dict[str, float]:
    _, n, k = probs.shape
    if n < FEWEST or k < 2:
        return {}
    each, mean = _entropy(probs).mean().item(), _entropy(probs.mean((0, 1))).item()
    most = math.log(min(n, k))  # n images cannot say more, however many prototypes there are
    return {
        "teacher_entropy": each,
        "teacher_kl": math.log(k) - mean,
        "ln_k": math.log(k),
        "sharpness": 1 - each / math.log(k),
        "usage": min(1.0, mean / most),
        "information": (mean - each) / most,
    }


def _logit_figures(logits: Float[Tensor, "view batch prototype"]) -> dict[str, float]:
    if logits.shape[1] < FEWEST:
        return {}
    logits = logits - logits.mean(2, keepdim=True)  # what softmax does not see
    whole = logits.square().mean().item()
    return {"logit_variation": logits.var(1).mean().item() / whole} if whole > 0 else {"logit_variation": 0.0}


def _pixel_figures(pixels: Float[Tensor, "view batch pixel"]) -> dict[str, float]:
    _, n, count = pixels.shape
    pixels = pixels[..., :: -(-count // 3072)]  # a 32 x 32 picture's worth
    figures = {"equal_inputs": (pixels[0] == pixels[1]).all(1).float().mean().item()} if len(pixels) > 1 else {}
    first = pixels[0] - pixels[0].mean(1, keepdim=True)
    return figures | ({"duplicate_inputs": duplicates(first)} if n > 1 else {})


def _entropy(p: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows"]:
    return torch.special.entr(p).sum(-1)


def _rows(x: Tensor) -> int:
    return max(FEWEST, min(ROWS, LOGITS // (x.shape[-1] * (len(x) if x.ndim == 3 else 1))))


def _thinned(x: Num[Tensor, "*view batch dim"], rows: int) -> Float[Tensor, "views some dim"]:
    """At most so many images of the batch, evenly spread, in fp32."""
    x = x.reshape(-1, *x.shape[-2:]) if x.ndim > 2 else x.unsqueeze(0)
    n = x.shape[1]
    chosen = torch.arange(min(n, rows), device=x.device) * n // min(n, rows) if n else slice(None)
    return x[:, chosen].float()


def _seen(run: Run) -> dict[str, Tensor]:
    """The last batch of all processes, thinned before it travels; so all decide alike."""
    seen: Mapping[str, Tensor] = getattr(run.objective, "seen", {})
    names = [n for n in ("embedding", "teacher_probs", "teacher_logits", "images") if n in seen]
    if not names:
        raise TrainingError(
            f"{type(run.objective).__name__}.seen holds no embedding and no teacher_probs of the last batch:"
            " the collapse doctor needs one of them"
        )
    found = {}
    for name in names:
        x = seen[name].detach()
        x = x.flatten(2) if name == "images" else x
        mine = _thinned(x, max(1, (ROWS if name in ("embedding", "images") else _rows(x)) // ranks.world()))
        found[name] = ranks.all_gather(mine.transpose(0, 1).contiguous()).transpose(0, 1)
    return found


def _met(figures: Mapping[str, float]) -> list[Sign]:
    return [sign for sign in SIGNS if figures.get(sign.figure, math.inf) < sign.below]


_NAMES: dict[Kind, str] = {
    "one prototype": "one-prototype collapse: the teacher gives every image the same prototype",
    "uniform teacher": "uniform collapse: the teacher's distribution is flat",
    "complete": "complete collapse: all images have the same embedding or target",
    "dimensional": "dimensional collapse: embeddings use few of their directions",
    "equal views": "equal views: two views of an image have one embedding",
}


def _line(head: str, figures: Mapping[str, float], n: int) -> str:
    """The head and the figures that a reader judges it by."""
    told = []
    if "embedding_std" in figures:
        told.append(f"embedding std {figures['embedding_std']:.3f} (uniform: 1)")
        told.append(f"effective rank {figures['effective_rank']:.1f}")
    if "alignment" in figures:
        told.append(f"alignment {figures['alignment']:.2g}, uniformity {figures['uniformity']:.2f}")
    if "teacher_entropy" in figures:
        told.append(
            f"teacher entropy {figures['teacher_entropy']:.2f} and KL of its mean from uniform"
            f" {figures['teacher_kl']:.2f}, of ln K = {figures['ln_k']:.2f}"
        )
    if figures.get("duplicates", 0) >= 0.01 and figures.get("embedding_std", 0) >= 0.05:
        where = "" if "duplicate_inputs" not in figures else f" ({figures['duplicate_inputs']:.0%} in the input)"
        told.append(f"{figures['duplicates']:.0%} of the pairs of images are duplicates{where}")
    return f"{head}; {', '.join(told)}; {n} images" if told else f"{head} can be seen in {n} images, which are too few"


def _cause(kind: Kind, figures: Mapping[str, float], s: Settings, n: int) -> str:
    """The first that applies of what is known to bring this kind about."""
    if s.stop_gradient is False and kind != "equal views":
        return "there is no stop-gradient, so the target runs towards the prediction: detach the target"
    if s.predictor is False and kind in ("complete", "dimensional"):
        return "there is no predictor between the branches: nothing else keeps BYOL and its kin from a constant"
    if s.adam and s.lr is not None and s.lr >= 5e-3:
        return f"a learning rate of {s.lr:g} is high for Adam, whose recipes stay below 0.002: lower it, warm up longer"
    if kind == "one prototype":
        if s.centering is False:
            return "the teacher is not centred (or balanced by Sinkhorn), so nothing keeps one prototype from winning"
        if s.teacher_temperature is not None and s.teacher_temperature < 0.02:
            return f"a teacher temperature of {s.teacher_temperature:g} leaves one choice: .04 to .07 is usual"
        return "the centre follows the teacher too slowly: lower the learning rate or the centre's momentum"
    if kind == "uniform teacher":
        teacher, student = s.teacher_temperature, s.student_temperature
        if teacher is not None and teacher >= (student or 0.1):
            return (
                f"the teacher's temperature {teacher:g} is not below the student's {student or 0.1:g}, so nothing"
                " sharpens: .04 to .07 is usual"
            )
        if figures.get("logit_variation", 1.0) < 0.01 or figures.get("embedding_std", 1.0) < 0.05:
            return "images have the same logits, and centring leaves them flat: lower the learning rate, warm up longer"
        return "too little sharpening for logits this small: lower the teacher's temperature"
    if kind == "complete":
        if s.centering is False:
            return "the teacher is neither centred nor balanced by Sinkhorn: nothing rules the constant out"
        if s.temperature is not None and s.temperature > 2:
            return f"a temperature of {s.temperature:g} makes all negatives count alike: .1 to .5 is usual"
        return (
            "what rules the constant out (negatives, predictor and stop-gradient, centring) is missing or too weak,"
            " or the learning rate is too high"
        )
    if kind == "dimensional":
        if figures["effective_rank"] > 0.3 * (n - 1):
            return f"a batch of {n} images cannot show more"
        if s.temperature is not None and s.temperature < 0.03:
            return f"a temperature of {s.temperature:g} heeds the nearest negative alone: .1 to .5 is usual"
        return (
            "augmentation stronger than what differs between images, a batch too small for the width, a projector"
            " without a hidden layer, or too much weight decay"
        )
    if figures.get("equal_inputs", 0.0) > 0.5:
        return "the two views are the same pixels: augmentation is off"
    if s.norm_per_process:
        return "batch norms see one process's part of the batch, which gives the partner away: use global batch norm"
    return "both views show the same pixels, or a mark that survives augmentation (border, stamp): look at the views"
