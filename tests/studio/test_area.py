"""An area that is drawn on a map is what is surveyed."""

import geopandas
import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from negah.errors import InputError
from negah.images.overview import Mosaic
from negah.solar.regions import read_region
from negah.studio import area

GROUND = Mosaic(np.zeros((40, 60, 3), np.uint8), CRS.from_epsg(32633), Affine(0.3, 0, 320000, 0, -0.3, 5400000), ())
TRIANGLE = "320001 5399999\n320010, 5399999\n320010\t5399990\n"


def test_clicks_become_corners_in_the_coordinates_of_the_map():
    text = area.added(GROUND, "", 0, 0)
    text = area.added(GROUND, text, 59, 39)
    assert text == "320000.15 5399999.85\n320017.85 5399988.15"
    degrees = Mosaic(GROUND.image, CRS.from_epsg(4326), Affine(3e-6, 0, 12, 0, -3e-6, 48), ())
    (corner,), *_ = area.read(area.added(degrees, "", 10, 20))
    assert corner == pytest.approx((12 + 10.5 * 3e-6, 48 - 20.5 * 3e-6), abs=3e-7)


def test_areas_become_a_file_that_the_survey_reads(tmp_path):
    path = area.chosen(tmp_path, GROUND, TRIANGLE + "\n \n320001 5399980\n320002 5399980\n320002 5399979", None)
    assert path
    frame = geopandas.read_file(path)
    assert frame.crs and frame.crs.to_epsg() == 32633 and frame.area.tolist() == pytest.approx([40.5, 0.5])
    assert read_region(path).geometry.area == pytest.approx(41)
    assert area.chosen(tmp_path, GROUND, " \n\n", None) is None
    assert str(area.chosen(tmp_path, None, "", "a.gpkg")) == "a.gpkg"


@pytest.mark.parametrize(
    ("text", "ground", "areas", "line"),
    [
        ("1 2\nhere", GROUND, None, "corners, line 2: 'here' is no corner"),
        ("1 2 3", GROUND, None, "line 1: '1 2 3' is no corner"),
        ("1 nan", GROUND, None, "line 1: '1 nan' is nowhere"),
        (TRIANGLE + "\n1 2\n2 3", GROUND, None, "area 2 encloses nothing"),
        ("1 1\n2 2\n3 3", GROUND, None, "area 1 encloses nothing"),
        (TRIANGLE, GROUND, "a.gpkg", "leave one of them out"),
        (TRIANGLE, None, None, "show the map first"),
    ],
)
def test_what_is_no_area_is_told_in_a_line(tmp_path, text, ground, areas, line):
    with pytest.raises(InputError, match=line):
        area.chosen(tmp_path, ground, text, areas)
    assert not list(tmp_path.iterdir())


def test_areas_are_drawn_where_they_lie():
    changed = (area.drawn(GROUND, TRIANGLE) != GROUND.image).any(2)
    rows, cols = np.nonzero(changed)
    assert (cols.min(), cols.max(), rows.min(), rows.max()) == pytest.approx((3, 33, 3, 33), abs=6)
    assert not changed[25:, :10].any()  # below the long side
    assert (area.drawn(GROUND, "nothing") == GROUND.image).all()
    assert "1 area, 3 corners" in area.note(GROUND, TRIANGLE) and "no corner" in area.note(GROUND, "x")


def test_a_drawn_area_is_surveyed_alone(room, page, tmp_path, pictures):
    survey = room("Survey")
    survey.example("Draw a town as an example", "town")
    survey.panel.get_by_role("button", name="Only a part").click()
    survey.settle()
    corners = survey.panel.get_by_label("Corners")
    corners.fill("320081 5399919")
    survey.press("Show the map")
    survey.panel.get_by_text("1 area, 1 corner").wait_for()  # what was typed before is on it
    picture = survey.panel.locator(".map img")
    for count, (across, down) in enumerate(((0.62, 0.31), (0.6, 0.66), (0.31, 0.64)), 2):
        box = picture.bounding_box()
        picture.click(position={"x": across * box["width"], "y": down * box["height"]})
        survey.panel.get_by_text(f"1 area, {count} corner").wait_for()
    pictures.take(page, "survey-area", height=720, top=survey.panel.get_by_role("button", name="Only a part"))
    survey.press("Take back")
    survey.panel.get_by_text("1 area, 3 corners").wait_for()
    survey.press("Survey")
    survey.panel.locator("dl.totals").wait_for()
    text = survey.panel.locator("dl.totals").inner_text()
    assert "0.00411 km²" in text and "13 of 81 windows" in text, text
    kept = tmp_path / "area.gpkg"
    kept.write_bytes(survey.downloaded("area.gpkg").read_bytes())
    assert read_region(kept).geometry.bounds == pytest.approx((320081, 5399821.8, 320167.4, 5399919), abs=1)
    survey.panel.get_by_role("button", name="Label next").click()
    survey.press("Choose windows")
    assert "whole windows" in survey.says("the area")
