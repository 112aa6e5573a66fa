"""`negah survey --refine neighbours`: worked out by hand, across seams, beside figures that it leaves alone."""

import csv
import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from negah.cli.main import main
from negah.errors import InputError, OutputError, WeightsError
from negah.graph.edges import Edges
from negah.graph.refine import Refiner, save
from negah.probe.detector import Detector, load
from negah.runs import refine
from negah.runs.record import fingerprint_of
from negah.runs.survey import Options, Summary, survey
from negah.weights import load as load_backbone

SIDE, GSD = 32, 0.3


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Of random weights, but sure of itself: of the windows below it calls some."""
    made = Detector.random(seed=3, window_px=SIDE)
    with torch.no_grad():
        made.head.classifier.weight *= 100
        made.head.classifier.bias.fill_(-27)
    return made


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Refiner(32, width=8).eval()
    with torch.no_grad():
        made.last.weight *= 20  # so that neighbours are heard
    return made


@pytest.fixture(autouse=True)
def ours(tmp_path, detector, refiner, monkeypatch):
    path = tmp_path / "refiner.safetensors"
    save(refiner, path, detector=fingerprint_of(detector)[:12])
    monkeypatch.setattr(refine, "REFINER", str(path))


def image(rows: int = 4, cols: int = 3) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (3, rows * 4, cols * 4), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def write(path: Path, pixels: np.ndarray, *, col: int = 0, crs: str | None = "EPSG:32633") -> Path:
    """Where a metre of the map is one on the ground; `col` pixels east of the first."""
    where = {"crs": crs, "transform": from_origin(320_000 + col * GSD, 5_400_000, GSD, GSD)} if crs else {}
    size = {"height": pixels.shape[1], "width": pixels.shape[2], "count": 3}
    with rasterio.open(path, "w", driver="GTiff", dtype="uint8", **size, **where) as file:
        file.write(pixels)
    return path


def do(paths, out: Path, detector: Detector, refine: str = "neighbours", **options) -> Summary:
    asked = Options(precision="fp32", threshold=0.5, refine=refine, **options)  # pyright: ignore[reportArgumentType]
    return survey([str(path) for path in paths], out, [detector], asked)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_hand(detector: Detector, refiner: Refiner, pixels: np.ndarray, pairs: list[tuple[int, int]]) -> list[float]:
    """Refined probabilities of the windows of a picture, row by row, joined as `pairs` says."""
    tiles = torch.from_numpy(pixels).unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE)
    tiles = tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIDE, SIDE)
    with torch.inference_mode():
        reading = detector(tiles)
        feature = detector.backbone.tokens(tiles)[:, 1:].mean(1)
        edges = Edges.of(torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T, len(tiles), undirected=True)
        return refiner(feature, reading.logit, edges).sigmoid().tolist()


def touching(across: int, down: int) -> list[tuple[int, int]]:
    places = [(r, c) for r in range(down) for c in range(across)]
    return [
        (i, j) for i, (a, b) in enumerate(places) for j, (r, c) in enumerate(places)
        if i < j and max(abs(a - r), abs(b - c)) == 1
    ]  # fmt: skip


def test_refined_figures_are_those_of_windows_that_touch(tmp_path, detector, refiner):
    pixels = image()
    summary = do([write(tmp_path / "town.tif", pixels)], tmp_path / "out", detector)
    found = rows(tmp_path / "out/tiles.csv")
    expected = by_hand(detector, refiner, pixels, touching(3, 4))
    assert np.abs(np.array(expected) - by_hand(detector, refiner, pixels, [])).max() > 0.02  # so that it can be told
    assert [float(row["refined"]) for row in found] == pytest.approx(expected, abs=2e-4)  # features are kept in fp16
    assert summary.refined and summary.refined.windows == 12 and summary.refined.alone == 0

    before, after = (np.array([float(row[name]) for row in found]) >= 0.5 for name in ("probability", "refined"))
    counted = summary.refined.found, summary.refined.gained, summary.refined.lost
    assert counted == (after.sum(), (after & ~before).sum(), (before & ~after).sum())
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["refined"]["found"] == summary.refined.found and record["fingerprint"]["refine"]
    report = (tmp_path / "out/report.html").read_text()
    assert "In the light of their neighbours" in report and "generated towns" in report


def test_a_panel_has_the_highest_refined_probability_of_its_windows(tmp_path, detector):
    do([write(tmp_path / "town.tif", image())], tmp_path / "out", detector)
    found = {row["window"]: float(row["refined"]) for row in rows(tmp_path / "out/tiles.csv")}
    panels = geopandas.read_parquet(tmp_path / "out/panels.parquet")
    assert len(panels) and panels.refined.between(min(found.values()) - 1e-6, max(found.values()) + 1e-6).all()
    corner = panels.geometry.iloc[0].representative_point()
    col, row = (corner.x - 320_000) / GSD // SIDE, (5_400_000 - corner.y) / GSD // SIDE
    assert panels.refined[0] >= found[f"c{int(col) * SIDE}_r{int(row) * SIDE}"] - 1e-5


def test_what_the_detector_says_stays_as_it_is(tmp_path, detector):
    town = write(tmp_path / "town.tif", image())
    do([town], tmp_path / "plain", detector, "none")
    do([town], tmp_path / "out", detector)
    plain, found = rows(tmp_path / "plain/tiles.csv"), rows(tmp_path / "out/tiles.csv")
    assert plain == [{name: value for name, value in row.items() if name != "refined"} for row in found]
    panels = [geopandas.read_parquet(tmp_path / name / "panels.parquet") for name in ("plain", "out")]
    assert panels[0].equals(panels[1].drop(columns="refined")) and "refined" not in panels[0]


def test_windows_are_joined_across_rasters(tmp_path, detector):
    pixels = image()
    do([write(tmp_path / "town.tif", pixels)], tmp_path / "one", detector)
    west = write(tmp_path / "a.tif", pixels[:, :, :SIDE])
    east = write(tmp_path / "b.tif", pixels[:, :, SIDE:], col=SIDE)
    do([west, east], tmp_path / "two", detector)
    one, two = (
        {row["bounds"]: float(row["refined"]) for row in rows(tmp_path / out / "tiles.csv")} for out in ("one", "two")
    )
    assert two == pytest.approx(one, abs=1e-5)


def test_rasters_that_lie_nowhere_are_joined_within_themselves_alone(tmp_path, detector, refiner):
    pixels = image(1, 5)
    edges = (0, 2, 4, 5)
    parts = [
        write(tmp_path / f"{k}.tif", pixels[:, :, edges[k] * SIDE : edges[k + 1] * SIDE], crs=None) for k in range(3)
    ]  # fmt: skip
    summary = do(parts, tmp_path / "out", detector, gsd_m=GSD)
    found = [float(row["refined"]) for row in rows(tmp_path / "out/tiles.csv")]
    assert found == pytest.approx(by_hand(detector, refiner, pixels, [(0, 1), (2, 3)]), abs=2e-4)
    assert summary.refined and summary.refined.alone == 1 and "Without a neighbour: 1." in summary.refined.told


def test_continuing_gives_the_same_and_another_refinement_is_another_survey(tmp_path, detector):
    town = write(tmp_path / "town.tif", image())
    do([town], tmp_path / "out", detector)
    before = (tmp_path / "out/tiles.csv").read_text()
    do([town], tmp_path / "out", detector)
    assert (tmp_path / "out/tiles.csv").read_text() == before
    with pytest.raises(OutputError, match="refine was [0-9a-f]{12} there and is not given now"):
        do([town], tmp_path / "out", detector, "none")


def test_what_it_cannot_refine_is_refused_before_anything_is_done(tmp_path, detector):
    town = write(tmp_path / "town.tif", image())
    with pytest.raises(InputError, match="reads what negah/aerial-tiny says of windows, and no other model: leave out"):
        do([town], tmp_path / "out", Detector.random(seed=1, window_px=SIDE))
    with pytest.raises(InputError, match="looks at windows side by side: leave out --overlap, or --refine"):
        do([town], tmp_path / "out", detector, overlap=0.5)
    assert not (tmp_path / "out").exists()


def test_the_bundled_refiner_reads_the_bundled_detector(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(refine, "REFINER", "negah/refine-neighbours")
    detector = load("negah/aerial-tiny")
    found = refine.refining([detector], overlap=0.0)
    assert found.refiner.dim == detector.backbone.dim and found.side_m == pytest.approx(31.2)
    with pytest.raises(WeightsError, match=r"no backbone: negah\.graph\.refine reads it"):
        load_backbone("negah/refine-neighbours")
    town = write(tmp_path / "town.tif", np.zeros((3, 104, 208), np.uint8))
    assert main(["survey", str(town), "--out", str(tmp_path / "out"), "--refine", "neighbours"]) == 0
    assert "by their neighbours" in capsys.readouterr().out
