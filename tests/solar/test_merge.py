"""Strips and panels against the whole raster at once, by brute force."""

import math
from fractions import Fraction

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from negah.solar.ledger import Window, pack
from negah.solar.merge import LEVEL, Component, Strip, components, strips
from negah.solar.plan import Axis, Layout


def axis(size: int, window: int, cells: int, overlap: float) -> Axis:
    """As a plan makes them: a raster shorter than a window is one window."""
    if size <= window:
        return Axis(size, size, size, min(cells, size), 8)
    return Axis(size, window, max(1, round(window * (1 - overlap))), cells, 8)


axes = st.builds(
    axis, st.integers(1, 16), st.integers(5, 10), st.integers(1, 4), st.sampled_from([0.0, 0.25, 0.5, 0.6])
)


def random_windows(layout: Layout, seed: int) -> list[Window]:
    rng = np.random.default_rng(seed)
    windows = []
    for k in range(len(layout)):
        kind = rng.integers(5)
        if kind == 0:
            windows.append(Window(k, 0, "nodata"))
            continue
        cells = rng.random(layout.y.cells * layout.x.cells).astype(np.float32) * (kind > 1)
        cells[rng.random(cells.size) < 0.5] = 0
        windows.append(Window(k, 0, "ok", float(rng.random()), 1.0, 1.0, 1.0, pack(cells)))
    return windows


def centres(axis: Axis) -> list[Fraction]:
    cell = Fraction(axis.window, axis.cells)
    return [(k * cell + min((k + 1) * cell, axis.size)) / 2 for k in range(math.ceil(axis.size / cell))]


def whole_raster(layout: Layout, windows: list[Window]) -> np.ndarray:
    """Cell by cell and window by window, in exact fractions: mean panel fraction, mean probability, peak."""
    x, y = layout.x, layout.y
    out = np.full((3, len(centres(y)), len(centres(x))), np.nan)
    for i, cy in enumerate(centres(y)):
        for j, cx in enumerate(centres(x)):
            values = []
            for window in windows:
                box = layout.box(window.id)
                inside = box.col <= cx < box.col + box.width and box.row <= cy < box.row + box.height
                if window.probability is not None and inside:
                    grid = window.fractions(y.cells * x.cells).reshape(y.cells, x.cells)
                    v, u = int((cy - box.row) * y.cells / y.window), int((cx - box.col) * x.cells / x.window)
                    values.append((grid[v, u], window.probability))
            if values:
                out[:, i, j] = *np.mean(values, axis=0), max(p for _, p in values)
    return out


@settings(max_examples=25)
@given(axes, axes, st.integers(0, 1000))
def test_strips_are_the_whole_raster(x: Axis, y: Axis, seed: int):
    layout = Layout(x, y)
    windows = random_windows(layout, seed)
    pieces = list(strips(layout, windows))
    assert [p.row for p in pieces] == np.cumsum([0, *(len(p.fraction) for p in pieces[:-1])]).tolist()
    expected = whole_raster(layout, windows)
    for k, name in enumerate(("fraction", "probability", "peak")):
        got = np.concatenate([getattr(p, name) for p in pieces])
        np.testing.assert_allclose(got, expected[k], atol=1e-5)


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10_000), st.floats(0.1, 0.9), st.data())
def test_panels_are_the_labels_of_the_whole_raster(height: int, width: int, seed: int, share: float, data):
    rng = np.random.default_rng(seed)
    fraction = rng.random((height, width)).astype(np.float32)
    fraction[rng.random((height, width)) < share] = 0
    fraction[rng.random((height, width)) < 0.05] = np.nan
    peak = rng.random((height, width)).astype(np.float32)
    pieces, row = [], 0
    while row < height:
        end = row + data.draw(st.integers(1, height - row))
        pieces.append(Strip(row, fraction[row:end], fraction[row:end], peak[row:end], peak[row:end], peak[row:end]))
        row = end
    found = sorted(components(pieces), key=lambda c: (c.rows[0], c.cols[0]))

    layout = Layout(Axis(width, width, width, width, 8), Axis(height, height, height, height, 8))  # cells of one pixel
    labels, count = ndimage.label(np.nan_to_num(fraction) >= LEVEL, np.ones((3, 3)))
    assert len(found) == count
    for panel in found:
        label = labels[panel.rows[0], panel.cols[0]]
        rows, cols = np.nonzero(labels == label)
        assert np.array_equal(panel.rows, rows) and np.array_equal(panel.cols, cols)
        assert np.array_equal(panel.measured, fraction[rows, cols])
        assert panel.probability == pytest.approx(peak[rows, cols].max())
        outline = panel.outline(layout)
        assert outline.is_valid and outline.area == len(rows)
        assert shapely.contains_xy(outline, cols + 0.5, rows + 0.5).all()


def test_panel_on_a_seam_of_four_windows_is_one():
    side = Axis(size=16, window=8, stride=8, cells=4, model=8)
    layout = Layout(side, side)
    raster = np.zeros((8, 8), np.float32)
    raster[3:5, 3:5] = 0.5
    windows = [
        Window(k, 0, "ok", 0.6 + k / 10, 0.0, 0.0, 0.0, pack(raster[r : r + 4, c : c + 4].ravel()))
        for k, (r, c) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)])
    ]
    (panel,) = components(strips(layout, windows))
    assert panel.area_px(layout) == pytest.approx(4 * 0.5 * 2 * 2)
    assert panel.probability == pytest.approx(0.9)
    assert panel.outline(layout).equals(shapely.box(6, 6, 10, 10))


def test_outline_of_cells_that_touch_at_a_corner_is_valid():
    layout = Layout(Axis(8, 8, 8, 4, 8), Axis(8, 8, 8, 4, 8))
    panel = Component(np.array([0, 1]), np.array([1, 0]), np.array([1.0, 1.0], np.float32), 1.0, 0.0)
    outline = panel.outline(layout)
    assert outline.is_valid and outline.area == 8 and outline.geom_type == "MultiPolygon"


def test_outline_and_area_end_at_the_edge_of_the_raster():
    side = Axis(size=9, window=8, stride=8, cells=4, model=8)  # five cells, of the last one half is inside
    layout = Layout(side, side)
    panel = Component(np.array([4]), np.array([4]), np.array([1.0], np.float32), 1.0, 0.0)
    assert panel.outline(layout).equals(shapely.box(8, 8, 9, 9))
    assert panel.area_px(layout) == pytest.approx(1.0)
