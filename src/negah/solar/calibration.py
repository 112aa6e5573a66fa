"""From panel fractions to square metres that were compared with masks, and how far they are off.

For a window whose cells sum to x > 0 square metres (`negah.solar.area`, itself fitted on masks) and the probability p,
the calibrated area is

    area = presence(p) * size(x),    presence(p) = sigmoid(u + v logit p),    log size(x) = a + b log x

presence is what share of such windows hold panels at all, size what those that do measure (the mean: the residuals'
exp is averaged, Duan 1983).  Both are fitted with a pull towards presence = 1 and size = x, so some tens of masks do
not swing them.  A window without a find measures zero, whatever is calibrated.

How far it is off is told by windows whose place took no part in the fit (cross-conformal prediction, Vovk 2015): folds
of whole places, in each fold the ratio true / area of the windows left out, and of all these ratios the 5 % and 95 %
quantiles with the finite sample's correction, in bins of ground size and of area where there are enough of them:

    interval = [low(bin) * area, high(bin) * area]         covers about 9 in 10 new windows of such places

An interval for a sum is another thing: errors of single windows even out, those of a whole place do not.  With the
errors e_i = true_i - ratio area_i, their sums e_p and those of the areas area_p over place p, and the region taken for
one more place,

    sum +- t_{places - 1} sqrt(place^2 sum^2 + noise^2 sum_i area_i^2)
    place^2 = (sum_p e_p^2 - sum_i e_i^2) / sum_p area_p^2 + sum_p e_p^2 / (sum_p area_p)^2
    noise^2 = sum_i e_i^2 / sum_i area_i^2

The first term of place is what places differ by beyond their windows, the second what the ratio itself may be off.
What was missed counts, too: the centre is the sum times the ratio (sum of true) / (sum of area).  A region of many
places is off by less.

The areas behind all errors are of the same folds: cells, presence and size are fitted on the other places alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.optimize import minimize
from scipy.special import expit, logit, stdtrit

from negah.errors import InputError
from negah.probe.splits import grouped_folds
from negah.solar.area import Cells, Known, best_level, fit_cells, overlap
from negah.solar.audit import Audit, Head, audit

FORMAT = 3  # goes up whenever surveys measure otherwise: a calibration corrects the errors of what it was fitted on
LEAST = 20  # windows with a find that a calibration takes: below it no quantile of 95 % exists
PULL = (5.0, 100.0)  # windows that the prior size = x counts for: its level, and its power, which extrapolates badly
PRIOR = ((2.0, 2.0), (0.5, 0.5))  # of u and v: mean and deviation
PER_BIN = 30  # windows that a bin of sizes needs to have quantiles of its own
TAIL = 0.05  # of the true areas on either side of an interval
FOLDS = 5
GAIN = 0.005  # of the overlap with masks of other places, from which outlines are refined
NEAR = 1.25  # factor between ground sizes that are taken for one
PRESENT_M2 = 0.5  # true area from which a window holds panels: a quarter of a module


class Compared(NamedTuple):
    """Windows of which the truth is known.  area_m2: by their cells, 0 where nothing was found."""

    area_m2: Float[ndarray, " n"]
    probability: Float[ndarray, " n"]
    true_m2: Float[ndarray, " n"]
    place: Int[ndarray, " n"]  # windows of one place stay on one side of every split
    gsd_m: Float[ndarray, " n"]  # ground sampling distance of the picture

    def of(self, which: Bool[ndarray, " n"]) -> "Compared":
        """Some of them."""
        return Compared(*(values[which] for values in self))


@dataclass(frozen=True)
class Seen:
    """The same windows with what a closer look gave.  known: None where nothing was found.  cell_m2: of a half patch.

    ground_m2: of the window.  first_m2: the estimate of a survey without a calibration.
    """

    known: list[Known | None]
    cell_m2: Float[ndarray, " n"]
    ground_m2: Float[ndarray, " n"]
    first_m2: Float[ndarray, " n"]
    probability: Float[ndarray, " n"]
    true_m2: Float[ndarray, " n"]
    place: Int[ndarray, " n"]
    gsd_m: Float[ndarray, " n"]

    def __len__(self) -> int:
        return len(self.known)

    def of(self, which: Bool[ndarray, " n"]) -> "Seen":
        """Some of them."""
        known = [self.known[k] for k in np.flatnonzero(which)]
        arrays = (self.cell_m2, self.ground_m2, self.first_m2, self.probability, self.true_m2, self.place, self.gsd_m)
        return Seen(known, *(values[which] for values in arrays))

    @property
    def found(self) -> list[Known]:
        """Those in which something was found."""
        return [k for k in self.known if k is not None]

    def fractions(self, cells: Cells) -> list[ndarray | None]:
        """Panel fractions of the cells of each window."""
        return [None if k is None else cells.fraction(k.look) for k in self.known]

    def compared(self, fractions: list[ndarray | None]) -> Compared:
        """The windows by the areas that such fractions sum to."""
        area = np.array([0.0 if f is None else f.sum(dtype=np.float64) for f in fractions]) * self.cell_m2
        return Compared(area, self.probability, self.true_m2, self.place, self.gsd_m)


class Bins(NamedTuple):
    """Factors on an area that bound the true one, for pictures of up to `gsd_m`: low and high by bins of area."""

    gsd_m: float
    edges: tuple[float, ...]  # calibrated areas between the bins
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Fit:
    """Presence and size, see above.  spread: mean of exp(residual), from log size to mean size."""

    a: float
    b: float
    spread: float
    u: float
    v: float

    def presence(self, probability: ndarray | float):
        """Share of windows of this probability that hold panels."""
        return expit(self.u + self.v * logit(np.clip(probability, 1e-6, 1 - 1e-6)))

    def area(self, area_m2: Float[ndarray, " n"], probability: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
        """Calibrated areas; 0 stays 0."""
        found = area_m2 > 0
        x = np.where(found, area_m2, 1.0)
        return np.where(found, self.presence(probability) * self.spread * np.exp(self.a + self.b * np.log(x)), 0.0)


@dataclass(frozen=True)
class Calibration:
    """What `negah calibrate` writes and `negah survey --calibration` reads.

    cells: how panel fractions are read.  bins: of intervals, by ground size.  missed_m2: what 95 % of the windows
    without a find stay below.  ratio, place, noise: of sums.  gsd_m, sizes_m2: the ranges it was made on.
    audit: where the heads looked on the masks.  notes: what has to be known of the masks, for those who use it.
    model, threshold: fingerprint of the detector whose readings it knows, and from what probability on they count.
    """

    model: str
    threshold: float
    region: str
    windows: int
    places: int
    gsd_m: tuple[float, float]
    sizes_m2: tuple[float, float]
    cells: Cells
    fit: Fit
    bins: tuple[Bins, ...]
    missed_m2: float
    ratio: float
    place: float
    noise: float
    audit: Audit | None = None
    notes: tuple[str, ...] = ()

    def area(self, area_m2: Float[ndarray, " n"], probability: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
        """Calibrated area of windows from the sum of their cells; 0 stays 0."""
        return self.fit.area(area_m2, probability)

    def covers(self, gsd_m: float) -> bool:
        """Whether a picture's pixels are about as large as those that it was made on."""
        return self.gsd_m[0] / NEAR <= gsd_m <= self.gsd_m[1] * NEAR

    def interval(
        self, area_m2: Float[ndarray, " n"], gsd_m: Float[ndarray, " n"]
    ) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
        """Bounds of 90 % of each window's true area, from its calibrated area and the picture's ground size."""
        low, high = np.zeros(len(area_m2)), np.zeros(len(area_m2))
        of = np.searchsorted([b.gsd_m for b in self.bins[:-1]], gsd_m)
        for k, some in enumerate(self.bins):
            which = np.searchsorted(some.edges, area_m2, side="right")
            low = np.where(of == k, np.array(some.low)[which] * area_m2, low)
            high = np.where(of == k, np.array(some.high)[which] * area_m2, high)
        return low, np.where(area_m2 > 0, high, self.missed_m2)

    def measure(
        self, area_m2: Float[ndarray, " n"], probability: Float[ndarray, " n"], gsd_m: Float[ndarray, " n"],
        ground_m2: Float[ndarray, " n"],
    ) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"], Float[ndarray, " n"]]:  # fmt: skip
        """Calibrated areas of windows and their bounds, none larger than the ground."""
        area = np.minimum(self.area(area_m2, probability), ground_m2)
        low, high = self.interval(area, gsd_m)
        return area, np.minimum(low, ground_m2), np.minimum(high, ground_m2)

    def total(self, sum_m2: float, area_m2: Float[ndarray, " n"]) -> tuple[float, float, float]:
        """The sum of calibrated areas of one region, corrected for what is missed, and its interval of 90 %.

        sum_m2: over the ground.  area_m2: of all windows; where they overlap, each piece of ground is in several, whose
        errors are much alike, so that so many windows count as one.
        """
        times = max(1.0, float(area_m2.sum()) / sum_m2) if sum_m2 else 1.0
        single = self.noise * np.sqrt((area_m2**2).sum() / times)
        error = float(stdtrit(max(self.places - 1, 1), 0.95) * np.hypot(self.place * sum_m2, single))
        total = sum_m2 * self.ratio
        return total, max(0.0, total - error), total + error


def calibrate(
    seen: Seen, *, zoom: int, from_masks: bool = False, model: str = "", threshold: float = 0.0, region: str = "",
    seed: int = 0,
) -> Calibration:  # fmt: skip
    """Fit cells, presence and size, and measure by cross-conformal prediction how far they are off.

    Raises InputError where there are too few finds, or none of the windows holds panels.
    """
    if len(seen.found) < LEAST:
        raise InputError(f"panels were found in {len(seen.found)} windows with masks only: at least {LEAST} are needed")
    if not any(k is not None and true >= PRESENT_M2 for k, true in zip(seen.known, seen.true_m2, strict=True)):
        raise InputError("none of the windows in which panels were found holds any by its mask: are these the masks?")
    return _calibrate(
        seen, zoom=zoom, from_masks=from_masks, model=model, threshold=threshold, region=region, seed=seed
    )


def _calibrate(
    seen: Seen, *, zoom: int, from_masks: bool, model: str = "", threshold: float = 0.0, region: str = "", seed: int
) -> Calibration:
    outside: dict[bool, list[ndarray | None]] = {refine: [None] * len(seen) for refine in (False, True)}
    areas = {refine: np.zeros(len(seen)) for refine in (False, True)}
    for fold in _folds(seen, seed):
        others, mine = seen.of(~fold), seen.of(fold)
        plain = fit_cells(others.found or seen.found, zoom=zoom, from_masks=from_masks)
        for refine in (False, True):
            cells = replace(plain, refine=refine)
            fractions = mine.fractions(cells)
            windows = mine.compared(fractions)
            sizes = fit(others.compared(others.fractions(cells)))
            areas[refine][fold] = sizes.area(windows.area_m2, windows.probability)
            for k, fraction in zip(np.flatnonzero(fold), fractions, strict=True):
                outside[refine][k] = fraction
    levels = {refine: best_level([f for f in maps if f is not None], seen.found) for refine, maps in outside.items()}
    refine = levels[True].iou > levels[False].iou + GAIN
    cells = fit_cells(seen.found, zoom=zoom, from_masks=from_masks, level=levels[refine].level)
    cells = replace(cells, refine=refine)
    windows = seen.compared(seen.fractions(cells))
    present = seen.true_m2 >= PRESENT_M2
    made = fit(windows)
    # How far single areas are off is asked of the folds.  What a sum lacks is asked of the fit that surveys will use:
    # with few places, one that misses some of them may be off by much more.
    ratio = float(seen.true_m2.sum() / made.area(windows.area_m2, windows.probability).sum())
    outcome = areas[refine]
    some = outcome > 0  # not all finds: their cells may come to nothing
    if not some.any():
        raise InputError("no area was measured in any window with masks, so there is nothing to calibrate")
    apart, place, noise = sums(outcome, seen.true_m2, seen.place)
    held = seen.true_m2[present] if present.any() else np.zeros(1)
    return Calibration(
        model=model, threshold=threshold, region=region, windows=len(seen), places=len(np.unique(seen.place)),
        gsd_m=(float(seen.gsd_m.min()), float(seen.gsd_m.max())),
        sizes_m2=(float(held.min()), float(held.max())), cells=cells, fit=made,
        bins=bins_of(outcome[some], seen.true_m2[some], seen.gsd_m[some]),
        missed_m2=float(np.quantile(seen.true_m2[~some], 0.95, method="higher")) if not some.all() else 0.0,
        ratio=ratio, place=place / apart * ratio, noise=noise, audit=audit(seen.found),
    )  # fmt: skip


def fit(windows: Compared) -> Fit:
    """Presence and size on windows with a find; Huber's weights, so that single bad masks do not lead."""
    found = windows.area_m2 > 0
    present = found & (windows.true_m2 >= PRESENT_M2)
    if not present.any():  # in some part of the windows: nothing moves the priors
        return Fit(0.0, 1.0, 1.0, PRIOR[0][0], PRIOR[1][0])
    x, y = np.log(windows.area_m2[present]), np.log(windows.true_m2[present])
    centre = x.mean()
    design = np.stack([np.ones(len(x)), x - centre], 1)
    prior = np.diag([PULL[0], PULL[1] * max(x.var(), 0.1)])
    weight = np.ones(len(x))
    beta = np.zeros(2)
    for _ in range(20):
        beta = np.linalg.solve(design.T @ (weight[:, None] * design) + prior, design.T @ (weight * (y - x)))
        residual = y - x - design @ beta
        scale = max(1.4826 * float(np.median(np.abs(residual))), 1e-3)
        weight = np.minimum(1, 1.345 * scale / np.maximum(np.abs(residual), 1e-9))
    spread = float((np.exp(residual).sum() + PULL[0]) / (len(x) + PULL[0]))

    t = logit(np.clip(windows.probability[found], 1e-6, 1 - 1e-6))
    z = present[found].astype(float)

    def loss(uv: ndarray) -> float:
        score = uv[0] + uv[1] * t
        prior = sum(((value - mean) / deviation) ** 2 for value, (mean, deviation) in zip(uv, PRIOR, strict=True))
        return float((np.logaddexp(0, score) - z * score).sum() + prior / 2)

    u, v = minimize(loss, [mean for mean, _ in PRIOR], method="BFGS").x
    return Fit(float(beta[0] - beta[1] * centre), float(1 + beta[1]), spread, float(u), float(v))


def bins_of(
    area_m2: Float[ndarray, " n"], true_m2: Float[ndarray, " n"], gsd_m: Float[ndarray, " n"]
) -> tuple[Bins, ...]:
    """Intervals by ground size, as far as there are enough windows: sizes nearer than NEAR to each other are one."""
    sizes = np.unique(gsd_m)
    borders = [float(np.sqrt(a * b)) for a, b in pairwise(sizes) if b > a * NEAR]
    while borders:
        counts = np.bincount(np.searchsorted(borders, gsd_m), minlength=len(borders) + 1)
        least = int(np.argmin(counts))
        if counts[least] >= PER_BIN:
            break
        del borders[min(least, len(borders) - 1)]  # joins the next larger ones, the largest the next smaller
    of = np.searchsorted(borders, gsd_m)
    ends = [*borders, float(gsd_m.max())]
    return tuple(Bins(end, *conformal(area_m2[of == k], true_m2[of == k])) for k, end in enumerate(ends))


def conformal(
    area_m2: Float[ndarray, " n"], true_m2: Float[ndarray, " n"]
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Edges of the bins of size, and in each the quantiles of true / area that cover 90 % of new windows."""
    bins = max(1, min(3, len(area_m2) // PER_BIN))
    edges = np.unique(np.quantile(area_m2, np.arange(1, bins) / bins))
    edges = edges[edges > area_m2.min()]  # no bin is empty
    which = np.searchsorted(edges, area_m2, side="right")
    low, high = [], []
    for k in range(len(edges) + 1):
        ratios = np.sort(true_m2[which == k] / area_m2[which == k])
        n = len(ratios)
        lower, upper = int(np.floor((n + 1) * TAIL)), int(np.ceil((n + 1) * (1 - TAIL)))
        low.append(float(ratios[lower - 1]) if lower >= 1 else 0.0)
        high.append(float(ratios[min(upper, n) - 1]))
    return tuple(edges.tolist()), tuple(low), tuple(high)


def sums(
    area_m2: Float[ndarray, " n"], true_m2: Float[ndarray, " n"], place: Int[ndarray, " n"]
) -> tuple[float, float, float]:
    """Ratio of the sums, how far that of one more place may be off from it, and the noise of single windows.

    Where there is one place, windows stand for places, which says nothing of another place.
    """
    ratio = float(true_m2.sum() / area_m2.sum())
    of = np.unique(_apart(place), return_inverse=True)[1]
    error = true_m2 - ratio * area_m2
    singles, sums = (error**2).sum(), (np.bincount(of, error) ** 2).sum()
    area = np.bincount(of, area_m2)
    between = max(0.0, sums - singles) / (area**2).sum() + sums / area.sum() ** 2
    return ratio, float(np.sqrt(between)), float(np.sqrt(singles / (area_m2**2).sum()))


def _apart(place: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Places, or, where there is only one, windows."""
    return place if len(np.unique(place)) > 1 else np.arange(len(place))


@dataclass(frozen=True)
class Assessment:
    """What windows say of a calibration that saw none of their places.  Errors are of windows that hold panels."""

    iou: float  # of outlines and masks, pooled; what is half panel counts as half
    median_error: float  # median of |area - true| / true
    median_error_before: float  # of the first estimate
    bias: float  # of the sum
    bias_before: float
    coverage: float  # of the intervals of 90 %, over windows with a find
    width: float  # median of (high - low) / area


@dataclass(frozen=True)
class HeldOut:
    """What is measured of each window by a calibration that saw nothing of its place.

    summed: its share of a corrected sum, see `Calibration.total`.  both, either: m2 of intersection and union of the
    outlines and the mask; what is half panel counts as half, and where nothing was found, `either` is the mask.
    """

    area: Float[ndarray, " n"]
    low: Float[ndarray, " n"]
    high: Float[ndarray, " n"]
    summed: Float[ndarray, " n"]
    both: Float[ndarray, " n"]
    either: Float[ndarray, " n"]


def measured(made: Calibration, seen: Seen) -> HeldOut:
    """What a calibration measures of windows."""
    fractions = seen.fractions(made.cells)
    windows = seen.compared(fractions)
    area, low, high = made.measure(windows.area_m2, windows.probability, windows.gsd_m, seen.ground_m2)
    both, either = np.zeros(len(seen)), seen.true_m2.copy()
    for k, (fraction, known, m2) in enumerate(zip(fractions, seen.known, seen.cell_m2, strict=True)):
        if fraction is not None and known is not None:
            both[k], either[k] = m2 * np.array(overlap(fraction >= made.cells.level, known.fraction))
    return HeldOut(area, low, high, made.ratio * area, both, either)


def held_out(seen: Seen, *, zoom: int, from_masks: bool = False, seed: int = 0) -> HeldOut:
    """Calibrate on the other folds of places, measure this one, for all folds."""
    out = HeldOut(*(np.zeros(len(seen)) for _ in range(6)))
    for fold in _folds(seen, seed + 1):
        made = _calibrate(seen.of(~fold), zoom=zoom, from_masks=from_masks, seed=seed)
        part = measured(made, seen.of(fold))
        for name, values in vars(part).items():
            getattr(out, name)[fold] = values
    return out


def assess(seen: Seen, *, zoom: int, from_masks: bool = False, seed: int = 0) -> Assessment:
    """`held_out` in figures."""
    out = held_out(seen, zoom=zoom, from_masks=from_masks, seed=seed)
    true, found = seen.true_m2, out.area > 0
    present = true >= PRESENT_M2

    def error(estimate: ndarray) -> float:
        return float(np.median(np.abs(estimate - true)[present] / true[present]))

    return Assessment(
        float(out.both.sum() / out.either.sum()), error(out.area), error(seen.first_m2),
        float(out.summed.sum() / true.sum() - 1), float(seen.first_m2.sum() / true.sum() - 1),
        float(((out.low <= true) & (true <= out.high))[found].mean()),
        float(np.median((out.high - out.low)[found] / out.area[found])),
    )  # fmt: skip


def _folds(seen: Seen, seed: int) -> list[Bool[ndarray, " n"]]:
    """Which windows each fold leaves out: whole places, or, where the others could teach nothing, single windows."""
    present = seen.true_m2 >= PRESENT_M2
    found = np.array([known is not None for known in seen.known])
    out = []
    for places in (_apart(seen.place), np.arange(len(seen))):
        folds = min(FOLDS, len(np.unique(places)))
        fold = grouped_folds(places, present.astype(int) + 2 * found, folds=folds, seed=seed)
        out = [fold == k for k in range(folds)]
        if all((found & present & ~k).any() for k in out):
            break
    return out


def save(calibration: Calibration, path: Path, *, about: Mapping[str, Any]) -> Path:
    """Write a calibration as JSON, with what is worth knowing of how it was made, and return its path."""
    content = {"format": FORMAT, "calibration": asdict(calibration), "about": dict(about)}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> Calibration:
    """Read what `save` wrote.  Raises InputError where the file is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(f"{path} has format {content['format']}, and {FORMAT} is read: calibrate again")
        values = _tuples(content["calibration"])
        if values["audit"] is not None:
            windows, covered, heads = values["audit"]
            values["audit"] = Audit(windows, covered, tuple(Head(*head) for head in heads))
        parts = {"fit": Fit(**values["fit"]), "cells": Cells(**values["cells"])}
        found = Calibration(**{**values, **parts, "bins": tuple(Bins(*some) for some in values["bins"])})
        fault = _fault(found)
    except OSError as error:
        raise InputError(f"the calibration {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):  # no text, no JSON, or JSON of something else
        raise InputError(f"{path} is no calibration: give one written by `negah calibrate`") from None
    if fault:
        raise InputError(f"{path} is no calibration ({fault}): give one written by `negah calibrate`")
    return found


def _fault(made: Calibration) -> str:
    """What in its figures could only fail, or mislead, inside of a survey; or nothing."""
    figures = [made.threshold, made.missed_m2, made.ratio, made.place, made.noise, *made.gsd_m, *made.sizes_m2]
    figures += [*asdict(made.fit).values(), made.cells.level, made.cells.bias, made.cells.scale, *made.cells.heads]
    if not all(isinstance(note, str) for note in made.notes):
        return "its notes are no texts"
    if not made.bins or any(not len(b.low) == len(b.high) == len(b.edges) + 1 for b in made.bins):
        return "its bins are not whole"
    figures += [value for some in made.bins for part in (some.edges, some.low, some.high) for value in part]
    if not np.isfinite(figures).all() or made.cells.zoom < 1 or len(made.cells.layer) not in (0, 4):
        return "some of its figures are none"
    return ""


def _tuples(value: Any) -> Any:
    """The reverse of what JSON does to tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
