import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from torch import nn

from negah.cli.main import main
from negah.errors import InputError
from negah.probe.attentive import Reading
from negah.probe.detector import Detector, DetectorInfo
from negah.runs.calibrate import calibrate, pairs_of
from negah.runs.survey import Options, survey
from negah.solar import calibration

UTM = "EPSG:32633"
SIDE = 32


class Half(Detector):
    """Takes half of a patch's brightness for its panel fraction; attention even."""

    def __init__(self):
        nn.Module.__init__(self)
        self.info = DetectorInfo(name="half", window_px=SIDE, threshold=0.1)
        self.anchor = nn.Parameter(nn.Parameter(Detector.random().backbone.cls_token[0, 0, :1]))
        self.eval()

    patch = 8  # pyright: ignore[reportAssignmentType]

    def forward(self, images, *, above=None):
        fraction = nn.functional.avg_pool2d(images.float() / 255, 8).mean(1).flatten(1) / 2
        evidence = fraction.logit(eps=1e-6)
        n = evidence.shape[1]
        return Reading(evidence.max(1).values, evidence.new_full((len(images), 2, n), 1 / n), evidence)


def panels(count: int, seed: int = 0) -> np.ndarray:
    """A raster of count x count windows, each with a square of panel as bright as can be; a fifth have none."""
    rng = np.random.default_rng(seed)
    image = np.zeros((count * SIDE, count * SIDE), np.uint8)
    for row in range(count):
        for col in range(count):
            if rng.random() < 0.8:
                side = int(rng.integers(8, 28))
                image[row * SIDE : row * SIDE + side, col * SIDE : col * SIDE + side] = 255
    return image


def write(path: Path, image: np.ndarray, *, x: float = 500_000, crs: str = UTM, bands: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=bands, dtype=image.dtype, crs=crs,
        transform=from_origin(x, 5_800_000, 0.3, 0.3),
    ) as file:  # fmt: skip
        file.write(np.broadcast_to(image, (bands, height, width)))


@pytest.fixture
def masks(tmp_path) -> Path:
    """Six towns, kilometres apart, with their masks beside them; half of a town's pixels' brightness is measured."""
    for k in range(6):
        image = panels(4, seed=k)
        write(tmp_path / f"masks/town{k}.tif", image, x=500_000 + 5000 * k)
        write(tmp_path / f"masks/town{k}_mask.tif", image, x=500_000 + 5000 * k, bands=1)
    return tmp_path / "masks"


def run(masks: Path, out: Path, **options):
    return calibrate(masks, out, Half(), region="Half", precision="fp32", **options)


def test_a_detector_that_sees_half_is_doubled(masks, tmp_path):
    out = tmp_path / "half.json"
    result = run(masks, out)
    made, seen = result.calibration, result.assessment
    assert (made.windows, made.places, made.region) == (96, 6, "Half")
    assert seen.bias_before == pytest.approx(-0.5, abs=0.02) and abs(seen.bias) < 0.05
    assert seen.median_error < 0.06 < 0.4 < seen.median_error_before
    assert made.gsd_m == pytest.approx((0.3, 0.3), rel=1e-3)
    assert calibration.load(out) == made
    about = json.loads(out.read_text())["about"]
    assert about["detector"] == "half" and about["arguments"]["masks"] == str(masks)


def test_a_survey_takes_its_areas_from_it(masks, tmp_path):
    out = tmp_path / "half.json"
    run(masks, out)
    image = panels(6, seed=99)
    write(tmp_path / "new.tif", image)
    true = (image > 0).sum() * 0.09 / 0.9996**2
    plain = survey([str(tmp_path / "new.tif")], tmp_path / "plain", [Half()], Options(precision="fp32"))
    summary = survey(
        [str(tmp_path / "new.tif")], tmp_path / "map", [Half()], Options(precision="fp32", calibration=out)
    )
    assert plain.area_m2 < true * 0.55 and plain.area_low is None
    assert summary.area_m2 == pytest.approx(true, rel=0.05)
    assert summary.area_low is not None and summary.area_high is not None
    assert summary.area_low < summary.area_m2 < summary.area_high
    assert summary.panels == plain.panels  # what is a panel does not change, only how large it is
    assert any("calibrated on 96 windows of 6 places" in note for note in summary.notes)
    assert not any("it may not hold" in note for note in summary.notes)
    full = np.full_like(image, 255)  # more panel in a window than any mask had
    write(tmp_path / "full.tif", full)
    full_of_panel = survey(
        [str(tmp_path / "full.tif")], tmp_path / "full", [Half()], Options(precision="fp32", calibration=out)
    )
    assert any("36 windows hold more than" in note for note in full_of_panel.notes)
    with pytest.raises(Exception, match="another survey"):
        survey([str(tmp_path / "new.tif")], tmp_path / "map", [Half()], Options(precision="fp32"))


def test_a_calibration_of_another_model_or_threshold_is_refused(masks, tmp_path):
    run(masks, tmp_path / "half.json")
    write(tmp_path / "new.tif", panels(2))
    options = Options(precision="fp32", calibration=tmp_path / "half.json")
    with pytest.raises(InputError, match="made for another model"):
        survey([str(tmp_path / "new.tif")], tmp_path / "map", [Detector.random(window_px=SIDE)], options)
    with pytest.raises(InputError, match=r"threshold of 0\.1, and this survey's is 0\.3"):
        other = Options(precision="fp32", calibration=tmp_path / "half.json", threshold=0.3)
        survey([str(tmp_path / "new.tif")], tmp_path / "map", [Half()], other)
    assert not (tmp_path / "map").exists()
    run(masks, tmp_path / "low.json", threshold=0.05)
    own = Options(precision="fp32", calibration=tmp_path / "low.json")
    assert survey([str(tmp_path / "new.tif")], tmp_path / "map", [Half()], own).threshold == 0.05


def test_masks_of_zero_and_one_in_their_own_folder(masks, tmp_path):
    for path in sorted(masks.glob("town?.tif")):
        with rasterio.open(path) as file:
            image = file.read(1)
        for folder, values in (("images", image), ("masks", image // 255)):
            (tmp_path / "png" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / "png" / folder / f"{path.stem}.png")
    a, b = run(masks, tmp_path / "a.json"), run(tmp_path / "png", tmp_path / "b.json", gsd_m=0.3 / 0.9996)
    assert b.calibration.fit.area(np.array([50.0]), np.array([0.5]))[0] == pytest.approx(
        a.calibration.fit.area(np.array([50.0]), np.array([0.5]))[0], rel=1e-3
    )
    assert b.calibration.cells.bias == pytest.approx(a.calibration.cells.bias, abs=0.01)
    assert b.calibration.places == 6  # without a CRS each picture is a place
    assert not a.notes and any("count as a place each" in note for note in b.notes)


def test_masks_that_do_not_fit_are_listed_and_the_rest_is_used(masks, tmp_path):
    write(masks / "town0_mask.tif", panels(3), bands=1)
    write(masks / "town1_mask.tif", panels(4), x=505_000, crs="EPSG:32634", bands=1)
    write(masks / "town2_mask.tif", panels(4), x=510_100, bands=1)
    write(masks / "alone.tif", panels(4))
    (masks / "town3_mask.tif").write_bytes(b"")
    result = run(masks, tmp_path / "c.json")
    why = {Path(name).name: reason for name, reason in result.failures}
    assert "96 x 96 px and its picture 128 x 128" in why["town0_mask.tif"]
    assert "another CRS" in why["town1_mask.tif"] and "lies elsewhere" in why["town2_mask.tif"]
    assert why["alone.tif"] == "it has no mask" and "empty" in why["town3_mask.tif"]
    assert result.calibration.windows == 32


def test_what_cannot_be_calibrated_is_refused(masks, tmp_path):
    for path in masks.glob("town?_mask.tif"):
        write(path, np.zeros((128, 128), np.uint8), bands=1)
    with pytest.raises(InputError, match="all masks are empty"):
        run(masks, tmp_path / "c.json")
    for path in sorted(masks.glob("town*"))[2:]:
        path.unlink()
    write(masks / "town0_mask.tif", np.full((128, 128), 255, np.uint8), bands=1)
    with pytest.raises(InputError, match="at least 20 are needed"):
        run(masks, tmp_path / "c.json")
    (tmp_path / "nothing").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "nothing/a.png")
    with pytest.raises(InputError, match="no pair of a picture and a mask"):
        pairs_of(tmp_path / "nothing")
    with pytest.raises(InputError, match="is no folder"):
        pairs_of(tmp_path / "missing")
    assert not (tmp_path / "c.json").exists()


def test_masks_that_are_all_panel_are_doubted(masks, tmp_path):
    write(masks / "town0_mask.tif", np.full((128, 128), 255, np.uint8), bands=1)
    assert any("are those masks inverted" in note for note in run(masks, tmp_path / "c.json").notes)


def test_the_verb_says_what_it_found(tmp_path, capsys):
    from negah.images.scenes import write_town

    (tmp_path / "masks").mkdir()
    write_town(tmp_path / "masks/town.tif", size_px=1040, seed=3)
    status = main(["calibrate", "--masks", str(tmp_path / "masks"), "--threshold", "0.01", "--out",
                   str(tmp_path / "c.json"), "--json"])  # fmt: skip
    out, err = capsys.readouterr()
    assert status == 0, err
    told = json.loads(out)
    assert told["calibration"]["windows"] == 100 and 0 <= told["assessment"]["coverage"] <= 1
    assert any("one place" in note for note in told["notes"])


def test_a_calibration_for_other_pixels_gives_no_range_and_says_why(masks, tmp_path):
    run(masks, tmp_path / "half.json")
    made = calibration.load(tmp_path / "half.json")
    about = json.loads((tmp_path / "half.json").read_text())["about"]
    apart = replace(made, gsd_m=(0.1, 0.1), notes=("each picture is a place",))
    calibration.save(apart, tmp_path / "apart.json", about=about)
    write(tmp_path / "new.tif", panels(3))
    options = Options(precision="fp32", calibration=tmp_path / "apart.json")
    summary = survey([str(tmp_path / "new.tif")], tmp_path / "map", [Half()], options)
    assert (summary.area_low, summary.kw_low) == (None, None) and "90 %" not in summary.rests_on
    assert "the calibration does not hold here, 100% of the area is abstained (ground size out" in summary.rests_on
    assert "calibration does not hold here" in summary.notes[0]
    assert any("each picture is a place" in note for note in summary.notes)
    assert not any("total's range" in note for note in summary.notes)


def test_what_was_said_of_the_masks_is_kept_with_the_calibration(tmp_path):
    for k in range(3):
        write(tmp_path / f"masks/town{k}.tif", panels(4, seed=k), crs="")
        write(tmp_path / f"masks/town{k}_mask.tif", panels(4, seed=k), bands=1, crs="")
    result = run(tmp_path / "masks", tmp_path / "half.json", gsd_m=0.3)
    assert "count as a place each" in result.notes[0]
    assert calibration.load(tmp_path / "half.json").notes == tuple(result.notes)


def test_pictures_that_do_not_say_their_size_cannot_be_calibrated(tmp_path):
    write(tmp_path / "masks/town.tif", panels(2), crs="")
    write(tmp_path / "masks/town_mask.tif", panels(2), bands=1, crs="")
    with pytest.raises(InputError, match="nothing can be calibrated.*--gsd 0.3"):
        run(tmp_path / "masks", tmp_path / "half.json")
