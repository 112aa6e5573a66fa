"""`negah harden`: a detector, or a classifier from class folders, learns from images that are made to fool it.

Labelled images are parted three ways, and what belongs together stays together: most are learned from; one fold is
watched, and by it the step is chosen whose weights are kept, and the threshold; one fold, or what a csv marks as test,
is judged, before and after, and looked at for nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from negah import __version__, ranks
from negah.adversarial.evaluate import Bf16, Outcome, attacked, ladder
from negah.adversarial.gradient import pgd
from negah.adversarial.harden import (
    Craft,
    Hardening,
    OverfittingWatch,
    Trades,
    fgsm_start,
    held_out,
    noisy_start,
    pgd_start,
    random_start,
)
from negah.errors import InputError
from negah.images.pool import Pool, folder_labels
from negah.nn.backbone import ConvBackbone
from negah.probe import detector as detectors
from negah.probe.detector import Detector
from negah.probe.features import fit_to, turned
from negah.probe.labels import read_samples
from negah.probe.metrics import Interval, best_threshold, measure
from negah.probe.splits import random_folds
from negah.progress import Progress, Say, silent
from negah.runs.attack import NORMS
from negah.runs.classifiers import PanelClassifier
from negah.runs.parts import TESTED, Splitting, readable
from negah.runs.probe import as_plain
from negah.runs.record import claim, compute_device, hardware, now, versions
from negah.runs.watch import on_first
from negah.train import Batches, FitResult, fit
from negah.train.callbacks import Callback, KeepBest
from negah.train.run import Run
from negah.weights import backbone as backbone_named
from negah.weights.classifiers import BackboneClassifier, save_classifier
from negah.weights.save import write, write_json

Method = Literal["fgsm", "fast-at", "n-fgsm", "pgd", "trades"]
CRAFTS: dict[str, Craft] = {
    "fgsm": fgsm_start, "fast-at": random_start, "n-fgsm": noisy_start, "pgd": pgd_start
}  # fmt: skip
STEPS = 20  # of the attacks that judge
MADE = ("checkpoint.pt", "detector.safetensors", "backbone.safetensors")
Figures = dict[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Options(Splitting):
    """How to harden, and on what.

    eps: radius of the ball, of pixels in [0, 1].  lr: None takes what suits the network.  average: momentum of the
    moving average of the weights, which is then what is scored and kept.  beta: of trades, 6 where it is None.
    what: of a detector, its head alone or all of it.  images: at most so many of those watched, and of those judged,
    are used.  size: side in pixels that a classifier's pictures are brought to.
    """

    eps: float
    norm: Literal["Linf", "L2"] = "Linf"
    epochs: int = 10
    batch: int = 32
    lr: float | None = None
    average: float | None = None
    beta: float | None = None
    what: Literal["head", "all"] = "all"
    images: int = 256
    size: int = 32
    precision: Literal["fp32", "bf16"] = "fp32"

    def check(self, method: Method) -> None:
        """Raise InputError for what makes no sense."""
        if method not in get_args(Method):
            raise InputError(f"no method {method}: there are {', '.join(get_args(Method))}")
        if not 0 < self.eps < 1:
            raise InputError(f"--eps {self.eps:g}: a radius is above 0 and below 1, in units of the range of a pixel")
        for name, value in (("epochs", self.epochs), ("batch", self.batch), ("images", self.images)):
            if value < 1:
                raise InputError(f"--{name} {value}: give 1 or more")
        if self.folds < 3:
            raise InputError(f"--folds {self.folds}: give 3 or more, for one is watched and one is judged")
        if self.average is not None and not 0 < self.average < 1:
            raise InputError(f"--average {self.average:g}: a momentum lies between 0 and 1, such as 0.99")
        if self.beta is not None and (method != "trades" or self.beta <= 0):
            raise InputError(f"--beta {self.beta:g}: a weight above 0, and of trades only")
        if self.batch % ranks.world():
            raise InputError(f"--batch {self.batch} is not a multiple of the {ranks.world()} processes")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it.

    model: file of the detector, or folder of the classifier.  before, after: on the images that were judged; there is
    nothing before a classifier from nothing.  images: how many were learned from, watched and judged.  kept: the step
    whose weights are kept.  stopped: what the watch for catastrophic overfitting said, or nothing.  scores: on watched
    images, by step.
    """

    model: Path
    before: Figures
    after: Figures
    images: dict[str, int]
    threshold: float | None
    steps: int
    epoch: int
    kept: int
    stopped: str
    scores: list[dict[str, float]]
    notes: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Images:
    """Labelled images of one size, and which of them (rows) are for what."""

    pixels: UInt8[Tensor, "n 3 side side"]
    labels: Int[Tensor, " n"]
    learned: Int[ndarray, " learned"]
    watched: Int[ndarray, " watched"]
    judged: Int[ndarray, " judged"]

    @classmethod
    def parted(
        cls, pixels: UInt8[Tensor, "n 3 side side"], labels: Int[ndarray, " n"], fold: Int[ndarray, " n"],
        options: Options, *, origin: str,
    ) -> "Images":  # fmt: skip
        """Fold 0 is judged, unless some are TESTED already, and the next one watched; of either, some are `drawn`.

        Raises InputError where a part lacks a class.
        """
        judged = fold == (TESTED if (fold == TESTED).any() else 0)
        watched = fold == (0 if (fold == TESTED).any() else 1)
        rng = np.random.default_rng(options.seed)
        some = [drawn(np.flatnonzero(part), labels, options.images, rng) for part in (watched, judged)]
        rows = {"to learn from": np.flatnonzero(~judged & ~watched), "to watch": some[0], "to judge": some[1]}
        for use, part in rows.items():
            if len(np.unique(labels[part])) < 2:
                raise InputError(
                    f"{origin}: the {len(part)} images {use} are not of two classes: give more images, or more --images"
                )
        return cls(pixels, torch.from_numpy(labels), *rows.values())

    def at(self, rows: Int[ndarray, " some"], device: torch.device) -> tuple[Tensor, Tensor]:
        """Images in [0, 1], and labels, on the device."""
        return self.pixels[rows].to(device).float() / 255, self.labels[rows].to(device)

    @property
    def counts(self) -> dict[str, int]:
        return {"learned": len(self.learned), "watched": len(self.watched), "judged": len(self.judged)}


def drawn(
    rows: Int[ndarray, " n"], labels: Int[ndarray, " all"], most: int, rng: np.random.Generator
) -> Int[ndarray, " some"]:
    """At most so many of the rows, at random, in order: of each class its share, and one at least."""
    rows = rng.permutation(rows)
    place = np.empty(len(rows))  # in the queue of its class, whose first is at 0 and whose end is at 1
    for label in np.unique(labels[rows]):
        mine = labels[rows] == label
        place[mine] = np.arange(mine.sum()) / mine.sum()
    return np.sort(rows[np.argsort(place, kind="stable")[:most]])


def harden(
    data: Path, out: Path, method: Method, model: str, options: Options, *,
    progress: Progress = silent, say: Say = silent,
) -> Result:  # fmt: skip
    """Harden a detector on labelled images of panels and none.

    `out` gets detector.safetensors, checkpoint.pt, scores.json and run.json; the same call again goes on with a run
    that was stopped.  progress: told a stage of reading, and how much of how many is done.  say: told a line an epoch.

    Raises InputError for what cannot be learned from, WeightsError for the detector, OutputError where `out` holds
    another run or cannot be written, TrainingError where the loss is no longer finite.
    """
    record = _begin(method, {"model": model, "data": str(data)}, out, options, say)
    device = compute_device()
    given = detectors.load(model, device=device)
    images, groups, failures = images_of(data, given, options, progress=progress)

    # At a threshold of one half the logit itself is what learns, so probabilities stay what they say.
    learner = PanelClassifier(Detector(given.backbone, given.head, replace(given.info, threshold=0.5)))
    given.backbone.requires_grad_(options.what == "all")
    lr = options.lr or (1e-3 if options.what == "head" else 3e-4)
    _begun(record, out)
    kept, found, best = _learn(
        method, learner, images, options, out=out, views=_turned, lr=lr, optimizer=AdamW, weight_decay=0.05, say=say
    )  # fmt: skip
    assert isinstance(kept, PanelClassifier)

    def finish() -> Result:
        hardened, before = kept.detector, detectors.load(model, device=device)
        threshold = threshold_of(kept, *images.at(images.watched, device), options)
        hardened.info = replace(given.info, name=out.resolve().name, threshold=threshold, area_ratio=None)
        path = out / "detector.safetensors"
        judge = partial(_judge_detector, images=images, groups=groups[images.judged], options=options)
        result = Result(
            model=path, before=judge(before), after=judge(hardened), images=images.counts, threshold=threshold,
            steps=found.step, epoch=_epoch(images, options), kept=best, stopped=found.stopped, scores=found.scores,
            failures=failures,
        )  # fmt: skip
        write(path, lambda part: detectors.save(hardened.cpu(), part))
        return _end(result, found, record, out, device, classes=2)

    return on_first(finish)


def images_of(
    data: Path, detector: Detector, options: Options, *, progress: Progress = silent
) -> tuple[Images, ndarray, list[tuple[str, str]]]:
    """Images of panels and none at a detector's window, parted; the group of each; what could not be read, and why."""
    samples = read_samples(data, group=options.group, positive=options.positive).labelled()
    fitted = partial(fit_to, size=detector.info.window_px, patch=detector.patch)
    windows, samples, failures = readable(samples, fitted, progress=progress)
    groups, how = options.groups(samples)
    fold = options.folds_of(samples, groups, how)
    return Images.parted(torch.stack(windows), samples.labels, fold, options, origin=samples.origin), groups, failures


def harden_classifier(
    data: Sequence[str], out: Path, method: Method, backbone: str, options: Options, *,
    progress: Progress = silent, say: Say = silent,
) -> Result:  # fmt: skip
    """Train a backbone and a linear layer on pictures in a folder for each class, which are taken to be independent.

    `out` gets what `weights.load_classifier` reads (backbone.safetensors, classes.safetensors), checkpoint.pt,
    scores.json and run.json.  Progress, and what is raised, as in `harden`.
    """
    record = _begin(method, {"backbone": backbone, "data": list(data)}, out, options, say)
    device = compute_device()
    net = backbone_named(backbone, size=options.size, seed=options.seed)
    pool = Pool(list(data), options.size, cut="none", progress=progress)
    labels, classes = folder_labels(pool.names)
    fold = random_folds(labels, folds=options.folds, seed=options.seed)
    pixels = torch.stack([pool[i] for i in range(len(pool))])
    images = Images.parted(pixels, labels.numpy(), fold, options, origin=data[0])

    learner = BackboneClassifier.fresh(net, classes, seed=options.seed).to(device)
    convolutional = isinstance(net, ConvBackbone)
    _begun(record, out)
    kept, found, best = _learn(
        method, learner, images, options, out=out, views=_shifted, lr=options.lr or (0.05 if convolutional else 5e-4),
        optimizer=partial(SGD, momentum=0.9, nesterov=True) if convolutional else AdamW,
        weight_decay=5e-4 if convolutional else 0.05, say=say,
    )  # fmt: skip
    assert isinstance(kept, BackboneClassifier)

    def finish() -> Result:
        after = _judge_classifier(kept, *images.at(images.judged, device), options)
        result = Result(
            model=save_classifier(kept.cpu(), out), before={}, after=after, images=images.counts, threshold=None,
            steps=found.step, epoch=_epoch(images, options), kept=best, stopped=found.stopped, scores=found.scores,
            failures=pool.failures,
        )  # fmt: skip
        return _end(result, found, record, out, device, classes=len(classes))

    return on_first(finish)


def _begin(method: Method, given: dict[str, Any], out: Path, options: Options, say: Say) -> dict[str, Any]:
    """Check the options and the folder; the record of the run."""
    ranks.join()
    options.check(method)
    arguments = {"method": method, **given, **asdict(options)}
    record = {"negah": __version__, "verb": "harden", "started": now(), "arguments": arguments}
    return on_first(lambda: claim(out, record, holds=MADE, say=say))


def _begun(record: dict[str, Any], out: Path) -> None:
    """Nothing that is given can be refused any more: the folder is made, and is this run's."""
    on_first(lambda: write_json(record, out / "run.json"))


def _end(
    result: Result, found: FitResult, record: dict[str, Any], out: Path, device: torch.device, *, classes: int
) -> Result:  # fmt: skip
    """Write what came of it, and what it took."""
    robust = [figures["robust accuracy"].value for figures in (result.before, result.after) if figures]
    advice = "try more epochs, another method, another lr or a smaller eps"
    if len(robust) == 2 and robust[1] <= robust[0]:
        result.notes.append(f"no more robust than it was: {advice}")
    if max(row.get("averaged robust", row["robust"]) for row in found.scores) <= 1 / classes:
        result.notes.append(f"when attacked, no better than a model that always says the same: {advice}")
    write_json(as_plain(result) | {"history": found.history}, out / "scores.json")
    made_with = {"versions": versions(), "hardware": hardware(device), "processes": ranks.world()}
    write_json({**record, "finished": now(), **made_with}, out / "run.json")
    return result


def _learn(
    method: Method, model: nn.Module, images: Images, options: Options, *, out: Path, lr: float,
    views: Callable[[Tensor, torch.Generator], Tensor], optimizer: Any, weight_decay: float, say: Say,
) -> tuple[nn.Module, FitResult, int]:  # fmt: skip
    """The hardened model in evaluation mode, how it went, and the step that its weights are of."""
    device, norm = next(model.parameters()).device, NORMS[options.norm]()
    common: dict[str, Any] = {"eps": options.eps, "norm": norm, "average": options.average}
    if method == "trades":
        objective = Trades(model, beta=options.beta or 6.0, **common)
    else:
        objective = Hardening(model, craft=CRAFTS[method], **common)

    def collate(rows: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = torch.as_tensor(list(rows))
        return views(images.pixels[at], generator).float() / 255, images.labels[at]

    watched = images.at(images.watched, device)

    def scored(some: nn.Module) -> dict[str, Callable[[], float]]:
        return held_out(Bf16(some) if options.precision == "bf16" else some, *watched, eps=options.eps, norm=norm)

    scores = scored(model)
    kept, best = model, KeepBest("robust")
    if objective.averaged is not None:
        # An average hides for long that the weights have broken down, so these are watched as well.
        kept, best = objective.averaged.model, KeepBest("averaged robust")
        scores |= {f"averaged {name}": score for name, score in scored(kept).items()}
    epoch = _epoch(images, options)
    found = fit(
        objective, Batches(images.learned.tolist(), options.batch, seed=options.seed, collate=collate),
        steps=options.epochs * epoch, lr=lr, optimizer=optimizer, weight_decay=weight_decay,
        warmup=max(1, options.epochs * epoch // 20), clip=1.0, precision=options.precision, device=device,
        seed=options.seed, out=out, checkpoint_every=epoch, callbacks=[OverfittingWatch(), best, _Told(epoch, say)],
        scores=scores, score_every=epoch,
    )  # fmt: skip
    return kept.eval(), found, int(best.best["step"])


class _Told(Callback):
    """A line for each row of scores."""

    def __init__(self, epoch: int, say: Say):
        self.epoch, self.say = epoch, say

    def after_step(self, run: Run) -> None:
        if run.scores and run.scores[-1]["step"] == run.step:
            loss = (run.unlogged or run.history)[-1]["loss"]
            told = [f"{name} {value:.3f}" for name, value in run.scores[-1].items() if name != "step"]
            self.say(f"epoch {run.step // self.epoch} of {run.steps // self.epoch}: loss {loss:.4g}, {', '.join(told)}")


def _epoch(images: Images, options: Options) -> int:
    """Steps in one."""
    return max(1, round(len(images.learned) / options.batch))


def _turned(images: UInt8[Tensor, "batch 3 side side"], generator: torch.Generator) -> UInt8[Tensor, "batch 3 _ _"]:
    """Seen from above there is no right way up."""
    views = torch.randint(8, (len(images),), generator=generator).tolist()
    return torch.stack([turned(image, view) for image, view in zip(images, views)])


def _shifted(images: UInt8[Tensor, "batch 3 side side"], generator: torch.Generator) -> UInt8[Tensor, "batch 3 _ _"]:
    """Mirrored or not, and moved by up to an eighth of the side, over a black border."""
    side = images.shape[-1]
    most = side // 8
    wide = nn.functional.pad(images, [most] * 4)
    moves = torch.randint(2 * most + 1, (len(images), 2), generator=generator).tolist()
    flips = torch.randint(2, (len(images),), generator=generator).tolist()
    parts = [image[:, y : y + side, x : x + side] for image, (y, x) in zip(wide, moves)]
    return torch.stack([part.flip(-1) if flip else part for part, flip in zip(parts, flips)])


@torch.no_grad()
def _logits(model: PanelClassifier, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Of panels, in float64: whoever takes the sigmoid still knows the sign."""
    return torch.cat([model(part)[:, 1] for part in images.split(64)]).double()


def threshold_of(model: PanelClassifier, images: Tensor, labels: Tensor, options: Options) -> float:
    """Of the highest F1 on images as they are and as changed as they may be, counted alike.

    Of clean images alone one threshold is often as good as another that leaves no room at all.  What is changed does
    not depend on a threshold, since each logit is driven as far as it goes.
    """
    hard = pgd(
        model, images, labels, eps=options.eps, norm=NORMS[options.norm](), steps=STEPS, keep="last",
        generator=torch.Generator().manual_seed(options.seed),
    )  # fmt: skip
    probability = torch.cat([_logits(model, points).sigmoid() for points in (images, hard)])
    return best_threshold(labels.repeat(2), probability)


def _attacked(model: nn.Module, x: Tensor, y: Tensor, classes: int, options: Options) -> Outcome:
    """By the usual attacks, without the long search that asks for no gradients."""
    norm = NORMS[options.norm]()
    attacks = {name: attack for name, attack in ladder(classes, norm, steps=STEPS).items() if name != "Square"}
    return attacked(
        model, x, y, eps=options.eps, norm=norm, attacks=attacks, bf16=options.precision == "bf16", seed=options.seed
    )


def _judge_detector(detector: Detector, images: Images, groups: ndarray, options: Options) -> Figures:
    """On the judged images, as they are and attacked, at the detector's threshold; whole groups are resampled."""
    model = PanelClassifier(detector).eval()
    x, y = images.at(images.judged, next(detector.parameters()).device)
    outcome = _attacked(model, x, y, 2, options)
    clean, hard = (
        measure(
            y, _logits(model, points).sigmoid(), threshold=0.5, groups=groups,
            generator=torch.Generator().manual_seed(options.seed),
        )
        for points in (x, outcome.images)
    )  # fmt: skip
    return {
        "AUC": clean.auc,
        "accuracy": clean.accuracy, "recall": clean.recall, "false positive rate": clean.false_positive_rate,
        "robust accuracy": hard.accuracy, "recall under attack": hard.recall,
        "false positive rate under attack": hard.false_positive_rate,
    }  # fmt: skip


def _judge_classifier(model: BackboneClassifier, x: Tensor, y: Tensor, options: Options) -> Figures:
    """Accuracy on images as they are and attacked, with 95 % (Wilson)."""
    outcome = _attacked(model, x, y, len(model.classes), options)

    def share(right: Tensor) -> Interval:
        ends = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        return Interval(right.double().mean().item(), float(ends.low), float(ends.high))

    return {"accuracy": share(outcome.right), "robust accuracy": share(~outcome.fooled)}
