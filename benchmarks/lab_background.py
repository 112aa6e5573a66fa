"""Claim: How far DINO's teacher turns to the object with local crops, and with global ones alone in equal compute

    python benchmarks/lab_background.py

`negah lab background` with its defaults and two seeds.
"""

from lab import Rows, measure

from negah.lab import background


def headline(rows: Rows) -> dict:
    local, alone = (row for row in rows if row["panel"] == "share")
    unit = (
        f"attention on the object over its area, best head, with local crops; without {alone['best head']:.2f},"
        f" before training {local['best head before']:.2f}"
    )
    return {"value": round(local["best head"], 2), "unit": unit, "target": None, "better": "higher"}


if __name__ == "__main__":
    measure("background", background.run, __doc__, headline, seeds=2)
