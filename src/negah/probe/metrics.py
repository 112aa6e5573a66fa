"""How good a yes/no answer is, and how sure of that we may be: seven figures, each with a bootstrap interval.

    AUC   P(score of a positive > score of a negative) + P(equal) / 2           (Mann and Whitney 1947)
    AP    sum_k (recall_k - recall_{k-1}) precision_k over descending distinct scores, no interpolation
    ECE   sum_bins n_bin / n |mean probability - share of positives|            (Guo et al. 2017, arXiv:1706.04599)
    accuracy, precision, recall, F1, false positive rate at a threshold: positive is `probability >= threshold`

Every figure takes sample weights of shape [..., n], so that a bootstrap is one call: a resample is a row of
multiplicities. Tiles that overlap or stand side by side are not independent; with `groups` whole groups are drawn
(cluster bootstrap, Davison and Hinkley 1997, section 3.8), and the intervals are as wide as they should be.

What a figure is not defined for (precision without a predicted positive, AUC of one class) is NaN, never 0 or 1.
Intervals are percentiles; resamples in which the figure is undefined are left out. The calibration error of a finite
sample is biased upwards (bins are noisy), and its resamples are biased once more by as much: they are shifted back by
that before their percentiles are taken, or the value could lie below its own interval.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from negah.errors import InputError
from negah.probe.splits import Values

CALIBRATION_BINS = 15
_BLOCK = 4_000_000  # weights per block of resamples: 32 MB of float64, whatever the number of samples


class Interval(NamedTuple):
    """A figure with its bootstrap interval (NaN where undefined)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Scores:
    """What `measure` returns; `threshold` is the (mean) one that the five middle figures were taken at."""

    auc: Interval
    average_precision: Interval
    accuracy: Interval
    precision: Interval
    recall: Interval
    f1: Interval
    false_positive_rate: Interval
    calibration_error: Interval
    threshold: float
    samples: int
    positives: int
    groups: int
    confidence: float


class Confusion(NamedTuple):
    """Weights of the four outcomes, each of shape [...]."""

    tp: ndarray
    fp: ndarray
    fn: ndarray
    tn: ndarray


def accuracy(c: Confusion) -> ndarray:
    """(tp + tn) / all."""
    return _ratio(c.tp + c.tn, c.tp + c.fp + c.fn + c.tn)


def precision(c: Confusion) -> ndarray:
    """tp / (tp + fp); NaN where nothing was called positive."""
    return _ratio(c.tp, c.tp + c.fp)


def recall(c: Confusion) -> ndarray:
    """tp / (tp + fn), the true positive rate; NaN without positives."""
    return _ratio(c.tp, c.tp + c.fn)


def false_positive_rate(c: Confusion) -> ndarray:
    """fp / (fp + tn); NaN without negatives."""
    return _ratio(c.fp, c.fp + c.tn)


def f1(c: Confusion) -> ndarray:
    """2 tp / (2 tp + fp + fn), the harmonic mean of precision and recall."""
    return _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn)


def confusion(labels: Values, probabilities: Values, threshold: Values, weights: Values = 1.0) -> Confusion:
    """Outcomes at a threshold (one, or one per sample), summed over the last axis of `weights` ([n] or [..., n])."""
    y, p, w = _checked(labels, probabilities, weights)
    called = p >= _array(threshold)
    outcomes = np.stack([called & y, called & ~y, ~called & y, ~called & ~y], axis=1).astype(float)
    return Confusion(*map(np.asarray, np.moveaxis(w @ outcomes, -1, 0)))


def auc(labels: Values, scores: Values, weights: Values = 1.0) -> ndarray:
    """Area under the ROC curve, ties counted half; shape of `weights` without its last axis."""
    positive, negative = _by_score(labels, scores, weights)
    above = np.cumsum(positive, axis=-1) - positive / 2  # positives above each distinct score, half of those at it
    return _ratio((above * negative).sum(-1), positive.sum(-1) * negative.sum(-1))


def average_precision(labels: Values, scores: Values, weights: Values = 1.0) -> ndarray:
    """Area under the precision-recall steps (as scikit-learn's), shape of `weights` without its last axis."""
    positive, negative = _by_score(labels, scores, weights)
    tp, fp = np.cumsum(positive, axis=-1), np.cumsum(negative, axis=-1)
    # Until the first weighted sample is met, precision is 0 / 0; no recall is gained there, so it must not count.
    steps = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)
    return _ratio((positive * steps).sum(-1), positive.sum(-1))


def calibration_error(
    labels: Values, probabilities: Values, weights: Values = 1.0, *, bins: int = CALIBRATION_BINS
) -> ndarray:
    """Expected calibration error of the probability of the positive class, bins of equal width.

    Raises InputError on a value outside [0, 1]: a logit is not a probability.
    """
    y, p, w = _checked(labels, probabilities, weights)
    if p.min() < 0 or p.max() > 1:
        raise InputError(
            f"calibration needs probabilities in [0, 1], got {p.min():.3g}..{p.max():.3g}: apply a sigmoid"
        )
    which = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.zeros((len(p), bins))
    gap[np.arange(len(p)), which] = p - y
    return _ratio(np.abs(w @ gap).sum(-1), w.sum(-1))


def best_threshold(labels: Values, probabilities: Values, *, goal: Callable[[Confusion], ndarray] = f1) -> float:
    """The threshold that maximises `goal` (f1, accuracy, ... of this file).

    Of several that are equally good, the one in the middle of the widest gap between scores, so that a small shift
    of the scores changes as little as possible. Choose it on data that are not the data you report on.
    """
    y, p, _ = _checked(labels, probabilities, 1.0)
    if y.all() or not y.any():
        raise InputError("a threshold cannot be chosen on samples of one class: give both positives and negatives")
    positive, negative = _by_score(y, p, 1.0)
    tp, fp = np.cumsum(np.append(0, positive)), np.cumsum(np.append(0, negative))
    value = goal(Confusion(tp, fp, tp[-1] - tp, fp[-1] - fp))  # entry k: the k highest distinct scores are called
    # To call k scores the threshold lies between the k-th and the next lower one. Nothing stands beyond the ends.
    distinct = np.unique(p)[::-1]
    high = np.append(np.nextafter(distinct[0], np.inf), distinct)
    low = np.append(distinct, distinct[-1])
    ties = np.flatnonzero(value >= np.nanmax(value) - 1e-12)
    best = ties[np.argmax((high - low)[ties])]
    middle = (high[best] + low[best]) / 2
    return float(middle if middle > low[best] else high[best])  # neighbouring floats have no middle


def measure(
    labels: Values,
    probabilities: Values,
    *,
    threshold: Values,
    generator: torch.Generator,
    groups: Values | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Scores:
    """All figures with intervals.

    labels [n] are 0 or 1, probabilities [n] lie in [0, 1], threshold is one or [n] (each fold's own); groups [n] (any
    integers or strings) say which samples belong together, without them every sample is taken as independent.
    Raises InputError on other labels, on NaN and on lengths that differ.
    """
    y, p, _ = _checked(labels, probabilities, 1.0)
    member = np.arange(len(y)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(member) != len(y):
        raise InputError(f"{len(y)} labels but {len(member)} groups: one group per sample")

    def figures(weights: Values) -> ndarray:
        c = confusion(y, p, threshold, weights)
        at_threshold = [accuracy(c), precision(c), recall(c), f1(c), false_positive_rate(c)]
        ranked = [auc(y, p, weights), average_precision(y, p, weights)]
        return np.stack([*ranked, *at_threshold, calibration_error(y, p, weights)])

    value = figures(np.ones(len(y)))
    drawn = np.concatenate([figures(w) for w in bootstrap_weights(member, resamples, generator)], axis=1)
    drawn[-1] = np.maximum(drawn[-1] - (drawn[-1].mean() - value[-1]), 0)  # the calibration error: see above
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    intervals = [Interval(float(v), *map(float, _percentiles(d[~np.isnan(d)], tails))) for v, d in zip(value, drawn)]
    return Scores(
        *intervals,
        threshold=float(np.mean(_array(threshold))),
        samples=len(y),
        positives=int(y.sum()),
        groups=int(member.max()) + 1,
        confidence=confidence,
    )


def bootstrap_weights(
    member: Int[ndarray, " n"], resamples: int, generator: torch.Generator
) -> Iterator[Float[ndarray, "block n"]]:
    """Blocks of resamples: how often each sample occurs when as many groups as there are are drawn with replacement.

    member [n] holds 0..groups-1. The draws do not depend on the size of a block.
    """
    count = int(member.max()) + 1
    block = max(1, _BLOCK // len(member))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = torch.randint(count, (rows, count), generator=generator, device=generator.device).cpu()
        times = torch.zeros(rows, count, dtype=torch.float64).scatter_add_(1, draws, torch.ones_like(draws).double())
        yield times.numpy()[:, member]


def _checked(labels: Values, scores: Values, weights: Values) -> tuple[ndarray, ndarray, ndarray]:
    y, s = _array(labels), _array(scores).astype(float)
    if y.ndim != 1 or y.shape != s.shape or not len(y):
        raise InputError(f"labels {y.shape} and scores {s.shape} must be two equally long, non-empty lists")
    if not np.isin(y, (0, 1)).all():
        raise InputError("labels must be 0 or 1: leave out unlabelled samples before measuring")
    if not np.isfinite(s).all():
        raise InputError(f"{int((~np.isfinite(s)).sum())} of {len(s)} scores are not finite numbers")
    w = np.asarray(weights, dtype=float)
    return y.astype(bool), s, np.broadcast_to(w, (*w.shape[:-1], len(y)))


def _array(values: Values) -> ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _by_score(labels: Values, scores: Values, weights: Values) -> tuple[ndarray, ndarray]:
    """Weight of positives and of negatives at each distinct score, descending: two arrays [..., distinct]."""
    y, s, w = _checked(labels, scores, weights)
    order = np.argsort(-s, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(s[order]) != 0))
    w, y = w[..., order], y[order]
    return np.add.reduceat(w * y, starts, axis=-1), np.add.reduceat(w * ~y, starts, axis=-1)


def _ratio(top: Values, bottom: Values) -> ndarray:
    bottom = np.asarray(bottom, dtype=float)
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


def _percentiles(values: ndarray, levels: tuple[float, float]) -> ndarray:
    return np.quantile(values, levels) if len(values) else np.full(len(levels), np.nan)
