"""Why an area is abstained from, and what a calibrated survey does with odd windows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from negah.probe.attentive import Reading
from negah.probe.detector import DetectorInfo
from negah.solar.area import Cells
from negah.solar.calibration import Bins, Calibration, Fit
from negah.solar.plan import Ground, Layout, PlannedSource, axis_of
from negah.solar.survey import Measure, _measured, doubts_of, looked_closer, spread_of

INFO = DetectorInfo(name="any", window_px=32)
GIVEN = Calibration("", 0.5, "", 80, 8, (0.3, 0.3), (1.0, 90.0), Cells(1, 0.3, 0.0, 1.0, (0.0,)),
                    Fit(0.0, 1.0, 1.0, 0.0, 1.0), (Bins(0.3, (), (0.5,), (2.0,)),), 0.0, 1.0, 0.1, 0.3)  # fmt: skip


def source(*, fine: int = 1, gsd: float = 0.3, in_range: bool = True) -> PlannedSource:
    """Three by three windows of four by four patches."""
    axis = axis_of(96, gsd, replace(INFO, gsd_m=gsd), patch=8, fine=fine, overlap=0.0)
    ground = Ground([0.0], [0.0], [[gsd * gsd]])
    return PlannedSource(0, "a.tif", 96, 96, None, None, gsd, in_range, Layout(axis, axis), ground, 0, ())


def cells(row: int, col: int) -> np.ndarray:
    fraction = np.zeros((4, 4), np.float32)
    fraction[row, col] = 0.9
    return fraction.ravel()


@pytest.mark.parametrize("index, row, col, cut", [(0, 0, 2, True), (0, 3, 0, True), (0, 3, 3, False), (4, 0, 0, False),
                                                  (8, 3, 1, True), (8, 0, 3, True), (8, 0, 0, False)])  # fmt: skip
def test_a_panel_at_the_edge_of_the_image_is_cut(index, row, col, cut):
    doubts = doubts_of(source(), index, 0.9, 0.2, cells(row, col), Measure(0.5))
    assert doubts == ("cut by the image's edge" if cut else None)


def test_other_ground_sizes_low_probabilities_and_diffuse_attention_are_doubted():
    inside = cells(1, 1)
    plain, calibrated = Measure(0.5), Measure(0.5, None, replace(GIVEN, cells=replace(GIVEN.cells, zoom=1)))
    assert doubts_of(source(), 4, 0.9, 0.95, inside, plain) == "diffuse attention"
    assert doubts_of(source(in_range=False), 4, 0.9, 0.2, inside, plain) == "ground size out of range"
    assert doubts_of(source(), 4, 0.9, 0.2, np.zeros(16, np.float32), plain) is None  # nothing to rely on
    fine = inside.reshape(4, 4).repeat(2, 0).repeat(2, 1).ravel()
    assert doubts_of(source(fine=2), 4, 0.6, 0.2, fine, calibrated) is None
    assert doubts_of(source(fine=2), 4, 0.4, 0.2, fine, calibrated) == "low probability"
    both = doubts_of(source(fine=2, gsd=0.5), 4, 0.4, 0.2, fine, calibrated)
    assert both == "ground size out of range; low probability"


def test_attention_is_spread_over_as_many_patches_as_share_it():
    attention = torch.zeros(2, 1, 16)
    attention[0, 0, :4] = 0.1
    attention[1] = 0.05
    assert spread_of(attention).tolist() == pytest.approx([4 / 16, 1.0])


def bright(images: torch.Tensor, *, above: float | None = None) -> Reading:
    evidence = torch.nn.functional.avg_pool2d(images.float() / 255, 8).mean(1).flatten(1).logit(eps=1e-3)
    n = evidence.shape[1]
    return Reading(evidence.amax(1), evidence.new_full((len(images), 1, n), 1 / n), evidence)


def test_only_windows_with_panels_are_looked_at_again_and_pixels_without_data_hold_none():
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    images[:, :, 8:24, 8:24] = 250
    valid = np.ones(16, np.float32)
    valid[:8] = 0
    fraction = looked_closer(
        bright, images, {2: valid}, np.array([0.9, 0.1, 0.9]), bright(images), GIVEN.cells, threshold=0.5, patch=8
    )
    assert fraction.shape == (3, 64) and (fraction[1] == 0).all()
    grid = fraction.reshape(3, 8, 8)
    assert (grid[2, :4] == 0).all() and (grid[2, 4:] == grid[0, 4:]).all() and grid[0, :4].max() > 0.9


def test_panels_sum_to_their_window_also_where_all_is_faint():
    fraction = np.full((3, 64), 0.05, np.float32)
    fraction[1, 9] = 0.9
    fraction[2] = 0
    ground = np.full(3, 92.16)
    area = fraction.mean(1, dtype=np.float64) * ground
    low, high, factor = _measured(
        area, fraction, np.array([0.9, 0.9, 0.1]), ground, np.full(3, 0.3), Measure(0.5, None, GIVEN)
    )
    kept = fraction.astype(np.float16).astype(np.float32)
    drawn = np.where(kept >= np.float32(0.3), kept, 0).mean(1) * ground * np.array(factor)
    assert drawn[:2] == pytest.approx(area[:2], rel=1e-3) and (area[:2] > 0).all() and drawn[2] == area[2] == 0
    assert all(a <= b for a, b in zip(low, high, strict=True))
