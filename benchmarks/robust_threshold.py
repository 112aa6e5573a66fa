"""How much of what hardening gains does a new threshold give alone?

    python benchmarks/robust_threshold.py --work runs/robust_threshold

negah/aerial-tiny as it is, but for its threshold, which is chosen as `negah harden` chooses it: on the watched images
of `benchmarks/robust_panels.py`, as they are and attacked.  It is judged as there, on the same tiles of fold 4.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import results
import torch
from duke_grouped import as_row
from robust_panels import HARDENING, MODEL, TILES, others, robust

from negah.probe.detector import load
from negah.probe.metrics import measure
from negah.runs.aerial.recipe import ASIDE
from negah.runs.aerial.score import predict
from negah.runs.aerial.tiles import duke
from negah.runs.classifiers import PanelClassifier
from negah.runs.harden import images_of, threshold_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/robust_threshold"), help="where tiles are listed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = results.data_folder()
    tiles = duke(data)
    aside = np.flatnonzero(tiles.folds() == ASIDE)
    detector = load(MODEL)
    own = detector.info.threshold
    watched, _, _ = images_of(others(data, args.work, set(aside.tolist())), detector, HARDENING)
    detector.info = replace(detector.info, threshold=0.5)  # the logit itself, as in hardening
    some = watched.at(watched.watched, torch.device("cpu"))
    moved = threshold_of(PanelClassifier(detector).eval(), *some, HARDENING)
    detector.info = replace(detector.info, threshold=moved)

    images, y, groups = tiles.labelled.images[aside], tiles.labelled.labels[aside], tiles.groups[aside]
    drawn = np.sort(np.random.default_rng(0).permutation(len(aside))[:TILES])
    clean = measure(
        y, predict(detector, images), threshold=moved, groups=groups, generator=torch.Generator().manual_seed(0)
    )
    rows = [{"name": "new threshold", "set": "clean"} | as_row(clean)]
    rows += robust("new threshold", detector, images[drawn], y[drawn], groups[drawn])
    others_rows = json.loads((results.FOLDER / "robust_panels.json").read_text())["rows"]
    linf = {
        row["name"]: row["robust"]
        for row in [*rows, *others_rows] if row["set"] == "Linf" and row["radius"] == "1/255"
    }  # fmt: skip
    path = results.write(
        "robust_threshold",
        claim="Duke tiles that negah/aerial-tiny was not trained on, attacked by 1/255 after its threshold alone moved",
        rows=rows, seeds=[0], packages=("numpy",), threshold=moved, own_threshold=own,
        headline={
            "value": linf["new threshold"], "target": None, "better": "higher",
            "unit": f"of {TILES} tiles withstand all attacks (own threshold: {linf['bundled']:.2f}; hardened: "
            f"{linf['hardened_all']:.2f})",
        },
    )  # fmt: skip
    print(path.read_text())


if __name__ == "__main__":
    main()
