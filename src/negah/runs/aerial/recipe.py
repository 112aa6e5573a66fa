"""The stages: a teacher and the detector, each first without a tile of the target region, then with some.

1. without a single tile of the target region: masked tiles (Jiangsu), UC Merced pictures with and without panels drawn
   onto them, and generated scenes, on chips of part of the side, which cost half; first the teacher, then the detector
   under that teacher;
2. with the labelled tiles (Duke), on whole windows: the same sources, the labelled tiles, panels drawn onto labelled
   tiles that have none, and, for the detector, unlabelled tiles of the region.  It goes twice through teacher and
   detector and once more through the detector alone, each time from where they were and with the learning rate raised
   again (warm restarts, Loshchilov & Hutter 2016, arXiv:1608.03983); from the second round on half of the detector's
   views hold a piece of another.

The first stage is the same for whatever tiles of the region are known, so folds share it.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch

from negah.nn.mimetic import mimetic_
from negah.nn.vit import ViT
from negah.probe.attentive import AttentiveHead
from negah.probe.detector import Detector, DetectorInfo
from negah.runs.aerial.objectives import Detection, Distillation, Net, Teacher
from negah.runs.aerial.tiles import GSD_M, PATCH_PX, WINDOW_PX, Elsewhere, Mixture, Tiles, with_panels
from negah.train.batches import Batches
from negah.train.fit import fit


class Steps(NamedTuple):
    """Of one round of the second stage; without steps of its own the teacher stays as it is.

    crossed: share of the detector's views that hold a piece of another.
    """

    teacher: int
    detector: int
    crossed: float = 0.0


CHIP_PX = 72  # side of the first stage's views
BATCH = 64
STRENGTH, EXACT = 0.4, 0.5  # of the second stage's views, see `Mixture`
ROUNDS = (
    Steps(teacher=1000, detector=600),
    Steps(teacher=1200, detector=1000, crossed=0.5),
    Steps(teacher=0, detector=1200, crossed=0.5),
)
# Rounds where no real tile has a mask: first as above, then with drawn arrays as large as those on halls.
LABELS_ONLY = (Steps(teacher=500, detector=1000, crossed=0.5),)
LABELS_ONLY_LARGE = (Steps(teacher=300, detector=700, crossed=0.5),)
ASIDE = 4  # the Duke fold that the bundled model was not trained on


class Pair(NamedTuple):
    """A detector and the teacher that it learned from."""

    detector: Detector
    teacher: Teacher


def first_stage(elsewhere: Elsewhere, *, scale: float = 1.0, seed: int = 0, out: Path | None = None) -> Pair:
    """Without a tile of the target region; `scale` multiplies the steps."""
    sources = [
        *([replace(elsewhere.masked, share=0.2)] if elsewhere.masked else []),
        replace(elsewhere.background, share=0.25),
        replace(elsewhere.drawn, share=0.3),
        replace(elsewhere.generated, share=0.25),
    ]
    steps = round(2000 * scale)
    teacher = train(Detection(new_teacher(seed=seed)), sources, steps=steps, lr=2e-3, side=CHIP_PX, seed=seed,
                    out=out and out / "teacher")  # fmt: skip
    objective = Distillation(new_detector(seed=seed), copy.deepcopy(teacher))
    detector = train(objective, sources, steps=steps, lr=1e-3, side=CHIP_PX, seed=seed, out=out and out / "detector")
    return Pair(detector, teacher)


def second_stage(
    pair: Pair, labelled: Tiles, unlabelled: Tiles, elsewhere: Elsewhere, *, rounds: Sequence[Steps] = ROUNDS,
    large: float = 0.0, scale: float = 1.0, seed: int = 0, out: Path | None = None,
) -> Pair:  # fmt: skip
    """With tiles of the target region; `pair` is left as it is.  large: of the panels drawn onto tiles."""
    sources = [
        replace(labelled, share=0.65),
        replace(with_panels(labelled, copies=4, seed=seed, large=large), share=0.1),
        *([replace(elsewhere.masked, share=0.08)] if elsewhere.masked else []),
        replace(elsewhere.background, share=0.07),
        replace(elsewhere.drawn, share=0.03),
        replace(elsewhere.generated, share=0.07),
    ]
    for number, steps in enumerate(rounds, 1):
        learn = partial(train, strength=STRENGTH, exact=EXACT, seed=seed + number)
        folder = out and out / f"round{number}"
        teacher = pair.teacher
        if steps.teacher:
            teacher = learn(Detection(copy.deepcopy(teacher)), sources, steps=round(steps.teacher * scale), lr=2e-3,
                            out=folder and folder / "teacher")  # fmt: skip
        objective = Distillation(copy.deepcopy(pair.detector), copy.deepcopy(teacher))
        detector = learn(objective, [*sources, replace(unlabelled, share=0.2)], steps=round(steps.detector * scale),
                         lr=1e-3, crossed=steps.crossed, out=folder and folder / "detector")  # fmt: skip
        pair = Pair(detector, teacher)
    return pair


def scenes_only(elsewhere: Elsewhere, *, steps: int = 1000, seed: int = 0, out: Path | None = None) -> Detector:
    """Trained on generated scenes and nothing else: what simulation alone is worth on real tiles."""
    return train(Detection(new_detector(seed=seed)), [elsewhere.generated], steps=steps, lr=1e-3, side=CHIP_PX,
                 seed=seed, out=out)  # fmt: skip


def train(
    objective: Detection[Net], sources: Sequence[Tiles], *, steps: int, lr: float, side: int = WINDOW_PX,
    batch: int = BATCH, strength: float = 1.0, exact: float = 0.0, crossed: float = 0.0, seed: int = 0,
    out: Path | None = None,
) -> Net:  # fmt: skip
    """One run: the objective's network is trained in place, and the average of its weights is returned."""
    mixture = Mixture(sources, side=side, strength=strength, exact=exact, crossed=crossed)
    objective.model.requires_grad_()  # an average, as an earlier stage returns it, asks for no gradient
    batches = Batches(mixture, batch, seed=seed, sampler=mixture.order, collate=mixture.collate, workers=1)
    fit(
        objective, batches, steps=steps, lr=lr, weight_decay=0.05, warmup=min(200, steps // 10), clip=1.0,
        precision="bf16", seed=seed, out=out, checkpoint_every=500,
    )  # fmt: skip
    return cast(Net, objective.average.model.eval())


def new_teacher(*, seed: int = 0, widths: tuple[int, int, int] = (48, 96, 192)) -> Teacher:
    """An untrained teacher of the recipe's shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Teacher(widths=widths)


def new_detector(*, dim: int = 192, depth: int = 6, seed: int = 0) -> Detector:
    """An untrained detector of the bundled model's shape; a token covers 2.4 m."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        side, heads = WINDOW_PX // PATCH_PX, max(1, dim // 64)
        backbone = ViT(
            patch=PATCH_PX, dim=dim, depth=depth, heads=heads, grid=(side, side), layer_scale=None, drop_path=0.05,
            interpolation="size",
        )  # fmt: skip
        head = AttentiveHead(dim, heads=heads)
    mimetic_(backbone, generator=torch.Generator().manual_seed(seed))
    return Detector(backbone, head, DetectorInfo(name="negah/aerial-tiny", window_px=WINDOW_PX, gsd_m=GSD_M))
