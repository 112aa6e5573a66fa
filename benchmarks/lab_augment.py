"""Claim: Whether pictures drawn after DreamBooth on five of a rare panel type help a detector to find it

`negah lab augment` with generated houses, whose rare panels are red as roof tiles, two seeds.  augment_jiangsu.py asks
the same of real pictures.
"""

from lab import Rows, measure

from negah.lab import augment


def headline(rows: Rows) -> dict:
    by = {
        way: [row["rare AUC"] for row in rows if row.get("setting") == way and "rare AUC" in row]
        for way in augment.WAYS
    }
    means = {way: sum(values) / len(values) for way, values in by.items()}
    unit = (
        f"more area under the ROC curve of the rare type than with the five alone ({means[augment.WITHOUT]:.3f} to"
        f" {means[augment.PERSONAL]:.3f}); the five repeated: {means[augment.REPEATED]:.3f}, as many pictures of any"
        f" solar array: {means[augment.CLASS]:.3f}"
    )
    gain = means[augment.PERSONAL] - means[augment.WITHOUT]
    return {"value": gain, "unit": unit, "target": None, "better": "higher"}


if __name__ == "__main__":
    measure("augment", augment.run, __doc__, headline, seeds=2, steps=300)
