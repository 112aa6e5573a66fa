from dataclasses import replace

import numpy as np
import pytest

from negah.errors import InputError
from negah.solar import calibration
from negah.solar.calibration import Calibration, Compared, Fit, assess, calibrate, conformal, fit, sums


def world(n: int = 400, *, places: int = 20, seed: int = 0, factor: float = 0.5, spread: float = 0.4) -> Compared:
    """Windows whose estimates are `factor` times the truth, lognormally off; a tenth are false finds."""
    rng = np.random.default_rng(seed)
    true = rng.lognormal(3.0, 1.0, n)
    estimate = true * factor * rng.lognormal(0, spread, n)
    false = rng.random(n) < 0.1
    probability = np.where(false, 0.72, rng.uniform(0.9, 0.999, n))
    return Compared(estimate, probability, np.where(false, 0.0, true), rng.integers(places, size=n))


def made(windows: Compared, **changes) -> Calibration:
    return calibrate(windows, model="m", threshold=0.7, region="here", gsd_m=(0.3, 0.3), **changes)


def test_a_constant_factor_is_found_and_taken_out():
    windows = world(spread=0.1)
    now = made(windows)
    area = now.area(windows.area_m2, windows.probability)
    real = windows.true_m2 > 0
    assert np.median(np.abs(area[real] / windows.true_m2[real] - 1)) < 0.1
    assert np.median(area[~real] / windows.area_m2[~real]) < 1  # doubtful windows are taken for less than they look
    assert area.sum() == pytest.approx(windows.true_m2.sum(), rel=0.05)


def test_nothing_found_stays_exactly_zero():
    now = made(world())
    zeros = np.zeros(3)
    assert (now.area(zeros, np.array([0.1, 0.5, 0.69])) == 0).all()
    low, high = now.interval(zeros)
    assert (low == 0).all() and (high == now.missed_m2).all()


def test_few_windows_hardly_move_what_is_right_already():
    windows = world(40, factor=1.0, spread=0.05)
    few = fit(windows.of(np.arange(40) < 3))
    assert few.b == pytest.approx(1, abs=0.05) and few.a == pytest.approx(0, abs=0.15)


def test_one_bad_mask_does_not_lead_the_fit():
    windows = world(200, spread=0.1)
    true = windows.true_m2.copy()
    true[np.flatnonzero(true > 0)[:5]] *= 1000
    good, bad = fit(windows), fit(windows._replace(true_m2=true))
    assert bad.a == pytest.approx(good.a, abs=0.1) and bad.b == pytest.approx(good.b, abs=0.05)


def test_conformal_quantiles_are_those_of_the_sorted_ratios():
    area, true = np.ones(39), np.arange(1.0, 40.0)
    edges, low, high = conformal(area, true)
    assert edges == () and low == (2.0,) and high == (38.0,)  # the 2nd and the 38th of 39: (n + 1) 5 %, 95 %
    edges, low, high = conformal(np.repeat([1.0, 100.0], 40), np.ones(80))
    assert len(edges) == 1 and low == (1.0, 0.01) and high == (1.0, 0.01)


def test_intervals_hold_what_they_promise_on_new_windows():
    shares = []
    for seed in range(20):
        now, new = made(world(200, seed=seed)), world(200, seed=1000 + seed)
        low, high = now.interval(now.area(new.area_m2, new.probability))
        shares.append(((low <= new.true_m2) & (new.true_m2 <= high)).mean())
    assert 0.88 < np.mean(shares) < 0.96  # more than 0.9, since a tenth are false finds: zero, where bounds end, too


def test_the_interval_of_a_sum_holds_it_and_shrinks_with_the_number_of_windows():
    held, widths = [], []
    for seed in range(60):
        now, new = made(world(200, seed=seed)), world(300, seed=1000 + seed)
        area = now.area(new.area_m2, new.probability)
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
    seen = assess(world(400, factor=0.5))
    assert seen.median_error < 0.6 * seen.median_error_before
    assert abs(seen.bias) < 0.1 and seen.bias_before < -0.3
    assert 0.85 < seen.coverage < 0.96


def test_one_place_is_split_by_windows():
    windows = world()
    assert made(windows._replace(place=np.zeros(len(windows.place), int))).places == 1


def test_too_few_finds_or_none_true_are_refused():
    windows = world(19)
    with pytest.raises(InputError, match="19 windows with masks only: at least 20"):
        made(windows)
    with pytest.raises(InputError, match="are these the masks"):
        made(world(50)._replace(true_m2=np.zeros(50)))


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


def test_another_format_is_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"format": 99, "calibration": {}}')
    with pytest.raises(InputError, match="format 99"):
        calibration.load(tmp_path / "c.json")


def test_a_fit_is_plain_arithmetic():
    plain = Fit(a=np.log(2), b=1.0, spread=1.5, u=0.0, v=1.0)
    assert plain.area(np.array([10.0]), np.array([0.8]))[0] == pytest.approx(0.8 * 1.5 * 2 * 10)
    assert replace(plain, b=0.5).area(np.array([100.0]), np.array([0.5]))[0] == pytest.approx(0.5 * 1.5 * 2 * 10)
