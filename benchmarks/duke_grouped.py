"""Claim: from some hundred labelled tiles, the recipe of negah/aerial-tiny finds panels on tiles it has not seen.

    python benchmarks/duke_grouped.py --work runs/duke             # all folds one after the other, then the result
    python benchmarks/duke_grouped.py --work runs/duke --fold 2    # one fold (several can run side by side)

Duke tiles, five folds that keep overlapping tiles together; in each fold the recipe's second stage runs anew on the
other four.  The first stage sees no Duke tile at all, so it is the same in every fold and runs once (--work keeps it).
Beside it, on the same folds: image statistics with a logistic regression.  A fold's threshold is chosen on the other
folds' held-out predictions.  Rates on UC Merced and Jiangsu are of pictures and places kept aside from both stages.
Sim-to-real is a detector trained on nothing but generated scenes, tested on all labelled Duke tiles.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import results
import torch

from negah.probe.baseline import image_statistics
from negah.probe.detector import Detector, load, save
from negah.probe.linear import fit_linear
from negah.probe.metrics import Scores, accuracy, best_threshold, measure
from negah.probe.splits import grouped_folds
from negah.runs import aerial

FOLDS, SEED, TARGET = 5, 0, 0.985


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/duke"), help="where finished parts are kept")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="run this fold only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    data = results.data_folder()

    labelled, groups = aerial.duke(data)
    fold = grouped_folds(groups, labelled.labels, folds=FOLDS, seed=SEED)
    elsewhere = aerial.Elsewhere.load(data, work=args.work)
    base = once(args.work / "first_stage.safetensors", lambda: aerial.first_stage(elsewhere, out=args.work / "first"))
    wanted = range(FOLDS) if args.fold is None else [args.fold]
    for k in wanted:
        kept = fold != k
        part = replace(labelled, images=labelled.images[kept], labels=labelled.labels[kept])
        once(
            args.work / f"fold{k}.safetensors",
            lambda part=part, k=k: aerial.second_stage(base, part, elsewhere, out=args.work / f"fold{k}"),
        )
    if args.fold is None:
        simulated = once(
            args.work / "scenes.safetensors", lambda: aerial.scenes_only(elsewhere, out=args.work / "scenes")
        )
        report([load(args.work / f"fold{k}.safetensors") for k in range(FOLDS)], simulated, base, data)


def once(path: Path, train) -> Detector:
    """The detector at `path`, trained now if it is not there yet."""
    if not path.is_file():
        save(train(), path)
    return load(path)


def report(detectors: list[Detector], simulated: Detector, base: Detector, data: Path) -> None:
    labelled, groups = aerial.duke(data)
    y, images = labelled.labels, labelled.images
    fold = grouped_folds(groups, y, folds=FOLDS, seed=SEED)
    ours, statistics = np.zeros(len(y)), np.zeros(len(y))
    features = image_statistics(images)
    for k, detector in enumerate(detectors):
        test = fold == k
        ours[test] = aerial.predict(detector, images[test])
        statistics[test] = fit_linear(features[~test], y[~test], groups[~test]).probability(features[test])

    def scored(name: str, p: np.ndarray, threshold: np.ndarray | float) -> dict:
        scores = measure(y, p, threshold=threshold, groups=groups, generator=torch.Generator().manual_seed(SEED))
        return {"name": name, "set": "duke, pooled over folds"} | as_row(scores)

    def thresholds(p: np.ndarray) -> np.ndarray:
        chosen = [best_threshold(y[fold != k], p[fold != k], goal=accuracy) for k in range(FOLDS)]
        return np.array(chosen)[fold]

    rows = [
        scored("negah/aerial-tiny recipe", ours, thresholds(ours)),
        scored("image statistics + logistic regression", statistics, thresholds(statistics)),
        scored("first stage alone (no Duke tile, no Duke label)", aerial.predict(base, images), 0.5),
        scored("scenes alone (sim to real)", aerial.predict(simulated, images), 0.5),
    ]
    for k in range(FOLDS):
        test = fold == k
        scores = measure(
            y[test], ours[test], threshold=0.5, groups=groups[test], generator=torch.Generator().manual_seed(SEED)
        )
        rows.append({"name": "negah/aerial-tiny recipe", "set": f"duke, fold {k}"} | as_row(scores))
    rows += elsewhere_rows(detectors, data, float(np.mean(thresholds(ours))))
    auc = rows[0]["auc"]
    path = results.write(
        "duke_grouped", claim="Pooled AUC of panel presence on Duke tiles, five grouped folds, the recipe run in each",
        rows=rows, seeds=[SEED], packages=("numpy", "scikit-learn"),
        headline={"value": auc, "unit": "AUC", "target": TARGET, "better": "higher",
                  "low": rows[0]["auc_low"], "high": rows[0]["auc_high"]},
    )  # fmt: skip
    print(
        f"AUC {auc:.4f} [{rows[0]['auc_low']:.4f}, {rows[0]['auc_high']:.4f}], statistics {rows[1]['auc']:.4f}; {path}"
    )


def as_row(scores: Scores) -> dict:
    """Each figure with the ends of its 95 % interval, flat; NaN becomes null."""
    row: dict = {}
    for name, value in scores.__dict__.items():
        if isinstance(value, tuple):
            for key, number in zip((name, f"{name}_low", f"{name}_high"), value, strict=True):
                row[key] = None if np.isnan(number) else round(float(number), 5)
        else:
            row[name] = value
    return row


def elsewhere_rows(detectors: list[Detector], data: Path, threshold: float) -> list[dict]:
    """True and false positive rates on sources whose pictures were kept aside, mean over the folds' detectors."""
    rows = []
    masked, background = aerial.masked(data, kept_aside=True), aerial.background(data, kept_aside=True)
    assert masked.masks is not None
    share = masked.masks.mean((1, 2)) / 255 * (aerial.WINDOW_PX / aerial.PATCH_PX) ** 2
    sets = [
        ("jiangsu 0.1 m, with panels", masked.images[share >= aerial.MIN_PANEL_PATCHES], "true_positive_rate"),
        ("jiangsu 0.1 m, mask-free", masked.images[share < aerial.NO_PANEL_PATCHES], "false_positive_rate"),
        ("ucmerced, no panels", background.images, "false_positive_rate"),
    ]
    for name, images, figure in sets:
        rates = [float((aerial.predict(detector, images) >= threshold).mean()) for detector in detectors]
        row = {"name": "negah/aerial-tiny recipe", "set": name, "samples": len(images), "threshold": threshold}
        rows.append(row | {figure: float(np.mean(rates)), f"{figure}_folds": [round(r, 4) for r in rates]})
    return rows


if __name__ == "__main__":
    main()
