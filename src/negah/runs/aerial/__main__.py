"""`python -m negah.runs.aerial`: train the model that is bundled, as fold `ASIDE` of the benchmark trains it."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from negah.probe.detector import save
from negah.runs.aerial.recipe import ASIDE, first_stage, second_stage
from negah.runs.aerial.score import area_factors
from negah.runs.aerial.tiles import Elsewhere, duke, masked


def main() -> None:
    parser = argparse.ArgumentParser(description=f"Train negah/aerial-tiny; Duke fold {ASIDE} of five is kept aside.")
    parser.add_argument("--data", type=Path, required=True, help="folder with duke-solar, pv-masks, ucmerced")
    parser.add_argument("--out", type=Path, required=True, help="where checkpoints, scenes and the model go")
    parser.add_argument(
        "--threshold", type=float, required=True, help="what benchmarks/duke_grouped.py chose on the other folds"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tiles, elsewhere = duke(args.data), Elsewhere.load(args.data, work=args.out, seed=args.seed)
    first = first_stage(elsewhere, seed=args.seed, out=args.out / "first")
    known = tiles.without(tiles.folds() == ASIDE)
    detector, _ = second_stage(first, *known, elsewhere, seed=args.seed, out=args.out / f"fold{ASIDE}")
    detector.info = replace(detector.info, threshold=args.threshold)
    detector.info = replace(detector.info, area_ratio=area_factors(detector, masked(args.data, kept_aside=True)))
    path = args.out / "aerial-tiny.safetensors"
    save(detector, path, dtype=torch.float16)
    print(path)


if __name__ == "__main__":
    main()
