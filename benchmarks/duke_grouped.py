"""Claim: from some hundred labelled tiles, the recipe of negah/aerial-tiny finds panels on tiles it has not seen.

    python benchmarks/duke_grouped.py --work runs/duke             # all folds one after the other, then the result
    python benchmarks/duke_grouped.py --work runs/duke --fold 2    # one fold (a run that was stopped continues)

Duke tiles, five folds that keep overlapping tiles together, unlabelled ones included; in each fold the second stage,
teacher and detector, runs anew on the other four.  The first stage sees no Duke tile, so it is the same in all folds
and runs once (--work keeps it).  Beside it, on the same folds: image statistics with a logistic regression.  A fold's
threshold is chosen on the other folds' held-out predictions.  Rates on UC Merced and Jiangsu are of pictures and places
kept aside from both stages.  Sim-to-real is a detector trained on nothing but generated scenes, tested on all labelled
Duke tiles.  Coarser imagery is imitated by shrinking the test tiles and enlarging them again, as a survey does with
pixels larger than the model's.

Fold 0 was the validation set of this recipe, so the pooled figure is also given for folds 1 to 4.  They are not quite
untouched: the initialisation had been chosen earlier, partly by the AUC on a sample of Duke tiles from all folds, and
that there is a second and a third round at all was decided after the figures of those before, on all folds, had been
seen (the third because the second's, .983, missed the target).  Their lengths were set by the time that they take, and
the crossed views were kept after a look at fold 0.
"""

import argparse
from pathlib import Path

import numpy as np
import results
import torch
from PIL import Image

from negah.probe.baseline import image_statistics
from negah.probe.detector import Detector, load, save
from negah.probe.linear import fit_linear
from negah.probe.metrics import Scores, accuracy, best_threshold, measure
from negah.runs.aerial.recipe import first_stage, scenes_only, second_stage
from negah.runs.aerial.score import elsewhere_windows, predict
from negah.runs.aerial.tiles import GSD_M, WINDOW_PX, Duke, Elsewhere, duke

FOLDS, SEED, TARGET = 5, 0, 0.985
COARSER_M = (0.4, 0.5, 0.6, 0.8, 1.2)  # ground sampling distances that are imitated
VALIDATION = 0  # the fold by which the recipe was chosen
RECIPE = "recipe"  # of negah/aerial-tiny, in rows beside its peers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/duke"), help="where finished parts are kept")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="run this fold only")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = results.data_folder()
    tiles, elsewhere = duke(data), Elsewhere.load(data, work=args.work, seed=SEED)
    fold = tiles.folds(FOLDS, seed=SEED)
    # Whatever is finished is read back from its checkpoint.
    first = first_stage(elsewhere, seed=SEED, out=args.work / "first")
    save(first.detector, args.work / "first.safetensors")
    for k in range(FOLDS) if args.fold is None else [args.fold]:
        pair = second_stage(first, *tiles.without(fold == k), elsewhere, seed=SEED, out=args.work / f"fold{k}")
        save(pair.detector, args.work / f"fold{k}.safetensors")
    if args.fold is None:
        save(scenes_only(elsewhere, seed=SEED, out=args.work / "scenes"), args.work / "scenes.safetensors")
        report(args.work, tiles, data)


def report(work: Path, tiles: Duke, data: Path) -> None:
    y, images, groups, fold = tiles.labelled.labels, tiles.labelled.images, tiles.groups, tiles.folds(FOLDS, seed=SEED)
    detectors = [load(work / f"fold{k}.safetensors") for k in range(FOLDS)]
    ours, statistics = np.zeros(len(y)), np.zeros(len(y))
    coarser = {gsd: np.zeros(len(y)) for gsd in COARSER_M}
    features = image_statistics(images)
    for k, detector in enumerate(detectors):
        test = fold == k
        ours[test] = predict(detector, images[test])
        for gsd, p in coarser.items():
            p[test] = predict(detector, imitated(images[test], gsd))
        statistics[test] = fit_linear(features[~test], y[~test], groups[~test]).probability(features[test])

    def thresholds(p: np.ndarray) -> np.ndarray:
        chosen = [best_threshold(y[fold != k], p[fold != k], goal=accuracy) for k in range(FOLDS)]
        return np.array(chosen)[fold]

    def scored(name: str, p: np.ndarray, threshold: np.ndarray | float, which: np.ndarray | slice, where: str) -> dict:
        if isinstance(threshold, np.ndarray):
            threshold = threshold[which]
        generator = torch.Generator().manual_seed(SEED)
        scores = measure(y[which], p[which], threshold=threshold, groups=groups[which], generator=generator)
        return {"name": name, "set": where} | as_row(scores)

    every, chosen = slice(None), thresholds(ours)
    first, scenes = (load(work / f"{name}.safetensors") for name in ("first", "scenes"))
    rows = [
        scored(RECIPE, ours, chosen, every, "duke"),
        scored(RECIPE, ours, chosen, fold != VALIDATION, "duke_folds_1_to_4"),
        scored("image_statistics", statistics, thresholds(statistics), every, "duke"),
        scored("first_stage_alone", predict(first, images), 0.5, every, "duke"),
        scored("scenes_alone", predict(scenes, images), 0.5, every, "duke"),
        *(scored(RECIPE, ours, chosen, fold == k, f"duke_fold_{k}") for k in range(FOLDS)),
        *(scored(RECIPE, p, chosen, every, f"duke_imitated_at_{gsd}_m") for gsd, p in coarser.items()),
        *elsewhere_rows(detectors, data, float(chosen.mean())),
    ]
    auc = rows[0]["auc"]
    path = results.write(
        "duke_grouped", claim="Pooled AUC of panel presence on Duke tiles, five grouped folds, the recipe run in each",
        rows=rows, seeds=[SEED], packages=("numpy", "scikit-learn"),
        thresholds=[round(float(chosen[fold == k][0]), 3) for k in range(FOLDS)],
        headline={"value": auc, "unit": "AUC", "target": TARGET, "better": "higher",
                  "low": rows[0]["auc_low"], "high": rows[0]["auc_high"]},
    )  # fmt: skip
    print(
        f"AUC {auc:.4f} [{rows[0]['auc_low']:.4f}, {rows[0]['auc_high']:.4f}], statistics {rows[2]['auc']:.4f}; {path}"
    )


def imitated(images: np.ndarray, gsd_m: float) -> np.ndarray:
    """The tiles as they would look with pixels of `gsd_m`, enlarged to the model's pixels again."""
    side = round(WINDOW_PX * GSD_M / gsd_m)
    small = (Image.fromarray(image).resize((side, side), Image.Resampling.BOX) for image in images)
    return np.stack([np.asarray(i.resize((WINDOW_PX, WINDOW_PX), Image.Resampling.BICUBIC)) for i in small])


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
    for name, images in elsewhere_windows(data).items():
        figure = "false_positive_rate" if "without" in name else "true_positive_rate"
        rates = [float((predict(detector, images) >= threshold).mean()) for detector in detectors]
        row = {"name": RECIPE, "set": name, "samples": len(images), "threshold": threshold}
        rows.append(row | {figure: float(np.mean(rates)), f"{figure}_folds": [round(r, 4) for r in rates]})
    return rows


if __name__ == "__main__":
    main()
