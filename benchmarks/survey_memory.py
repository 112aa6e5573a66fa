"""Claim: the memory of `negah survey` hardly grows with the raster.

    python benchmarks/survey_memory.py --work runs/memory      # --work keeps the towns, which take minutes to draw

Two generated towns of 10,000 and 20,000 pixels a side are surveyed with the bundled model by the command line, each in
a process of its own; the figure is the most memory that the process ever held, by the operating system's account.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import results

from negah.images.scenes import write_town

SIDES, TARGET_MB, GROWTH = (10_000, 20_000), 2500, 0.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/memory"), help="where towns and surveys go")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for side in SIDES:
        town = args.work / f"town{side}.tif"
        if not town.exists():
            write_town(town, size_px=side, seed=1)
        rows.append(measure(town, args.work / f"survey{side}", side))
        print(rows[-1])
    small, large = rows
    growth = large["peak_mb"] / small["peak_mb"] - 1
    path = results.write(
        "survey_memory", claim="Peak memory of a survey of a 20,000 px raster, and its growth from 10,000 px",
        rows=rows, seeds=[1], packages=("rasterio", "numpy"), growth=round(growth, 4), growth_target=GROWTH,
        headline={"value": large["peak_mb"], "unit": f"MB at 20,000 px, {growth:+.1%} from 10,000 px",
                  "target": TARGET_MB, "better": "lower"},
    )  # fmt: skip
    print(path)


def measure(town: Path, out: Path, side: int) -> dict:
    """One survey by the command line, in a process of its own."""
    if out.exists():
        shutil.rmtree(out)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "negah", "survey", str(town), "--out", str(out), "--json"],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, said
    totals = json.loads(said)
    return {
        "side_px": side, "windows": sum(totals["windows"].values()), "seconds": round(time.perf_counter() - start, 1),
        "peak_mb": round(usage.ru_maxrss / 1024), "panels": totals["panels"], "area_m2": round(totals["area_m2"], 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
