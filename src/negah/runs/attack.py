"""`negah attack`: how far a detector can be trusted when somebody, or something, changes a few grey levels.

Labelled images go through a ladder of attacks at rising eps, each keeping what fooled at the last; the verdicts of
`negah.adversarial.verdicts` are taken where about half of the images still stand, for there both a weak attack and a
broken one show.  What is not a detector is attacked from Python: `negah.adversarial.evaluate.attacked`.
"""

import datetime
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from negah import __version__
from negah.adversarial import L1, L2, Linf
from negah.adversarial.evaluate import Outcome, Rung, attacked, ladder
from negah.adversarial.norms import Norm
from negah.adversarial.verdicts import Verdict, verdicts
from negah.errors import InputError, OutputError
from negah.probe import detector as detectors
from negah.probe.detector import Detector
from negah.probe.features import fit_to
from negah.probe.labels import read_samples
from negah.runs.record import compute_device, hardware, versions

Progress = Callable[[str, int, int], None]
NORMS: dict[str, Callable[[], Norm]] = {"Linf": Linf, "L2": L2, "L1": L1}
SHOWN = 6  # pictures
RADII = {"Linf": (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255), "L2": (0.125, 0.25, 0.5, 1.0), "L1": (3.0, 6.0, 12.0)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """norm: of the perturbations.  eps: radii, of pixels in [0, 1]; none are RADII of the norm.  images: at most so
    many, drawn at random.  steps: of the longer attacks.  sample: images that verdicts are taken on.  positive: the
    class that counts as having panels."""

    norm: Literal["Linf", "L2", "L1"] = "Linf"
    eps: tuple[float, ...] = ()
    images: int = 500
    steps: int = 50
    batch: int = 128
    bf16: bool = False
    sample: int = 64
    positive: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """One radius: share of the images that withstand all attacks, its 95 % interval, what the attacks did."""

    eps: float
    robust: float
    low: float
    high: float
    gradients: float  # for each image that was rightly classified, so far
    rungs: list[Rung]


@dataclass(frozen=True)
class Result:
    """What came of it.  verdicts were taken at `verdicts_eps`, on `sample` images."""

    images: int
    clean: float
    curve: list[Point]
    verdicts: list[Verdict]
    verdicts_eps: float
    sample: int
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def alarms(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.alarm]


class PanelClassifier(nn.Module):
    """A detector as a classifier of two classes, without and with panels, parted at its threshold."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector
        threshold = detector.info.threshold
        self.cut = math.log(threshold / (1 - threshold))
        self.train(detector.training)

    def forward(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 2"]:
        logit = self.detector(images).logit - self.cut
        return torch.stack([torch.zeros_like(logit), logit], 1)


def attack(
    model: str, data: Path, out: Path, options: Options = Options(), *,
    progress: Progress = lambda stage, done, total: None,
) -> Result:  # fmt: skip
    """Attack a saved detector on labelled images; `out` gets robustness.json, run.json and pictures.png.

    Raises InputError for what cannot be attacked, OutputError where `out` cannot be written to.
    """
    started = datetime.datetime.now(datetime.UTC)
    radii = tuple(sorted(options.eps or RADII[options.norm]))
    if radii[0] <= 0:
        raise InputError(f"--eps {radii[0]:g}: a radius is above 0, in units of the whole range of a pixel")
    for name, value in (("images", options.images), ("steps", options.steps), ("sample", options.sample)):
        if value < 1:
            raise InputError(f"--{name} {value}: give 1 or more")
    detector = detectors.load(model, device=compute_device())
    classifier, norm = PanelClassifier(detector).eval(), NORMS[options.norm]()
    images, labels, failures = _read(data, detector, options, progress)
    attacks = ladder(2, norm, steps=options.steps)
    before: Outcome | None = None
    outcomes: list[Outcome] = []
    for i, eps in enumerate(radii):
        before = attacked(
            classifier, images, labels, eps=eps, norm=norm, attacks=attacks, batch=options.batch, bf16=options.bf16,
            seed=options.seed, start=before,
        )  # fmt: skip
        outcomes.append(before)
        progress("radii", i + 1, len(radii))
    right = outcomes[0].right.nonzero().squeeze(1)
    if not len(right):
        raise InputError(f"{model} classifies none of the images rightly: there is nothing to attack")
    half = min(range(len(radii)), key=lambda i: abs(outcomes[i].robust - outcomes[0].clean / 2))
    some = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(options.seed))[: options.sample]]
    found = verdicts(
        classifier, images[some], labels[some], eps=radii[half], norm=norm, attacks=attacks, seed=options.seed
    )
    progress("verdicts", 1, 1)
    curve, spent = [], 0.0
    for eps, outcome in zip(radii, outcomes):
        spent += outcome.gradients
        curve.append(Point(eps, outcome.robust, *outcome.interval, spent, outcome.rungs))
    result = Result(len(images), outcomes[0].clean, curve, found, radii[half], len(some), failures)
    arguments = {"model": model, "data": str(data), **asdict(options)}
    _write(out, arguments, result, started, next(detector.parameters()).device)
    _pictures(out / "pictures.png", classifier, images, outcomes[half], labels, radii[half])
    return result


def _read(
    data: Path, detector: Detector, options: Options, progress: Progress
) -> tuple[Float[Tensor, "n 3 side side"], Int[Tensor, " n"], list[tuple[str, str]]]:
    """Images in [0, 1], brought to the detector's window, and 1 for panels; what could not be read."""
    samples = read_samples(data, positive=options.positive).labelled()
    order = np.random.default_rng(options.seed).permutation(len(samples))[: options.images]
    side, patch = detector.info.window_px, detector.patch
    images, labels, failures = [], [], []
    for done, i in enumerate(order, 1):
        try:
            images.append(fit_to(samples.image(int(i)), side, patch=patch))
            labels.append(int(samples.labels[i]))
        except InputError as error:
            failures.append((samples.names[i], str(error)))
        progress("images read", done, len(order))
    if not images:
        raise InputError(f"none of the images of {samples.origin} can be read (first: {failures[0][1]})")
    where = next(detector.parameters()).device
    return torch.stack(images).to(where).float() / 255, torch.tensor(labels, device=where), failures


def _write(
    out: Path, arguments: dict[str, Any], result: Result, started: datetime.datetime, device: torch.device
) -> None:
    run = {
        "negah": __version__, "verb": "attack", "started": started.isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "arguments": arguments,
        "versions": versions(), "hardware": hardware(device),
    }  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in (("robustness.json", asdict(result)), ("run.json", run)):
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out} cannot be written to ({error.strerror}): give another --out") from error


@torch.no_grad()
def _pictures(
    path: Path, model: nn.Module, images: Tensor, outcome: Outcome, labels: Tensor, eps: float
) -> None:  # fmt: skip
    """Some images that were fooled, the perturbation (scaled up), and what the model says before and after."""
    from matplotlib.figure import Figure  # slow to import

    at = (outcome.fooled & outcome.right).nonzero().squeeze(1)[:SHOWN]
    if not len(at):
        return
    figure = Figure(figsize=(6.6, 2.3 * len(at)), layout="constrained")
    axes = figure.subplots(len(at), 3, squeeze=False)
    for row, i in zip(axes, at.tolist()):
        before, after = images[i], outcome.images[i]
        chance = model(torch.stack([before, after])).softmax(1)[:, 1].tolist()
        delta = after - before
        shown = 0.5 + 0.5 * delta / max(float(delta.abs().max()), 1e-9)
        truth = "panels" if labels[i] else "no panels"
        texts = (f"{truth}: {chance[0]:.2f}", f"changed by up to {float(delta.abs().max()) * 255:.1f} / 255",
                 f"{chance[1]:.2f}")  # fmt: skip
        for axis, picture, text in zip(row, (before, shown, after), texts):
            axis.imshow(picture.permute(1, 2, 0).cpu().numpy())
            axis.set_title(text, fontsize=8)
            axis.axis("off")
    figure.suptitle(f"the model's probability of panels, before and after, eps {eps:.4g}", fontsize=9)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): free some space") from error
