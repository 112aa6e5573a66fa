import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from torch import nn

from negah.errors import InputError, OutputError
from negah.probe.attentive import Reading
from negah.probe.detector import Detector, DetectorInfo
from negah.runs import survey as runs
from negah.runs.labels import new_of, weights
from negah.runs.survey import Options, Summary, survey, totals
from negah.solar.plan import Axis
from negah.solar.sampling import LABELS

SIDE = 32


class Bright(Detector):
    """What is bright is panel."""

    def __init__(self):
        nn.Module.__init__(self)
        self.info = DetectorInfo(name="bright", window_px=SIDE)
        self.anchor = nn.Parameter(Detector.random().backbone.cls_token[0, 0, :1].detach().clone())
        self.eval()

    patch = 8  # pyright: ignore[reportAssignmentType]

    def forward(self, images, *, above=None):
        evidence = nn.functional.avg_pool2d(images.float() / 255, 8).mean(1).flatten(1).logit(eps=1e-3)
        n = evidence.shape[1]
        return Reading(evidence.amax(1), evidence.new_full((len(images), 1, n), 1 / n), evidence)


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


def test_labels_that_agree_leave_the_total_and_tell_no_range(town, tmp_path):
    out = tmp_path / "map"
    first = run(town, out, threshold=0.5, label_next=30)
    names = rows(out / "label-next.csv")
    assert len(names) == 30 and len({row["window"] for row in names}) == 30
    windows = {row["window"]: row for row in rows(out / "tiles.csv")}
    assert all(windows[row["window"]]["bounds"] == row["bounds"] for row in names)
    assert any("30 windows to label" in note for note in first.notes)
    with pytest.raises(
        InputError, match="is there already: fill it in and give it to --labels, with --label-next beside"
    ):
        run(town, out, threshold=0.5, label_next=30)
    fill(out / "label-next.csv", lambda row: float(row["area_m2"]))
    second = run(town, out, threshold=0.5, labels=out / "label-next.csv")
    assert second.area_m2 == pytest.approx(sum(float(row["area_m2"]) for row in windows.values()), rel=1e-3)
    assert (second.area_low, second.area_high, second.kw_low) == (None, None, None)
    assert second.rests_on == "no range: none of the 30 labelled windows was off" and second.continued
    assert second.area_m2 == pytest.approx(first.area_m2, rel=1e-3)  # panels sum to windows
    assert any("did not happen to meet" in note for note in second.notes)
    assert len(rows(out / "label-next.csv")) == 30  # nothing of it is lost


def test_more_windows_can_be_labelled_beside_those_that_are(town, tmp_path):
    out = tmp_path / "map"
    run(town, out, threshold=0.0, label_next=20)
    first = out / "label-next.csv"
    fill(first, lambda row: float(row["area_m2"]) / 2 + 1)
    kept = first.read_bytes()
    few = run(town, out, threshold=0.0, labels=first)
    more = run(town, out, threshold=0.0, labels=first, label_next=30)
    second = out / "label-next-2.csv"
    assert more.label_next == second and first.read_bytes() == kept and more.area_low == few.area_low
    table = rows(second)
    assert [row["draw"] for row in table] == ["1"] * 20 + ["2"] * 30
    assert len({row["window"] for row in table}) == 50
    assert [row["true_m2"] for row in table[:20]] == [row["true_m2"] for row in rows(first)]
    page = (out / "label-next-2.html").read_text(encoding="utf-8")
    assert page.count("<img") == 30 and "<b>row 22</b>" in page and "<b>row 51</b>" in page
    with pytest.raises(InputError, match="label-next-2.csv has 30 rows without true_m2: fill them in before more"):
        run(town, out, threshold=0.0, labels=second, label_next=10)
    fill(second, lambda row: float(row["area_m2"]) / 2 + 1)
    old = run(town, out, threshold=0.0, labels=first)
    assert any(f"{second} holds 50 labels on which this total does not rest" in remark for remark in old.remarks)
    with pytest.raises(InputError, match="label-next-2.csv is there already, with more windows to label"):
        run(town, out, threshold=0.0, labels=first, label_next=10)
    both = run(town, out, threshold=0.0, labels=second)
    assert not both.remarks and "the panels as measured: " in totals(both)["panel area"]
    true = sum(float(row["area_m2"]) for row in rows(out / "tiles.csv")) / 2 + 100
    assert both.labelled == 50 and both.area_low <= true <= both.area_high
    assert both.area_high - both.area_low < few.area_high - few.area_low
    run(town, out, threshold=0.0, labels=second, label_next=500)
    assert len(rows(out / "label-next-3.csv")) == 100
    fill(out / "label-next-3.csv", lambda row: 2.0)
    every = run(town, out, threshold=0.0, labels=out / "label-next-3.csv")
    assert every.area_low == every.area_m2 == every.area_high == 200
    with pytest.raises(InputError, match="no scored window is without a label"):
        run(town, out, threshold=0.0, labels=out / "label-next-3.csv", label_next=5)


def test_a_survey_says_which_labels_it_does_not_rest_on(town, tmp_path):
    out = tmp_path / "map"
    assert not run(town, out, label_next=5).remarks
    (out / "label-next-old.csv").symlink_to(tmp_path / "gone.csv")
    (out / "label-next-9.csv").write_text("something else")
    assert not run(town, out).remarks  # nothing is filled in
    fill(out / LABELS, lambda row: 1.0)
    again = run(town, out)
    assert again.remarks == [f"{out / LABELS} holds 5 labels on which this total does not rest: give it to --labels."]
    assert again.remarks[0] in again.notes and again.measured_m2 == again.area_m2
    few = run(town, out, labels=out / LABELS)
    assert [remark.split(":")[0] for remark in few.remarks] == ["5 labels tell little"]
    shutil.copy(town, tmp_path / "city.tif")
    other = survey([str(tmp_path / "city.tif")], out, [Detector.random(window_px=SIDE)], Options(overwrite=True))
    assert not other.remarks and (out / LABELS).exists()  # they are of other windows


def test_labels_of_an_image_that_was_exchanged_are_not_recommended_and_said_to_be(town, tmp_path):
    out = tmp_path / "map"
    run(town, out, threshold=0.0, label_next=60)
    fill(out / LABELS, lambda row: 1.0)
    with rasterio.open(town, "r+") as file:
        file.write(np.random.default_rng(1).integers(0, 120, (3, 10 * SIDE, 10 * SIDE), dtype=np.uint8))
    assert not run(town, out, threshold=0.0, overwrite=True).remarks
    other = run(town, out, threshold=0.0, labels=out / LABELS)
    assert len(other.remarks) == 1 and "Where the images are others, label anew" in other.remarks[0]
    again = run(town, out, threshold=0.9, overwrite=True, labels=out / LABELS)  # so says it with another threshold
    assert "another model, threshold or calibration" in again.remarks[0]
    with rasterio.open(town, "r+") as file:
        file.transform = from_origin(600_000, 5_800_000, 0.3, 0.3)
    with pytest.raises(
        InputError, match=r"has other bounds for window c\d+_r\d+ of .*town\.tif: it is of another image"
    ):
        run(town, tmp_path / "new", threshold=0.0, labels=out / LABELS)


def test_the_page_of_windows_has_a_scale_and_what_was_found(tmp_path):
    """A window whose left half is panel, then half a window with nothing: each with its outline and a bar."""
    path, out = tmp_path / "strip.tif", tmp_path / "map"
    image = np.zeros((3, SIDE, 3 * SIDE // 2), np.uint8)
    image[:, :, : SIDE // 2] = 255
    with rasterio.open(
        path, "w", driver="GTiff", width=image.shape[2], height=SIDE, count=3, dtype="uint8", crs="EPSG:32633",
        transform=from_origin(500_000, 5_800_000, 0.3, 0.3),
    ) as file:  # fmt: skip
        file.write(image)
    survey([str(path)], out, [Bright()], Options(precision="fp32", label_next=2))
    figures = (out / "label-next.html").read_text(encoding="utf-8").split("<figure>")[1:]
    (half,) = (figure for figure in figures if "c16_r0" in figure)
    (whole,) = (figure for figure in figures if "c0_r0" in figure)
    # windows of 4 x 4 cells, of which the second shows the last two columns; both are 0.3 m a pixel
    assert 'viewBox="0 0 4 4"' in whole and 'viewBox="2 0 2 4"' in half
    assert all(f"M2 {row}v1" in whole for row in range(4)) and "v1" not in half
    assert 'style="width: 20.8%">2 m<' in whole and 'style="width: 41.7%">2 m<' in half  # of 9.6 and 4.8 m
    assert 'style="width: 100.0%"><div class="photo">' in whole and 'style="width: 50.0%"><div class="photo">' in half


def test_labels_correct_a_detector_that_is_off(town, tmp_path):
    out = tmp_path / "map"
    first = run(town, out, threshold=0.0, label_next=60)
    fill(out / "label-next.csv", lambda row: float(row["area_m2"]) / 2 + 1)
    second = run(town, out, threshold=0.0, labels=out / "label-next.csv")
    true = sum(float(row["area_m2"]) for row in rows(out / "tiles.csv")) / 2 + 100
    assert second.area_low is not None and second.area_high is not None
    assert second.area_low <= true <= second.area_high and abs(second.area_m2 / true - 1) < 0.1
    assert second.rests_on == "90 %, from 60 labelled windows"
    assert abs(first.area_m2 / true - 1) > 0.4


def test_a_label_larger_than_its_window_is_refused(town, tmp_path):
    run(town, tmp_path / "map", label_next=8)
    path = tmp_path / "map" / LABELS
    fill(path, lambda row: 120.0)  # one decimal point is missing: windows are of 92 m2
    with pytest.raises(InputError, match=r"true_m2 120 for window c\d+_r\d+ of .*town.tif, which is 92 m² of ground"):
        run(town, tmp_path / "map", labels=path)


def test_what_cannot_be_labelled_is_said_before_the_survey_begins(town, tmp_path):
    out = tmp_path / "map"
    with pytest.raises(InputError, match="leave out --overlap"):
        run(town, out, overlap=0.5, label_next=5)
    with pytest.raises(InputError, match="reach over --aoi"):
        run(town, out, aoi=tmp_path / "quarter.geojson", label_next=5)
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


def test_ground_that_two_windows_share_counts_once_wherever_its_panels_are(tmp_path):
    """Two windows of which the second is shifted half over the first; all that is bright lies in both."""
    path, out = tmp_path / "strip.tif", tmp_path / "map"
    image = np.zeros((3, SIDE, 3 * SIDE // 2), np.uint8)
    image[:, :, SIDE // 2 : SIDE] = 255
    with rasterio.open(
        path, "w", driver="GTiff", width=image.shape[2], height=SIDE, count=3, dtype="uint8", crs="EPSG:32633",
        transform=from_origin(500_000, 5_800_000, 0.3, 0.3),
    ) as file:  # fmt: skip
        file.write(image)

    def do(**options) -> Summary:
        return survey([str(path)], out, [Bright()], Options(precision="fp32", **options))

    do(label_next=2)
    first, second = sorted(rows(out / "label-next.csv"), key=lambda row: row["window"])
    assert float(first["area_m2"]) == pytest.approx(16 * 32 * 0.09, rel=0.02) and float(second["area_m2"]) < 0.5
    left, _, right, _ = map(float, second["bounds"].split())
    assert (right - left) == pytest.approx(16 * 0.3) and right == pytest.approx(500_000 + 48 * 0.3)
    fill(out / "label-next.csv", lambda row: 46.08 if row["window"] == "c0_r0" else 0.0)
    total = do(labels=out / "label-next.csv")
    assert total.area_m2 == total.area_low == total.area_high == pytest.approx(46.08)


def test_labels_of_another_frame_are_refused_and_a_failed_run_leaves_none(town, tmp_path, monkeypatch):
    out = tmp_path / "map"

    def fails(*_: object) -> None:
        raise OutputError("the report cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_report", fails)
        with pytest.raises(OutputError):
            run(town, out, label_next=5)
    assert not (out / "label-next.csv").exists()
    run(town, out, label_next=5)
    fill(out / "label-next.csv", lambda row: 1.0)
    shutil.copy(town, tmp_path / "city.tif")
    with pytest.raises(InputError, match=r"drawn from 100 windows, and this survey scored 200"):
        survey(
            [str(town), str(tmp_path / "city.tif")], tmp_path / "both", [Detector.random(window_px=SIDE)],
            Options(precision="fp32", labels=out / "label-next.csv"),
        )  # fmt: skip


def test_more_labels_than_windows_are_all_windows(town, tmp_path):
    summary = run(town, tmp_path / "map", label_next=500)
    assert len(rows(tmp_path / "map/label-next.csv")) == 100
    page = (tmp_path / "map/label-next.html").read_text(encoding="utf-8")
    assert page.count("<img") == 100 and "<b>row 101</b>" in page
    assert page.count(f">{(0.3 * SIDE) ** 2:,.0f} m² of ground<") == 100
    assert any("100 windows to label, and label-next.html beside it" in note for note in summary.notes)


def test_the_new_part_of_a_window_is_its_end():
    axis = Axis(size=72, window=32, stride=32, cells=4, model=32)
    assert new_of(axis).tolist() == [32, 32, 8]
    assert weights(axis, 8).tolist() == [0, 0, 0, 1] and weights(axis, 12).tolist() == [0, 0, 0.5, 1]


def test_a_total_from_labels_is_not_said_to_rest_on_factors_too(town, tmp_path):
    detector = Detector.random(window_px=SIDE)
    detector.info = replace(detector.info, area_ratio=(0.5, 2.0))

    def done(**options) -> Summary:
        return survey([str(town)], tmp_path / "out", [detector], Options(precision="fp32", **options))

    drawn = done(label_next=30)
    assert drawn.label_next == tmp_path / "out" / LABELS and any("total's range" in note for note in drawn.notes)
    fill(tmp_path / "out" / LABELS, lambda row: float(row["area_m2"]))
    summary = done(labels=tmp_path / "out" / LABELS)
    assert "labelled windows" in summary.rests_on and summary.label_next is None
    assert not any("total's range" in note for note in summary.notes)


def test_labels_below_a_gap_are_left_out_and_that_is_said(town, tmp_path):
    run(town, tmp_path / "out", label_next=30)
    path = tmp_path / "out" / LABELS
    fill(path, lambda row: float(row["area_m2"]))
    lines = path.read_text().splitlines()
    count = len(lines) - 1
    lines[count - 4] = lines[count - 4].rsplit(",", 1)[0] + ","  # the fifth from below
    path.write_text("\n".join(lines) + "\n")
    summary = run(town, tmp_path / "out", labels=path)
    assert summary.labelled == count - 5
    assert any("empty or deleted row before 4 that are filled in" in note for note in summary.notes)
    assert set(summary.remarks) <= set(summary.notes)
    assert "25 labels tell little" in summary.remarks[1] and f"1 row of {path} is empty" in summary.remarks[1]
