"""`negah harden`: train a model on images that are made to fool it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from negah.cli import show
from negah.cli.probe import Split
from negah.progress import silent


@dataclass(kw_only=True)
class Harden(Split):
    """Make a detector harder to fool, or train a classifier that is hard to fool.

    METHOD is one of fgsm, fast-at, n-fgsm (one step each, the cheapest), pgd and trades (ten steps). With --model a
    detector goes on learning from your labelled images, each changed as the method says, and is saved for `negah
    survey`, `negah attack` and `negah probe eval`. With --backbone a classifier learns from class folders.

    One fold is never learned from but watched: by it the epoch is chosen whose weights are kept, and the threshold, and
    a breakdown of single-step training (catastrophic overfitting) is seen and undone. Another fold is judged, before
    and after. A run that was stopped goes on when the same command is given again.

    Exit status 3: done, but some images could not be read.

    Example:
        negah harden fgsm --model negah/aerial-tiny --data labels.csv --eps 1/255 --out hard
        negah harden trades --model probe/head.safetensors --data tiles/ --split random --eps 0.25 --norm L2 --out hard
        negah harden n-fgsm --backbone resnet18-cifar --data cifar10/ --eps 8/255 --epochs 30 --batch 128 --out hard
    """

    IF_INTERRUPTED: ClassVar[str] = (
        "stopped; the run is kept in the output folder: give the same command again to continue"
    )

    method: Positional[Literal["fgsm", "fast-at", "n-fgsm", "pgd", "trades"]]
    """How the images are changed that are learned from."""
    data: Annotated[tuple[Path, ...], arg(metavar="PATH...")]
    """Of a detector: class folders, images named *-P and *-N, a zip of either, or a csv, as for `negah probe train`. Of
    a classifier: pictures, a folder for each class."""
    eps: Annotated[str, arg(metavar="E")]
    """Radius within which an image may be changed, where a pixel's range is 1: 2/255, or 0.25."""
    out: Path
    """Folder for the model, checkpoint.pt, scores.json and run.json."""
    model: Annotated[str | None, arg(metavar="FILE")] = None
    """Detector: a file written by `negah probe train`, or a bundled name."""
    backbone: Annotated[str | None, arg(metavar="NAME")] = None
    """Instead of --model: train a classifier from resnet18, resnet10-cifar, vit-micro/8, ..., or a backbone's file."""
    norm: Literal["Linf", "L2"] = "Linf"
    """How a change is measured."""
    epochs: Annotated[int, arg(metavar="N")] = 10
    """Passes over the images."""
    batch: Annotated[int, arg(metavar="N")] = 32
    """Images in a step, over all processes."""
    lr: Annotated[float | None, arg(metavar="LR")] = None
    """Highest learning rate (default: what suits the network)."""
    average: Annotated[float | None, arg(metavar="M")] = None
    """Keep a moving average of the weights, with this momentum, such as 0.99."""
    beta: Annotated[float | None, arg(metavar="B")] = None
    """Of trades: weight of robustness against accuracy (default: 6)."""
    what: Literal["head", "all"] = "all"
    """Of a detector: what learns."""
    images: Annotated[int, arg(metavar="N")] = 256
    """At most so many are watched, and so many judged; of each class its share."""
    size: Annotated[int, arg(metavar="PX")] = 32
    """Of a classifier: side that pictures are brought to."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16; weights stay fp32."""

    def run(self) -> int:
        """Train, and print what came of it."""
        from negah import ranks
        from negah.errors import InputError
        from negah.runs.harden import Options, harden, harden_classifier
        from negah.runs.probe import as_plain

        if (self.model is None) == (self.backbone is None):
            raise InputError("give either --model, a detector, or --backbone, what a classifier is made of")
        data, *more = self.data
        if self.model is not None and more:
            raise InputError("a detector learns from one folder, archive or csv: give one --data")
        options = Options(
            eps=radius(self.eps), norm=self.norm, epochs=self.epochs, batch=self.batch, lr=self.lr,
            average=self.average, beta=self.beta, what=self.what, images=self.images, size=self.size,
            precision=self.precision, group=self.group, positive=self.positive, split=self.split,
            distance_m=self.distance, folds=self.folds, seed=self.seed,
        )  # fmt: skip
        ranks.join()
        quiet = self.json or ranks.rank() > 0
        with show.Bars(quiet=quiet) as bars:
            told = {"progress": bars, "say": silent if quiet else show.stderr().print}
            if self.model is not None:
                result = harden(data, self.out, self.method, self.model, options, **told)
            else:
                pictures = [str(path) for path in self.data]
                result = harden_classifier(pictures, self.out, self.method, str(self.backbone), options, **told)
        status = 3 if result.failures else 0
        if ranks.rank() > 0:
            return status
        if self.json:
            show.as_json({"status": "some inputs failed" if status else "complete", **as_plain(result)})
        else:
            n = result.images
            title = f"{n['judged']} images that were not learned from, {self.norm} {self.eps}; 95 % intervals"
            rows = [(name, result.before.get(name, "-"), figure) for name, figure in result.after.items()]
            show.table(rows, header=("", "before", "after"), title=title)
            said: list[tuple[str, object]] = [
                ("learned from", f"{n['learned']} images; {n['watched']} watched"),
                ("kept", f"step {result.kept} of {result.steps}, epoch {result.kept // result.epoch}"),
                ("watch", result.stopped or "no catastrophic overfitting"),
            ]
            said += [] if result.threshold is None else [("threshold", f"{result.threshold:.3f}, of the watched")]
            show.table([*said, ("model", str(result.model))])
        for note in result.notes:
            show.warning(note)
        show.failures([(f"left out {name}", why) for name, why in result.failures], more="more images were left out")
        return status


def radius(text: str) -> float:
    """2/255, or a number.  Raises InputError for anything else."""
    from negah.errors import InputError

    above, slash, below = text.partition("/")
    try:
        found = float(above) / float(below if slash else 1)
    except (ValueError, ZeroDivisionError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"--eps {text}: give a number or a fraction, such as 2/255")
    return found
