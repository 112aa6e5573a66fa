"""Claim: how much of what the bundled model reports in a generated town is there, and how much it misses.

    python benchmarks/generated_town.py

Towns of 1,000 px (300 m), drawn with the seeds 0 to 9; the first is the one in the README's picture.  A find is right
where it touches an array of the truth, and an array is found where it touches a find.
"""

import tempfile
from pathlib import Path

import geopandas
import results

from negah.images.scenes import write_town
from negah.probe.detector import load
from negah.runs.survey import Options, survey

SEEDS, SIDE_PX = range(10), 1000


def main() -> None:
    detector, rows = load("negah/aerial-tiny"), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            town, out = Path(folder) / f"town{seed}.tif", Path(folder) / f"map{seed}"
            write_town(town, size_px=SIDE_PX, seed=seed)
            summary = survey([str(town)], out, [detector], Options())
            truth = geopandas.read_file(town.with_name(f"{town.stem}_panels.gpkg"))
            finds = geopandas.read_parquet(out / "panels.parquet").to_crs(truth.crs)
            arrays, right = truth.geometry.union_all(), finds.geometry.union_all()
            rows.append({
                "seed": seed, "arrays": len(truth), "true_m2": float(truth.area.sum()),
                "arrays_found": int(truth.intersects(right).sum()), "finds": len(finds),
                "finds_on_arrays": int(finds.intersects(arrays).sum()), "reported_m2": summary.area_m2,
                "low_m2": summary.area_low, "high_m2": summary.area_high,
            })  # fmt: skip
            print(rows[-1])
    total = {key: sum(row[key] for row in rows) for key in ("arrays", "arrays_found", "finds", "finds_on_arrays")}
    path = results.write(
        "generated_town", claim="Share of the arrays of ten generated towns that the bundled model finds",
        rows=rows, seeds=list(SEEDS), packages=("rasterio", "geopandas"), totals=total,
        precision=total["finds_on_arrays"] / max(1, total["finds"]),
        headline={"value": total["arrays_found"] / total["arrays"], "unit": "of the arrays touch a find",
                  "target": None, "better": "higher"},
    )  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
