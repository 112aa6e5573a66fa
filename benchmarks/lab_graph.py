"""Claim: Update functions and layers that depend on the neighbours' order are told, and what they cost is measured

    python benchmarks/lab_graph.py

`negah lab graph` with its defaults, on three seeds.
"""

from lab import Rows, measure

from negah.lab import graph

INVALID = {"max (weight per position)", "LSTM", "first neighbour"}


def headline(rows: Rows) -> dict:
    layers = {row["setting"]: row["float64"] > graph.INVALID for row in rows if row["panel"] == "equivariance"}
    audits = {row["setting"]: row["verdict"] for row in rows if row["panel"] == "valid"}
    right = sum(broken == (name in INVALID) for name, broken in layers.items())
    right += sum(verdict == ("refuted" if name in INVALID else "certified") for name, verdict in audits.items())
    changed = {row["setting"]: row["changed"] for row in rows if row["panel"] == "price"}
    each, lstm = (changed[f"{name}, numbered at random"] for name in ("max (weight per position)", "LSTM"))
    unit = (
        f"of {len(audits) + len(layers)} told rightly: {len(audits)} update functions certified or refuted by the "
        f"auditor, {len(layers)} layers by numbering nodes anew. That changes {each:.0%} of what a network with a "
        f"weight per position predicts, {lstm:.0%} of what one with an LSTM does, and nothing with a shared weight"
    )
    return {"value": right, "unit": unit, "target": len(audits) + len(layers), "better": "higher"}


if __name__ == "__main__":
    measure("graph", graph.run, __doc__, headline, seeds=3)
