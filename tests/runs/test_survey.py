"""`negah survey` from end to end, with a detector whose readings can be worked out by hand.

`Bright` takes the brightness of a patch for its panel fraction and that of the brightest patch for the probability, so
a white rectangle on black ground is a panel whose area is known to the last digit.
"""

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
import torch
from affine import Affine
from PIL import Image
from rasterio.transform import from_origin
from torch import nn

from negah.cli.main import main
from negah.errors import InputError, OutputError, WeightsError
from negah.images.raster import Raster
from negah.images.windows import Box
from negah.nn.vit import ViT
from negah.probe.attentive import AttentiveHead, Reading
from negah.probe.detector import Detector, DetectorInfo, save
from negah.runs import survey as runs
from negah.runs.detectors import with_head
from negah.runs.survey import Options, Summary, survey, totals

UTM = "EPSG:32633"
WHITE, BLACK = 255, 0


class Bright(Detector):
    """Panel fraction of a patch = its brightness; probability = the highest; attention even."""

    def __init__(self, **info):
        nn.Module.__init__(self)
        self.info = DetectorInfo(**{"name": "bright", "window_px": 32, "area_ratio": (0.5, 2.0), **info})
        self.anchor = nn.Parameter(torch.zeros(1))
        self.eval()

    patch = 8  # pyright: ignore[reportAssignmentType]

    def forward(self, images, *, above=None):
        mean = nn.functional.avg_pool2d(images.float() / 255, 8).mean(1).flatten(1)
        evidence = torch.logit(mean, eps=1e-6)
        n = evidence.shape[1]
        return Reading(evidence.max(1).values, torch.full((len(images), 2, n), 1 / n), evidence)


def write_tif(path: Path, image: np.ndarray, *, crs: str | None = UTM, gsd: float = 0.3, origin=(500_000, 5_800_000)):
    """A grey or RGB image as a GeoTIFF; in UTM at the central meridian a metre of map is 1 / .9996 m of ground."""
    bands = np.broadcast_to(image, (3, *image.shape)) if image.ndim == 2 else image.transpose(2, 0, 1)
    where = {"crs": crs, "transform": from_origin(*origin, gsd, gsd)} if crs else {}
    _, h, w = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=w, height=h, count=3, dtype=bands.dtype, tiled=True, blockxsize=64,
        blockysize=64, compress="deflate", **where,
    ) as file:  # fmt: skip
        file.write(bands)
    return path


def town(size: int = 128) -> np.ndarray:
    """Black ground with two panels: one across the seam of four windows of 32 px, one inside a window."""
    image = np.full((size, size), BLACK, np.uint8)
    image[24:40, 56:72] = WHITE  # 16 x 16 px around the corner (32, 64)
    image[80:88, 8:24] = WHITE  # 8 x 16 px
    return image


def do(paths, out: Path, detector: Detector | None = None, **options) -> Summary:
    return survey([str(p) for p in paths], out, [detector or Bright()], Options(precision="fp32", **options))


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def contents(out: Path) -> dict[str, object]:
    """What two equal surveys share: rows and pixels, not time stamps."""
    found: dict[str, object] = {name: (out / name).read_text() for name in ("tiles.csv", "failures.csv")}
    found["geojson"] = (out / "panels.geojson").read_text()
    found["panels"] = geopandas.read_parquet(out / "panels.parquet").to_csv()
    found["gpkg"] = geopandas.read_file(out / "panels.gpkg").to_csv()
    for path in sorted(out.rglob("heatmap*/*.tif")) or [out / "heatmap.tif"]:
        with rasterio.open(path) as file:
            found[str(path.relative_to(out))] = file.read().tobytes()
    found["totals"] = {
        k: v for k, v in json.loads((out / "run.json").read_text())["totals"].items()
        if k not in ("out", "report", "continued", "seconds", "windows_per_s")
    }  # fmt: skip
    return found


def test_areas_and_places_are_exact(tmp_path):
    write_tif(tmp_path / "town.tif", town())
    summary = do([tmp_path / "town.tif"], tmp_path / "out")
    assert summary.complete and summary.panels == 2 and summary.windows == {"ok": 16}
    m2 = 0.3 * 0.3 / 0.9996**2  # a UTM metre at the central meridian is 1.0004 m of ground
    assert summary.area_m2 == pytest.approx((16 * 16 + 8 * 16) * m2, rel=1e-3)
    assert summary.kw == pytest.approx(summary.area_m2 / 7.29)
    assert (summary.area_low, summary.area_high) == pytest.approx((summary.area_m2 / 2, summary.area_m2 * 2))
    assert summary.surveyed_km2 == pytest.approx(128 * 128 * m2 / 1e6, rel=1e-6)

    panels = geopandas.read_parquet(tmp_path / "out/panels.parquet")
    assert panels.crs == UTM and panels.id.tolist() == ["p000001", "p000002"]
    seam = shapely.box(500_000 + 56 * 0.3, 5_800_000 - 40 * 0.3, 500_000 + 72 * 0.3, 5_800_000 - 24 * 0.3)
    assert panels.geometry[0].symmetric_difference(seam).area < 1e-6
    assert panels.area_m2.tolist() == pytest.approx([256 * m2, 128 * m2], rel=1e-3)
    assert panels.lon[0] == pytest.approx(15.0, abs=1e-3) and panels.lat[0] == pytest.approx(52.35, abs=0.01)

    tiles = rows(tmp_path / "out/tiles.csv")
    assert [t["window"] for t in tiles[:5]] == ["c0_r0", "c32_r0", "c64_r0", "c96_r0", "c0_r32"]
    assert tiles[1]["bounds"] == "500009.6 5799990.4 500019.2 5800000"
    assert float(tiles[1]["area_m2"]) == pytest.approx(64 * m2, rel=1e-3)
    assert float(tiles[0]["area_m2"]) == 0 and tiles[0]["status"] == "ok"

    assert geopandas.read_file(tmp_path / "out/panels.gpkg").area_m2.sum() == pytest.approx(summary.area_m2)
    lonlat = geopandas.read_file(tmp_path / "out/panels.geojson")
    assert lonlat.crs == "EPSG:4326" and lonlat.geometry[0].centroid.x == pytest.approx(15.0, abs=1e-3)
    with rasterio.open(tmp_path / "out/heatmap.tif") as heat:
        assert heat.crs == UTM and heat.shape == (16, 16) and heat.res == pytest.approx((2.4, 2.4))
        fraction, probability = heat.read()
    assert (fraction > 0.99).sum() == 6 and fraction[3:5, 7:9].min() > 0.99 and fraction[0, 0] == 0
    assert probability[0, 0] < 0.01 < 0.99 < probability[0, 4]
    assert "<html" in (tmp_path / "out/report.html").read_text().lower()
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["totals"]["panels"] == 2 and {"versions", "hardware", "arguments", "seeds"} <= run.keys()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "failures.csv", "heatmap.tif", "ledger.sqlite", "panels.geojson", "panels.gpkg", "panels.parquet",
        "report.html", "run.json", "tiles.csv",
    ]  # fmt: skip


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.8])
def test_overlap_counts_a_panel_once(tmp_path, overlap):
    write_tif(tmp_path / "town.tif", town())
    plain = do([tmp_path / "town.tif"], tmp_path / "plain")
    dense = do([tmp_path / "town.tif"], tmp_path / "dense", overlap=overlap)
    assert sum(dense.windows.values()) > 16
    assert dense.panels == plain.panels == 2
    assert dense.area_m2 == pytest.approx(plain.area_m2, rel=0.01)
    assert dense.surveyed_km2 == pytest.approx(plain.surveyed_km2)


def test_area_is_that_of_the_ground_in_web_mercator_degrees_and_feet(tmp_path):
    """The same 0.3 m pixels at 52 degrees north, in projections whose units are not metres of ground."""
    scale = math.cos(math.radians(52.0))
    image = np.full((64, 64), BLACK, np.uint8)
    image[16:32, 16:32] = WHITE
    _, north = rasterio.warp.transform("EPSG:4326", "EPSG:3857", [5.0], [52.0])
    write_tif(tmp_path / "mercator.tif", image, crs="EPSG:3857", gsd=0.3 / scale, origin=(556_597, north[0]))
    found = do([tmp_path / "mercator.tif"], tmp_path / "out")
    assert found.panels == 1 and found.windows == {"ok": 4}
    assert found.area_m2 == pytest.approx(256 * 0.09, rel=0.01)  # 2.6 times that if map metres were believed

    write_tif(tmp_path / "feet.tif", image, crs="EPSG:2263", gsd=0.3 / 0.3048, origin=(985_000, 200_000))  # US ft
    assert do([tmp_path / "feet.tif"], tmp_path / "feet").area_m2 == pytest.approx(256 * 0.09, rel=0.01)

    dx = 0.3 / (111_320 * scale)
    path = tmp_path / "degrees.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=64, height=64, count=3, dtype="uint8", crs="EPSG:4326",
        transform=from_origin(5.0, 52.0, dx, 0.3 / 111_270),
    ) as file:  # fmt: skip
        file.write(np.broadcast_to(image, (3, 64, 64)))
    assert do([path], tmp_path / "degrees").area_m2 == pytest.approx(256 * 0.09, rel=0.01)


def test_tiles_without_a_crs_are_measured_with_gsd_and_given_in_pixels(tmp_path):
    folder = tmp_path / "tiles"
    folder.mkdir()
    for k in range(40):  # more than one batch
        image = np.full((31, 31, 3), BLACK, np.uint8)  # smaller than a window: one row each
        image[8:16, 8:16] = WHITE if k % 2 else BLACK
        Image.fromarray(image).save(folder / f"{k:02}.png")
    out = tmp_path / "out"
    summary = do([folder], out, gsd_m=0.3)
    tiles = rows(out / "tiles.csv")
    assert [Path(t["source"]).name for t in tiles] == [f"{k:02}.png" for k in range(40)]
    assert all(t["window"] == "c0_r0" and t["bounds"] == "0 0 31 31" and t["probability"] for t in tiles)
    assert [float(t["probability"]) > 0.5 for t in tiles] == [k % 2 == 1 for k in range(40)]
    assert float(tiles[1]["area_m2"]) == pytest.approx(64 * 0.09, rel=0.1)  # resampled from 31 to 32 px
    panels = geopandas.read_parquet(out / "panels.parquet")
    assert len(panels) == 20 and panels.crs is None
    assert panels.geometry[0].bounds == pytest.approx((7.75, 7.75, 15.5, 15.5))
    assert not (out / "panels.geojson").exists() and not (out / "heatmap.tif").exists()
    assert any("pixels" in note for note in summary.notes)
    assert "EPSG:4326" in (out / "report.html").read_text()


def test_no_crs_and_no_gsd_is_refused_with_the_way_out(tmp_path):
    Image.fromarray(town()).save(tmp_path / "town.png")
    with pytest.raises(InputError, match=r"town\.png.*--gsd 0\.3"):
        do([tmp_path / "town.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rotated_geotransform_is_refused_with_advice(tmp_path):
    transform = Affine(0.28, 0.1, 500_000, 0.1, -0.28, 5_800_000)
    with rasterio.open(
        tmp_path / "turned.tif", "w", driver="GTiff", width=64, height=64, count=3, dtype="uint8", crs=UTM,
        transform=transform,
    ) as file:  # fmt: skip
        file.write(np.zeros((3, 64, 64), np.uint8))
    with pytest.raises(InputError, match=r"turned\.tif.*gdalwarp"):
        do([tmp_path / "turned.tif"], tmp_path / "out")


def test_bad_files_are_rows_and_the_rest_is_done(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_tif(folder / "a_good.tif", town())
    (folder / "b_empty.tif").write_bytes(b"")
    (folder / "c_text.tif").write_text("I am not a picture")
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    whole = write_tif(folder / "d_cut.tif", noise).read_bytes()
    (folder / "d_cut.tif").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(noise).save(folder / "e_no_crs.png")
    out = tmp_path / "out"
    summary = do([folder], out)
    failed = {Path(f["source"]).name: f for f in rows(out / "failures.csv")}
    assert "windows that could not be read" in totals(summary)["panel area"]
    assert {"b_empty.tif", "c_text.tif", "d_cut.tif", "e_no_crs.png"} == failed.keys()
    assert all(f["reason"] for f in failed.values()) and "--gsd" in failed["e_no_crs.png"]["reason"]
    assert not summary.complete and summary.panels >= 2
    status: dict[str, set[str]] = {}
    for tile in rows(out / "tiles.csv"):
        status.setdefault(Path(tile["source"]).name, set()).add(tile["status"])
    assert status["a_good.tif"] == {"ok"} and status["b_empty.tif"] == {"failed"} and "failed" in status["d_cut.tif"]
    assert "b_empty.tif" in (out / "report.html").read_text()


@pytest.mark.parametrize("kind", ["uint16", "one band", "float with NaN"])
def test_unusual_rasters_are_surveyed(tmp_path, kind):
    image = town().astype(np.float32)
    profile = {"count": 1, "dtype": "uint8"}
    if kind == "uint16":
        image, profile = image * 200, {"count": 1, "dtype": "uint16"}
    elif kind == "float with NaN":
        image[64:, 64:] = np.nan
        profile = {"count": 1, "dtype": "float32", "nodata": np.nan}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=128, height=128, crs=UTM,
        transform=from_origin(500_000, 5_800_000, 0.3, 0.3), **profile,
    ) as file:  # fmt: skip
        file.write(image.astype(profile["dtype"]), 1)
    summary = do([tmp_path / "a.tif"], tmp_path / "out")
    assert summary.complete and summary.panels == 2
    assert summary.area_m2 == pytest.approx(384 * 0.09, rel=0.02)
    if kind == "float with NaN":
        assert summary.windows == {"nodata": 4, "ok": 12}
        assert summary.surveyed_km2 == pytest.approx(0.75 * 128**2 * 0.09 / 1e6, rel=0.01)


def test_gsd_outside_the_models_range_is_done_and_said(tmp_path):
    write_tif(tmp_path / "coarse.tif", town(), gsd=0.9)
    summary = do([tmp_path / "coarse.tif"], tmp_path / "out")
    assert summary.windows.keys() == {"gsd-out-of-range"}
    assert {t["status"] for t in rows(tmp_path / "out/tiles.csv")} == {"gsd-out-of-range"}
    assert any("coarse.tif" in note and "0.9" in note for note in summary.notes)


def test_sources_of_several_crs_come_together(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_tif(folder / "a.tif", town())
    write_tif(folder / "b.tif", town(), crs="EPSG:32634")
    out = tmp_path / "out"
    do([folder], out)
    panels = geopandas.read_parquet(out / "panels.parquet")
    assert panels.crs == "EPSG:4326" and len(panels) == 4 and panels.id.is_unique
    assert panels.lon.round(2).tolist() == [15.0, 15.0, 21.0, 21.0]
    assert sorted(p.name for p in (out / "heatmaps").iterdir()) != []
    # with one that has no CRS, its panels go to files of their own
    Image.fromarray(town()).save(folder / "c.png")
    do([folder], out, gsd_m=0.3, overwrite=True)
    pixel = geopandas.read_parquet(out / "panels-pixel.parquet")
    assert len(pixel) == 2 and pixel.crs is None and len(geopandas.read_parquet(out / "panels.parquet")) == 4


def test_area_of_interest_and_parcels(tmp_path):
    write_tif(tmp_path / "town.tif", town())
    left = shapely.box(500_000, 5_799_950, 500_000 + 64 * 0.3, 5_800_001)  # cuts the first panel in half
    geopandas.GeoSeries([left], crs=UTM).to_crs(4326).to_file(tmp_path / "aoi.geojson")
    middle = 5_800_000 - 64 * 0.3
    parcels = geopandas.GeoDataFrame(
        {"owner": ["north", "south"], "panels": ["theirs", "theirs"]},
        geometry=[
            shapely.box(499_900, middle, 500_100, 5_800_100), shapely.box(499_900, 5_799_900, 500_100, middle)
        ],
        crs=UTM,
    )  # fmt: skip
    parcels.to_file(tmp_path / "parcels.gpkg")
    out = tmp_path / "out"
    summary = do([tmp_path / "town.tif"], out, aoi=tmp_path / "aoi.geojson", parcels=tmp_path / "parcels.gpkg")
    assert summary.windows["outside-aoi"] >= 4 and summary.panels == 2
    m2 = 0.09 / 0.9996**2
    assert summary.area_m2 == pytest.approx((128 + 128) * m2, rel=0.01)
    joined = geopandas.read_parquet(out / "parcels.parquet")
    assert joined.owner.tolist() == ["north", "south"] and joined.panels.tolist() == [1, 1]
    assert joined.panels_given.tolist() == ["theirs", "theirs"]
    assert joined.panel_area_m2.tolist() == pytest.approx([128 * m2, 128 * m2], rel=0.01)
    assert joined.panel_kw.sum() == pytest.approx(summary.kw)
    assert [r["owner"] for r in rows(out / "parcels.csv")] == ["north", "south"]
    # without them, the files of before do not stay behind, and nothing is scored again
    again = do([tmp_path / "town.tif"], out, aoi=tmp_path / "aoi.geojson", m2_per_kw=5.0)
    assert again.continued and again.seconds == summary.seconds and again.kw == pytest.approx(again.area_m2 / 5)
    assert not (out / "parcels.csv").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.geojson", None, "no such file"),
        ("text.geojson", "hello", "cannot be read"),
        ("points.geojson", '{"type": "Point", "coordinates": [15, 52]}', "polygons"),
    ],
)
def test_bad_polygons_are_refused(tmp_path, name, content, message):
    write_tif(tmp_path / "town.tif", town())
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        do([tmp_path / "town.tif"], tmp_path / "out", aoi=tmp_path / name)


def test_polygons_that_lie_elsewhere_are_refused(tmp_path):
    write_tif(tmp_path / "town.tif", town())
    far = shapely.box(600_000, 5_799_950, 600_100, 5_800_001)
    geopandas.GeoSeries([far], crs=UTM).to_file(tmp_path / "far.geojson")
    with pytest.raises(InputError, match="--aoi touches none of the images"):
        do([tmp_path / "town.tif"], tmp_path / "out", aoi=tmp_path / "far.geojson")
    assert not (tmp_path / "out").exists()


def test_only_ground_inside_the_area_of_interest_counts_as_surveyed(tmp_path):
    write_tif(tmp_path / "town.tif", town())
    half = shapely.box(500_000, 5_799_950, 500_000 + 64 * 0.3, 5_800_001)  # of 128 px
    geopandas.GeoSeries([half], crs=UTM).to_file(tmp_path / "half.gpkg")
    whole = do([tmp_path / "town.tif"], tmp_path / "whole")
    part = do([tmp_path / "town.tif"], tmp_path / "part", aoi=tmp_path / "half.gpkg", overlap=0.3)
    assert whole.surveyed_km2 == pytest.approx((128 * 0.3) ** 2 / 0.9996**2 / 1e6, rel=1e-3)
    assert part.surveyed_km2 == pytest.approx(whole.surveyed_km2 / 2, rel=1e-3)


def test_areas_of_a_detector_that_was_never_checked_have_no_bounds(tmp_path):
    write_tif(tmp_path / "town.tif", town())
    out = tmp_path / "out"
    summary = survey([str(tmp_path / "town.tif")], out, [Bright(area_ratio=None)], Options(precision="fp32"))
    assert summary.area_m2 > 0 and summary.area_low is None and summary.area_high is None
    assert {(r["area_low"], r["area_high"]) for r in rows(out / "tiles.csv")} == {("", "")}
    panels = geopandas.read_parquet(out / "panels.parquet")
    assert panels.area_low.isna().all() and panels.area_high.isna().all() and (panels.area_m2 > 0).all()
    assert any("never compared with true ones" in note for note in summary.notes)


def test_stretched_values_are_said_to_be(tmp_path):
    wide = town().astype(np.uint16) * 257
    write_tif(tmp_path / "wide.tif", wide)
    write_tif(tmp_path / "town.tif", town())
    said = do([tmp_path / "wide.tif"], tmp_path / "a").notes
    assert sum("were stretched (black" in note for note in said) == 1
    assert not any("stretched" in note for note in do([tmp_path / "town.tif"], tmp_path / "b").notes)


def test_what_was_asked_for_is_in_the_record(tmp_path):
    write_tif(tmp_path / "town.tif", town())
    survey(
        [str(tmp_path / "town.tif")],
        tmp_path / "out",
        [Bright()],
        Options(precision="fp32"),
        given={"model": Path("m")},
    )
    assert json.loads((tmp_path / "out" / "run.json").read_text())["arguments"]["model"] == "m"


def test_a_folder_of_another_survey_is_refused(tmp_path):
    write_tif(tmp_path / "town.tif", town())
    write_tif(tmp_path / "other.tif", town(64))
    out = tmp_path / "out"
    do([tmp_path / "town.tif"], out)
    before = contents(out)
    with pytest.raises(OutputError, match=r"threshold was 0\.5 there and is 0\.7 now.*--overwrite"):
        do([tmp_path / "town.tif"], out, threshold=0.7)
    with pytest.raises(OutputError, match=r"other\.tif"):
        do([tmp_path / "other.tif"], out)
    os.utime(tmp_path / "town.tif", (1, 1))
    with pytest.raises(OutputError, match=r"town\.tif has changed"):
        do([tmp_path / "town.tif"], out)
    assert contents(out) == before
    assert do([tmp_path / "other.tif"], out, overwrite=True).windows == {"ok": 4}

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/tiles.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"already holds tiles\.csv"):
        do([tmp_path / "town.tif"], tmp_path / "mine")
    assert (tmp_path / "mine/tiles.csv").read_text() == "mine"


def test_results_are_not_surveyed_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tif(tmp_path / "town.tif", town())
    first = do(["."], Path("out"))
    second = do(["."], Path("out"))
    assert first.sources == second.sources == 1 and second.continued


def test_interrupted_survey_continues_to_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BATCHES", {"cpu": 3})
    rng = np.random.default_rng(0)
    write_tif(tmp_path / "town.tif", np.maximum(town(256), rng.integers(0, 90, (256, 256), dtype=np.uint8)))
    detector = Detector.random(window_px=32)
    do([tmp_path / "town.tif"], tmp_path / "whole", detector, overlap=0.5, threshold=0.0)

    def stop(stage: str, done: int, total: int) -> None:
        if (stage == "windows" and done >= total // 2) or (stage == "map" and interruptions):
            interruptions.append(stage)
            raise KeyboardInterrupt

    interruptions: list[str] = []
    options = Options(precision="fp32", overlap=0.5, threshold=0.0)
    with pytest.raises(KeyboardInterrupt):
        survey([str(tmp_path / "town.tif")], tmp_path / "out", [detector], options, progress=stop)
    assert interruptions == ["windows"] and not (tmp_path / "out/tiles.csv").exists()
    summary = do([tmp_path / "town.tif"], tmp_path / "out", detector, overlap=0.5, threshold=0.0)
    assert summary.continued
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


KILLED = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from negah.probe.detector import Detector
from negah.runs import survey as runs
runs.BATCHES = {"cpu": 3}
slow = float(sys.argv[3])
def progress(stage, done, total):
    if stage == "windows" and 0 < done < total:
        print("half", flush=True)
        time.sleep(slow)
runs.survey([sys.argv[1]], Path(sys.argv[2]), [Detector.random(window_px=32)],
            runs.Options(precision="fp32", threshold=0.0), progress=progress)
"""


def test_killed_survey_continues_to_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BATCHES", {"cpu": 3})
    write_tif(tmp_path / "town.tif", np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8))
    detector = Detector.random(window_px=32)
    do([tmp_path / "town.tif"], tmp_path / "whole", detector, threshold=0.0)
    (tmp_path / "run.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "town.tif"), str(tmp_path / "out")]
    child = subprocess.Popen([*command, "60"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "half\n"
    # while it runs, nobody else may write there
    with pytest.raises(OutputError, match="another process"):
        do([tmp_path / "town.tif"], tmp_path / "out", detector, threshold=0.0)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "out/tiles.csv").exists()
    summary = do([tmp_path / "town.tif"], tmp_path / "out", detector, threshold=0.0)
    assert summary.continued
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def noisy(path: Path, seed: int, size: int = 128) -> Path:
    return write_tif(path, np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8))


def same_but_for_names(one: Path, other: Path) -> bool:
    """Whether two surveys of folders with the same files found the same."""
    return repr(contents(one)).replace("before", "mended") == repr(contents(other)).replace("before", "mended")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_windows_that_failed_are_read_again_and_the_files_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BATCHES", {"cpu": 3})
    paths = [noisy(tmp_path / "a.tif", 0), noisy(tmp_path / "b.tif", 1)]
    detector, options = Detector.random(window_px=32), {"overlap": 0.5, "threshold": 0.0}
    do(paths, tmp_path / "whole", detector, **options)
    read = Raster.read

    def away(raster: Raster, box: Box, shape: tuple[int, int]):
        if "a.tif" in raster.name and box.row == 32:
            raise OSError("the network drive is away")
        return read(raster, box, shape)

    monkeypatch.setattr(Raster, "read", away)
    first = do(paths, tmp_path / "out", detector, **options)
    assert first.windows == {"failed": 7, "ok": 91} and not first.complete
    again = do(paths, tmp_path / "out", detector, **options)  # still away: nothing changes
    assert again.windows == first.windows and again.failures == first.failures

    monkeypatch.setattr(Raster, "read", read)
    seen: list[tuple[int, int]] = []
    survey([str(p) for p in paths], tmp_path / "out", [detector], Options(precision="fp32", overlap=0.5, threshold=0.0),
           progress=lambda stage, done, total: seen.append((done, total)) if stage == "windows" else None)  # fmt: skip
    assert seen[0] == (91, 98) and seen[-1] == (98, 98) and len(seen) < 6  # the chunks of 7 windows, not all
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_repaired_file_is_surveyed_whole_even_if_it_is_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BATCHES", {"cpu": 3})
    for folder in ("before", "mended"):
        (tmp_path / folder).mkdir()
        noisy(tmp_path / folder / "a.tif", 0)
        noisy(tmp_path / folder / "b.tif", 1)
        noisy(tmp_path / folder / "c.tif", 2)
    detector, mended, out = Detector.random(window_px=32), tmp_path / "mended", tmp_path / "out"
    do([tmp_path / "before"], tmp_path / "whole", detector, threshold=0.0)
    noisy(mended / "b.tif", 7)  # where it can be read it shows something else than the repaired one will
    cut_short(mended / "b.tif")
    partly = do([mended], out, detector, threshold=0.0)
    assert 0 < partly.windows["failed"] < 16 and partly.failed_sources == 0

    noisy(mended / "b.tif", 1)
    options = Options(precision="fp32", threshold=0.0)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "windows" and done >= total - 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey([str(mended)], out, [detector], options, progress=stop)
    assert do([mended], out, detector, threshold=0.0).complete
    assert same_but_for_names(tmp_path / "whole", out)


@pytest.mark.parametrize("stopped", [False, True])
def test_inputs_that_could_not_be_opened_join_once_they_can(tmp_path, monkeypatch, stopped):
    monkeypatch.setattr(runs, "BATCHES", {"cpu": 5})  # 16 windows a file: no chunk ends where a file does
    names = ("a_empty.tif", "b.tif", "c_text.tif", "d.tif", "e_empty.tif")
    for folder in ("before", "mended"):
        (tmp_path / folder).mkdir()
        for seed, name in enumerate(names):
            image = np.maximum(town(), np.random.default_rng(seed).integers(0, 90, (128, 128), dtype=np.uint8))
            write_tif(tmp_path / folder / name, image)
    mended, out = tmp_path / "mended", tmp_path / "out"
    do([tmp_path / "before"], tmp_path / "whole")
    kept = {name: (mended / name).read_bytes() for name in names}
    for name, content in {"a_empty.tif": b"", "c_text.tif": b"I am not a picture", "e_empty.tif": b""}.items():
        (mended / name).write_bytes(content)

    def stop(stage: str, done: int, total: int) -> None:
        if stopped and stage == "windows" and done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
        survey([str(mended)], out, [Bright()], Options(precision="fp32"), progress=stop)
    (mended / "a_empty.tif").write_bytes(kept["a_empty.tif"])
    (mended / "c_text.tif").write_bytes(b"neither am I")
    some = do([mended], out)
    assert some.failed_sources == 2 and some.windows == {"ok": 48}
    assert list(dict.fromkeys(Path(t["source"]).name for t in rows(out / "tiles.csv"))) == list(names)
    for name in ("c_text.tif", "e_empty.tif"):
        (mended / name).write_bytes(kept[name])
    assert do([mended], out).complete
    assert same_but_for_names(tmp_path / "whole", out)


def test_what_was_read_may_not_change_while_something_else_failed(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    noisy(folder / "a.tif", 0)
    cut_short(noisy(folder / "b.tif", 1))
    do([folder], out)
    before = contents(out)
    noisy(folder / "b.tif", 1, size=160)
    with pytest.raises(OutputError, match=r"b\.tif has changed since, in size or place.*--overwrite"):
        do([folder], out)
    (folder / "b.tif").write_bytes(b"")
    with pytest.raises(OutputError, match=r"b\.tif has changed since and fails now"):
        do([folder], out)
    noisy(folder / "b.tif", 1)
    os.utime(folder / "a.tif", (1, 1))
    with pytest.raises(OutputError, match=r"a\.tif has changed since\)"):
        do([folder], out)
    assert contents(out) == before


def test_the_area_factors_are_not_promised_for_this_imagery(tmp_path):
    write_tif(tmp_path / "town.tif", town())
    note = do([tmp_path / "town.tif"], tmp_path / "out").notes[0]
    assert "between 0.5 and 2 times" in note and "expected" not in note
    assert "fitted on" in note and note.endswith("elsewhere that is unchecked.")


FULL_DISK = """
set -e
mount -t tmpfs -o size={size} tmpfs {disk}
{python} {script} {image} {disk}/out || true
"""


@pytest.mark.parametrize("size", ["100k", "700k"])  # full for the ledger, full for the files
def test_full_disk_is_said_in_a_line_and_nothing_half_done_is_left(tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)]
    probe = subprocess.run(mount, capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {probe.stderr.strip()}")
    write_tif(tmp_path / "town.tif", np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8))
    (tmp_path / "run.py").write_text(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from negah.errors import OutputError
        from negah.probe.detector import Detector
        from negah.runs.survey import Options, survey
        try:
            survey([sys.argv[1]], Path(sys.argv[2]), [Detector.random(window_px=32)],
                   Options(precision="fp32", threshold=0.0))
        except (OutputError, OSError) as error:
            print(f"{type(error).__name__}: {error}")
            print(sorted(p.name for p in Path(sys.argv[2]).iterdir() if not p.name.startswith("ledger")))
    """)
    )
    script = FULL_DISK.format(
        size=size, disk=disk, python=sys.executable, script=tmp_path / "run.py", image=tmp_path / "town.tif"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    message, left = done.stdout.splitlines()[-2:]
    assert message.startswith("OutputError: "), done.stdout + done.stderr
    assert left == "[]"


def test_heat_maps_of_other_surveys_are_no_pictures(tmp_path):
    places = tmp_path / "places"
    places.mkdir()
    detectors = [Detector.random(window_px=32)]
    for count in (1, 2):  # heatmap.tif, then heatmaps/
        write_tif(places / f"town{count}.tif", town())
        made = survey([str(places)], places / f"map{count}", detectors, Options(precision="fp32"))
        assert made.sources == count
    assert list(places.glob("map1/heatmap.tif")) and len(list(places.glob("map2/heatmaps/*.tif"))) == 2
    assert survey([str(places)], tmp_path / "out", detectors, Options(precision="fp32")).sources == 2


def test_centimetres_are_not_taken_for_metres(tmp_path):
    Image.fromarray(town()).save(tmp_path / "tile.png")
    with pytest.raises(
        InputError, match="--gsd 30: no panel can be seen in pixels of so many metres; 30 cm are --gsd 0.3"
    ):
        survey([str(tmp_path / "tile.png")], tmp_path / "out", [Detector.random(window_px=32)], Options(gsd_m=30))


def test_metres_per_pixel_that_an_image_says_itself_are_not_overruled_in_silence(tmp_path, capsys, monkeypatch):
    write_tif(tmp_path / "town.tif", town())
    Image.fromarray(town()).save(tmp_path / "tile.png")
    summary = do([tmp_path / "town.tif", tmp_path / "tile.png"], tmp_path / "out", gsd_m=0.5)
    assert len(summary.remarks) == 1
    assert (
        summary.remarks[0].startswith("--gsd 0.5 was not used for 1 image that say") and "0.3 m" in summary.remarks[0]
    )
    assert "was not used for 1 image" in (tmp_path / "out/report.html").read_text()
    assert not do([tmp_path / "town.tif"], tmp_path / "same", gsd_m=0.3).remarks
    assert do([tmp_path / "town.tif"], tmp_path / "same").continued  # nothing depended on it
    with pytest.raises(OutputError, match=r"gsd was 0\.5 there and is 0\.4 now"):
        do([tmp_path / "town.tif", tmp_path / "tile.png"], tmp_path / "out", gsd_m=0.4)
    save(Detector.random(window_px=32), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert main(["survey", "town.tif", "--gsd", "0.5", "--model", "model.safetensors"]) == 0
    assert "warning: --gsd 0.5 was not used" in capsys.readouterr().err


def test_masks_beside_pictures_are_left_out_and_that_is_said(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.tif", "a_mask.tif", "b.tif", "old_mask.tif"):
        write_tif(folder / name, town())
    summary = do([folder], tmp_path / "out")
    names = {Path(row["source"]).name for row in rows(tmp_path / "out/tiles.csv")}
    assert names == {"a.tif", "b.tif", "old_mask.tif"}  # the last one is of no picture here
    assert summary.remarks == [
        f"Left out: 1 mask of pictures beside them (first: {folder / 'a_mask.tif'}). Name a mask itself to survey it."
    ]
    for name in ("images", "masks"):
        (folder / name).mkdir()
        write_tif(folder / name / "c.tif", town())
    write_tif(folder / "masks" / "d.tif", town())
    assert do([folder], tmp_path / "two").sources == 5  # with images/c.tif, and masks/d.tif, which is of no picture
    assert do([folder / "images", folder / "masks"], tmp_path / "asked").sources == 3  # named itself
    write_tif(folder / "_mask.tif", town())
    assert do([folder], tmp_path / "odd").sources == 6
    named = do([folder / "a_mask.tif", folder / "a.tif"], tmp_path / "named")
    assert named.sources == 2 and not named.remarks


def test_what_differs_between_surveys_is_first_what_they_are_of(tmp_path):
    write_tif(tmp_path / "town.tif", town())
    Image.fromarray(town()).save(tmp_path / "tile.png")
    do([tmp_path / "town.tif"], tmp_path / "out")
    with pytest.raises(OutputError, match=r"had the input .*town\.tif, where there is .*tile\.png now"):
        do([tmp_path / "tile.png"], tmp_path / "out", gsd_m=0.3)
    (tmp_path / "in").mkdir()
    with pytest.raises(OutputError, match=r"if it is the same file, name it as you did then"):
        do([write_tif(tmp_path / "in" / "town.tif", town())], tmp_path / "out")
    with pytest.raises(OutputError, match=r"it had 1 input and there are 2 now"):
        do([tmp_path / "town.tif", write_tif(tmp_path / "z.tif", town())], tmp_path / "out", gsd_m=0.3)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_may_not_be_written_to_is_said_to_be(tmp_path, monkeypatch, overwrite):
    write_tif(tmp_path / "town.tif", town())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tiles.csv").write_text("mine")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "out")  # root may write anywhere
    with pytest.raises(OutputError, match="out may not be written to: choose another --out, or change its perm"):
        do([tmp_path / "town.tif"], tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "tiles.csv").read_text() == "mine"


def test_small_pictures_are_shown_on_a_contact_sheet(tmp_path, monkeypatch):
    monkeypatch.setattr("negah.solar.pictures.SHEET", 3)
    folder = tmp_path / "tiles"
    folder.mkdir()
    for k, panel in enumerate((0, 8, 24, 16)):
        image = np.full((32, 32, 3), BLACK, np.uint8)
        image[:panel, :8] = WHITE
        Image.fromarray(image).save(folder / f"{k}.png")
    shown = []
    monkeypatch.setattr(runs, "write_report", lambda report, path: shown.append(report) or path.write_text("page"))
    do([folder], tmp_path / "out", gsd_m=0.3)
    (sheet,) = shown[0].overviews
    assert sheet.name == "Contact sheet of 3 of 4 images, those with most panels first" and sheet.panels == 3
    assert [told.split(": ")[0][-5:] for _, told in sheet.places] == ["2.png", "3.png", "1.png"]
    assert "17 m², probability 1.00" in sheet.places[0][1]
    for (left, top, width, height), (_, outline) in zip(
        [place for place, _ in sheet.places], sorted(enumerate(sheet.outlines)), strict=True
    ):
        low, high = outline.min(0), outline.max(0)
        assert left <= low[0] and high[0] <= left + width / 4 + 1 and top <= low[1] and high[1] <= top + height
        inside = sheet.image[int(top) + 2 : int(high[1]) - 20, int(left) + 2 : int(high[0]) - 20]
        assert inside.min() > 240  # the white panel lies under its outline
    assert sheet.metres_per_px == pytest.approx(0.3 * 32 / sheet.places[0][0][2])

    do([folder / "2.png"], tmp_path / "one", gsd_m=0.3)
    assert len(shown[1].overviews) == 1 and shown[1].overviews[0].heat is not None  # a map of its own


def test_command_line(tmp_path, capsys, monkeypatch):
    write_tif(tmp_path / "town.tif", town())
    save(Detector.random(window_px=32), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    argv = ["survey", "town.tif", "--model", "model.safetensors", "--precision", "fp32"]
    assert main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["status"] == "complete" and result["windows"] == {"ok": 16}
    assert Path(result["report"]) == Path("negah-survey-town/report.html") and Path(result["report"]).exists()
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "negah-survey-town/report.html" in out and "label next" not in out
    assert main([*argv, "--label-next", "3"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "label next: negah-survey-town/label-next.csv (pictures: label-next.html): fill in true_m2" in out
    assert main([*argv, "--threshold", "0.9"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "zero.tif").write_bytes(b"")
    assert main([*argv[:2], "zero.tif", *argv[2:], "--out", "both"]) == 3
    assert "zero.tif" in capsys.readouterr().err

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "score", interrupted)
    assert main([*argv, "--out", "third"]) == 130
    assert "same command again" in capsys.readouterr().err


def test_head_on_another_backbone(tmp_path):
    whole = Detector.random(window_px=32, dim=32)
    save(whole, tmp_path / "whole.safetensors")
    rebuilt = with_head(whole.backbone, tmp_path / "whole.safetensors")
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(rebuilt(images).logit, whole(images).logit)
    narrow = ViT(patch=8, dim=16, depth=1, heads=1, grid=(4, 4))
    with pytest.raises(WeightsError, match="16 wide"):
        with_head(narrow, tmp_path / "whole.safetensors")
    assert isinstance(rebuilt.head, AttentiveHead)


def test_no_window_that_could_be_looked_at_is_no_answer(tmp_path, capsys, monkeypatch):
    image = np.full((64, 64), np.nan, np.float32)
    write_tif(tmp_path / "empty.tif", image)
    save(Detector.random(window_px=32), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    argv = ["survey", "empty.tif", "--model", "model.safetensors", "--precision", "fp32"]
    assert main([*argv, "--json"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert result["area_m2"] is None and result["measured_m2"] is None
    assert "nothing was looked at" in result["status"] and "4 windows hold no data" in result["status"]
    assert all(result[key] is None for key in ("panels", "area_m2", "area_low", "area_high", "kw", "kw_low"))
    assert json.loads(Path(result["report"]).with_name("run.json").read_text())["totals"]["area_m2"] is None
    assert main(argv) == 3
    out = capsys.readouterr().out
    assert "nothing was looked at" in out and "not measured" in out and "0 m²" not in out


def test_windows_that_all_have_other_pixels_give_no_range_and_a_warning(tmp_path):
    write_tif(tmp_path / "coarse.tif", town(), gsd=0.9)
    summary = do([tmp_path / "coarse.tif"], tmp_path / "out")
    assert "no figure can be relied on" in summary.warning and "(144)" in summary.warning
    assert next(iter(totals(summary))) == "warning"
    assert (summary.area_low, summary.kw_high) == (None, None)
    assert "100% of the area is abstained (ground size out of range)" in summary.rests_on
    write_tif(tmp_path / "bare.tif", np.zeros((128, 128), np.uint8), gsd=0.9)
    nothing = do([tmp_path / "bare.tif"], tmp_path / "bare")
    assert nothing.area_m2 == 0 and nothing.area_high is None and "out of range in all windows" in nothing.rests_on
    assert not any("total's range" in note for note in summary.notes)
    assert not do([write_tif(tmp_path / "town.tif", town())], tmp_path / "fine").warning


def test_a_window_is_in_one_gallery_only(tmp_path, monkeypatch):
    write_tif(tmp_path / "town.tif", np.full((160, 160), WHITE, np.uint8))  # 25 finds, all as probable
    seen = []
    monkeypatch.setattr(runs, "write_report", lambda report, path: (seen.append(report), path.touch()))
    do([tmp_path / "town.tif"], tmp_path / "out")
    most, least = ([find.caption for find in some] for some in (seen[0].most_certain, seen[0].least_certain))
    assert (len(most), len(least)) == (13, 12) and not set(most) & set(least)


def test_figures_of_parcels_are_rounded_in_the_table(tmp_path):
    write_tif(tmp_path / "town.tif", town())
    parcels = geopandas.GeoDataFrame(
        {"share": [1 / 3]}, geometry=[shapely.box(500_000, 5_799_960, 500_020, 5_800_000)], crs=UTM
    )
    parcels.to_file(tmp_path / "parcels.gpkg")
    do([tmp_path / "town.tif"], tmp_path / "out", parcels=tmp_path / "parcels.gpkg")
    (row,) = rows(tmp_path / "out/parcels.csv")
    assert float(row["panel_area_m2"]) > 0 and len(row["panel_area_m2"].split(".")[1]) <= 3
    assert len(row["panel_probability"].partition(".")[2]) <= 6
    assert float(row["share"]) == 1 / 3  # the user's own are left alone
