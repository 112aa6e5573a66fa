"""From the first estimate of a window's panel area to one that was compared with masks, and how far it is off.

For a window with the estimate x > 0 (square metres, `footprint`) and the probability p, the calibrated area is

    area = presence(p) * size(x),    presence(p) = sigmoid(u + v logit p),    log size(x) = a + b log x

presence is what share of such windows hold panels at all, size what those that do measure (the mean: the residuals'
exp is averaged, Duan 1983).  Both are fitted with a pull towards presence = 1 and size = x, so some tens of masks do
not swing them.  A window without a find measures zero, whatever is calibrated.

How far it is off is told by windows whose place took no part in the fit (cross-conformal prediction, Vovk 2015): folds
of whole places, in each fold the ratio true / area of the windows left out, and of all these ratios the 5 % and 95 %
quantiles with the finite sample's correction, in bins of size where there are enough of them:

    interval = [low(bin) * area, high(bin) * area]         covers about 9 in 10 new windows of such places

An interval for a sum is another thing: errors of single windows even out, those of a whole place do not.

    sum +- 1.645 sqrt(place^2 sum^2 + noise^2 sum_i area_i^2)

with place the standard error of the ratio (sum of true) / (sum of area) over bootstrap samples of places, which counts
what was missed too, and noise the relative error of a single window.  The centre is the sum times that ratio.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.optimize import minimize
from scipy.special import expit, logit

from negah.errors import InputError
from negah.probe.splits import grouped_folds

FORMAT = 1
LEAST = 20  # windows with a find that a calibration takes: below it no quantile of 95 % exists
PULL = 5.0  # windows that the prior (size = x) counts for
PRIOR = ((2.0, 2.0), (0.5, 0.5))  # of u and v: mean and deviation
PER_BIN = 40  # windows that a bin of sizes needs to have quantiles of its own
TAIL = 0.05  # of the true areas on either side of an interval
SAMPLES = 2000  # of the bootstrap
FOLDS = 5
PRESENT_M2 = 0.5  # true area from which a window holds panels: a quarter of a module


class Compared(NamedTuple):
    """Windows of which the truth is known.  area_m2: the first estimate, 0 where nothing was found."""

    area_m2: Float[ndarray, " n"]
    probability: Float[ndarray, " n"]
    true_m2: Float[ndarray, " n"]
    place: Int[ndarray, " n"]  # windows of one place stay on one side of every split

    def of(self, which: Bool[ndarray, " n"]) -> "Compared":
        """Some of them."""
        return Compared(*(values[which] for values in self))


@dataclass(frozen=True)
class Fit:
    """Presence and size, see above.  spread: mean of exp(residual), from log size to mean size."""

    a: float
    b: float
    spread: float
    u: float
    v: float

    def area(self, area_m2: Float[ndarray, " n"], probability: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
        """Calibrated areas; 0 stays 0."""
        found = area_m2 > 0
        x = np.where(found, area_m2, 1.0)
        presence = expit(self.u + self.v * logit(np.clip(probability, 1e-6, 1 - 1e-6)))
        return np.where(found, presence * self.spread * np.exp(self.a + self.b * np.log(x)), 0.0)


@dataclass(frozen=True)
class Calibration:
    """What `negah calibrate` writes and `negah survey --calibration` reads.

    edges: calibrated areas between the bins; low, high: factors on an area of each bin.  missed_m2: what 95 % of the
    windows without a find stay below.  ratio, place, noise: of sums.  gsd_m, sizes_m2: the ranges it was made on.
    model, threshold: fingerprint of the detector whose estimates it corrects, and from what probability on they count.
    """

    model: str
    threshold: float
    region: str
    windows: int
    places: int
    gsd_m: tuple[float, float]
    sizes_m2: tuple[float, float]
    fit: Fit
    edges: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    missed_m2: float
    ratio: float
    place: float
    noise: float

    def area(self, area_m2: Float[ndarray, " n"], probability: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
        """Calibrated area of windows from their first estimate; 0 stays 0."""
        return self.fit.area(area_m2, probability)

    def interval(self, area_m2: Float[ndarray, " n"]) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
        """Bounds of 90 % of each window's true area, from its calibrated area."""
        bins = np.searchsorted(np.array(self.edges), area_m2, side="right")
        low, high = np.array(self.low)[bins] * area_m2, np.array(self.high)[bins] * area_m2
        return low, np.where(area_m2 > 0, high, self.missed_m2)

    def total(self, sum_m2: float, area_m2: Float[ndarray, " n"]) -> tuple[float, float, float]:
        """The sum of calibrated areas of one region, corrected for what is missed, and its interval of 90 %.

        sum_m2: over the ground.  area_m2: of all windows; where they overlap, each piece of ground is in several, whose
        errors are much alike, so that so many windows count as one.
        """
        times = max(1.0, float(area_m2.sum()) / sum_m2) if sum_m2 else 1.0
        single = self.noise * np.sqrt((area_m2**2).sum() / times)
        error = 1.645 * float(np.hypot(self.place * sum_m2, single))
        total = sum_m2 * self.ratio
        return total, max(0.0, total - error), total + error


def calibrate(
    windows: Compared, *, model: str, threshold: float, region: str, gsd_m: tuple[float, float], seed: int = 0
) -> Calibration:
    """Fit presence and size, and measure by cross-conformal prediction how far they are off.

    Raises InputError where there are too few finds, or none of the windows holds panels.
    """
    found = windows.area_m2 > 0
    if found.sum() < LEAST:
        raise InputError(f"panels were found in {found.sum()} windows with masks only: at least {LEAST} are needed")
    if not (windows.true_m2[found] >= PRESENT_M2).any():
        raise InputError("none of the windows in which panels were found holds any by its mask: are these the masks?")
    return _calibrated(windows, model=model, threshold=threshold, region=region, gsd_m=gsd_m, seed=seed)


def _calibrated(
    windows: Compared, *, model: str = "", threshold: float = 0.0, region: str = "",
    gsd_m: tuple[float, float] = (0.0, 0.0), seed: int,
) -> Calibration:  # fmt: skip
    found, present = windows.area_m2 > 0, windows.true_m2 >= PRESENT_M2
    areas = np.zeros(len(found))
    for outside in _folds(windows, seed):
        areas[outside] = fit(windows.of(~outside)).area(windows.area_m2[outside], windows.probability[outside])
    edges, low, high = conformal(areas[found], windows.true_m2[found])
    missed = windows.true_m2[~found]
    ratio, place, noise = sums(areas, windows.true_m2, windows.place, seed=seed)
    sizes = windows.true_m2[present]
    return Calibration(
        model=model, threshold=threshold, region=region, windows=len(found), places=len(np.unique(windows.place)),
        gsd_m=gsd_m, sizes_m2=(float(sizes.min()), float(sizes.max())), fit=fit(windows),
        edges=edges, low=low, high=high,
        missed_m2=float(np.quantile(missed, 0.95, method="higher")) if len(missed) else 0.0,
        ratio=ratio, place=place, noise=noise,
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
    prior = PULL * np.diag([1.0, max(x.var(), 0.1)])
    weight = np.ones(len(x))
    beta = np.zeros(2)
    for _ in range(20):
        beta = np.linalg.solve(design.T @ (weight[:, None] * design) + prior, design.T @ (weight * (y - x)))
        residual = y - x - design @ beta
        scale = max(1.4826 * float(np.median(np.abs(residual))), 1e-3)
        weight = np.minimum(1, 1.345 * scale / np.maximum(np.abs(residual), 1e-9))
    spread = float((np.exp(residual).sum() + PULL) / (len(x) + PULL))

    t = logit(np.clip(windows.probability[found], 1e-6, 1 - 1e-6))
    z = present[found].astype(float)

    def loss(uv: ndarray) -> float:
        score = uv[0] + uv[1] * t
        prior = sum(((value - mean) / deviation) ** 2 for value, (mean, deviation) in zip(uv, PRIOR, strict=True))
        return float((np.logaddexp(0, score) - z * score).sum() + prior / 2)

    u, v = minimize(loss, [mean for mean, _ in PRIOR], method="BFGS").x
    return Fit(float(beta[0] - beta[1] * centre), float(1 + beta[1]), spread, float(u), float(v))


def conformal(
    area_m2: Float[ndarray, " n"], true_m2: Float[ndarray, " n"]
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Edges of the bins of size, and in each the quantiles of true / area that cover 90 % of new windows."""
    bins = max(1, min(3, len(area_m2) // PER_BIN))
    edges = np.quantile(area_m2, np.arange(1, bins) / bins)
    which = np.searchsorted(edges, area_m2, side="right")
    low, high = [], []
    for k in range(bins):
        ratios = np.sort(true_m2[which == k] / area_m2[which == k])
        n = len(ratios)
        lower, upper = int(np.floor((n + 1) * TAIL)), int(np.ceil((n + 1) * (1 - TAIL)))
        low.append(float(ratios[lower - 1]) if lower >= 1 else 0.0)
        high.append(float(ratios[min(upper, n) - 1]))
    return tuple(edges.tolist()), tuple(low), tuple(high)


def sums(
    area_m2: Float[ndarray, " n"], true_m2: Float[ndarray, " n"], place: Int[ndarray, " n"], *, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of the sums, its standard error over bootstrap samples of places, and the noise of single windows."""
    ratio = float(true_m2.sum() / area_m2.sum())
    of = np.unique(place, return_inverse=True)[1]
    true, area = np.bincount(of, true_m2), np.bincount(of, area_m2)
    drawn = np.random.default_rng(seed).integers(len(true), size=(SAMPLES, len(true)))
    sampled = true[drawn].sum(1) / np.maximum(area[drawn].sum(1), 1e-9)
    noise = np.sqrt(((true_m2 - ratio * area_m2) ** 2).sum() / (area_m2**2).sum())
    return ratio, float(np.std(sampled)), float(noise)


@dataclass(frozen=True)
class Assessment:
    """What windows say of a calibration that saw none of their places.  Errors are of windows that hold panels."""

    median_error: float  # median of |area - true| / true
    median_error_before: float  # of the first estimate
    bias: float  # of the sum
    bias_before: float
    coverage: float  # of the intervals of 90 %, over windows with a find
    width: float  # median of (high - low) / area


def assess(windows: Compared, *, seed: int = 0) -> Assessment:
    """Calibrate on the other folds of places, look at this one, for all folds."""
    area, low, high, summed = (np.zeros(len(windows.area_m2)) for _ in range(4))
    for outside in _folds(windows, seed + 1):
        rest = _calibrated(windows.of(~outside), seed=seed)
        area[outside] = rest.area(windows.area_m2[outside], windows.probability[outside])
        low[outside], high[outside] = rest.interval(area[outside])
        summed[outside] = rest.ratio * area[outside]  # as a sum is corrected, see `Calibration.total`
    true, found = windows.true_m2, windows.area_m2 > 0
    present = true >= PRESENT_M2

    def error(estimate: ndarray) -> float:
        return float(np.median(np.abs(estimate - true)[present] / true[present]))

    return Assessment(
        error(area), error(windows.area_m2), float(summed.sum() / true.sum() - 1),
        float(windows.area_m2.sum() / true.sum() - 1), float(((low <= true) & (true <= high))[found].mean()),
        float(np.median((high - low)[found] / area[found])),
    )  # fmt: skip


def _folds(windows: Compared, seed: int) -> list[Bool[ndarray, " n"]]:
    """Which windows each fold leaves out; whole places, or, where there is only one, windows."""
    places = windows.place if len(np.unique(windows.place)) > 1 else np.arange(len(windows.place))
    folds = min(FOLDS, len(np.unique(places)))
    fold = grouped_folds(places, windows.true_m2 >= PRESENT_M2, folds=folds, seed=seed)
    return [fold == k for k in range(folds)]


def save(calibration: Calibration, path: Path, *, about: Mapping[str, Any]) -> None:
    """Write a calibration as JSON, with what is worth knowing of how it was made."""
    content = {"format": FORMAT, "calibration": asdict(calibration), "about": dict(about)}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> Calibration:
    """Read what `save` wrote.  Raises InputError where the file is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(f"{path} has format {content['format']}, and {FORMAT} is read: calibrate again")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["calibration"].items()}
        return Calibration(**{**values, "fit": Fit(**values["fit"])})
    except OSError as error:
        raise InputError(f"the calibration {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no calibration ({error}): give one written by `negah calibrate`") from None
