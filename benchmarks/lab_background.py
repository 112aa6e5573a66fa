"""Claim: How far DINO's teacher turns to the object with local crops, and with global ones alone in equal compute

    python benchmarks/lab_background.py

`negah lab background` with its defaults and two seeds.
"""

from lab import Rows, measure

from negah.lab import background


def headline(rows: Rows) -> dict:
    local, alone = (row for row in rows if row["panel"] == "share")
    lit = [pair for row in (local, alone) for pair in zip(row["bright objects by seed"], row["dark objects by seed"])]
    unit = (
        f"attention on the object over its area, best head, with local crops; without {alone['best head']:.2f}, before"
        f" training {local['best head before']:.2f}; on bright and on dark objects alike in"
        f" {sum(min(pair) > 1 for pair in lit)} of {len(lit)} runs"
    )
    return {"value": round(local["best head"], 2), "unit": unit, "target": None, "better": "higher"}


if __name__ == "__main__":
    measure("background", background.run, __doc__, headline, seeds=2)
