"""`negah probe train` and `negah probe eval`: labelled images in, a detector and honest figures out.

Training is cross-validated: each fold is scored by probes that saw none of its groups. The attentive head, the linear
probe, kNN and image statistics are always reported side by side, on the same folds. A threshold is never chosen on what
it is reported on: each fold is called at the threshold that is best (F1) on the held-out predictions of the other
folds, and the detector that is saved, trained on all folds, carries the one that is best on all of them.
"""

import csv
import datetime
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from safetensors import SafetensorError

from negah import __version__, weights
from negah.errors import InputError, OutputError
from negah.images.windows import grid
from negah.nn.vit import ViT
from negah.probe import detector as detectors
from negah.probe.baseline import image_statistics
from negah.probe.detector import Detector, DetectorInfo
from negah.probe.features import CachedTokens, cached_tokens, fit_to, turned
from negah.probe.labels import Samples, read_samples
from negah.probe.learn import HEAD, KNN, LINEAR, STATISTICS, Images, Learner, Training
from negah.probe.linear import fit_linear
from negah.probe.metrics import Interval, Scores, best_threshold, confusion, false_positive_rate, measure, recall
from negah.progress import Progress, silent
from negah.runs.parts import Splitting, readable
from negah.runs.record import compute_device, hardware, versions, writable
from negah.weights.save import write

LARGEST_PX = 518  # images are not enlarged or kept beyond what DINOv2 was trained on, unless --size says so


@dataclass(frozen=True, kw_only=True)
class Options(Splitting, Training):
    """How to split and train.

    size: side in pixels that images are brought to.  gsd_m: metres per pixel of the images.
    """

    size: int | None = None
    gsd_m: float | None = None


@dataclass(frozen=True, kw_only=True)
class SourceRates:
    """True and false positive rate (NaN where there are no positives or negatives) of one source of images."""

    source: str
    images: int
    positives: int
    true_positive_rate: float
    false_positive_rate: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it. `methods` on held-out folds, `test` on rows that a csv marks as test, at the saved threshold."""

    methods: dict[str, Scores]
    test: dict[str, Scores] = field(default_factory=dict)
    sources: list[SourceRates] = field(default_factory=list)
    threshold: float
    threshold_from: str
    split: str
    notes: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    model: Path | None = None


def train_probe(data: Path, out: Path, backbone: str, options: Options, *, progress: Progress = silent) -> Result:
    """Cross-validate the probes on labelled images, train the head on all of them, and save it as a detector.

    Writes head.safetensors (a `Detector`), scores.json, predictions.csv (held out) and run.json into `out`, and keeps
    the backbone's tokens in out/features for the next time. progress: called with a stage and how far it is.

    Raises InputError for labels that cannot be used or split, WeightsError for the backbone, OutputError for `out`.
    An image that cannot be read is left out and listed in the failures.
    """
    started = datetime.datetime.now(datetime.UTC)
    if not 1 <= options.views <= 8:
        raise InputError(f"--views counts the turned and mirrored views of a square, from 1 to 8, not {options.views}")
    arguments = {"data": str(data), "backbone": backbone, "out": str(out), **asdict(options)}
    samples = read_samples(data, group=options.group, positive=options.positive).labelled()
    _claim(out, arguments)
    vit = weights.load(backbone, device=compute_device())
    seen, samples, failures = readable(samples, lambda image: image_statistics([image]), progress=progress)
    statistics = np.concatenate(seen)
    notes: list[str] = []
    size, side = _size(samples, vit.patch, options.size)
    gsd_m = _gsd(samples, options.gsd_m, notes) * (1.0 if 0 <= size - side < vit.patch else side / size)

    groups, how = options.groups(samples)
    fold = options.folds_of(samples, groups, how)
    tested, kept = fold < 0, np.flatnonzero(fold >= 0)

    images = Images(samples, size, vit.patch)
    views = 1 if options.lora else options.views  # with adapters, images are turned and go through the backbone again
    tokens = _tokens(vit, images, views, out / "features", progress)
    learner = Learner(vit, images, tokens, views, samples.labels, groups, statistics, options)
    held_out = {name: np.full(len(samples), np.nan) for name in (HEAD, LINEAR, KNN, STATISTICS)}
    for k in range(options.folds):
        progress("folds", k, options.folds + 1)
        inside, outside = np.flatnonzero((fold != k) & ~tested), np.flatnonzero(fold == k)
        for name, p in learner.learn(inside, seed=options.seed + 1 + k)[0](outside).items():
            held_out[name][outside] = p
    progress("folds", options.folds, options.folds + 1)
    predict, trained = learner.learn(kept, seed=options.seed)
    progress("folds", options.folds + 1, options.folds + 1)

    generator = torch.Generator().manual_seed(options.seed)
    labels = samples.labels
    final = {name: best_threshold(labels[kept], p[kept]) for name, p in held_out.items()}
    crossed = {name: _crossed_thresholds(labels[kept], p[kept], fold[kept]) for name, p in held_out.items()}
    methods = {
        name: measure(labels[kept], p[kept], threshold=crossed[name], groups=groups[kept], generator=generator)
        for name, p in held_out.items()
    }
    test = {}
    if tested.any():
        for name, p in predict(np.flatnonzero(tested)).items():
            held_out[name][tested] = p
            test[name] = measure(labels[tested], p, threshold=final[name], groups=groups[tested], generator=generator)

    threshold = np.full(len(samples), final[HEAD])
    threshold[kept] = crossed[HEAD]
    info = DetectorInfo(
        name=out.resolve().name, gsd_m=gsd_m, gsd_range_m=(gsd_m * 0.9, gsd_m * 1.1), window_px=size,
        threshold=final[HEAD],
    )  # fmt: skip
    result = Result(
        methods=methods, test=test, sources=_rates(samples, held_out[HEAD], threshold), threshold=final[HEAD],
        threshold_from=(
            f"best F1 on the held-out predictions of all {options.folds} folds ({len(kept)} images); in the figures "
            "each fold is called at the threshold that is best on the other folds"
        ),
        split=f"{options.folds} folds by {how}, {len(np.unique(groups[kept]))} groups",
        notes=notes, failures=failures, model=out / "head.safetensors",
    )  # fmt: skip
    try:
        detectors.save(Detector(trained.backbone or vit, trained.head, info).cpu(), out / "head.part")
        os.replace(out / "head.part", out / "head.safetensors")
        _write(out, "probe train", arguments, result, started)
        _write_predictions(out / "predictions.csv", samples, fold, groups, held_out, threshold)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{out} cannot be written ({error}): free some space or give another --out") from error
    return result


def eval_probe(
    data: Path, model: str, options: Options, *, out: Path | None = None,
    progress: Progress = silent,
) -> Result:  # fmt: skip
    """Score a saved detector on labelled images, at the threshold that it carries.

    Images of known ground size are brought to the detector's; one larger than its window is read window by window and
    the highest probability counts. Beside it stand image statistics, cross-validated on these images, where groups or
    locations (or split="random") allow. With `out`, writes scores.json, predictions.csv and run.json there.
    """
    started = datetime.datetime.now(datetime.UTC)
    arguments = {"data": str(data), "model": model, "out": out and str(out), **asdict(options)}
    if out is not None:
        _claim(out, arguments)
    samples = read_samples(data, group=options.group, positive=options.positive).labelled()
    detector = detectors.load(model, device=compute_device())
    seen, samples, failures = readable(samples, lambda image: image_statistics([image]), progress=progress)
    statistics = np.concatenate(seen)
    notes: list[str] = []
    gsd_m = options.gsd_m or (None if samples.gsd_m is None else float(np.median(samples.gsd_m)))
    if gsd_m is None:
        notes.append(
            f"the ground size of a pixel is unknown: images are brought to the detector's window of "
            f"{detector.info.window_px} px, whatever they show; give --gsd"
        )
    p = np.empty(len(samples))
    for i in range(len(samples)):
        p[i] = _probability(detector, samples.image(i), gsd_m)
        progress("images scored", i + 1, len(samples))

    generator = torch.Generator().manual_seed(options.seed)
    thresholds, methods, groups, fold = detector.info.threshold, {}, None, np.full(len(samples), -1)
    predictions = {HEAD: p}
    try:
        groups, how = options.groups(samples)
        fold = options.folds_of(replace(samples, split=None), groups, how)
        split = f"{options.folds} folds by {how} for the image statistics"
    except InputError as error:
        split = "none: images taken as independent"
        notes.append(f"no image statistics beside it, and intervals too narrow if images overlap: {error}")
    methods[HEAD] = measure(samples.labels, p, threshold=thresholds, groups=groups, generator=generator)
    if groups is not None:
        q = predictions[STATISTICS] = np.empty(len(samples))
        for k in range(options.folds):
            inside, outside = fold != k, fold == k
            q[outside] = fit_linear(statistics[inside], samples.labels[inside], groups[inside]).probability(
                statistics[outside]
            )
        cut = _crossed_thresholds(samples.labels, q, fold)
        methods[STATISTICS] = measure(samples.labels, q, threshold=cut, groups=groups, generator=generator)
    result = Result(
        methods=methods, sources=_rates(samples, p, np.full(len(p), thresholds)), threshold=thresholds,
        threshold_from="the detector's own, chosen when it was trained", split=split, notes=notes, failures=failures,
    )  # fmt: skip
    if out is not None:
        _write(out, "probe eval", arguments, result, started)
        stand = np.arange(len(samples)) if groups is None else groups
        _write_predictions(out / "predictions.csv", samples, fold, stand, predictions, np.full(len(p), thresholds))
    return result


def _size(samples: Samples, patch: int, wanted: int | None) -> tuple[int, float]:
    """Side that images are brought to, a multiple of the patch, and the median longer side of the images."""
    looked_at = np.unique(np.linspace(0, len(samples) - 1, 32).astype(int))
    side = float(np.median([max(samples.image(int(i)).shape[:2]) for i in looked_at]))
    if wanted is not None and (wanted < patch or wanted % patch):
        near = patch * max(1, round(wanted / patch))
        raise InputError(f"--size {wanted} is not a multiple of the backbone's patch of {patch} px: give {near}")
    return wanted or max(patch, min(-(-int(side) // patch), LARGEST_PX // patch) * patch), side


def _gsd(samples: Samples, given: float | None, notes: list[str]) -> float:
    if given is not None:
        return given
    if samples.gsd_m is not None:
        return float(np.median(samples.gsd_m))
    assumed = DetectorInfo(name="").gsd_m
    notes.append(
        f"the ground size of a pixel is unknown, and the saved detector is marked for {assumed} m: give --gsd before "
        "surveying with it"
    )
    return assumed


def _tokens(vit: ViT, images: Images, views: int, folder: Path, progress: Progress) -> CachedTokens:
    """Tokens of every view of every image, image by image."""
    stream = (turned(image, v) for image in map(images.__getitem__, range(len(images))) for v in range(views))
    return cached_tokens(
        vit, stream, folder, device=next(vit.parameters()).device,
        progress=lambda stage, done, _: progress(stage, done, views * len(images)),
    )  # fmt: skip


def _crossed_thresholds(labels: ndarray, p: ndarray, fold: ndarray) -> Float[ndarray, " n"]:
    """For each sample the best threshold on the held-out predictions of the folds that it is not in."""
    out = np.empty(len(p))
    for k in np.unique(fold):
        out[fold == k] = best_threshold(labels[fold != k], p[fold != k])
    return out


@torch.no_grad()
def _probability(detector: Detector, image: UInt8[ndarray, "h w 3"], gsd_m: float | None) -> float:
    """Highest probability over the windows of an image; of unknown ground size, of the whole image in one window."""
    info, patch = detector.info, detector.patch
    device = next(detector.parameters()).device
    if gsd_m is None:
        return float(detector(fit_to(image, info.window_px, patch=patch)[None].to(device)).logit.sigmoid())
    scale = gsd_m / info.gsd_m
    if abs(scale - 1) > 0.02:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        pixels = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
        image = pixels[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    parts = []
    for box in grid(image.shape[1], image.shape[0], info.window_px, info.window_px // 2):
        part = image[box.row : box.row + box.height, box.col : box.col + box.width]
        pad = [(0, max(0, info.window_px - side)) for side in part.shape[:2]]
        # Mirrored as often as it takes, so that no border of black makes an edge that is not there.
        parts.append(torch.from_numpy(np.pad(part, [*pad, (0, 0)], mode="symmetric")).permute(2, 0, 1))
    batches = torch.stack(parts).split(64)
    return max(float(detector(batch.to(device)).logit.sigmoid().max()) for batch in batches)


def _rates(samples: Samples, p: ndarray, threshold: ndarray) -> list[SourceRates]:
    """Rates by source, where sources are named."""
    rates = []
    for source in [] if samples.source is None else np.unique(samples.source):
        mine = samples.source == source
        c = confusion(samples.labels[mine], p[mine], threshold[mine])
        rates.append(
            SourceRates(
                source=str(source), images=int(mine.sum()), positives=int(samples.labels[mine].sum()),
                true_positive_rate=float(recall(c)), false_positive_rate=float(false_positive_rate(c)),
            )
        )  # fmt: skip
    return rates


def _claim(out: Path, arguments: dict[str, Any]) -> None:
    """Raises OutputError when the folder holds a run of other arguments, or cannot be written to."""
    writable(out)
    try:
        before = json.loads((out / "run.json").read_text(encoding="utf-8")) if (out / "run.json").exists() else None
    except (OSError, ValueError) as error:
        raise OutputError(f"{out} cannot be used as the output folder ({error}): give another --out") from error
    if before is not None and before.get("arguments") != json.loads(json.dumps(arguments)):
        raise OutputError(f"{out} holds the results of another run: give another --out, or remove it")


def _write(out: Path, verb: str, arguments: dict[str, Any], result: Result, started: datetime.datetime) -> None:
    scores = as_plain(result)
    finished = datetime.datetime.now(datetime.UTC)
    run = {
        "negah": __version__,
        "verb": verb,
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "arguments": arguments,
        "seeds": {"split, training, bootstrap": arguments["seed"]},
        "versions": versions() | {"scikit-learn": sklearn.__version__},
        "hardware": hardware(compute_device()),
    }
    for name, content in (("scores.json", scores), ("run.json", run)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write(out / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))


def as_plain(result: Any) -> dict[str, Any]:
    """A result, a dataclass, for JSON: intervals as {value, low, high}, NaN as null, paths as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Interval):
            return plain(value._asdict())
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, float):
            return value if np.isfinite(value) else None
        return str(value) if isinstance(value, Path) else value

    return plain(asdict(result))


def _write_predictions(
    path: Path, samples: Samples, fold: ndarray, groups: ndarray, p: dict[str, ndarray], threshold: ndarray
) -> None:
    """A row per image: what was said of it by probes that had not seen it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "group", "fold", "threshold", *p])
        for i, name in enumerate(samples.names):
            where = "test" if fold[i] < 0 else int(fold[i])
            figures = [f"{values[i]:.6f}" for values in p.values()]
            rows.writerow([name, int(samples.labels[i]), groups[i], where, f"{threshold[i]:.6f}", *figures])
