import math
from itertools import pairwise

import numpy as np
import pytest

from negah.errors import InputError
from negah.solar.power import ASSUMED, EFFICIENCY, STEEPEST, Power, Tilt, m2_per_kw, tilt

FLAT = tilt("none")


# Tilt


@pytest.mark.parametrize(("degrees", "factor"), [(0, 1), (30, 2 / math.sqrt(3)), (45, math.sqrt(2)), (60, 2)])
def test_factor_is_module_area_per_plan_area(degrees, factor):
    found = Tilt("given", degrees, 0)
    assert found.factor == pytest.approx(factor)
    assert found.range == (found.factor, found.factor)


def test_range_lies_1645_thousandths_of_the_spread_on_either_side():
    low, high = Tilt("assumed", 45, 15 / 1.645).range  # 30 and 60 degrees
    assert low == pytest.approx(2 / math.sqrt(3))
    assert high == pytest.approx(2)


def test_range_stops_at_flat_and_at_the_steepest():
    assert Tilt("assumed", 10, 30).range == pytest.approx((1, 1 / math.cos(math.radians(10 + 1.645 * 30))))
    assert Tilt("assumed", 70, 1000).range == pytest.approx((1, 1 / math.cos(math.radians(STEEPEST))))


@pytest.mark.parametrize("text", ["25", "25°", " 25 ° ", "25.0", "2.5e1"])
def test_degrees_from_text(text):
    assert tilt(text) == Tilt("given", 25, 0)


def test_words_from_text():
    assert tilt("None") == Tilt("none", 0, 0)
    assert tilt(" assumed ") == Tilt("assumed", *ASSUMED)
    assert tilt("0").kind == "given"  # panels known to lie flat
    assert tilt("75").degrees == STEEPEST


@pytest.mark.parametrize("text", ["", "flat", "-1", "75.1", "90", "nan", "inf", "-inf", "25 deg", "°", "20,5", "a\nb"])
def test_bad_text_is_refused_on_one_line(text):
    with pytest.raises(InputError, match="none.*assumed.*0 to 75") as caught:
        tilt(text)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "degrees", "spread"),
    [("given", 76, 0), ("given", -1, 0), ("given", math.nan, 0), ("given", math.inf, 0), ("assumed", 20, -1),
     ("assumed", 20, math.nan), ("assumed", 20, math.inf), ("none", 20, 0), ("none", 0, 5)],
)  # fmt: skip
def test_tilt_that_cannot_be_is_refused(kind, degrees, spread):
    with pytest.raises(InputError, match="tilt"):
        Tilt(kind, degrees, spread)


def test_tilt_in_words():
    assert FLAT.words == "none: areas as seen from above"
    assert tilt("25").words == "given: 25°, module area is 1.10 times plan area"
    assert tilt("-0").words == "given: 0°, module area is 1.00 times plan area"
    assert (
        tilt("assumed").words
        == "assumed: 20° ± 10°, module area is 1.06 times plan area (90 %: 1.00 to 1.24)"
    )  # fmt: skip


# Module area per kilowatt


def test_module_area_of_a_kilowatt_is_one_over_the_efficiency():
    for year, efficiency in EFFICIENCY.items():
        assert m2_per_kw(year) == pytest.approx(1 / efficiency)
    assert m2_per_kw(2006) == pytest.approx(1 / 0.137)  # half-way between 13.4 and 14.0 %
    assert m2_per_kw(2006) == pytest.approx(7.3, abs=0.01)


def test_module_area_never_rises_and_ends_are_held():
    areas = [m2_per_kw(year) for year in range(1980, 2101)]
    assert all(later <= earlier for earlier, later in pairwise(areas))
    assert areas[0] == m2_per_kw(2002) > m2_per_kw(2003)
    assert areas[-1] == m2_per_kw(2022) < m2_per_kw(2021)


@pytest.mark.parametrize("year", [1979, 2101, 0, -2020])
def test_impossible_year_is_refused(year):
    with pytest.raises(InputError, match=f"1980 to 2100, not {year}"):
        m2_per_kw(year)


# Power


def test_tilt_is_applied_exactly_once():
    assert Power(5, FLAT).kw(10) == pytest.approx(2)
    steep = Power(5, tilt("60"))
    assert steep.kw(10) == pytest.approx(4)  # 20 m2 of modules
    assert steep.interval(10, 20) == pytest.approx((4, 8))


def test_interval_multiplies_with_the_range_of_the_tilt_and_holds_the_figure():
    power = Power(5, Tilt("assumed", 45, 15 / 1.645))
    low, high = power.interval(9, 12)
    assert low == pytest.approx(9 * 2 / math.sqrt(3) / 5)
    assert high == pytest.approx(12 * 2 / 5)
    assert low < power.kw(9) < power.kw(12) < high


def test_arrays_keep_their_shape_and_what_is_not_known():
    power = Power(m2_per_kw(2022), tilt("assumed"), 2022)
    areas = np.array([[0.0, 4.0], [math.nan, 100.0]])
    found = power.kw(areas)
    assert found.shape == areas.shape
    assert found[1, 1] == pytest.approx(power.kw(100.0))
    assert found[0, 0] == 0
    assert np.isnan(found[1, 0])
    low, high = power.interval(areas * 0.8, areas * 1.2)
    known = ~np.isnan(areas)
    assert (low[known] <= found[known]).all() and (found[known] <= high[known]).all()
    assert np.isnan(low[1, 0]) and np.isnan(high[1, 0])


@pytest.mark.parametrize("area", [0, -1, math.nan, math.inf])
def test_area_that_no_module_has_is_refused(area):
    with pytest.raises(InputError, match="positive area"):
        Power(area, FLAT)


def test_a_year_that_does_not_belong_to_the_area_is_refused():
    with pytest.raises(InputError, match=r"4\.81 m2 of modules of 2022, not 7\.29"):
        Power(7.29, FLAT, 2022)


def test_power_in_words_names_each_assumption():
    assert Power(7.29, FLAT).words() == {"tilt": FLAT.words, "module area per kW": "7.29 m² (one figure for all years)"}
    words = Power(m2_per_kw(2022), tilt("25"), 2022).words()
    assert words == {"tilt": tilt("25").words, "module area per kW": "4.808 m² (modules of 2022, 20.8% efficient)"}
