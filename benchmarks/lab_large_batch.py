"""Claim: What LARS and SGD lose as the batch grows, and how far norms by device betray which views belong together

    python benchmarks/lab_large_batch.py

`negah lab large-batch` with its defaults and one seed.
"""

from lab import Rows, measure

from negah.lab import large_batch


def headline(rows: Rows) -> dict:
    by = {row["setting"]: row for row in rows}
    same, whole = by["by device, same company"], by["whole batch"]
    large = max(row["batch"] for row in rows if "batch" in row)
    lars, sgd = (
        next(row["knn"] for row in rows if row.get("optimizer") == name and row["batch"] == large)
        for name in ("LARS", "SGD")
    )
    ratios = [large_batch.gain(row) for row in (same, whole)]
    unit = (
        f"times as often is a picture's other view the nearest in company that it was trained with, norms by device"
        f" (norms of the whole batch: {ratios[1]:.2f}); kNN accuracy at batch {large} with scaled rates {lars:.1%} by"
        f" LARS, {sgd:.1%} by SGD"
    )
    return {"value": round(ratios[0], 2), "unit": unit, "target": None, "better": "higher"}


if __name__ == "__main__":
    measure("large-batch", large_batch.run, __doc__, headline, seeds=1)
