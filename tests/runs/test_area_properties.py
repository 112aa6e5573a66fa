"""What an area must not depend on."""

import csv
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from negah.images.scenes import render
from negah.images.sources import find_sources
from negah.probe.detector import load
from negah.runs.calibrate import Pair, compare
from negah.runs.record import fingerprint_of
from negah.runs.survey import Options, survey
from negah.solar import calibration
from negah.solar.area import Cells, glances, look_at
from negah.solar.calibration import Bins, Calibration, Fit

DATA = Path(os.environ.get("NEGAH_DATA", Path(__file__).parents[3] / "shared/data"))


def plain(threshold: float) -> Calibration:
    """The head as it was trained."""
    return Calibration(
        model=fingerprint_of(load("negah/aerial-tiny"))[:12], threshold=threshold, region="", windows=20, places=2,
        gsd_m=(0.3, 0.3), sizes_m2=(1.0, 900.0), cells=Cells(2, 0.3, 0.0, 1.0, (0.0, 0.0, 0.0)),
        fit=Fit(0.0, 1.0, 1.0, 3.0, 1.0), bins=(Bins(0.3, (), (0.5,), (2.0,)),), missed_m2=0.0, ratio=1.0, place=0.1,
        noise=0.3,
    )  # fmt: skip


def areas(paths: list[str], out: Path, given: Path) -> dict[str, str]:
    survey(paths, out, [load("negah/aerial-tiny")], Options(gsd_m=0.3, calibration=given, precision="fp32"))
    with (out / "tiles.csv").open(newline="") as file:
        return {Path(row["source"]).name: row["area_m2"] for row in csv.DictReader(file)}


def test_a_tile_is_measured_alike_alone_with_others_and_in_any_order(tmp_path):
    calibration.save(plain(0.05), tmp_path / "c.json", about={})
    paths = []
    for seed in range(5):
        paths.append(str(tmp_path / f"{seed}.png"))
        Image.fromarray(render(104, 0.3, seed=seed, panels="some").image).save(paths[-1])
    together = areas(paths, tmp_path / "together", tmp_path / "c.json")
    turned = areas(paths[::-1], tmp_path / "turned", tmp_path / "c.json")
    alone = areas(paths[2:3], tmp_path / "alone", tmp_path / "c.json")
    assert sum(float(area) > 0 for area in together.values()) >= 2
    for name, area in {**alone, **turned}.items():
        # The look itself is the same to the last bit; the probability that weighs it comes from a batch.
        assert float(together[name]) == pytest.approx(float(area), rel=1e-4, abs=1e-3)


def test_empty_ground_measures_exactly_nothing(tmp_path):
    calibration.save(plain(0.755), tmp_path / "c.json", about={})
    rng = np.random.default_rng(0)
    for name, image in {"black": np.zeros((104, 104, 3)), "noise": rng.integers(100, 110, (104, 104, 3))}.items():
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("black", "noise")]
    assert set(areas(paths, tmp_path / "out", tmp_path / "c.json").values()) == {"0.000"}


@pytest.mark.skipif(not (DATA / "pv-masks").is_dir(), reason=f"no masks at {DATA}/pv-masks: set NEGAH_DATA")
def test_moving_turning_and_mirroring_stay_inside_the_interval(tmp_path):
    """On real tiles, calibrated on others: a half patch to the side, mirrored, turned by 90 degrees."""
    detector, pairs = load("negah/aerial-tiny"), []
    with (DATA / "pv-masks/tiles.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "jiangsu-pv01"][::3]
    for row in rows:
        pair = []
        for kind in ("image", "mask"):
            path = tmp_path / f"{kind}-{row[kind]}"
            with Image.open(find_in(DATA / f"pv-masks/{kind}s.zip", row[kind])) as picture:
                picture.resize((85, 85), Image.Resampling.BOX).save(path)
            pair.append(find_sources([str(path)])[0])
        pairs.append(Pair(*pair))
    seen, _, _ = compare(pairs, detector, gsd_m=25.6 / 85, threshold=0.5, precision="fp32")
    test = np.arange(len(seen)) % 4 == 0
    made = calibration.calibrate(seen.of(~test), zoom=2)

    def measured(image: torch.Tensor) -> float:
        with torch.inference_mode():
            reading = detector(image[None])
            probability = reading.logit.sigmoid().numpy()
            first = glances(reading, [0], rows=image.shape[1] // 8)[0]
            look = look_at(detector, image, first, patch=8, zoom=2)
        cell_m2 = (0.3 * 8 / 4) ** 2
        x = np.array([made.cells.fraction(look).sum(dtype=np.float64) * cell_m2])
        return float(made.area(x, probability.astype(float))[0])

    inside = []
    for known in seen.of(test).found:
        assert known.look.image is not None
        image = torch.from_numpy(known.look.image.copy()).permute(2, 0, 1)
        area = np.array([measured(image)])
        low, high = made.interval(area, np.array([0.3]))
        shifted = torch.nn.functional.pad(image[None].float(), (4, 4, 4, 4), mode="reflect")[0, :, :-8, :-8]
        for view in (shifted.to(torch.uint8), image.flip(-1), image.flip(-2), image.rot90(1, (1, 2))):
            inside.append(low[0] <= measured(view) <= high[0])
    assert len(inside) >= 24 and np.mean(inside) >= 0.95  # few leave it: see docs/limits.md


def find_in(archive: Path, name: str):
    with zipfile.ZipFile(archive) as file:
        return io.BytesIO(file.read(name))
