"""How far a small change of the pixels can move the square metres that are measured of windows.

    some, failures = windows_of(["town.tif"], detector, most=50)
    for windows in some:                                                                    each of one shape
        found = attack_area(detector, windows, Measure(detector.info.threshold), eps=(1 / 255, 2 / 255))
        found[1].lowest.sum(), found[1].before.sum(), found[1].highest.sum()

In the Linf ball around each window, `adversarial.ascend` climbs the smooth logarithm of its area, upwards and downwards
(`solar.sensitivity.SmoothArea`); what counts is what a survey then measures.  Beside it stand random signs of the same
size: noise that means no harm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn

from negah.adversarial.ascend import ascend
from negah.adversarial.universal import random_signs
from negah.errors import InputError
from negah.images.bands import gdal_settings
from negah.images.sources import Source, find_sources
from negah.probe import detector as detectors
from negah.probe.detector import Detector
from negah.progress import Progress, silent
from negah.runs.record import compute_device
from negah.runs.survey import calibration_for
from negah.solar.plan import Plan, make_plan
from negah.solar.sensitivity import SmoothArea, measured_m2
from negah.solar.survey import Measure

BATCH = 16  # windows that are climbed at a time
LOOKED = 50  # times as many windows as are attacked may be measured in search of some with panels
PART = 64  # windows that are measured for that at a time


class Windows(NamedTuple):
    """Windows of one shape as a survey reads them: at the detector's ground size, all pixels valid.

    ground_m2: of each window.  gsd_m: metres per pixel of the picture that it comes from.
    """

    pixels: UInt8[Tensor, "n 3 h w"]
    ground_m2: Float[ndarray, " n"]
    gsd_m: Float[ndarray, " n"]


@dataclass(frozen=True)
class Moved:
    """Areas of windows in m2, at one radius: as they are, the lowest and the highest reached.

    noise_lowest, noise_highest: of the draws of random signs, each window by itself.
    """

    eps: float
    before: Float[ndarray, " n"]
    lowest: Float[ndarray, " n"]
    highest: Float[ndarray, " n"]
    noise_lowest: Float[ndarray, " n"]
    noise_highest: Float[ndarray, " n"]


def windows_of(
    paths: Sequence[str],
    detector: Detector,
    *,
    gsd_m: float | None = None,
    most: int = 100,
    seed: int = 0,
    found_by: Measure | None = None,
    progress: Progress = silent,
) -> tuple[list[Windows], list[tuple[str, str]]]:
    """At most so many windows of pictures, drawn at random, by shape; and what could not be read, with the reason.

    gsd_m: metres per pixel of pictures that do not say.  found_by: take windows that have an area by it first, in the
    order of the draw, and others only where these are too few; at most LOOKED times as many windows are measured for
    that.  Raises InputError where there is nothing to read.
    """
    sources = find_sources(paths)
    with gdal_settings():
        plan = make_plan(sources, detector.info, patch=detector.patch, gsd_m=gsd_m)
        failures = {failure.source: failure.reason for failure in plan.failures}
        order = np.random.default_rng(seed).permutation(plan.windows)
        if found_by is None:
            return by_shape(_read(plan, sources, order[:most], failures)), list(failures.items())
        found, others = [], []
        order = order[: most * LOOKED]
        for start in range(0, len(order), PART):
            progress("windows looked at", start, len(order))
            some = _read(plan, sources, order[start : start + PART], failures)
            area = np.zeros(len(some))
            for windows, places in grouped(some):
                area[places] = measured_m2(
                    detector, windows.pixels.to(next(detector.parameters()).device).float() / 255, measure=found_by,
                    patch=detector.patch, ground_m2=windows.ground_m2, gsd_m=windows.gsd_m,
                )  # fmt: skip
            found += [one for one, m2 in zip(some, area, strict=True) if m2 > 0]
            others += [one for one, m2 in zip(some, area, strict=True) if not m2 > 0]
            if len(found) >= most:
                break
    return by_shape((found + others)[:most]), list(failures.items())


class _One(NamedTuple):
    """A window that was read.  number: in the plan."""

    number: int
    pixels: UInt8[Tensor, "3 h w"]
    ground_m2: float
    gsd_m: float


def _read(plan: Plan, sources: Sequence[Source], numbers: ndarray, failures: dict[str, str]) -> list[_One]:
    """Those of these windows whose pixels are all valid, in this order; what cannot be read goes to `failures`."""
    read: dict[int, _One] = {}
    for source in plan.sources:
        mine = np.sort(numbers[(numbers >= source.first) & (numbers < source.first + len(source.layout))])
        indices = mine - source.first
        if not len(mine) or source.name in failures:
            continue
        try:
            with sources[source.position].open() as raster:
                windows = [raster.read(source.layout.box(i), source.layout.shape) for i in indices.tolist()]
        except InputError as error:
            failures[source.name] = str(error)
            continue
        for number, (rgb, valid), m2 in zip(mine.tolist(), windows, source.windows_m2(indices), strict=True):
            if valid.all():
                read[number] = _One(number, torch.from_numpy(rgb.copy()).permute(2, 0, 1), float(m2), source.gsd_m)
    return [read[number] for number in numbers.tolist() if number in read]


def grouped(some: Sequence[_One]) -> list[tuple[Windows, list[int]]]:
    """Windows of one shape together, and their places among all."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, one in enumerate(some):
        shapes.setdefault(tuple(one.pixels.shape), []).append(place)
    return [
        (Windows(torch.stack([some[k].pixels for k in places]), *(
            np.array([getattr(some[k], name) for k in places]) for name in ("ground_m2", "gsd_m")
        )), places)
        for places in shapes.values()
    ]  # fmt: skip


def by_shape(some: Sequence[_One]) -> list[Windows]:
    """The same, in the order of the plan."""
    return [windows for windows, _ in grouped(sorted(some, key=lambda one: one.number))]


def attack_area(
    detector: Detector, windows: Windows, measure: Measure, *, eps: Sequence[float] = (0.5 / 255, 1 / 255, 2 / 255),
    steps: int = 20, draws: int = 3, bf16: bool = False, seed: int = 0,
    progress: Progress = silent,
) -> list[Moved]:  # fmt: skip
    """One `Moved` for each radius, in rising order; what was reached at a smaller radius counts at a larger one.

    At a radius of whole grey levels, pixels are rounded to 8 bits before they are measured: such a picture can be
    stored.  Other radii say what the network's own input can do.

    Args:
        steps: of the climb, each way.  draws: of random signs.
        bf16: climb in bfloat16; what counts is still fp32.

    Raises InputError where there is no window, for a radius of 0 or less, and, with a calibration, for one that is not
    a whole number of grey levels: the closer look knows 8 bits only.
    """
    if not len(windows.pixels):
        raise InputError("there is no window to attack")
    radii = sorted(eps)
    if not radii or radii[0] <= 0:
        raise InputError(f"eps {[*radii]}: give radii above 0, in units of the whole range of a pixel")
    if radii[-1] > 1:
        raise InputError(f"eps {radii[-1]:g} is more than the range of a pixel, which is 1: 2/255 are two grey levels")
    if measure.calibration is not None and not all(map(whole, radii)):
        raise InputError(
            f"eps {[*radii]}: with a calibration give whole grey levels, k / 255, as a survey reads 8 bits"
        )
    measured = partial(
        measured_m2, detector, measure=measure, patch=detector.patch, ground_m2=windows.ground_m2, gsd_m=windows.gsd_m
    )
    clean = windows.pixels.to(next(detector.parameters()).device).float() / 255
    up = SmoothArea(detector, measure, patch=detector.patch)
    scores = {"highest": up, "lowest": Negative(up)}
    before = measured(clean)
    reached, found = {"highest": before, "lowest": before}, []
    generator, parts = torch.Generator().manual_seed(seed), clean.split(BATCH)
    for number, radius in enumerate(radii):
        keep: Callable[[Tensor], Tensor] = eight_bits if whole(radius) else lambda x: x
        for turn, (name, better) in enumerate((("highest", np.maximum), ("lowest", np.minimum))):
            points = []
            for k, part in enumerate(parts):
                points.append(ascend(scores[name], part, eps=radius, steps=steps, bf16=bf16))
                progress("windows", (2 * number + turn) * len(parts) + k + 1, 2 * len(radii) * len(parts))
            reached[name] = better(reached[name], measured(keep(torch.cat(points))))
        noisy = np.stack([
            measured(keep((clean + torch.cat([random_signs(x[None], radius, generator) for x in clean])).clamp(0, 1)))
            for _ in range(draws)
        ])  # fmt: skip
        found.append(Moved(radius, before, reached["lowest"], reached["highest"], noisy.min(0), noisy.max(0)))
    return found


@dataclass(frozen=True)
class AreaResult:
    """Sums over the windows, in m2.  windows: how many; with_panels: of these, how many have an area as they are.

    drawn: how they were chosen, in words.
    rows: eps, lowest, highest, noise_lowest, noise_highest of the sum, and filled: windows without an area that got
    one.
    """

    windows: int
    with_panels: int
    before: float
    rows: list[dict[str, float]]
    failures: list[tuple[str, str]]
    drawn: str = ""


def attack_areas(
    paths: Sequence[str], *, model: str, gsd_m: float | None = None, calibration: Path | None = None,
    eps: Sequence[float] = (0.5 / 255, 1 / 255, 2 / 255), images: int = 100, steps: int = 20, seed: int = 0,
    progress: Progress = silent,
) -> AreaResult:  # fmt: skip
    """`attack_area` on at most so many windows of pictures, summed; those with panels first, see `windows_of`.

    Raises InputError for what cannot be surveyed, and as `attack_area` does.
    """
    detector = detectors.load(model, device=compute_device())
    made = calibration_for(calibration, [detector])
    measure = Measure(detector.info.threshold if made is None else made.threshold, detector.info.area_ratio, made)
    shapes, failures = windows_of(
        paths, detector, gsd_m=gsd_m, most=images, seed=seed, found_by=measure, progress=progress
    )  # fmt: skip
    if not shapes:
        raise InputError(f"none of the pictures can be read (first: {failures[0][1]})")
    moved = [
        attack_area(
            detector, windows, measure, eps=eps, steps=steps, seed=seed,
            progress=lambda stage, done, total, k=k: progress(f"{stage} of shape {k} of {len(shapes)}", done, total),
        )
        for k, windows in enumerate(shapes, 1)
    ]  # fmt: skip
    before = np.concatenate([found[0].before for found in moved])
    names = ("lowest", "highest", "noise_lowest", "noise_highest")
    rows = []
    for found in zip(*moved):
        sums = {name: float(sum(getattr(one, name).sum() for one in found)) for name in names}
        filled = sum(int(((one.before == 0) & (one.highest > 0)).sum()) for one in found)
        rows.append({"eps": found[0].eps, **sums, "filled": filled})
    drawn = f"in random order (seed {seed}), windows with panels first"
    return AreaResult(len(before), int((before > 0).sum()), float(before.sum()), rows, failures, drawn)


class Negative(nn.Module):
    """Downwards."""

    def __init__(self, score: nn.Module):
        super().__init__()
        self.score = score
        self.train(score.training)

    def forward(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, " batch"]:
        return -self.score(images)


def whole(radius: float) -> bool:
    """Whether a radius is so many grey levels of 8 bits."""
    return abs(radius * 255 - round(radius * 255)) < 1e-6


def eight_bits(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Pixels as they can be stored; from whole levels a point stays in its ball."""
    return (images * 255).round() / 255
