"""Claim: what the labels of some windows of a survey tell of its total, and whether their range holds.

    python benchmarks/label_next.py

Towns of 2,000 px (600 m, 400 windows), drawn with the seeds 0 to 9, in which the bundled model finds little: hard cases
for a first estimate.  The truth of each window comes from the town's mask.  For each number of labels, 400 draws as
`negah survey --label-next` draws them; beside them windows drawn all with the same chance, and the same number drawn in
two halves, the second after the labels of the first.  A range's width is told in parts of the true total.
"""

import tempfile
from pathlib import Path

import numpy as np
import rasterio
import results

from negah.errors import InputError
from negah.images.scenes import write_town
from negah.probe.detector import Detector, load
from negah.runs import labels
from negah.runs.survey import Options, Summary, survey
from negah.solar.ledger import Ledger
from negah.solar.sampling import draw, expected_error, inclusion, total

SEEDS, SIDE_PX, COUNTS, DRAWS = range(10), 2000, (10, 20, 50, 100, 200), 400


def main() -> None:
    detector, rows = load("negah/aerial-tiny"), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            summary, windows, true = town(detector, Path(folder) / f"town{seed}.tif", seed)
            assert summary.area_low is not None and summary.area_high is not None
            whole = float(true.sum())
            first = {
                "width": (summary.area_high - summary.area_low) / whole,
                "held": float(summary.area_low <= whole <= summary.area_high),
            }
            rows.append({"seed": seed, "drawn": "not at all", "labels": 0, "true_m2": whole,
                         "measured_m2": summary.area_m2, **first})  # fmt: skip
            for count in COUNTS:
                for how in ("by doubt", "alike", "by doubt in halves"):
                    rows.append({"seed": seed, "drawn": how, "labels": count, **repeated(windows, true, count, how)})
            print(
                seed, *(f"{row['labels']} {row['drawn']}: {row['width']:.2f} {row['held']:.2f};" for row in rows[-16:])
            )
    over = [
        {
            "drawn": how, "labels": count, "width": float(np.median([row["width"] for row in mine])),
            "held": float(np.mean([row["held"] for row in mine])), "towns": len(mine),
        }
        for how, count in dict.fromkeys((row["drawn"], row["labels"]) for row in rows)
        if (mine := [row for row in rows if (row["drawn"], row["labels"]) == (how, count)])
    ]  # fmt: skip
    fifty = next(row for row in over if (row["drawn"], row["labels"]) == ("by doubt", 50))
    path = results.write(
        "label_next", claim="Share of draws in which the range from labelled windows holds the true total of a town",
        rows=rows, seeds=list(SEEDS), packages=("rasterio", "numpy"), over_towns=over, draws=DRAWS,
        headline={"value": fifty["held"], "unit": "of the draws, 50 of 400 windows labelled (its range is of 90 %)",
                  "target": None, "better": "higher"},
    )  # fmt: skip
    print(path)


def town(detector: Detector, path: Path, seed: int) -> tuple[Summary, labels.Scored, np.ndarray]:
    """A survey of a new town: what it told, its windows, and what these truly hold, m2."""
    write_town(path, size_px=SIDE_PX, seed=seed)
    summary = survey([str(path)], path.with_suffix(""), [detector], Options())
    with Ledger(summary.out) as ledger:
        windows = labels.scored(ledger.plan(), ledger)
    with rasterio.open(path.with_name(f"{path.stem}_mask.tif")) as file:
        fraction = file.read(1) / 255
    true = []
    for k in range(len(windows.number)):
        source, index = windows.where(k)
        col, row, width, height = labels.new_box(source, index)
        true.append(fraction[row : row + height, col : col + width].mean() * windows.ground_m2[k])
    return summary, windows, np.array(true)


def repeated(windows: labels.Scored, true: np.ndarray, count: int, how: str) -> dict[str, float]:
    """Median width over the true total, and how often it holds."""
    doubt = expected_error(windows.area_m2, windows.probability, noise=labels.NOISE, window_m2=windows.ground_m2)
    error = np.ones(len(true)) if how == "alike" else doubt
    widths, held = [], []
    for seed in range(DRAWS):
        parts = (count // 2, count - count // 2) if how.endswith("halves") else (count,)
        sampled, chances, turns = np.zeros(0, int), np.zeros(0), np.zeros(0, int)
        for turn, part in enumerate(parts, 1):
            left = np.setdiff1d(np.arange(len(true)), sampled)
            chance = inclusion(error[left], part)
            new = draw(chance, seed=2 * seed + turn)
            sampled, chances = np.append(sampled, left[new]), np.append(chances, chance[new])
            turns = np.append(turns, np.full(len(new), turn))
        try:
            found = total(windows.area_m2, sampled, true[sampled], chances, drawn=turns)
        except InputError:  # nearly all that was drawn was certain
            continue
        widths.append((found.high - found.low) / true.sum())
        held.append(found.low <= true.sum() <= found.high)
    return {"width": float(np.median(widths)), "held": float(np.mean(held))}


if __name__ == "__main__":
    main()
