import json
import math
from dataclasses import replace

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import example, given
from hypothesis import strategies as st
from rasterio.crs import CRS

from negah.images.geo import pixel_size_m
from negah.images.windows import starts
from negah.probe.detector import DetectorInfo
from negah.solar.plan import Axis, Ground, Layout, Plan, PlannedSource, axis_of, chunks
from negah.solar.plan import _ground as ground_of
from negah.solar.regions import Region

INFO = DetectorInfo(name="test", gsd_m=0.3, window_px=104)


def source(position: int, first: int, width: int, height: int, *, crs: str | None = None) -> PlannedSource:
    layout = Layout(*(axis_of(size, 0.3, INFO, patch=8, overlap=0.0) for size in (width, height)))
    return PlannedSource(
        position=position, name=f"s{position}", width=width, height=height, crs=crs,
        transform=(0.3, 0.0, 500_000.0, 0.0, -0.3, 5_800_000.0) if crs else None, gsd_m=0.3, in_range=True,
        layout=layout, ground=Ground([0.0], [0.0], [[0.09]]), first=first, notes=(),
    )  # fmt: skip


def plan_of(*sizes: tuple[int, int]) -> Plan:
    sources, first = [], 0
    for position, (width, height) in enumerate(sizes):
        sources.append(source(position, first, width, height))
        first += len(sources[-1].layout)
    return Plan(sources, [])


@pytest.mark.parametrize(
    ("size", "pixel_m", "expected"),
    [
        (1040, 0.3, (104, 104, 13, 104)),
        (1040, 0.6, (52, 52, 13, 104)),  # fewer source pixels, the same ground, the same input
        (1040, 0.1, (312, 312, 13, 104)),
        (101, 0.3, (101, 101, 13, 104)),  # smaller than a window: one of its own size, in whole patches
        (50, 0.3, (50, 50, 7, 56)),
        (3, 0.3, (3, 3, 1, 8)),
    ],
)
def test_windows_are_the_same_ground_whatever_the_pixels(size, pixel_m, expected):
    axis = axis_of(size, pixel_m, INFO, patch=8, overlap=0.0)
    assert (axis.window, axis.stride, axis.cells, axis.model) == expected


@given(st.integers(1, 5000), st.floats(0.05, 3.0), st.floats(0, 0.89))
@example(15, 2.125, 0.0)
def test_windows_leave_nothing_out_and_cells_are_covered(size, pixel_m, overlap):
    axis = axis_of(size, pixel_m, INFO, patch=8, overlap=overlap)
    assert axis.starts.tolist() == starts(size, axis.window, axis.stride)
    assert axis.starts[0] == 0 and axis.starts[-1] + axis.window == size
    assert (np.diff(axis.starts) <= axis.window).all()
    covered = np.zeros(axis.cell_count, int)
    for first, end, patch in axis.cover:
        covered[first:end] += 1
        assert (np.diff(patch) >= 0).all() and patch.min(initial=0) >= 0 and patch.max(initial=0) < axis.cells
    assert covered.min() >= 1
    assert axis.cell_edges[-1] == size and (np.diff(axis.cell_edges) > 0).all()


def test_overlap_is_in_whole_cells():
    for overlap in (0.1, 0.25, 0.5, 0.89):
        assert axis_of(1040, 0.3, INFO, patch=8, overlap=overlap).stride % 8 == 0


def test_boxes_are_the_box_of_each_window():
    layout = plan_of((300, 250)).sources[0].layout
    boxes = [layout.box(k) for k in range(len(layout))]
    assert layout.boxes(0, len(layout)).tolist() == [[b.col, b.row, b.col + b.width, b.row + b.height] for b in boxes]


def test_chunks_from_anywhere_are_the_chunks_from_the_start():
    plan = plan_of((300, 300), (101, 101), (101, 101), (50, 101), (500, 120))
    described = [(c.first, c.shape, [(s.position, i, look) for s, i, look in c.windows]) for c in chunks(plan, batch=4)]
    ids = [plan.sources[p].first + i for _, _, windows in described for p, i, _ in windows]
    assert ids == list(range(plan.windows))
    assert max(len(windows) for _, _, windows in described) == 4
    for k, (first, *_) in enumerate(described):
        again = [(c.first, c.shape, [(s.position, i, look) for s, i, look in c.windows])
                 for c in chunks(plan, batch=4, start=first)]  # fmt: skip
        assert again == described[k:]
    assert list(chunks(plan, batch=4, start=plan.windows)) == []


def test_chunks_that_are_read_again_come_first_and_are_the_same():
    plan = plan_of((300, 300), (101, 101), (101, 101), (50, 101), (500, 120))
    whole = [(c.first, [i for _, i, _ in c.windows]) for c in chunks(plan, batch=4)]
    again = chunks(replace(plan, again=frozenset({1, 9})), batch=4, start=whole[4][0])
    assert [(c.first, [i for _, i, _ in c.windows]) for c in again] == [whole[0], whole[2], *whole[4:]]


def test_a_source_that_joins_later_leaves_the_chunks_before_it_alone():
    plan = plan_of(*[(101, 101)] * 6)
    late = [replace(source(7, 6, 101, 101), opens_chunk=True), source(9, 7, 101, 101)]
    longer = replace(plan, sources=[*plan.sources, *late])
    assert [len(c) for c in chunks(plan, batch=4)] == [4, 2]
    assert [len(c) for c in chunks(longer, batch=4)] == [4, 2, 2] and longer.windows == 8
    assert [c.first for c in chunks(longer, batch=4, start=6)] == [6]


def test_single_windows_of_many_sources_share_batches():
    assert [len(c) for c in chunks(plan_of(*[(101, 101)] * 10), batch=4)] == [4, 4, 2]


def test_only_windows_that_meet_the_region_are_looked_at():
    here = source(0, 0, 1040, 208, crs="EPSG:32633")
    plan = Plan([here], [])
    corner = shapely.box(500_000, 5_800_000 - 30, 500_000 + 100, 5_800_000)
    region = Region(corner, pyproj.CRS(32633))
    looked = [i for c in chunks(plan, batch=4, region=region) for _, i, look in c.windows if look]
    assert looked == [0, 1, 2, 3]  # 100 m are 333 px, 30 m are 100 px


def test_ground_between_the_points_of_the_lattice_is_true():
    crs, transform = CRS.from_epsg(3857), Affine(10.0, 0, 500_000, 0, -10.0, 6_800_000)
    ground = ground_of(crs, transform, 10_000, 10_000)  # 100 km of Web Mercator
    places = np.array([[1234.5, 777.0], [9_999.0, 5_001.0], [0.0, 0.0], [4_321.0, 9_876.5]])
    exact = [math.prod(pixel_size_m(crs, transform, col, row)) for col, row in places]
    assert ground.pixel_m2(places[:, 0], places[:, 1]) == pytest.approx(exact, rel=1e-5)


def test_plan_survives_its_own_dictionary():
    here = source(3, 7, 300, 300, crs="EPSG:32633")
    assert PlannedSource.from_dict(json.loads(json.dumps(here.as_dict()))) == here
    assert isinstance(here.layout.x, Axis)
