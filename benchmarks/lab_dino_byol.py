"""Claim: BYOL becomes DINO by four changes; what each is worth in nearest-neighbour accuracy on generated shapes

    python benchmarks/lab_dino_byol.py

`negah lab dino-byol` with its defaults and one seed.
"""

from lab import Rows, measure

from negah.lab import dino_byol


def headline(rows: Rows) -> dict:
    byol, dino = (next(row["knn"] for row in rows if row["setting"] == name) for name in ("BYOL", "DINO"))
    unit = f"points of kNN accuracy from BYOL ({byol:.1%}) to DINO ({dino:.1%})"
    return {"value": round(100 * (dino - byol), 1), "unit": unit, "target": None, "better": "higher"}


if __name__ == "__main__":
    measure("dino-byol", dino_byol.run, __doc__, headline, seeds=1)
