"""`negah attack`: how far a detector can be trusted when somebody, or something, changes a few grey levels.

Labelled images are read and brought to the detector's window; `negah.adversarial.evaluate` does the rest.
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
from negah.adversarial import L1, L2, Linf, Robustness, evaluate
from negah.adversarial.norms import Norm
from negah.errors import InputError, OutputError
from negah.probe import detector as detectors
from negah.probe.detector import Detector
from negah.probe.features import fit_to
from negah.probe.labels import read_samples
from negah.runs.record import compute_device, hardware, versions

Progress = Callable[[str, int, int], None]
NORMS: dict[str, Callable[[], Norm]] = {"Linf": Linf, "L2": L2, "L1": L1}
SHOWN = 6  # pictures


@dataclass(frozen=True, kw_only=True)
class Options:
    """norm: of the perturbations.  eps: radii, of pixels in [0, 1]; none are those of `evaluate`.  images: at most so
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
class Result:
    """What came of it.  failures: images that could not be read, and why."""

    robustness: Robustness
    failures: list[tuple[str, str]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**self.robustness.figures(), "failures": self.failures}


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
    if options.images < 1:
        raise InputError(f"--images {options.images}: give 1 or more")
    detector = detectors.load(model, device=compute_device())
    classifier, norm = PanelClassifier(detector).eval(), NORMS[options.norm]()
    images, labels, failures = _read(data, detector, options, progress)
    robustness = evaluate(
        classifier, images, labels, eps=options.eps or None, norm=norm, steps=options.steps, batch=options.batch,
        bf16=options.bf16, sample=options.sample, seed=options.seed, progress=progress,
    )  # fmt: skip
    result = Result(robustness, failures)
    arguments = {"model": model, "data": str(data), **asdict(options)}
    _write(out, arguments, result, started, next(detector.parameters()).device)
    _pictures(out / "pictures.png", classifier, images, robustness, labels)
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
        for name, content in (("robustness.json", result.figures()), ("run.json", run)):
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out} cannot be written to ({error.strerror}): give another --out") from error


@torch.no_grad()
def _pictures(
    path: Path, model: nn.Module, images: Tensor, robustness: Robustness, labels: Tensor
) -> None:  # fmt: skip
    """Some images that were fooled, the perturbation (scaled up), and what the model says before and after."""
    from matplotlib.figure import Figure  # slow to import

    eps, radii = robustness.verdicts_eps, robustness.fooled_at
    at = ((radii > 0) & (radii <= eps)).nonzero().squeeze(1)[:SHOWN]
    if not len(at):
        return
    figure = Figure(figsize=(6.6, 2.3 * len(at)), layout="constrained")
    axes = figure.subplots(len(at), 3, squeeze=False)
    for row, i in zip(axes, at.tolist()):
        before, after = images[i], robustness.images[i]
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
    figure.suptitle(f"the model's probability of panels, before and after, eps up to {eps:.4g}", fontsize=9)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): free some space") from error
