import numpy as np

from negah.solar.overlays import COLUMNS, GAP, PANEL, SIDE, Example, large, ramp, sheet, tinted


def test_a_sheet_has_a_row_for_each_window_and_a_column_for_each_map():
    image = np.full((20, 40, 3), 100, np.uint8)
    maps = np.zeros((2, 4)), np.ones((2, 4)), np.eye(4)[:, :4].repeat(2, 1)
    rows = [Example(image, *maps, truth, "true 3.0 m2") for truth in (maps[2], None)]
    page = sheet(rows)
    assert page.width == GAP + len(COLUMNS) * (SIDE + GAP) and page.height > 2 * SIDE
    assert sheet([]).height < SIDE  # nothing found is a sheet, too
    assert large(image).size == (SIDE, SIDE // 2)  # proportions are kept


def test_panels_are_coloured_and_the_rest_is_left():
    image = np.full((8, 8, 3), 100, np.uint8)
    fraction = np.zeros((4, 4))
    fraction[0, 0] = 1
    out = tinted(image, fraction)
    assert (out[2:, 2:] == 100).all() and np.abs(out[:2, :2] - (35 + 0.65 * PANEL)).max() < 1
    assert ramp(np.array([[0.0, 1.0]])).tolist() == [[[20, 20, 40], [255, 190, 70]]]
