from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logit

from negah.errors import InputError
from negah.solar import calibration
from negah.solar.area import Cells, Known, Look
from negah.solar.calibration import (
    Bins,
    Calibration,
    Compared,
    Fit,
    Seen,
    assess,
    bins_of,
    calibrate,
    conformal,
    fit,
    sums,
)  # fmt: skip

GROUND = 400.0  # m2 of a window


def world(n: int = 400, *, places: int = 20, seed: int = 0, factor: float = 0.5, spread: float = 0.4) -> Seen:
    """Windows of one patch, whose evidence is `factor` times the truth, lognormally off; a tenth are false finds."""
    rng = np.random.default_rng(seed)
    true = np.minimum(rng.lognormal(3.0, 1.0, n), 0.9 * GROUND)
    estimate = np.minimum(true * factor * rng.lognormal(0, spread, n), 0.95 * GROUND)
    false = rng.random(n) < 0.1
    true = np.where(false, 0.0, true)
    probability = np.where(false, 0.72, rng.uniform(0.9, 0.999, n))
    looks = [Look(np.full((1, 1), logit(e / GROUND)), np.zeros((1, 1, 1)), None) for e in estimate]
    known = [Known(look, np.full((2, 2), t / GROUND)) for look, t in zip(looks, true, strict=True)]
    place = rng.integers(places, size=n)
    return Seen(
        list(known), np.full(n, GROUND / 4), np.full(n, GROUND), estimate, probability, true, place, np.full(n, 0.3)
    )


ANY = Calibration("", 0.5, "", 80, 8, (0.3, 0.3), (1.0, 9.0), Cells(1, 0.3, 0.0, 1.0, (0.0,)),
                  Fit(0.0, 1.0, 1.0, 3.0, 1.0), (Bins(0.3, (), (0.5,), (2.0,)),), 0.0, 1.0, 0.1, 0.3)  # fmt: skip


def plain(seen: Seen) -> Compared:
    """By the evidence as it is."""
    return Compared(seen.first_m2, seen.probability, seen.true_m2, seen.place, seen.gsd_m)


def made(seen: Seen, **changes) -> Calibration:
    return calibrate(seen, zoom=1, model="m", threshold=0.7, region="here", **changes)


def areas(now: Calibration, seen: Seen) -> np.ndarray:
    """As a survey measures them."""
    windows = seen.compared(seen.fractions(now.cells))
    return now.area(windows.area_m2, windows.probability)


def test_a_constant_factor_is_found_and_taken_out():
    windows = world(spread=0.1)
    now = made(windows)
    area = areas(now, windows)
    real = windows.true_m2 > 0
    assert np.median(np.abs(area[real] / windows.true_m2[real] - 1)) < 0.15
    assert now.fit.presence(0.72) < 0.5 < 0.9 < now.fit.presence(0.97)  # doubtful windows count for less
    assert area.sum() == pytest.approx(windows.true_m2.sum(), rel=0.05)


def test_nothing_found_stays_exactly_zero():
    now = made(world())
    zeros = np.zeros(3)
    assert (now.area(zeros, np.array([0.1, 0.5, 0.69])) == 0).all()
    low, high = now.interval(zeros, np.full(3, 0.3))
    assert (low == 0).all() and (high == now.missed_m2).all()


def test_few_windows_hardly_move_what_is_right_already():
    windows = plain(world(40, factor=1.0, spread=0.05))
    few = fit(windows.of(np.arange(40) < 3))
    assert few.b == pytest.approx(1, abs=0.05) and few.a == pytest.approx(0, abs=0.15)


def test_one_bad_mask_does_not_lead_the_fit():
    windows = plain(world(200, spread=0.1))
    true = windows.true_m2.copy()
    true[np.flatnonzero(true > 0)[:5]] *= 1000
    good, bad = fit(windows), fit(windows._replace(true_m2=true))
    assert bad.a == pytest.approx(good.a, abs=0.1) and bad.b == pytest.approx(good.b, abs=0.05)


def test_conformal_quantiles_are_those_of_the_sorted_ratios():
    area, true = np.ones(39), np.arange(1.0, 40.0)
    edges, low, high = conformal(area, true)
    assert edges == () and low == (2.0,) and high == (38.0,)  # the 2nd and the 38th of 39: (n + 1) 5 %, 95 %
    edges, low, high = conformal(np.repeat([1.0, 100.0], 30), np.ones(60))
    assert len(edges) == 1 and low == (1.0, 0.01) and high == (1.0, 0.01)


def test_ground_sizes_have_bins_of_their_own_where_there_are_enough_windows():
    area, gsd = np.ones(200), np.repeat([0.1, 0.11, 0.3, 1.0], [40, 40, 100, 20])
    true = np.where(gsd < 0.2, 2.0, np.where(gsd < 0.5, 3.0, 9.0))
    fine, coarse = bins_of(area, true, gsd)  # 20 windows of 1 m join those of 0.3 m
    assert 0.11 < fine.gsd_m < 0.3 and set(fine.high) == {2.0} and max(coarse.high) == 9.0
    now = replace(made(world()), bins=(fine, coarse))
    low, _ = now.interval(np.ones(3), np.array([0.05, 0.3, 5.0]))
    assert low.tolist() == [2.0, 3.0, 3.0]
    same = replace(now, fit=Fit(0.0, 1.0, 1.0, 99.0, 0.0))
    area, low, high = same.measure(np.ones(2), np.full(2, 0.9), np.full(2, 0.1), np.array([0.5, 9.0]))
    assert (
        area.tolist() == [0.5, 1.0] and low.tolist() == [0.5, 2.0] and high.tolist() == [0.5, 2.0]
    )  # no more than ground


def test_intervals_hold_what_they_promise_on_new_windows():
    shares = []
    for seed in range(20):
        now, new = made(world(200, seed=seed)), world(200, seed=1000 + seed)
        low, high = now.interval(areas(now, new), new.gsd_m)
        shares.append(((low <= new.true_m2) & (new.true_m2 <= high)).mean())
    assert 0.88 < np.mean(shares) < 0.96  # more than 0.9, since a tenth are false finds: zero, where bounds end, too


def test_the_interval_of_a_sum_holds_it_and_shrinks_with_the_number_of_windows():
    held, widths = [], []
    for seed in range(30):
        now, new = made(world(200, seed=seed)), world(300, seed=1000 + seed)
        area = areas(now, new)
        total, low, high = now.total(float(area.sum()), area)
        held.append(low <= new.true_m2.sum() <= high)
        widths.append((high - low) / total)
    assert 0.8 < np.mean(held) <= 1
    alone = now.total(float(area[0]), area[:1])
    assert (alone[2] - alone[1]) / max(alone[0], 1e-9) > 3 * np.mean(widths)


def test_the_error_of_a_sum_is_that_of_places_not_of_windows():
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(10), 50)
    true = np.ones(500)
    together = sums(rng.lognormal(0, 0.3, 10)[place], true, place)
    apart = sums(rng.lognormal(0, 0.3, 500), true, place)
    assert together[1] > 3 * apart[1]


def test_assessment_says_what_calibration_brings():
    seen = assess(world(400, factor=0.5), zoom=1)
    assert seen.median_error < 0.6 * seen.median_error_before
    assert abs(seen.bias) < 0.1 and seen.bias_before < -0.3
    assert 0.85 < seen.coverage < 0.96


def test_the_sum_of_one_more_place_is_inside():
    """Places differ by a factor of their own; a region is one of them, or many."""
    held = {1: [], 40: []}
    for seed in range(300):
        rng = np.random.default_rng(seed)

        def draw(places: int, rng=rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            place = np.repeat(np.arange(places), 10)
            area = rng.lognormal(2, 0.5, len(place))
            return area, area * rng.lognormal(0, 0.25, places)[place] * rng.lognormal(0, 0.3, len(place)), place

        area, true, place = draw(8)
        ratio, between, noise = sums(area, true, place)
        now = replace(ANY, ratio=ratio, place=between * ratio, noise=noise, places=8)
        for region, some in held.items():
            new, truth, _ = draw(region)
            _, low, high = now.total(float(new.sum()), new)
            some.append(low <= truth.sum() <= high)
    assert 0.86 < np.mean(held[1]) < 0.97
    assert np.mean(held[40]) > 0.95  # wider than it need be there, as the docstring says


def test_finds_of_one_place_only_fall_back_to_windows():
    windows = world(60, places=2)
    lone = replace(windows, known=[k if p == 0 else None for k, p in zip(windows.known, windows.place, strict=True)])
    now = made(lone)
    assert now.places == 2 and np.isfinite(assess(lone, zoom=1).median_error)
    true = np.where(lone.place == 0, lone.true_m2, 0.0)
    assert np.isfinite(assess(replace(lone, true_m2=true), zoom=1).bias)


def test_one_place_is_split_by_windows():
    windows = world()
    assert made(replace(windows, place=np.zeros(len(windows), int))).places == 1


def test_too_few_finds_or_none_true_are_refused():
    windows = world(19)
    with pytest.raises(InputError, match="19 windows with masks only: at least 20"):
        made(windows)
    with pytest.raises(InputError, match="are these the masks"):
        made(replace(world(50), true_m2=np.zeros(50)))


def test_a_file_gives_it_back(tmp_path):
    now = made(world())
    calibration.save(now, tmp_path / "c.json", about={"seed": 0})
    assert calibration.load(tmp_path / "c.json") == now


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "calibration": {"model": "x"}}'])
def test_what_is_no_calibration_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=r"c\.json"):
        calibration.load(tmp_path / "c.json")
    with pytest.raises(InputError, match="cannot be read"):
        calibration.load(tmp_path / "none.json")


@pytest.mark.parametrize("change", [{"bins": ()}, {"bins": (Bins(0.3, (1.0,), (0.5,), (2.0,)),)},
                                    {"ratio": float("nan")}, {"cells": Cells(0, 0.3, 0.0, 1.0, (0.0,))}])  # fmt: skip
def test_a_damaged_calibration_is_refused(tmp_path, change):
    calibration.save(replace(ANY, **change), tmp_path / "c.json", about={})
    with pytest.raises(InputError, match="is no calibration"):
        calibration.load(tmp_path / "c.json")


def test_another_format_is_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"format": 99, "calibration": {}}')
    with pytest.raises(InputError, match="format 99"):
        calibration.load(tmp_path / "c.json")


def test_a_fit_is_plain_arithmetic():
    made = Fit(a=np.log(2), b=1.0, spread=1.5, u=0.0, v=1.0)
    assert made.area(np.array([10.0]), np.array([0.8]))[0] == pytest.approx(0.8 * 1.5 * 2 * 10)
    assert replace(made, b=0.5).area(np.array([100.0]), np.array([0.5]))[0] == pytest.approx(0.5 * 1.5 * 2 * 10)
