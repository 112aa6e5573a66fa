"""`negah attack`: how far a classifier can be trusted when somebody, or something, changes a few grey levels.

Labelled images are read and brought to the model's size; `negah.adversarial.evaluate` does the rest, and a page tells
of it.
"""

import datetime
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from negah import __version__
from negah.adversarial import L1, L2, Linf, Robustness, evaluate
from negah.adversarial.norms import Norm
from negah.adversarial.target import logits_of, still
from negah.errors import InputError, NegahError
from negah.probe.labels import Samples, read_classes, read_samples
from negah.progress import Progress, silent
from negah.runs.attack_page import Shown, page
from negah.runs.classifiers import PANELS, Judged, class_numbers, classifier
from negah.runs.record import compute_device, hardware, versions, writable
from negah.weights.files import one_line
from negah.weights.save import write

NORMS: dict[str, Callable[[], Norm]] = {"Linf": Linf, "L2": L2, "L1": L1}
SMALL = 64  # px along the longer side
DEFAULTS = {"images": (500, 100), "sample": (64, 32)}  # of small images, and of larger ones, which cost more


@dataclass(frozen=True, kw_only=True)
class Options:
    """norm: of the perturbations.  eps: radii, of pixels in [0, 1]; none are those of `evaluate`.  images: at most so
    many, drawn at random.  steps: of the longer attacks.  sample: images that verdicts are taken on.  None are the
    DEFAULTS.  positive: the class that counts as having panels, for a detector.  weights, size: as `classifier` takes
    them."""

    norm: Literal["Linf", "L2", "L1"] = "Linf"
    eps: tuple[float, ...] = ()
    images: int | None = None
    steps: int = 50
    batch: int = 128
    bf16: bool = False
    sample: int | None = None
    positive: str | None = None
    weights: Path | None = None
    size: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """What came of it.

    classes: the data's classes, and as which of the model's they were taken.  failures: images that could not be read,
    and why.
    """

    robustness: Robustness
    classes: dict[str, int]
    failures: list[tuple[str, str]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**self.robustness.figures(), "classes": self.classes, "failures": self.failures}


@dataclass(frozen=True)
class _Images:
    """What was read: images [n, 3, h, w] in [0, 1], and the model's numbers of their classes."""

    images: Float[Tensor, "n 3 h w"]
    labels: Int[Tensor, " n"]
    classes: dict[str, int]
    failures: list[tuple[str, str]]


def attack(
    data: Path, out: Path, model: str, options: Options = Options(), *, progress: Progress = silent
) -> Result:  # fmt: skip
    """Attack what `classifiers.classifier` makes of `model`, on labelled images.

    `out` gets report.html, robustness.json and run.json.

    Raises InputError for what cannot be attacked, OutputError where `out` cannot be written to.
    """
    started = datetime.datetime.now(datetime.UTC)
    if options.images is not None and options.images < 1:
        raise InputError(f"--images {options.images}: give 1 or more")
    judged = classifier(model, weights=options.weights, size=options.size, device=compute_device())
    writable(out)
    read = _read(data, model, judged, options, progress)
    robustness = evaluate(
        judged.model, read.images, read.labels, eps=options.eps or None, norm=NORMS[options.norm](),
        steps=options.steps, batch=options.batch, bf16=options.bf16,
        sample=_default("sample", options.sample, read.images), seed=options.seed, progress=progress,
    )  # fmt: skip
    result = Result(robustness, read.classes, read.failures)
    loaded = [name for name in ("timm", "transformers") if name in sys.modules]
    run = {
        "negah": __version__, "verb": "attack", "started": started.isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "arguments": {"model": model, "data": str(data), **asdict(options), "weights": _text(options.weights)},
        "versions": versions() | {name: metadata.version(name) for name in loaded}, "hardware": hardware(judged.device),
    }  # fmt: skip
    names = dict(enumerate(judged.classes)) or {number: name for name, number in read.classes.items()}
    shown = Shown(judged.model, read.images, read.labels, names)
    for name, text in (
        ("robustness.json", json.dumps(result.figures(), indent=2, ensure_ascii=False) + "\n"),
        ("run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n"),
        ("report.html", page(robustness, shown, run, result.failures)),
    ):
        write(out / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))
    return result


def _read(data: Path, model: str, judged: Judged, options: Options, progress: Progress) -> _Images:
    """Images as the model wants them, and what could not be read."""
    samples, kinds = _samples(data, judged, options.positive)
    order = np.random.default_rng(options.seed).permutation(len(samples))
    wanted = options.images
    images: list[Tensor] = []
    kept, failures = [], []
    for done, i in enumerate(order.tolist(), 1):
        try:
            images.append(judged.prepare(samples.image(i)))
            kept.append(int(samples.labels[i]))
        except InputError as error:
            failures.append((samples.names[i], str(error)))
        if wanted is None and images:
            wanted = _default("images", None, images[0])
        progress("images read", done, min(wanted or len(order), len(order)))
        if done == wanted:
            break
    if not images:
        raise InputError(f"none of the images of {samples.origin} can be read (first: {failures[0][1]})")
    shapes = sorted({(image.shape[2], image.shape[1]) for image in images})
    if len(shapes) > 1:
        w, h = shapes[0]
        raise InputError(f"the images have {len(shapes)} sizes ({w} x {h} px and others): give --size for the model")
    x = torch.stack(images).to(judged.device)
    numbers = class_numbers(kinds, judged.classes, _count(judged, model, x[:1]))
    y = torch.tensor(numbers)[torch.tensor(kept)].to(judged.device)
    return _Images(x, y, dict(zip(kinds, numbers)), failures)


def _samples(data: Path, judged: Judged, positive: str | None) -> tuple[Samples, tuple[str, ...]]:
    """Labelled images, and the classes that their labels number."""
    if judged.detects:
        return read_samples(data, positive=positive).labelled(), PANELS
    if positive is not None:
        raise InputError(f"--positive {positive} is for detectors of panels; other classes go by their names")
    samples = read_classes(data)
    return samples, samples.classes


def _count(judged: Judged, model: str, image: Float[Tensor, "1 3 h w"]) -> int:
    """Classes of a model, whose first answer this is: a model that others wrote may fail in any way."""
    try:
        with still(judged.model), torch.no_grad():
            return logits_of(judged.model, image).shape[1]
    except NegahError:
        raise
    except Exception as error:
        size = " x ".join(str(side) for side in image.shape[1:])
        raise InputError(
            f"{model} fails on an image of {size} ({type(error).__name__}: {one_line(error)}): --size N makes it N x N"
        ) from error


def _default(name: str, given: int | None, images: Tensor) -> int:
    return DEFAULTS[name][max(images.shape[-2:]) > SMALL] if given is None else given


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
