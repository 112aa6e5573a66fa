import itertools
import math
from random import Random

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from PIL import Image

from negah.errors import GeoError, InputError, OutputError
from negah.images.scenes import render, write_town
from negah.images.scenes import write as write_module
from negah.images.scenes.modules import Look, ModuleArray
from negah.images.scenes.paint import Window, paint, subdivision
from negah.images.scenes.render import truth
from negah.images.scenes.roofs import Plane, lay_modules
from negah.images.scenes.sketch import Ink, Pose, Sketch, Sun, box
from negah.images.scenes.town import Town

LOOK = Look((40, 44, 60), (150, 150, 156), 0.04, 0.03, 0.1, 7)
NOON = Sun.at(math.radians(180), math.radians(55))


def array(present, angle=0.3, *, stack=1, gap=0.0, tilt=20.0) -> ModuleArray:
    """An array at (9, 6) m of modules of 1.0 x 1.65 m, turned by `angle`."""
    pose, depth = Pose(9.0, 6.0, angle), 1.65 * math.cos(math.radians(tilt))
    return ModuleArray(
        9.0, 6.0, pose.turn(1, 0), pose.turn(0, 1), 1.0, depth, stack * depth + gap, stack,
        np.asarray(present, bool), tilt, 180.0, "roof", LOOK,
    )  # fmt: skip


def test_the_same_seed_gives_the_same_scene_and_another_seed_another():
    a, b, c = render(64, 0.3, seed=5), render(64, 0.3, seed=5), render(64, 0.3, seed=6)
    assert np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)
    assert (a.caption, a.objects) == (b.caption, b.objects)
    assert not np.array_equal(a.image, c.image)


def test_numpys_global_random_state_is_left_alone():
    # Python's own is read by the run-time type checks of the tests, so it cannot be watched from here.
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    render(32, 0.3, seed=1)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_a_scene_is_a_picture_a_mask_and_what_is_in_it():
    scene = render((40, 70), 0.3, seed=2)
    assert scene.image.shape == (40, 70, 3) and scene.image.dtype == np.uint8
    assert scene.mask.shape == (40, 70) and scene.mask.dtype == np.float32
    assert scene.mask.min() >= 0 and scene.mask.max() <= 1
    assert scene.image.std() > 5


@pytest.mark.parametrize("gsd", [0.05, 0.1, 0.3, 0.7, 1.2, 3.0])
def test_mask_polygons_and_areas_agree_at_any_gsd(gsd):
    for seed in range(2):
        scene = render(max(24, min(128, round(30 / gsd))), gsd, seed=seed, panels="some")
        area = scene.plan_area_m2
        assert area >= 2
        assert scene.mask.sum() * gsd**2 == pytest.approx(area, rel=0.02)
        for panel in scene.panels:
            assert panel.polygon.is_valid
            assert panel.polygon.area == pytest.approx(panel.plan_area_m2, rel=1e-3)
            assert panel.module_area_m2 == pytest.approx(panel.plan_area_m2 / math.cos(math.radians(panel.tilt_deg)))
        side_y, side_x = np.array(scene.mask.shape) * gsd
        outline = shapely.box(-1e-6, -1e-6, side_x + 1e-6, side_y + 1e-6)
        assert all(outline.covers(panel.polygon) for panel in scene.panels)


def test_the_mask_lies_where_the_polygons_are():
    scene = render(104, 0.3, seed=11, panels="some")
    together = shapely.union_all([panel.polygon for panel in scene.panels])
    cols, rows = np.meshgrid(np.arange(104), np.arange(104))
    exact = shapely.area(
        shapely.intersection(together, shapely.box(cols * 0.3, rows * 0.3, cols * 0.3 + 0.3, rows * 0.3 + 0.3))
    )
    assert (
        np.abs(scene.mask - exact / 0.09).max() < 0.12
    )  # corners of a turned array are rounded by a fraction of a pixel
    assert np.abs(scene.mask - exact / 0.09).mean() < 0.002


@pytest.mark.parametrize("gsd", [0.05, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("stack, gap", [(1, 0.0), (1, 0.9), (2, 1.5)])
def test_area_is_modules_times_their_size_whatever_the_gsd(gsd, stack, gap):
    panels = array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]], stack=stack, gap=gap)
    sketch = Sketch(NOON, inks=[Ink((100, 100, 100))], arrays=[panels])
    side = math.ceil(30 / gsd)
    _, cover = paint(sketch, Window(0.0, 0.0, side, side, gsd), (0.4, 0.4, 0.5), subdivision(gsd))
    assert panels.modules == 14
    assert panels.module_area == pytest.approx(14 * 1.65)
    assert panels.polygon().area == pytest.approx(panels.plan_area, rel=1e-5)
    assert cover.sum() * gsd**2 == pytest.approx(panels.plan_area, rel=0.01)


def test_modules_that_touch_are_one_part_and_rows_with_a_gap_are_parts():
    assert len(array(np.ones((4, 3))).polygon().geoms) == 1
    assert len(array(np.ones((4, 3)), stack=2, gap=1.0).polygon().geoms) == 2


def test_modules_stay_on_their_plane_and_off_what_covers_it():
    plane, chimney = Plane(box(0, 0, 12, 7), (0, 1), math.radians(25)), box(1, 0, 1, 1)
    pose = Pose(50.0, 80.0, 0.7)
    for seed in range(30):
        found = lay_modules(Random(seed), pose, plane, [chimney], 18, LOOK, (1.0, 1.65))
        assert found is not None and 7 <= found.modules <= 24
        roof = shapely.Polygon([pose.out(x, y) for x, y in plane.points])
        assert roof.covers(found.polygon())
        assert found.polygon().intersection(shapely.Polygon([pose.out(x, y) for x, y in chimney])).area < 1e-6
        assert found.tilt_deg == pytest.approx(25)
    assert lay_modules(Random(0), pose, Plane(box(0, 0, 1, 1), (0, 1), 0.3), [], 9, LOOK, (1.0, 1.65)) is None


def test_an_array_faces_down_its_plane():
    # The plane falls towards +y, which is south in a frame that is not turned, and west in one turned by 90 degrees.
    plane = Plane(box(0, 0, 12, 7), (0, 1), 0.4)
    for angle, compass in ((0.0, 180.0), (math.pi / 2, 270.0)):
        found = lay_modules(Random(1), Pose(0, 0, angle), plane, [], 9, LOOK, (1.0, 1.65))
        assert found is not None and found.azimuth_deg == pytest.approx(compass)


def test_without_panels_nothing_is_masked():
    for seed in range(6):
        scene = render(32, 0.3, seed=seed, panels="none")
        assert not scene.mask.any() and not scene.panels
        assert "no solar panels" in scene.caption and "solar array" not in scene.objects


def test_random_scenes_are_of_both_kinds():
    seen = {bool(render(16, 0.6, seed=seed).panels) for seed in range(8)}
    assert seen == {True, False}


def test_a_caption_names_what_is_there():
    for seed in range(4):
        scene = render(80, 0.3, seed=seed, panels="some")
        assert "solar panels" in scene.caption and "no solar" not in scene.caption
        assert scene.objects["solar array"] == len(scene.panels)
        assert scene.objects["solar module"] == sum(panel.modules for panel in scene.panels)
        for name in scene.objects:
            assert name.startswith("solar") or name in ("field", "park") or name in scene.caption


def test_panels_are_darker_than_what_they_lie_on_in_most_scenes():
    darker = 0
    for seed in range(8):
        scene = render(80, 0.3, seed=seed, panels="some")
        grey, inside = scene.image.mean(-1), scene.mask > 0.9
        darker += grey[inside].mean() < grey[~inside].mean()
    assert darker >= 6


def test_windows_of_a_town_agree_where_they_overlap():
    town = Town(4, adoption=1.0)
    big, small = Window(0.0, 0.0, 100, 100, 0.5), Window(20.0, 10.0, 40, 40, 0.5)
    (a, cover_a), (b, cover_b) = (paint(town.sketch(w.bounds()), w, (0.4, 0.4, 0.5), 2) for w in (big, small))
    assert np.abs(cover_a[20:60, 40:80] - cover_b).max() < 1e-3
    different = np.abs(a[20:60, 40:80] - b).max(-1) > 8  # the fill of a polygon may differ by a canvas cell
    assert different.mean() < 0.02


def test_buildings_keep_their_size_in_a_bent_town():
    town = Town(4)
    for u, v in itertools.product((0, 300, 900), repeat=2):
        assert np.allclose(town.out(*town.back(u, v)), (u, v), atol=1e-3)


def test_panels_clump_as_much_as_asked_for():
    for adoption, clumping in ((0.3, 0.4), (0.1, 0.7), (0.3, 0.0)):
        town = Town(3, adoption=adoption, clumping=clumping)
        share = np.array([town.share(i, j) for i in range(60) for j in range(0, 60, 2)])
        assert share.mean() == pytest.approx(adoption, abs=0.03)
        # two buildings of one neighbourhood: the covariance of having modules is the variance of the share
        assert share.var() / (adoption * (1 - adoption)) == pytest.approx(clumping, abs=0.05)
        assert town.share(4, 6) == town.share(4, 7), "both sides of a street"
    assert Town(3, adoption=1.0, clumping=0.5).share(0, 0) == 1.0


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    path = tmp_path_factory.mktemp("town") / "town.tif"
    return write_town(path, size_px=(300, 380), gsd_m=0.5, seed=1, adoption=0.8, origin=(320_000.0, 5_400_000.0))


def test_a_town_is_georeferenced(town):
    for path in (town.image, town.mask):
        with rasterio.open(path) as raster:
            assert raster.crs.to_epsg() == 32633
            assert (raster.bounds.left, raster.bounds.top) == (320_000, 5_400_000)
            assert raster.res == (0.5, 0.5) and (raster.height, raster.width) == (300, 380)
            assert raster.block_shapes[0] == (512, 512)


def test_a_towns_mask_polygons_and_totals_agree(town):
    table = geopandas.read_file(town.panels)
    with rasterio.open(town.mask) as raster:
        area, bounds = raster.read(1).sum() / 255 * 0.25, shapely.box(*raster.bounds)
    assert len(table) == town.arrays > 4
    assert table.crs.to_epsg() == 32633
    assert table.geometry.area.sum() == pytest.approx(town.plan_area_m2, rel=1e-3)
    assert table.plan_area_m2.sum() == pytest.approx(town.plan_area_m2)
    assert area == pytest.approx(town.plan_area_m2, rel=0.02)
    assert table.modules.sum() == town.modules
    assert table.geometry.within(bounds.buffer(1e-3)).all()


def test_a_towns_polygons_lie_on_its_mask(town):
    table = geopandas.read_file(town.panels)
    with rasterio.open(town.mask) as raster:
        inside = rasterio.features.geometry_mask(table.geometry, (300, 380), raster.transform, invert=True)
        mask = raster.read(1)
    assert ((mask > 127) == inside).mean() > 0.995
    assert mask[~inside].max() < 220


def test_a_town_does_not_depend_on_how_it_is_cut(town, tmp_path, monkeypatch):
    monkeypatch.setattr(write_module, "CELL_PX", 128)
    other = write_town(tmp_path / "town.tif", size_px=(300, 380), gsd_m=0.5, seed=1, adoption=0.8)
    assert (other.arrays, other.modules, other.objects) == (town.arrays, town.modules, town.objects)
    assert other.plan_area_m2 == pytest.approx(town.plan_area_m2)
    with rasterio.open(town.mask) as a, rasterio.open(other.mask) as b:
        assert np.abs(a.read(1).astype(int) - b.read(1)).max() <= 1


def test_the_same_town_twice_has_the_same_pixels(tmp_path):
    a, b = (write_town(tmp_path / name, size_px=100, seed=9) for name in ("a.tif", "b.tif"))
    with rasterio.open(a.image) as x, rasterio.open(b.image) as y:
        assert np.array_equal(x.read(), y.read())
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["a.tif", "a_mask.tif", "a_panels.gpkg", "b.tif", "b_mask.tif", "b_panels.gpkg"]
    )


def test_a_town_without_modules_has_an_empty_layer(tmp_path):
    empty = write_town(tmp_path / "town.tif", size_px=64, seed=0, adoption=0.0)
    assert empty.arrays == 0 and empty.plan_area_m2 == 0
    assert len(geopandas.read_file(empty.panels)) == 0
    assert np.asarray(Image.open(empty.mask)).max() == 0


def test_progress_is_told_of_every_cell(tmp_path):
    heard = []
    write_town(tmp_path / "t.tif", size_px=(40, 520), progress=lambda *step: heard.append(step))
    assert heard == [("drawing", 0, 2), ("drawing", 1, 2), ("drawing", 2, 2)]


@pytest.mark.parametrize("size", [0, -3, 9000, (10, 0)])
def test_a_silly_size_is_refused(size):
    with pytest.raises(InputError, match="px"):
        render(size, 0.3, seed=0)


@pytest.mark.parametrize("gsd", [0.0, -0.3, 0.01, 30.0, math.nan])
def test_a_silly_gsd_is_refused(gsd, tmp_path):
    with pytest.raises(InputError, match="ground sampling distance"):
        render(32, gsd, seed=0)
    with pytest.raises(InputError, match="ground sampling distance"):
        write_town(tmp_path / "t.tif", size_px=32, gsd_m=gsd)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:2263", "nowhere"])
def test_a_system_without_true_metres_is_refused(crs, tmp_path):
    with pytest.raises(GeoError):
        write_town(tmp_path / "t.tif", size_px=32, crs=crs)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_town(tmp_path / "file" / "t.tif", size_px=32)


def test_truth_counts_the_modules_in_the_window():
    panels = array(np.ones((2, 10)), angle=0.0)  # from x = 9 to 19 m
    (half,) = truth([panels], Window(0.0, 0.0, 14, 30, 1.0))
    assert half.modules == 10
    assert half.plan_area_m2 == pytest.approx(panels.plan_area / 2)
    assert truth([panels], Window(0.0, 0.0, 5, 5, 1.0)) == []
