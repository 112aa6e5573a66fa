"""`negah probe train` and `negah probe eval`: a detector from labelled images, and how good one is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from tyro.conf import arg

from negah.cli import show

if TYPE_CHECKING:
    from negah.probe.metrics import Scores
    from negah.runs.probe import Result

FIGURES = {
    "AUC": "auc", "average precision": "average_precision", "accuracy": "accuracy", "precision": "precision",
    "recall": "recall", "F1": "f1", "false positive rate": "false_positive_rate",
    "calibration error": "calibration_error",
}  # fmt: skip


@dataclass(kw_only=True)
class Split(show.Verb):
    """How labelled images are split."""

    group: Annotated[str | None, arg(metavar="COLUMN")] = None
    """Column of the csv that says which images belong together, such as overlapping tiles (default: group)."""
    positive: Annotated[str | None, arg(metavar="CLASS")] = None
    """The class that counts as having panels (default: what is called panel, positive, P or 1)."""
    split: Literal["group", "location", "random"] | None = None
    """By what the folds are made (default: group, else location); random only for images that do not overlap."""
    distance: Annotated[float, arg(metavar="M")] = 500.0
    """In a split by location, images nearer to each other than this many metres stay together."""
    folds: Annotated[int, arg(metavar="K")] = 5
    """Number of folds."""
    seed: int = 0
    """Of the folds, the training and the bootstrap."""


@dataclass(kw_only=True)
class Labelled(Split):
    """What both verbs need to know of the images."""

    data: Path
    """Class folders, images named *-P and *-N, a zip of either, or a csv with columns
    file,label[,group,lat,lon,split,source] and the images (or a zip of them) beside it."""
    gsd: Annotated[float | None, arg(metavar="M")] = None
    """Metres per pixel, for images that do not say."""


@dataclass(kw_only=True)
class ProbeTrain(Labelled):
    """Train a detector's head on your labelled images, and say how good it is.

    Cross-validates an attentive head on the frozen backbone beside a linear probe, kNN and image statistics, each
    figure with its 95 % bootstrap interval; then trains the head on all images and saves it for `negah survey --model`.
    Images that belong together never stand on both sides of a split, and no threshold is chosen on what it is reported
    on.

    Exit status 3: done, but some images could not be read.

    Example:
        negah probe train --data labels.csv --backbone negah/aerial-tiny --out probe --group overlap_group
        negah probe train --data tiles/ --backbone facebook/dinov2-with-registers-small --out probe --gsd 0.25
    """

    IF_INTERRUPTED: ClassVar[str] = (
        "stopped; the features computed so far are kept in the output folder: give the same command again to continue"
    )

    backbone: Annotated[str, arg(metavar="NAME")]
    """Backbone: a bundled name, a file, or a name on the Hugging Face hub."""
    out: Path
    """Folder for head.safetensors, scores.json, predictions.csv and run.json."""
    size: Annotated[int | None, arg(metavar="PX")] = None
    """Side that images are brought to, a multiple of the patch (default: their own)."""
    lora: Annotated[int, arg(metavar="RANK")] = 0
    """Also tune the backbone's attention by low-rank adapters of this rank (0: frozen). Slow without a GPU."""
    views: Annotated[int, arg(metavar="N")] = 4
    """Train on this many of the eight turned and mirrored views of each image."""
    epochs: Annotated[int, arg(metavar="N")] = 20
    """How often the head sees each image."""

    def run(self) -> int:
        """Train, save, and print the figures."""
        from negah.runs.probe import Options, train_probe

        options = Options(
            group=self.group, positive=self.positive, split=self.split, distance_m=self.distance, folds=self.folds,
            size=self.size, gsd_m=self.gsd, lora=self.lora, views=self.views, epochs=self.epochs, seed=self.seed,
        )  # fmt: skip
        with _Bars(quiet=self.json) as bars:
            result = train_probe(self.data, self.out, self.backbone, options, progress=bars)
        return _report(result, as_json=self.json)


@dataclass(kw_only=True)
class ProbeEval(Labelled):
    """Score a saved detector on labelled images that it was not trained on.

    Every figure has its 95 % bootstrap interval. Beside the detector stand image statistics, cross-validated on the
    same images: what can be told without a network.

    Exit status 3: done, but some images could not be read.

    Example:
        negah probe eval --data labels.csv --model probe/head.safetensors --gsd 0.3
        negah probe eval --data tiles.zip --model negah/aerial-tiny --gsd 0.3 --json
    """

    model: Annotated[str, arg(metavar="FILE")]
    """Detector: a file written by `negah probe train`, or a bundled name."""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder for scores.json, predictions.csv and run.json (default: nothing is written)."""

    def run(self) -> int:
        """Score and print."""
        from negah.runs.probe import Options, eval_probe

        options = Options(
            group=self.group, positive=self.positive, split=self.split, distance_m=self.distance, folds=self.folds,
            gsd_m=self.gsd, seed=self.seed,
        )  # fmt: skip
        with _Bars(quiet=self.json) as bars:
            result = eval_probe(self.data, self.model, options, out=self.out, progress=bars)
        return _report(result, as_json=self.json)


class _Bars(show.Bars):
    """Bars, and a line for each fold: they are trainings."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != "folds":
            super().__call__(stage, done, total)
        elif not self.quiet and done < total:
            which = f"fold {done + 1} of {total - 1}" if done < total - 1 else "all folds, for the detector"
            show.stderr().print(f"training on {which}" if done == total - 1 else f"training for {which}")


def _report(result: "Result", *, as_json: bool) -> int:
    from negah.runs.probe import as_plain

    status = 3 if result.failures else 0
    if as_json:
        show.as_json({"status": "some inputs failed" if status else "complete", **as_plain(result)})
        return status
    first = next(iter(result.methods.values()))
    title = f"{first.samples} images ({first.positives} with panels), {result.split}; 95 % intervals"
    _table(result.methods, title)
    if result.test:
        first = next(iter(result.test.values()))
        _table(
            result.test, f"Test split: {first.samples} images ({first.positives} with panels), at the saved threshold"
        )
    if result.sources:
        rows = [
            (r.source, r.images, r.positives, f"{r.true_positive_rate:.3f}", f"{r.false_positive_rate:.3f}")
            for r in result.sources
        ]
        header = ("source", "images", "positives", "true positive rate", "false positive rate")
        show.table(rows, header=header, title="By source")
    show.stdout().print(f"threshold: {result.threshold:.3f}, {result.threshold_from}")
    if result.model is not None:
        show.stdout().print(f"detector: {result.model}")
    for note in result.notes:
        show.warning(note)
    show.failures([(f"left out {name}", why) for name, why in result.failures], more="more images were left out")
    return status


def _table(methods: "dict[str, Scores]", title: str) -> None:
    rows = [(label, *(getattr(scores, name) for scores in methods.values())) for label, name in FIGURES.items()]
    show.table(rows, header=("", *methods), title=title)
