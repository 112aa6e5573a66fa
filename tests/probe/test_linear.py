"""The optimum of a convex problem, chosen without looking where it must not."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from negah.errors import InputError
from negah.probe.linear import fit_linear, pooled
from negah.probe.metrics import auc


def blobs(n: int, d: int = 5, seed: int = 0, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return rng.standard_normal((n, d)) * 3 + 7 + shift * y[:, None], y


def test_reaches_the_minimum_that_it_states():
    x, y = blobs(80)
    probe = fit_linear(x, y, strengths=[3.0])
    z = (x - x.mean(0)) / x.std(0)

    def loss(w):
        return np.logaddexp(0, -(2 * y - 1) * (z @ w[:-1] + w[-1])).sum() + 3.0 / 2 * (w[:-1] ** 2).sum()

    best = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-8}).x
    assert probe.weight == pytest.approx(best[:-1], abs=2e-3) and probe.bias == pytest.approx(best[-1], abs=2e-3)
    assert probe.probability(x) == pytest.approx(1 / (1 + np.exp(-(z @ best[:-1] + best[-1]))), abs=1e-3)


def test_noise_gets_a_strong_l2_and_signal_a_weaker_one():
    x, y = blobs(120, d=40, shift=0.0)
    signal, _ = blobs(120, d=40, shift=6.0)
    assert fit_linear(x, y).l2 > fit_linear(signal, y).l2


def test_copies_in_the_inner_folds_do_not_fool_the_choice():
    """Eight copies of each sample: only grouped inner folds see that memorising them is worth nothing."""
    x, y = blobs(30, d=60, shift=0.0)
    x8, y8, groups = np.repeat(x, 8, 0), np.repeat(y, 8), np.repeat(np.arange(30), 8)
    assert fit_linear(x8, y8, groups).l2 > fit_linear(x8, y8).l2


def test_held_out_samples_are_predicted_and_constant_features_do_no_harm():
    x, y = blobs(300, shift=3.0)
    x = np.hstack([x, np.full((300, 1), 5.0)])
    probe = fit_linear(x[:200], y[:200])
    p = probe.probability(x[200:])
    assert auc(y[200:], p) > 0.9 and ((p >= 0) & (p <= 1)).all()
    assert np.isfinite(probe.probability(x * 1e6)).all()


def test_one_class_is_refused():
    with pytest.raises(InputError, match="labelled 0"):
        fit_linear(np.eye(3), [1, 1, 1])


def three_blobs(n: int, d: int = 4, seed: int = 0, shift: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return rng.standard_normal((n, d)) + shift * np.eye(d)[y], y


def test_several_classes_reach_the_minimum_that_is_stated():
    x, y = three_blobs(90, shift=1.0)
    probe = fit_linear(x, y, strengths=[2.0])
    z = (x - x.mean(0)) / x.std(0)

    def loss(w):
        logit = z @ w[:12].reshape(3, 4).T + w[12:]
        return (logsumexp(logit, axis=1) - logit[np.arange(90), y]).sum() + 2.0 / 2 * (w[:12] ** 2).sum()

    best = minimize(loss, np.zeros(15), method="BFGS", options={"gtol": 1e-8}).x
    assert probe.weight == pytest.approx(best[:12].reshape(3, 4), abs=2e-3)
    said = probe.probability(x)
    logit = z @ best[:12].reshape(3, 4).T + best[12:]
    assert said == pytest.approx(np.exp(logit - logsumexp(logit, axis=1, keepdims=True)), abs=1e-3)


def test_several_classes_choose_their_l2_on_held_out_samples():
    noise, y = three_blobs(150, d=40, shift=0.0)
    signal, _ = three_blobs(150, d=40, shift=6.0)
    for held_out in (None, 1):
        assert fit_linear(noise, y, held_out=held_out).l2 > fit_linear(signal, y, held_out=held_out).l2


def test_many_classes_are_told_apart_and_never_overflow():
    rng = np.random.default_rng(1)
    y = np.arange(420) % 21
    x = rng.standard_normal((420, 30)) + 8 * np.eye(30)[y]
    probe = fit_linear(x[:210], y[:210], strengths=[1.0, 10.0])
    said = probe.probability(x[210:])
    assert (said.argmax(1) == y[210:]).mean() > 0.95 and said.sum(1) == pytest.approx(1)
    assert np.isfinite(probe.probability(x * 1e6)).all()


def test_a_class_without_samples_is_named():
    with pytest.raises(InputError, match="without a gap.*got 0, 2$"):
        fit_linear(np.eye(4), [0, 2, 0, 2])


def test_pooled_is_cls_and_mean_patch():
    tokens = torch.randn(2, 5, 3).half()
    out = pooled(tokens)
    assert out.dtype == torch.float32 and torch.equal(out[:, :3], tokens[:, 0].float())
    assert torch.allclose(out[:, 3:], tokens[:, 1:].float().mean(1)) and pooled(tokens, patches=False).shape == (2, 3)
