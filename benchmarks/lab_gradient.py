"""Claim: The closed-form gradient of the contrastive loss is right and small, and faults in it are told

    python benchmarks/lab_gradient.py

`negah lab gradient` with its defaults.  benchmarks/contrastive_memory.py measures more pairs, beside open_clip's loss.
"""

from lab import Rows, measure

from negah.lab import gradient


def headline(rows: Rows) -> dict:
    check = {row["setting"]: row for row in rows if row["panel"] == "check"}
    ours = max((row for row in rows if row.get("way") == "tiles made again"), key=lambda row: row["pairs"])
    caught = sum(check[name]["verdict"] != "passes" for name in gradient.PLANTED)
    tiled = check["losses.contrast, tile by tile"]
    unit = (
        f"of {len(gradient.PLANTED)} planted faults are caught; losses.contrast {tiled['verdict']}, its gradient "
        f"{tiled['autograd fp64']:.0e} from autograd's in fp64, in {ours['memory']:.3f} of the plain form's memory at "
        f"{ours['pairs']} pairs and {ours['speed']:.2f} times its speed"
    )
    return {"value": caught, "unit": unit, "target": len(gradient.PLANTED), "better": "higher"}


if __name__ == "__main__":
    measure("gradient", gradient.run, __doc__, headline, seeds=1, steps=100)
