"""Claim: what the card of negah/aerial-tiny says, measured on tiles that no stage of its training saw.

    python benchmarks/aerial_tiny.py

Duke fold 4 of five that keep overlapping tiles together, beside image statistics with a logistic regression trained on
the other four (at 0.5; the detector at its own threshold); false and true positive rates on the Jiangsu and UC Merced
pictures that the recipe keeps aside; and areas on those Jiangsu cuts, which also set the model's area factors.
"""

import numpy as np
import results
import torch
from duke_grouped import TARGET, as_row

from negah.probe.baseline import image_statistics
from negah.probe.detector import load
from negah.probe.linear import fit_linear
from negah.probe.metrics import measure
from negah.runs.aerial.recipe import ASIDE
from negah.runs.aerial.score import areas, elsewhere_windows, predict
from negah.runs.aerial.tiles import GSD_M, MIN_PANEL_PATCHES, PATCH_PX, duke, masked


def main() -> None:
    detector, data = load("negah/aerial-tiny"), results.data_folder()
    threshold, tiles = detector.info.threshold, duke(data)
    images, y, groups, aside = tiles.labelled.images, tiles.labelled.labels, tiles.groups, tiles.folds() == ASIDE
    features = image_statistics(images)
    probe = fit_linear(features[~aside], y[~aside], groups[~aside])

    def scored(name: str, p: np.ndarray, threshold: float) -> dict:
        generator = torch.Generator().manual_seed(0)
        scores = measure(y[aside], p, threshold=threshold, groups=groups[aside], generator=generator)
        return {"name": name} | as_row(scores)

    rows = [
        scored("duke", predict(detector, images[aside]), threshold),
        scored("image_statistics", probe.probability(features[aside]), 0.5),
    ]
    for name, windows in elsewhere_windows(data).items():
        share = float((predict(detector, windows) >= threshold).mean())
        rows.append({"name": name, "windows": len(windows), "share_called_positive": share})
    rows.append({"name": "jiangsu_areas"} | area_errors(*areas(detector, masked(data, kept_aside=True))))
    path = results.write(
        "aerial_tiny", claim="AUC of negah/aerial-tiny on the Duke tiles that it was not trained on",
        rows=rows, seeds=[0], packages=("numpy", "scikit-learn"),
        headline={"value": rows[0]["auc"], "unit": f"AUC, Duke fold {ASIDE}", "target": TARGET, "better": "higher"},
    )  # fmt: skip
    print(path.read_text())


def area_errors(estimate: np.ndarray, true: np.ndarray) -> dict:
    """Of windows with panels: their total against the truth, and how far a window's estimate is off."""
    panels = true >= MIN_PANEL_PATCHES
    cell = (PATCH_PX * GSD_M) ** 2
    found = panels & (estimate > 0)
    return {
        "windows": int(panels.sum()), "found": int(found.sum()),
        "true_m2": float(true.sum() * cell), "estimated_m2": float(estimate.sum() * cell),
        "median_relative_error": float(np.median(np.abs(estimate[panels] / true[panels] - 1))),
        "correlation": float(np.corrcoef(estimate[panels], true[panels])[0, 1]),
    }  # fmt: skip


if __name__ == "__main__":
    main()
