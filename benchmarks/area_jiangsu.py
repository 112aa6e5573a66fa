"""Claim: calibrated on masks, the survey's areas of Jiangsu tiles are right for single tiles and for their sum.

    python benchmarks/area_jiangsu.py

Tiles of 0.1 m with masks (PV01), estimated by the bundled model as in a survey.  Every figure is of tiles whose place
(tiles within 300 m) took no part in their calibration: cross-conformal prediction over folds of places, repeated with
other folds.  The model itself was trained on masks of four in five neighbourhoods, so the row of the tiles that were
kept aside from it counts; they are all of one place, where folds are of single tiles, which flatters.  The row of all
tiles says what a region gets whose tiles trained the model.  A tile in which nothing is found is wrong by all it holds.
"""

import csv
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import results

from negah.images.sources import find_sources
from negah.probe.detector import load
from negah.probe.splits import grouped_folds, location_groups
from negah.runs.calibrate import Pair, compare
from negah.solar.calibration import PRESENT_M2, assess

TARGET, REPEATS = 0.20, 10


def main() -> None:
    data = results.data_folder() / "pv-masks"
    with (data / "tiles.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "jiangsu-pv01"]
    spots = [float(r["lat"]) for r in rows], [float(r["lon"]) for r in rows]
    place = location_groups(*spots, distance_m=300)
    aside = grouped_folds(place, np.zeros(len(rows), int), folds=5) == 0  # as the recipe splits them
    detector = load("negah/aerial-tiny")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("images", "masks"):
            with zipfile.ZipFile(data / f"{kind}.zip") as archive:
                archive.extractall(Path(folder) / kind, [row[kind.removesuffix("s")] for row in rows])
        pairs = []
        for row in rows:
            (picture,), (mask,) = (find_sources([f"{folder}/{k}s/{row[k]}"]) for k in ("image", "mask"))
            pairs.append(Pair(picture, mask))
        threshold = detector.info.threshold
        windows, kept, _, failures = compare(
            pairs, detector, gsd=0.1, threshold=threshold, distance_m=300, precision="auto", progress=lambda *_: None
        )
    assert not failures and len(kept) == len(rows) == len(windows.place), failures
    windows = windows._replace(place=place)
    found = []
    for name, which in (("kept_aside", aside), ("all", np.ones(len(rows), bool))):
        some = windows.of(which)
        seen = [assess(some, seed=seed) for seed in range(REPEATS)]
        figures = {key: float(np.mean([asdict(s)[key] for s in seen])) for key in asdict(seen[0])}
        spread = {
            f"{key}_{end}": float(np.quantile([asdict(s)[key] for s in seen], q))
            for key in ("median_error", "bias", "coverage")
            for end, q in (("low", 0.05), ("high", 0.95))
        }
        counts = {
            "tiles": int(which.sum()),
            "places": len(np.unique(place[which])),
            "with_panels": int((some.true_m2 >= PRESENT_M2).sum()),
            "found": int((some.area_m2 > 0).sum()),
            "true_m2": float(some.true_m2.sum()),
        }
        found.append({"name": name} | counts | figures | spread)
        print(found[-1])
    path = results.write(
        "area_jiangsu", claim="Median error of the area of a Jiangsu tile, calibrated on other places' masks",
        rows=found, seeds=list(range(REPEATS)), packages=("numpy", "scipy"), repeats=REPEATS,
        headline={"value": found[0]["median_error"], "unit": "of the true area, tiles that trained nothing",
                  "target": TARGET, "better": "lower"},
    )  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
