"""Claim: DINOv2's tricks save time or memory: packed crops, stochastic depth that leaves rows out, fused attention

    python benchmarks/lab_dinov2_tricks.py

`negah lab dinov2-tricks` with its defaults and one seed of the runs that train.
"""

from lab import Rows, measure

from negah.lab import dinov2_tricks


def headline(rows: Rows) -> dict:
    by = {row["setting"]: row for row in rows}
    packed, depth = by["packed"], by["left out 0.3"]
    fused = max((row for row in rows if row.get("way") == "fused"), key=lambda row: row["tokens"])
    unit = (
        f"of the memory of crops one by one, packed, at {packed['speed']:.2f} times the speed; stochastic depth of 0.3:"
        f" {depth['memory']:.2f} at {depth['speed']:.2f}; attention fused, {fused['tokens']} tokens:"
        f" {fused['memory']:.2f} at {fused['speed']:.2f}"
    )
    return {"value": round(packed["memory"], 2), "unit": unit, "target": None, "better": "lower"}


if __name__ == "__main__":
    measure("dinov2-tricks", dinov2_tricks.run, __doc__, headline, seeds=1)
