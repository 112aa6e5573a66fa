"""Claim: One change, made in either form, fools a network on more of the pictures it was not made of than noise does.

    python benchmarks/lab_universal.py

`negah lab universal` on CIFAR-10, reduced: half as wide a network, fewer pictures, a small part of the epochs.
"""

from lab import Rows, measure

from negah.lab import universal
from negah.lab.universal import SIGNS


def headline(rows: Rows) -> dict:
    largest = [row for row in rows if row["panel"] == "rates" and row["eps"] == f"{universal.RADII[-1]}/255"]
    best = max(largest, key=lambda row: row["fooled"])
    noise = next(row for row in largest if row["setting"] == SIGNS)
    unit = f"% of test pictures fooled at {best['eps']} by the {best['setting']}; random signs {noise['fooled']:.1%}"
    return {"value": round(100 * best["fooled"], 1), "unit": unit, "target": None, "better": "higher"}


if __name__ == "__main__":
    measure(
        "universal", universal.run, __doc__ or "", headline, seeds=1, steps=400,
        data=("cifar10/train.zip", "cifar10/test.zip"),
    )  # fmt: skip
