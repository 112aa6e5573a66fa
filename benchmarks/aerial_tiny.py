"""Claim: what the card of negah/aerial-tiny says, measured on tiles that no stage of its training saw.

    python benchmarks/aerial_tiny.py

Duke fold 0 of five that keep overlapping tiles together, beside image statistics with a logistic regression trained on
the other four; false and true positive rates on the Jiangsu and UC Merced tiles that the recipe keeps aside.
"""

import results
from duke_grouped import TARGET, as_row

from negah.probe.detector import load
from negah.runs.aerial import score


def main() -> None:
    scores = score(load("negah/aerial-tiny"), results.data_folder())
    rows = [
        {"name": name} | ({"share_called_positive": value} if isinstance(value, float) else as_row(value))
        for name, value in scores.items()
    ]
    path = results.write(
        "aerial_tiny", claim="AUC of negah/aerial-tiny on the Duke tiles that it was not trained on",
        rows=rows, seeds=[0], packages=("numpy", "scikit-learn"),
        headline={"value": rows[0]["auc"], "unit": "AUC, Duke fold 0", "target": TARGET, "better": "higher"},
    )  # fmt: skip
    print(path.read_text())


if __name__ == "__main__":
    main()
