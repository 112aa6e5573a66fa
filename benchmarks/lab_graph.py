"""Claim: Update functions and layers that depend on the neighbours' order are told, and what they cost is measured

    python benchmarks/lab_graph.py

`negah lab graph` with its defaults, on three seeds.
"""

from lab import Rows, measure

from negah.lab import graph

INVALID = {"max (weight per position)", "LSTM", "first neighbour"}


def headline(rows: Rows) -> dict:
    told = [
        (row, "change" if row["panel"] == "valid" else "float64") for row in rows if "change" in row or "float64" in row
    ]
    right = sum((row[key] > graph.INVALID) == (row["setting"] in INVALID) for row, key in told)
    changed = {row["setting"]: row["changed"] for row in rows if row["panel"] == "price"}
    unit = (
        f"of {len(told)} update functions and layers told rightly by reordering neighbours; numbering the nodes anew "
        f"changes {changed['max (weight per position), numbered at random']:.0%} of what a network with a weight per "
        f"position predicts, {changed['LSTM, numbered at random']:.0%} of what one with an LSTM does, and nothing with "
        "a shared weight"
    )
    return {"value": right, "unit": unit, "target": len(told), "better": "higher"}


if __name__ == "__main__":
    measure("graph", graph.run, __doc__, headline, seeds=3)
