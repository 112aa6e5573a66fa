"""Every figure against scikit-learn, torchmetrics or a loop; the bootstrap against what theory says of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as peer
from torchmetrics.functional.classification import binary_calibration_error

from negah.errors import InputError
from negah.probe import metrics
from negah.probe.metrics import best_threshold, bootstrap_weights, measure


def sample(n: int, seed: int = 0, *, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Labels and overlapping probabilities with many ties."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.35).astype(int)
    y[:2] = 0, 1
    p = np.clip(0.25 + 0.3 * y + 0.25 * rng.standard_normal(n), 0, 1).round(decimals)
    return y, p


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(2, 60), st.integers(0, 10**6), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_figures_equal_scikit_learn(n, seed, decimals):
    y, p = sample(n, seed, decimals=decimals)
    w = np.random.default_rng(seed).integers(1, 4, n).astype(float)
    for weights in (np.ones(n), w):
        assert metrics.auc(y, p, weights) == pytest.approx(peer.roc_auc_score(y, p, sample_weight=weights))
        assert metrics.average_precision(y, p, weights) == pytest.approx(
            peer.average_precision_score(y, p, sample_weight=weights)
        )
        c = metrics.confusion(y, p, 0.5, weights)
        called = p >= 0.5
        assert metrics.accuracy(c) == pytest.approx(peer.accuracy_score(y, called, sample_weight=weights))
        assert metrics.recall(c) == pytest.approx(peer.recall_score(y, called, sample_weight=weights))
        assert metrics.f1(c) == pytest.approx(peer.f1_score(y, called, sample_weight=weights))
        if called.any():
            assert metrics.precision(c) == pytest.approx(peer.precision_score(y, called, sample_weight=weights))
        negatives = y == 0
        assert metrics.false_positive_rate(c) == pytest.approx(
            np.average(called[negatives], weights=weights[negatives])
        )


def test_calibration_error_equals_torchmetrics():
    y, p = sample(400, decimals=6)
    theirs = binary_calibration_error(torch.tensor(p), torch.tensor(y), n_bins=15).item()
    assert metrics.calibration_error(y, p) == pytest.approx(theirs, abs=1e-6)


def test_calibration_error_of_honest_and_of_boastful_probabilities():
    rng = np.random.default_rng(1)
    p = rng.random(100_000)
    y = (rng.random(len(p)) < p).astype(int)
    assert metrics.calibration_error(y, p) < 0.01
    assert metrics.calibration_error(np.zeros(50), np.ones(50)) == 1


def test_weights_count_samples_as_if_they_were_repeated():
    y, p = sample(40)
    times = np.random.default_rng(3).integers(0, 4, 40)
    times[:2] = 1
    far_y, far_p = np.repeat(y, times), np.repeat(p, times)
    for figure in (metrics.auc, metrics.average_precision, metrics.calibration_error):
        assert figure(y, p, np.stack([times, np.ones(40)])) == pytest.approx(
            np.array([figure(far_y, far_p), figure(y, p)])
        )


def test_a_group_is_drawn_whole():
    member = np.array([0, 0, 1, 2, 2, 2])
    weights = np.concatenate(list(bootstrap_weights(member, 200, generator())))
    assert weights.shape == (200, 6)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()  # as many groups as there are
    assert weights[:, 2].std() > 0.5


def test_blocks_do_not_change_the_draws(monkeypatch):
    member = np.arange(10)
    whole = np.concatenate(list(bootstrap_weights(member, 50, generator())))
    monkeypatch.setattr(metrics, "_BLOCK", 70)
    parts = list(bootstrap_weights(member, 50, generator()))
    assert len(parts) > 5
    assert np.array_equal(np.concatenate(parts), whole)


def test_interval_of_accuracy_agrees_with_the_binomial():
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    p = np.where(rng.random(400) < 0.8, y, 1 - y).astype(float)
    scores = measure(y, p, threshold=0.5, generator=generator(), resamples=4000)
    half = 1.96 * math.sqrt(scores.accuracy.value * (1 - scores.accuracy.value) / 400)
    assert scores.accuracy.high - scores.accuracy.low == pytest.approx(2 * half, rel=0.1)


def test_intervals_of_copied_samples_are_wider_by_groups_than_without():
    y, p = sample(100)
    y4, p4, groups = np.repeat(y, 4), np.repeat(p, 4), np.repeat(np.arange(100), 4)
    once = measure(y, p, threshold=0.5, generator=generator()).auc
    grouped = measure(y4, p4, threshold=0.5, generator=generator(), groups=groups).auc
    naive = measure(y4, p4, threshold=0.5, generator=generator()).auc
    assert grouped == pytest.approx(once)  # copies say nothing new
    assert naive.high - naive.low < 0.7 * (once.high - once.low)


def test_same_generator_same_intervals_and_the_global_state_is_left_alone():
    y, p = sample(80)
    before = torch.get_rng_state()
    first = measure(y, p, threshold=0.4, generator=generator(5))
    assert first == measure(y, p, threshold=0.4, generator=generator(5))
    assert first != measure(y, p, threshold=0.4, generator=generator(6))
    assert torch.equal(before, torch.get_rng_state())
    assert first.samples == 80 and first.positives == y.sum() and first.groups == 80 and first.threshold == 0.4


def test_the_calibration_error_lies_in_its_interval():
    """Plain percentiles fail this: resampling makes noisy bins noisier."""
    rng = np.random.default_rng(2)
    p = rng.random(300)
    error = measure((rng.random(300) < p).astype(int), p, threshold=0.5, generator=generator()).calibration_error
    assert 0 <= error.low < error.value < error.high < 0.2


def test_what_is_undefined_is_nan_and_not_a_flattering_number():
    scores = measure([0, 0, 0], [0.1, 0.2, 0.3], threshold=0.5, generator=generator())
    assert math.isnan(scores.auc.value) and math.isnan(scores.precision.value) and math.isnan(scores.recall.low)
    assert scores.false_positive_rate.value == 0 and scores.accuracy.value == 1


@given(st.integers(2, 40), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_best_threshold_beats_every_other(n, seed):
    y, p = sample(n, seed, decimals=1)
    for goal in (metrics.f1, metrics.accuracy):
        mine = goal(metrics.confusion(y, p, best_threshold(y, p, goal=goal)))
        every = [goal(metrics.confusion(y, p, t)) for t in np.arange(-0.05, 1.1, 0.1)]  # one between each two scores
        assert mine == pytest.approx(np.nanmax(every))


def test_best_threshold_stands_in_the_middle_of_the_widest_gap():
    assert best_threshold([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]) == pytest.approx(0.5)
    assert best_threshold([0, 1], [1 - 1e-17, 1.0]) == 1.0  # equal scores: nothing between them
    with pytest.raises(InputError, match="one class"):
        best_threshold([1, 1], [0.2, 0.4])


@pytest.mark.parametrize(
    ("labels", "scores", "says"),
    [
        ([0, 1, -1], [0.1, 0.2, 0.3], "unlabelled"),
        ([0, 1], [0.1], "equally long"),
        ([0, 1], [0.1, float("nan")], "not finite"),
        ([0, 1], [-3.0, 4.0], "sigmoid"),
        ([], [], "non-empty"),
    ],
)
def test_what_cannot_be_measured_is_refused(labels, scores, says):
    with pytest.raises(InputError, match=says):
        measure(labels, scores, threshold=0.5, generator=generator())


def test_torch_tensors_are_welcome():
    y, p = sample(30)
    assert metrics.auc(torch.tensor(y), torch.tensor(p)) == metrics.auc(y, p)
