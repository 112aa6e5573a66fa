"""Schedules against their formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negah.train.schedules import constant, cosine, linear, ramp, warmed

values = st.floats(-10, 10)
progress = st.floats(0, 1)


@given(values, values, progress)
def test_cosine_is_its_formula(start, end, p):
    assert cosine(start, end)(p) == pytest.approx(end + 0.5 * (start - end) * (1 + math.cos(math.pi * p)))


@given(values, values)
def test_all_begin_at_the_start_and_finish_at_the_end(start, end):
    for schedule in (cosine(start, end), linear(start, end)):
        assert schedule(0.0) == pytest.approx(start, abs=1e-9)
        assert schedule(1.0) == pytest.approx(end, abs=1e-9)


def test_ramp_holds_its_last_value():
    schedule = ramp(linear(0.04, 0.07), until=0.3)
    assert schedule(0.15) == pytest.approx(0.055)
    assert schedule(0.3) == schedule(0.9) == pytest.approx(0.07)
    with pytest.raises(ValueError, match="until"):
        ramp(constant(), until=0)


def test_warm_up_never_starts_at_zero_and_meets_the_schedule():
    factors = [warmed(step, 10, 4, cosine()) for step in range(10)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[7] == pytest.approx(0.5)  # half of the six steps that follow the warm-up
    assert warmed(2, 3, 3, cosine()) == 1.0  # nothing but warm-up
