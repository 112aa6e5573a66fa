"""Claim: empty ground measures nothing, and how the error of an area grows with the size of a pixel.

    python benchmarks/area_gsd.py            # also draws docs/img/area-gsd.svg

Generated scenes of 31.2 m at each ground size (their truth is exact), and the Jiangsu tiles that were kept aside from
negah/aerial-tiny, shrunk to it.  Areas are calibrated at that ground size on other scenes or tiles (folds of single
ones), at a threshold of `THRESHOLD`, as half of the generated arrays are not found at the model's own.

False areas are square metres measured per square kilometre of ground without panels: on the UC Merced windows that were
kept aside from the model, and on scenes without panels, at the model's own threshold.
"""

import argparse
import tempfile
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import results
import torch
from area_jiangsu import counts, figures
from PIL import Image

from negah.images.scenes import render
from negah.images.sources import find_sources
from negah.probe.detector import Detector, load
from negah.runs.aerial.score import readings
from negah.runs.aerial.tiles import GSD_M, WINDOW_PX, background, jiangsu
from negah.runs.calibrate import Pair, compare
from negah.solar.calibration import PRESENT_M2, held_out
from negah.solar.footprint import footprint

SIZES_M = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2)
SIDE_M, SCENES, SEED, THRESHOLD, REPEATS = 31.2, 100, 700_000, 0.5, 3
TILE_M = 25.6  # side of a Jiangsu tile
PICTURE = Path(__file__).resolve().parent.parent / "docs/img/area-gsd.svg"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--scenes", type=int, default=SCENES, help="at each ground size")
    args = parser.parse_args()
    data, detector = results.data_folder(), load("negah/aerial-tiny")
    rows = []
    for gsd in SIZES_M:
        for name, pictures in (("scenes", scenes(gsd, args.scenes)), ("jiangsu_kept_aside", tiles(data, gsd))):
            rows.append({"name": name, "gsd_m": gsd} | measured(detector, pictures, gsd))
            print(rows[-1], flush=True)
    windows = background(data, kept_aside=True).images
    rows.append({"name": "ucmerced_without_panels"} | false_area(detector, windows))
    empty = [image for image, mask in scenes(GSD_M, 3 * args.scenes) if not mask.any()]
    rows.append({"name": "scenes_without_panels"} | false_area(detector, np.stack(empty)))
    print(rows[-2:])
    draw(rows)
    value = rows[-2]["false_m2_per_km2"]
    path = results.write(
        "area_gsd", claim="Area measured per square kilometre of UC Merced pictures, which show no panels",
        rows=rows, seeds=[SEED], packages=("numpy", "matplotlib"),
        headline={"value": value, "unit": "m2 per km2", "target": None, "better": "lower"},
    )  # fmt: skip
    print(path)


def scenes(gsd: float, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and masks; the same streets at every ground size."""
    found = [render(round(SIDE_M / gsd), gsd, seed=SEED + k) for k in range(count)]
    return [(s.image, (s.mask * 255).round().astype(np.uint8)) for s in found]


def tiles(data: Path, gsd: float) -> list[tuple[np.ndarray, np.ndarray]]:
    rows, fold = jiangsu(data, folds=5)
    side, found = round(TILE_M / gsd), []
    with zipfile.ZipFile(data / "pv-masks/images.zip") as images, zipfile.ZipFile(data / "pv-masks/masks.zip") as masks:
        for row, k in zip(rows, fold, strict=True):
            if k == 0:
                parts = (Image.open(images.open(row["image"])), Image.open(masks.open(row["mask"])))
                found.append(tuple(np.asarray(p.resize((side, side), Image.Resampling.BOX)) for p in parts))
    return found


def measured(detector: Detector, pictures: list[tuple[np.ndarray, np.ndarray]], gsd: float) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for k, arrays in enumerate(pictures):
            paths = [Path(folder, f"{kind}{k}.png") for kind in ("image", "mask")]
            for path, array in zip(paths, arrays, strict=True):
                Image.fromarray(array).save(path)
            pairs.append(Pair(*(find_sources([str(path)])[0] for path in paths)))
        seen, _, failures = compare(pairs, detector, gsd_m=gsd, threshold=THRESHOLD)
    assert not failures, failures
    if len(seen.found) < 20:
        return counts(seen)
    outs = [held_out(seen, zoom=2, seed=seed) for seed in range(REPEATS)]
    present = (seen.true_m2 >= PRESENT_M2) & (outs[0].area > 0)
    errors = [np.median(np.abs(out.area - seen.true_m2)[present] / seen.true_m2[present]) for out in outs]
    return counts(seen) | figures(seen, outs) | {"median_error_of_found": float(np.mean(errors))}


@torch.inference_mode()
def false_area(detector: Detector, windows: np.ndarray) -> dict:
    threshold = detector.info.threshold
    fractions = torch.cat(
        [footprint(reading, threshold=threshold).fraction for reading in readings(detector, windows)]
    ).numpy()
    area = fractions.sum(1) * (GSD_M * detector.patch) ** 2
    km2 = len(windows) * (GSD_M * WINDOW_PX) ** 2 / 1e6
    return {
        "windows": len(windows), "km2": km2, "threshold": threshold, "false_m2_per_km2": float(area.sum() / km2),
        "windows_of_exactly_0": int((area == 0).sum()),
    }  # fmt: skip


def draw(rows: list[dict]) -> None:
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "negah"  # the same figures give the same file
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, layout="constrained")
    for name, words in (("scenes", "generated scenes"), ("jiangsu_kept_aside", "Jiangsu tiles, kept aside")):
        some = [r for r in rows if r["name"] == name and "median_error" in r]
        gsd = [r["gsd_m"] for r in some]
        for axis, key in zip(axes, ("median_error_of_found", "found"), strict=True):
            values = [r[key] if key != "found" else r[key] / r["tiles"] for r in some]
            axis.plot(gsd, [100 * v for v in values], "o-", label=words)
    axes[0].set_ylabel("median error of the area\nof windows with a find (%)")
    axes[1].set_ylabel("windows with a find (%)")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(SIZES_M, [f"{s:g}" for s in SIZES_M])
        axis.minorticks_off()
        axis.set_xlabel("ground sampling distance (m)")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
