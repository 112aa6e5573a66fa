"""Claim: areas of arrays in fields, in imagery far coarser than the bundled model was made for.

    python benchmarks/area_arrays.py

Jiangsu tiles of PV03 (1.2 m per pixel) and PV08 (3.2 m), of which the model saw none; its range ends at 0.6 m, so a
survey calls every window `gsd-out-of-range`, and these figures say what that is worth.  The masks outline whole
arrays, gaps between rows included.  Windows are those of a survey, 31.2 m; calibrated on the windows of other places
(tiles within 1 km are one), scored in bins of the area that a window holds, and summed to whole tiles.
"""

import argparse
import tempfile
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import results
from area_jiangsu import counts, figures

from negah.images.sources import find_sources
from negah.probe.detector import load
from negah.probe.splits import location_groups
from negah.runs.aerial.tiles import read_csv
from negah.runs.calibrate import Pair, compare
from negah.solar.calibration import PRESENT_M2, HeldOut, Seen, held_out

SETS = {"jiangsu-pv03": 24, "jiangsu-pv08": 6}  # tiles of each, drawn with seed 0
BINS_M2 = (PRESENT_M2, 100.0, 400.0, np.inf)
THRESHOLD, REPEATS, NEAR_M = 0.5, 3, 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.parse_args()
    data, detector, found = results.data_folder(), load("negah/aerial-tiny"), []
    every = read_csv(data / "pv-masks/tiles.csv")
    for name, count in SETS.items():
        rows = [row for row in every if row["set"] == name]
        rows = [rows[k] for k in sorted(np.random.default_rng(0).permutation(len(rows))[:count])]
        spots = [float(r["lat"]) for r in rows], [float(r["lon"]) for r in rows]
        place = location_groups(*spots, distance_m=NEAR_M)
        gsd = float(rows[0]["effective_gsd_m"])
        with tempfile.TemporaryDirectory() as folder:
            for kind in ("image", "mask"):
                with zipfile.ZipFile(data / f"pv-masks/{kind}s.zip") as archive:
                    archive.extractall(Path(folder) / kind, [row[kind] for row in rows])
            pairs = [
                Pair(*(find_sources([f"{folder}/{kind}/{row[kind]}"])[0] for kind in ("image", "mask"))) for row in rows
            ]
            seen, _, failures = compare(pairs, detector, gsd_m=gsd, threshold=THRESHOLD)
        assert not failures, failures
        tile = seen.place  # without a CRS each picture is a place
        seen = replace(seen, place=place[tile])
        outs = [held_out(seen, zoom=2, seed=seed) for seed in range(REPEATS)]
        about = {"set": name, "gsd_m": gsd}
        found.append(about | {"of": "tiles"} | of_tiles(seen, outs, tile))
        found.append(about | {"of": "windows"} | counts(seen) | figures(seen, outs))
        for low, high in pairwise(BINS_M2):
            some = (seen.true_m2 >= low) & (seen.true_m2 < high)
            found.append(about | {"of": f"windows_{low:g}_to_{high:g}_m2"} | of_bin(seen, outs, some))
        print(*found[-5:], sep="\n", flush=True)
    head = found[0]
    path = results.write(
        "area_arrays", claim="Median error of the area of an array tile at 1.2 m per pixel, calibrated on other places",
        rows=found, seeds=list(range(REPEATS)), packages=("numpy", "scipy"),
        headline={"value": head["median_error"], "unit": "of the true area, PV03", "target": None, "better": "lower"},
    )  # fmt: skip
    print(path)


def of_tiles(seen: Seen, outs: list[HeldOut], tile: np.ndarray) -> dict:
    """Sums over each tile, as the sum of a survey is corrected."""
    true = np.bincount(tile, seen.true_m2)
    sums = [np.bincount(tile, out.summed) for out in outs]
    return {
        "tiles": len(true),
        "median_error": float(np.mean([np.median(np.abs(s - true) / true) for s in sums])),
        "bias": float(np.mean([s.sum() / true.sum() - 1 for s in sums])),
    }


def of_bin(seen: Seen, outs: list[HeldOut], some: np.ndarray) -> dict:
    true = seen.true_m2[some]
    return {
        "tiles": int(some.sum()),
        "found": int((outs[0].area[some] > 0).sum()),
        "median_error": float(np.mean([np.median(np.abs(out.area[some] - true) / true) for out in outs])),
        "bias": float(np.mean([out.area[some].sum() / true.sum() - 1 for out in outs])),
    }


if __name__ == "__main__":
    main()
