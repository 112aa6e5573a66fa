"""Claim: calibrated areas, with a closer look at every window with panels, cost a quarter of a survey's time at most.

    python benchmarks/survey_area_cost.py

A closer look costs about as much as some windows, so what it adds depends on how many windows hold panels.  Rasters of
32 x 32 windows are laid out from UC Merced windows (no panels) and Duke tiles with panels, which take `SHARES` of them.
In the four Californian cities of the Duke collection there are some fifteen arrays to the square kilometre, so panels
in less than 2 % of such windows (Bradbury et al. 2016); what a model finds falsely comes on top.  The same raster is
surveyed without and with a calibration, one right after the other, in this process, which of them first in turn; of
each pair the ratio, for the whole survey and for the windows alone, and of all pairs the median.  Beside the time by
the clock, which others on the machine stretch, stands that of the processor.  The calibration is made here, on Jiangsu
tiles, at the model's own threshold.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import results
from area_jiangsu import extracted
from rasterio.transform import from_origin

from negah.probe.detector import load
from negah.runs.aerial.tiles import GSD_M, WINDOW_PX, background, duke, jiangsu
from negah.runs.calibrate import calibrate
from negah.runs.survey import Options, survey

SHARES, SIDE, TARGET, HEADLINE = (0.0, 0.02, 0.05, 0.1), 32, 1.25, 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    data, detector = results.data_folder(), load("negah/aerial-tiny")
    tiles, empty = duke(data).labelled, background(data, kept_aside=True).images
    panels, rng, rows = tiles.images[tiles.labels == 1], np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        extracted(data, jiangsu(data, folds=2)[0], work, 256)
        made = calibrate(work, work / "calibration.json", detector, gsd_m=0.1)
        for share in SHARES:
            raster = work / f"town{share}.tif"
            write(raster, empty, panels, share, rng)
            rows.append({"share_with_panels": share} | timed(raster, detector, made.path, work / "out", args.repeat))
            print(rows[-1], flush=True)
    head = next(row for row in rows if row["share_with_panels"] == HEADLINE)
    path = results.write(
        "survey_area_cost", claim="Time of a survey with a calibration over one without, panels in 2 % of its windows",
        rows=rows, seeds=[0], packages=("numpy", "rasterio"), repeats=args.repeat,
        headline={"value": head["ratio"], "unit": "times the time of the whole survey", "target": TARGET,
                  "better": "lower"},
    )  # fmt: skip
    print(path)


def write(path: Path, empty: np.ndarray, panels: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """A raster of windows, of which a share hold panels."""
    count = SIDE * SIDE
    windows = empty[rng.integers(len(empty), size=count)]
    which = rng.permutation(count)[: round(share * count)]
    windows[which] = panels[rng.integers(len(panels), size=len(which))]
    size = SIDE * WINDOW_PX
    image = windows.reshape(SIDE, SIDE, WINDOW_PX, WINDOW_PX, 3).transpose(4, 0, 2, 1, 3).reshape(3, size, size)
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=3, dtype="uint8", crs="EPSG:32610", tiled=True,
        transform=from_origin(500_000, 4_000_000, GSD_M, GSD_M), compress="deflate",
    ) as file:  # fmt: skip
        file.write(image)


def timed(raster: Path, detector, calibration: Path, out: Path, repeat: int) -> dict:
    spent: dict[str, dict[str, list[float]]] = {
        kind: {"whole": [], "windows": [], "cpu": []} for kind in ("plain", "calibrated")
    }
    found = 0
    for number in range(repeat):
        pair = [("plain", None), ("calibrated", calibration)]
        for kind, given in pair if number % 2 == 0 else reversed(pair):
            begun, worked = time.perf_counter(), time.process_time()
            summary = survey([str(raster)], out, [detector], Options(calibration=given, overwrite=True))
            spent[kind]["whole"].append(time.perf_counter() - begun)
            spent[kind]["cpu"].append(time.process_time() - worked)
            spent[kind]["windows"].append(summary.seconds)
            found = summary.windows_with_panels

    def ratios(of: str) -> list[float]:
        return [b / a for a, b in zip(spent["plain"][of], spent["calibrated"][of], strict=True)]

    return {
        "windows": SIDE * SIDE, "found": found, "plain_s": statistics.median(spent["plain"]["whole"]),
        "calibrated_s": statistics.median(spent["calibrated"]["whole"]), "ratio": statistics.median(ratios("whole")),
        "ratio_low": min(ratios("whole")), "ratio_high": max(ratios("whole")),
        "ratio_of_windows": statistics.median(ratios("windows")), "ratio_of_cpu": statistics.median(ratios("cpu")),
        "ratio_of_cpu_low": min(ratios("cpu")), "ratio_of_cpu_high": max(ratios("cpu")),
    }  # fmt: skip


if __name__ == "__main__":
    main()
