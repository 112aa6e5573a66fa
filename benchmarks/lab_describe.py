"""Claim: CLIP, SimVLM and CoCa, trained alike on the same pictures and words: what they share and what sets them apart

    python benchmarks/lab_describe.py

`negah lab describe` with its defaults.  benchmarks/describe_scenes.py measures longer captions at twice the detail.
"""

from lab import Rows, measure

from negah.lab import describe


def headline(rows: Rows) -> dict:
    cost = [row for row in rows if row["panel"] == "cost" and row["pictures"] == describe.SIZES[-1]]
    clip, simvlm = (next(row for row in cost if row["setting"].startswith(name)) for name in ("CLIP", "SimVLM"))
    found = {row["setting"]: row["image to text, first 1"] for row in rows if row["panel"] == "retrieval"}
    unit = (
        f"times as long as CLIP takes SimVLM for a query of {describe.SIZES[-1]} pictures; pictures that find their "
        f"text first: {', '.join(f'{way} {share:.0%}' for way, share in found.items())}"
    )
    return {"value": round(simvlm["ms"] / clip["ms"]), "unit": unit, "target": None, "better": "lower"}


if __name__ == "__main__":
    measure("describe", describe.run, __doc__ or "", headline, seeds=1, steps=500)
