"""Pictures around windows, standings, and the best places."""

import numpy as np
import pyproj
import pytest
from rasterio.transform import from_origin

from negah.solar.also import UNUSUAL, Cosines, Question, around, best_places
from negah.solar.plan import Axis, Ground, Layout, PlannedSource


def source(width: int, height: int, *, degrees: bool = False) -> PlannedSource:
    """Windows of 32 px of 0.3 m; or, in degrees, of 60 degrees north."""
    x, y = (Axis(size, min(32, size), min(32, size), 4, 32) for size in (width, height))
    crs = pyproj.CRS("EPSG:4326").to_wkt() if degrees else None
    transform = tuple(from_origin(10, 60, 1e-5, 1e-5))[:6] if degrees else None
    ground = Ground([0.0], [0.0], [[0.09]])
    return PlannedSource(0, "a.tif", width, height, crs, transform, 0.3, True, Layout(x, y), ground, 0, ())


def test_a_picture_has_the_ground_size_that_the_model_knows_and_lies_inside():
    layout = around(source(320, 160), 64, 0.3)
    assert len(layout) == 50 and layout.shape == (64, 64)
    assert layout.box(0) == (0, 0, 64, 64)  # the corner: moved inside
    assert layout.box(12) == (
        48,
        16,
        64,
        64,
    )  # the third of the second row, from column 64, row 32: 16 px more each way
    assert layout.box(49) == (256, 96, 64, 64)


@pytest.mark.parametrize("gsd_m", [None, 0.1])
def test_a_picture_is_never_smaller_than_its_window(gsd_m):
    layout = around(source(320, 160), 64, gsd_m)
    assert [layout.box(k) for k in (0, 12)] == [(0, 0, 32, 32), (64, 32, 32, 32)] and layout.shape == (64, 64)


def test_of_a_raster_smaller_than_the_picture_it_is_the_middle_square():
    assert around(source(40, 30), 64, 0.3).box(0) == (1, 0, 30, 30)


def test_a_picture_is_square_on_the_ground():
    # At 60 degrees north a degree of longitude is half as long as one of latitude.
    layout = around(source(4000, 4000, degrees=True), 64, 1.0)
    assert layout.down == pytest.approx(64 / 1.114, abs=1) and layout.across / layout.down == pytest.approx(
        2.0, rel=0.02
    )


def test_standing_is_the_share_that_scores_lower():
    question = Question("pool", np.ones(1, np.float32), np.array([0.1, 0.2, 0.2, 0.3], np.float32))
    cosine = np.array([0.0, 0.2, 0.25, 0.9, np.nan], np.float32)
    np.testing.assert_array_equal(question.standing(cosine), [0, 0.25, 0.75, 1, np.nan])
    assert np.isnan(Question("pool", np.ones(1, np.float32)).standing(cosine)).all()


@pytest.mark.parametrize("count", [20, 100, 1000])
def test_as_many_stand_high_as_is_said_where_windows_are_like_the_reference(count):
    # every rank among the reference is as likely as another: put a value into each of the gaps
    reference = np.arange(count, dtype=np.float32)
    question = Question("pool", np.ones(1, np.float32), reference)
    standing = question.standing(np.arange(count + 1, dtype=np.float32) - 0.5)
    assert (standing >= UNUSUAL).mean() == pytest.approx(question.by_chance)


def test_each_place_is_shown_once():
    place = source(320, 160)
    cosine = np.zeros((50, 1), np.float32)
    cosine[[12, 13, 22], 0] = 0.9, 0.8, 0.7  # neighbours: to the right, and below
    cosine[7, 0], cosine[8, 0] = 0.6, np.nan
    found = Cosines([place], np.zeros(50, int), np.arange(50), cosine)
    shown = list(best_places(found, 0, size=64, gsd_m=0.5, count=2))
    assert [window for window, _, _ in shown] == [12, 7]
    assert all(box.width == 107 for _, _, box in shown)
    assert len(list(best_places(found, 0, size=64, gsd_m=0.5, count=99))) < 20
