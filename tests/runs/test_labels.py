import csv
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from negah.errors import InputError
from negah.probe.detector import Detector
from negah.runs.labels import new_share
from negah.runs.survey import Options, Summary, survey
from negah.solar.plan import Axis

SIDE = 32


@pytest.fixture
def town(tmp_path) -> Path:
    """Ten by ten windows of noise."""
    path = tmp_path / "town.tif"
    image = np.random.default_rng(0).integers(0, 255, (3, 10 * SIDE, 10 * SIDE), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=10 * SIDE, height=10 * SIDE, count=3, dtype="uint8", crs="EPSG:32633",
        transform=from_origin(500_000, 5_800_000, 0.3, 0.3),
    ) as file:  # fmt: skip
        file.write(image)
    return path


def run(town: Path, out: Path, **options) -> Summary:
    return survey([str(town)], out, [Detector.random(window_px=SIDE)], Options(precision="fp32", **options))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, true) -> None:
    """Fill in true_m2 as a user would, from each row."""
    table = rows(path)
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, table[0].keys())
        out.writeheader()
        out.writerows({**row, "true_m2": "" if true(row) is None else f"{true(row):.3f}"} for row in table)


def test_labels_that_agree_leave_the_total_and_narrow_it(town, tmp_path):
    out = tmp_path / "map"
    first = run(town, out, threshold=0.5, label_next=30)
    names = rows(out / "label-next.csv")
    assert len(names) == 30 and len({row["window"] for row in names}) == 30
    windows = {row["window"]: row for row in rows(out / "tiles.csv")}
    assert all(windows[row["window"]]["bounds"] == row["bounds"] for row in names)
    assert any("30 windows to label" in note for note in first.notes)
    with pytest.raises(InputError, match="is there already"):
        run(town, out, threshold=0.5, label_next=30)
    fill(out / "label-next.csv", lambda row: float(row["area_m2"]))
    second = run(town, out, threshold=0.5, labels=out / "label-next.csv")
    assert second.area_m2 == pytest.approx(sum(float(row["area_m2"]) for row in windows.values()), rel=1e-3)
    assert second.area_low == pytest.approx(second.area_m2, rel=1e-3) == second.area_high
    assert second.rests_on == "90 %, from 30 labelled windows" and second.continued
    assert len(rows(out / "label-next.csv")) == 30  # nothing of it is lost


def test_labels_correct_a_detector_that_is_off(town, tmp_path):
    out = tmp_path / "map"
    first = run(town, out, threshold=0.0, label_next=60)
    fill(out / "label-next.csv", lambda row: 2 * float(row["area_m2"]) + 1)
    second = run(town, out, threshold=0.0, labels=out / "label-next.csv")
    true = 2 * sum(float(row["area_m2"]) for row in rows(out / "tiles.csv")) + 100
    assert second.area_low is not None and second.area_high is not None
    assert second.area_low <= true <= second.area_high and abs(second.area_m2 / true - 1) < 0.1
    assert abs(first.area_m2 / true - 1) > 0.4


def test_what_cannot_be_labelled_is_said_before_the_survey_begins(town, tmp_path):
    out = tmp_path / "map"
    with pytest.raises(InputError, match="leave out --overlap"):
        run(town, out, overlap=0.5, label_next=5)
    with pytest.raises(InputError, match="at least 1"):
        run(town, out, label_next=0)
    with pytest.raises(InputError, match="cannot be read"):
        run(town, out, labels=tmp_path / "none.csv")
    assert not out.exists()
    run(town, out, label_next=5)
    fill(out / "label-next.csv", lambda row: 1.0)
    other = tmp_path / "other.csv"
    other.write_text((out / "label-next.csv").read_text().replace("town.tif", "city.tif"))
    with pytest.raises(InputError, match=r"city\.tif, which this survey did not score"):
        run(town, out, labels=other)


def test_ground_that_two_windows_share_counts_once():
    assert new_share(Axis(size=96, window=32, stride=32, cells=4, model=32)).tolist() == [1, 1, 1]
    assert new_share(Axis(size=72, window=32, stride=32, cells=4, model=32)).tolist() == [1, 1, 0.25]
