"""Claim: calibrated areas, with a closer look at every window with panels, cost a quarter of a survey's time at most.

    python benchmarks/survey_area_cost.py

A closer look costs about as much as some windows, so what it adds depends on how many windows hold panels.  Rasters of
32 x 32 windows are laid out from UC Merced windows (no panels) and Duke tiles with panels, which take `SHARES` of them.
In the four Californian cities of the Duke collection there are some fifteen arrays to the square kilometre, so panels
in less than 2 % of such windows (Bradbury et al. 2016); what a model finds falsely comes on top.  The same raster is
surveyed without and with a calibration, in turn, in this process; medians of the time spent on the windows and of the
whole survey.  The calibration is made here, on Jiangsu tiles, at the model's own threshold.
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
        made = calibrate(work, work / "calibration.json", detector, gsd=0.1)
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
    spent: dict[str, list[float]] = {"plain": [], "calibrated": []}
    windows: dict[str, list[float]] = {"plain": [], "calibrated": []}
    found = 0
    for _ in range(repeat):
        for kind, given in (("plain", None), ("calibrated", calibration)):
            begun = time.perf_counter()
            summary = survey([str(raster)], out, [detector], Options(calibration=given, overwrite=True))
            spent[kind].append(time.perf_counter() - begun)
            windows[kind].append(summary.seconds)
            found = summary.windows_with_panels
    medians = {kind: statistics.median(values) for kind, values in spent.items()}
    on_windows = {kind: statistics.median(values) for kind, values in windows.items()}
    return {
        "windows": SIDE * SIDE, "found": found, "plain_s": medians["plain"], "calibrated_s": medians["calibrated"],
        "ratio": medians["calibrated"] / medians["plain"],
        "ratio_of_windows": on_windows["calibrated"] / on_windows["plain"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
