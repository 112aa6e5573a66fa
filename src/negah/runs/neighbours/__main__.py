"""`python -m negah.runs.neighbours`: train the refiner that is bundled.

    python -m negah.runs.neighbours --out build/neighbours

draws the towns (seconds each, kept in OUT/towns, so that it goes on where it was stopped), trains on most of them,
calibrates on the others, and writes OUT/refine-neighbours.safetensors.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from negah.graph.refine import save
from negah.probe.detector import load
from negah.runs.neighbours.recipe import HELD, TRAIN, graph_of, train
from negah.runs.neighbours.towns import towns
from negah.runs.record import fingerprint_of


@dataclass(frozen=True)
class Recipe:
    """out: a folder.  detector: whose features and probabilities are refined."""

    out: Path
    detector: str = "negah/aerial-tiny"
    seed: int = 0


def main(recipe: Recipe) -> None:
    """Draw, train, write."""
    detector = load(recipe.detector)
    seeds = [*TRAIN, *HELD]

    def told(stage: str, done: int, total: int) -> None:
        print(f"{stage}: {done} of {total}", end="\r", flush=True)

    drawn = towns(detector, seeds, work=recipe.out / "towns", progress=told)
    graphs = [graph_of(town, detector.info.window_px * detector.info.gsd_m) for town in drawn]
    refiner = train(graphs[: len(TRAIN)], graphs[len(TRAIN) :], seed=recipe.seed)
    path = recipe.out / "refine-neighbours.safetensors"
    save(refiner, path, detector=fingerprint_of(detector)[:12], dtype=torch.float16)
    print(path)


if __name__ == "__main__":
    main(tyro.cli(Recipe))
