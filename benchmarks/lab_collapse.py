"""Claim: Methods without labels collapse without the part that is there to keep them from it, and the doctor says how

    python benchmarks/lab_collapse.py

`negah lab collapse` with its defaults and one seed, on which nothing of the doctor was chosen.  A setting counts as
named rightly where the doctor's last reading is of an expected kind in every seed.
"""

from lab import Rows, measure

from negah.lab import collapse

EXPECTED = {
    ("byol", "no predictor"): {"complete", "dimensional"},  # a target that lags slows it down: it may be under way
    ("byol", "neither"): {"complete"},
    ("byol", "no stop-gradient"): {"complete"},
    ("dino", "no centering"): {"one prototype"},
    ("dino", "no sharpening"): {"uniform teacher"},
}
HEALTHY = {
    ("byol", "BYOL"), ("byol", "no moving average"), ("dino", "DINO"), ("dino", "two crops"),
    ("sinkhorn", "Sinkhorn-Knopp"),
}  # fmt: skip


def headline(rows: Rows) -> dict:
    kinds = {(row["panel"], row["setting"]): set(row["collapse"].split(", ")) for row in rows if "collapse" in row}
    named = sum(kinds[key] <= expected for key, expected in EXPECTED.items())
    healthy = {key for key in kinds if key in HEALTHY or key[0] == "negatives"}
    alarms = sum(kinds[key] != {"none"} for key in healthy)
    unit = f"of {len(EXPECTED)} planted collapses named rightly; {alarms} of {len(healthy)} healthy settings called ill"
    return {"value": named, "unit": unit, "target": len(EXPECTED), "better": "higher"}


if __name__ == "__main__":
    measure("collapse", collapse.run, __doc__, headline, seeds=1)
