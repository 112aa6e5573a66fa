"""The linear probe: how much of the answer already lies on a straight line in frozen features.

    minimise  sum_i log(1 + exp(-s_i (w . z_i + b))) + l2 / 2 |w|^2,     s_i = +1 or -1, z standardised

and for more than two classes  sum_i -log softmax(W z_i + b)_{y_i} + l2 / 2 |W|^2.

Convex, solved by L-BFGS to its optimum, so the figure says something about the features and nothing about a learning
rate. `l2` is chosen by the log loss on grouped inner folds of the training samples; the test fold is never looked at.
Features are [CLS] or [CLS, mean patch], as DINOv2 evaluates (arXiv:2304.07193, appendix B.3).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.special import expit, logsumexp, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from negah.errors import InputError
from negah.probe.splits import Values, grouped_folds

STRENGTHS = (0.1, 1.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4)


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression on standardised features: mean, std, weight and bias (of each class where there are more
    than two), and the l2 that was chosen."""

    mean: Float[ndarray, " d"]
    std: Float[ndarray, " d"]
    weight: Float[ndarray, "*class d"]
    bias: float | Float[ndarray, " class"]
    l2: float

    def probability(self, features: Float[ndarray, "n d"]) -> Float[ndarray, "n *class"]:
        """Probability of the positive class; with more than two classes, of each."""
        logit = ((features - self.mean) / self.std) @ self.weight.T + self.bias
        return softmax(logit, axis=1) if logit.ndim == 2 else expit(logit)


def fit_linear(
    features: Float[ndarray, "n d"],
    labels: Values,
    groups: Values | None = None,
    *,
    strengths: Sequence[float] = STRENGTHS,
    inner_folds: int = 4,
    held_out: int | None = None,
    seed: int = 0,
) -> LinearProbe:
    """The probe at the l2 (from `strengths`) of lowest log loss over inner folds that keep `groups` [n] whole.

    labels [n] are 0 or 1, or 0 to classes - 1, each of which occurs. Without groups every sample counts as
    independent. `held_out` is how many of the inner folds are tested on, by default all: 1 is a plain validation set,
    for many samples. Where an inner fold cannot be made (a handful of groups), the strongest l2 is taken. Raises
    InputError on one class only, and on labels that leave one out.

    Examples:
        >>> features = np.random.default_rng(0).normal(size=(40, 3))
        >>> labels = (features[:, 0] > 0).astype(int)
        >>> probe = fit_linear(features, labels)
        >>> bool(((probe.probability(features) > 0.5) == labels).mean() > 0.9)
        True
    """
    y = np.asarray(labels)
    known = np.unique(y)
    classes = len(known)
    if classes < 2 or not np.array_equal(known, np.arange(classes)):
        few = ", ".join(map(str, known[:9])) + (", ..." if classes > 9 else "")
        raise InputError(
            f"a linear probe needs samples labelled 0 and samples labelled 1 (and 2, 3, ... without a gap), got {few}"
        )
    x = np.asarray(features, dtype=np.float64)
    member = np.arange(len(y)) if groups is None else np.asarray(groups)
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-8, std, 1.0)
    z = (x - mean) / std

    ordered = sorted(strengths, reverse=True)
    loss = np.zeros(len(ordered))
    folds = min(inner_folds, len(np.unique(member)))
    fold = grouped_folds(member, y, folds=folds, seed=seed) if len(ordered) > 1 and folds > 1 else np.zeros(len(y))
    for held in range(min(folds, held_out or folds) if folds > 1 else 0):
        train, test = fold != held, fold == held
        if len(np.unique(y[train])) == classes:
            for i, (weight, bias) in enumerate(_path(z[train], y[train], ordered)):
                loss[i] += _log_loss(z[test] @ weight.T + bias, y[test])
    best = int(np.argmin(loss))
    weight, bias = _path(z, y, ordered[: best + 1])[-1]
    return LinearProbe(mean, std, weight, bias, float(ordered[best]))


def pooled(tokens: Float[Tensor, "n token d"], *, patches: bool = True) -> Float[Tensor, "n features"]:
    """[CLS, mean patch] of tokens [CLS, patches], or CLS alone, in fp32."""
    cls = tokens[:, 0].float()
    return torch.cat([cls, tokens[:, 1:].float().mean(1)], dim=1) if patches else cls


def _log_loss(logit: Float[ndarray, "n *class"], y: Int[ndarray, " n"]) -> float:
    """-log probability of the true classes, added up."""
    if logit.ndim == 1:
        return float(np.logaddexp(0, np.where(y == 1, -1, 1) * logit).sum())
    return float((logsumexp(logit, axis=1) - logit[np.arange(len(y)), y]).sum())


def _path(
    x: Float[ndarray, "n d"], y: Int[ndarray, " n"], strengths: Sequence[float]
) -> list[tuple[Float[ndarray, "*class d"], float | Float[ndarray, " class"]]]:
    """Solutions from strong to weak l2, each started from the one before: most of the way is then already gone."""
    model = LogisticRegression(solver="lbfgs", max_iter=500, tol=1e-4, warm_start=True)
    solutions = []
    with warnings.catch_warnings():
        # Nearly separable features at a weak l2 have no finite optimum to reach; the inner folds reject that l2.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for l2 in strengths:
            model.set_params(C=1 / l2).fit(x, y)
            if len(model.coef_) == 1:
                solutions.append((model.coef_[0].copy(), float(np.ravel(model.intercept_)[0])))
            else:
                solutions.append((model.coef_.copy(), np.array(model.intercept_)))
    return solutions
