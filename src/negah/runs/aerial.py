"""The recipe of `negah/aerial-tiny`: a small panel detector from few labels, on a CPU.

    python -m negah.runs.aerial --data ../shared/data --out runs/aerial     # the bundled model; fold 0 is kept aside
    python benchmarks/duke_grouped.py                                       # the same, in five grouped folds

Two stages, both the same objective through `train.fit`:

1. without a single label of the target region: generated scenes, masked tiles (Jiangsu), and panels drawn onto
   UC Merced pictures, on chips of half the side, which cost a quarter;
2. with the labelled tiles (Duke): the same sources, the labelled tiles, and panels drawn onto labelled tiles that have
   none.

The loss asks for presence (the head's logit and the pooled evidence, by image label) and, where the truth is known to
the pixel (generated, drawn, masked, or no panel at all), for the fraction of panel in each patch:

    loss = bce(logit, present) + 1/2 bce(pooled evidence, present) + dense * mean_j bce(e_j, fraction_j)

Mask-free crops of the masked tiles are the negatives of their own source, so the source says nothing of the label.
"""

import argparse
import copy
import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from negah.images.augment import move, recolour
from negah.images.decode import read_image
from negah.images.paste import paste_panels
from negah.images.scenes import render
from negah.nn.mimetic import mimetic_
from negah.nn.vit import ViT
from negah.probe.attentive import AttentiveHead, pooled_evidence
from negah.probe.baseline import image_statistics
from negah.probe.detector import Detector, DetectorInfo, load, save
from negah.probe.linear import fit_linear
from negah.probe.metrics import Scores, accuracy, best_threshold, measure
from negah.probe.splits import grouped_folds, location_groups
from negah.solar.footprint import footprint
from negah.train.batches import Batches
from negah.train.ema import EMA
from negah.train.fit import fit
from negah.train.objective import Objective

GSD_M = 0.3
WINDOW_PX = 104
PATCH_PX = 8
UCMERCED_PANELS: frozenset[str] = frozenset()  # names of pictures with panels, found by looking
SCENES = 1500
SCENE_SEED = 100_000  # far from the seeds that tests and demonstrations use
MIN_PANEL_PATCHES = 0.35  # a mask of less than this many patches (2 m2) is not called present ...
NO_PANEL_PATCHES = 0.02  # ... and of less than this is called absent; between the two presence is not asked for


class Batch(NamedTuple):
    """Views in [0, 1] at `GSD_M`, ready for the detector."""

    images: Float[Tensor, "batch 3 h w"]
    fraction: Float[Tensor, "batch patch"]  # of each patch that is panel
    present: Float[Tensor, " batch"]  # 1 where there are panels
    asked: Float[Tensor, " batch"]  # 1 where `present` is known
    dense: Float[Tensor, " batch"]  # 1 where `fraction` is known


@dataclass(frozen=True)
class Tiles:
    """A source of tiles, all resampled to `GSD_M` and `WINDOW_PX`.

    images [n, h, w, 3] uint8; masks [n, h, w] uint8 (255: all panel) or None; labels [n]: 1, 0, or -1 where the mask
    tells.  `share` of the batch comes from this source; `drawn` of its tiles without panels get panels drawn onto them.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    labels: np.ndarray
    share: float
    masks: UInt8[np.ndarray, "n h w"] | None = None
    drawn: float = 0.0


class Mixture:
    """Tiles of several sources as one data set, with the sampler and the collation that `Batches` asks for."""

    def __init__(self, sources: Sequence[Tiles], *, side: int):
        self.sources, self.side = sources, side
        self.index = [(s, i) for s, source in enumerate(sources) for i in range(len(source.images))]
        self.weights = torch.cat([torch.full((len(s.images),), s.share / len(s.images)) for s in sources])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[int, int]:
        return self.index[item]

    def order(self, generator: torch.Generator) -> Tensor:
        """One epoch: as many draws as there are tiles, each source by its share."""
        return torch.multinomial(self.weights, len(self), replacement=True, generator=generator)

    def collate(self, items: Sequence[tuple[int, int]], generator: torch.Generator) -> Batch:
        """Tiles to views: draw panels, cut, move, recolour."""
        sources = [self.sources[s] for s, _ in items]
        images = torch.from_numpy(np.stack([self.sources[s].images[i] for s, i in items])).permute(0, 3, 1, 2)
        blank = np.zeros(images.shape[-2:], np.uint8)
        masks = [blank if (m := self.sources[s].masks) is None else m[i] for s, i in items]
        mask = torch.from_numpy(np.stack(masks)).unsqueeze(1).float() / 255
        labels = torch.tensor([int(self.sources[s].labels[i]) for s, i in items])

        if self.side < images.shape[-1]:
            top, left = torch.randint(images.shape[-1] - self.side + 1, (2,), generator=generator).tolist()
            images = images[..., top : top + self.side, left : left + self.side]
            mask = mask[..., top : top + self.side, left : left + self.side]
        drawn = torch.tensor([s.drawn for s in sources]) > torch.rand(len(items), generator=generator)
        drawn &= labels == 0
        if drawn.any():
            pasted, pasted_mask = paste_panels(images[drawn].float() / 255, gsd_m=GSD_M, generator=generator)
            images = images.clone()
            images[drawn], mask[drawn] = (pasted * 255).to(torch.uint8), pasted_mask
            labels[drawn] = -1
        views, mask = move(images, mask, size=self.side, generator=generator)
        fraction = F.avg_pool2d(mask, PATCH_PX).flatten(1)
        patches = fraction.sum(1)
        known = labels < 0
        present = torch.where(known, (patches >= MIN_PANEL_PATCHES).float(), labels.float())
        asked = torch.where(known, ((patches >= MIN_PANEL_PATCHES) | (patches < NO_PANEL_PATCHES)).float(), 1.0)
        dense = (known | (labels == 0)).float()
        return Batch(recolour(views, generator=generator), fraction, present, asked, dense)


class Detection(Objective):
    """Presence by image label, fraction per patch where it is known; the average of the weights is what is kept."""

    def __init__(self, detector: Detector, *, dense: float = 2.0, momentum: float = 0.998):
        super().__init__()
        self.detector = detector
        self.dense = dense
        self.average = EMA(detector, lambda progress: momentum if progress > 0.02 else 0.9)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        reading = self.detector(batch.images)
        bce = F.binary_cross_entropy_with_logits
        pooled = pooled_evidence(reading.patch_logits)
        presence = (bce(reading.logit, batch.present, reduction="none") * batch.asked).mean()
        evidence = (bce(pooled, batch.present, reduction="none") * batch.asked).mean()
        per_patch = bce(reading.patch_logits, batch.fraction, reduction="none").mean(1)
        dense = (per_patch * batch.dense).mean()
        loss = presence + 0.5 * evidence + self.dense * dense
        return {"loss": loss, "presence": presence.detach(), "evidence": evidence.detach(), "dense": dense.detach()}

    def after_step(self, progress: float) -> None:
        self.average.update(self.detector, progress)


def new_detector(*, dim: int = 128, depth: int = 4, seed: int = 0) -> Detector:
    """An untrained detector of the bundled model's shape; a token covers 2.4 m."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        side = WINDOW_PX // PATCH_PX
        backbone = ViT(
            patch=PATCH_PX, dim=dim, depth=depth, heads=dim // 32, grid=(side, side), layer_scale=None,
            drop_path=0.05, interpolation="size",
        )  # fmt: skip
        head = AttentiveHead(dim, heads=dim // 32)
    mimetic_(backbone, generator=torch.Generator().manual_seed(seed))
    return Detector(backbone, head, DetectorInfo(name="negah/aerial-tiny", window_px=WINDOW_PX, gsd_m=GSD_M))


def train(
    detector: Detector, sources: Sequence[Tiles], *, steps: int, lr: float, side: int = WINDOW_PX, batch: int = 32,
    seed: int = 0, out: Path | None = None, workers: int = 0,
) -> Detector:  # fmt: skip
    """One stage: `detector` is trained in place, and the average of its weights is returned."""
    mixture = Mixture(sources, side=side)
    objective = Detection(detector.requires_grad_().train())  # an average, as a first stage returns it, asks for none
    batches = Batches(mixture, batch, seed=seed, sampler=mixture.order, collate=mixture.collate, workers=workers)
    fit(
        objective, batches, steps=steps, lr=lr, weight_decay=0.05, warmup=min(200, steps // 10), clip=1.0,
        seed=seed, out=out, checkpoint_every=500,
    )  # fmt: skip
    average = objective.average.model
    assert isinstance(average, Detector)
    return average.eval()


def duke(folder: Path) -> tuple[Tiles, np.ndarray]:
    """The labelled Duke tiles (1 and 0), with the group of overlapping tiles that each belongs to."""
    rows = [row for row in read_csv(folder / "duke-solar/labels.csv") if row["label"]]
    with zipfile.ZipFile(folder / "duke-solar/tiles.zip") as archive:
        images = np.stack([resized(archive.read(row["file"]), row["file"], WINDOW_PX) for row in rows])
    labels = np.array([int(row["label"]) for row in rows])
    return Tiles(images, labels, share=1.0, drawn=0.5), np.array([int(row["overlap_group"]) for row in rows])


def masked(folder: Path, *, kept_aside: bool = False, seed: int = 0) -> Tiles:
    """The 0.1 m Jiangsu tiles at `GSD_M`, cut to quarters; mask-free ones are negatives of their own source.

    A quarter is mirrored up to the window, positives and negatives alike.  Every fifth neighbourhood (tiles within
    300 m of each other) is kept aside: trained on by nothing, returned when `kept_aside` is true.
    """
    rows = [row for row in read_csv(folder / "pv-masks/tiles.csv") if row["set"] == "jiangsu-pv01"]
    places = location_groups([float(r["lat"]) for r in rows], [float(r["lon"]) for r in rows], distance_m=300)
    aside = grouped_folds(places, np.zeros(len(rows), int), folds=5) == 0
    rows = [row for row, out in zip(rows, aside, strict=True) if out == kept_aside]
    rng, images, masks = np.random.default_rng(seed), [], []
    with (
        zipfile.ZipFile(folder / "pv-masks/images.zip") as pictures,
        zipfile.ZipFile(folder / "pv-masks/masks.zip") as truths,
    ):
        for row in rows:
            side = round(int(row["width"]) * float(row["effective_gsd_m"]) / GSD_M)
            image = resized(pictures.read(row["image"]), row["image"], side)
            mask = resized(truths.read(row["mask"]), row["mask"], side)[..., 0]
            cut = WINDOW_PX // 2
            corners = [(0, 0), (0, side - cut), (side - cut, 0), (side - cut, side - cut)]
            corners += [tuple(rng.integers(0, side - cut + 1, 2)) for _ in range(4)]
            for top, left in corners:
                window = np.s_[top : top + cut, left : left + cut]
                images.append(mirrored(image[window]))
                masks.append(mirrored(mask[window]))
    return Tiles(np.stack(images), np.full(len(images), -1), share=1.0, masks=np.stack(masks))


def background(folder: Path, *, kept_aside: bool = False) -> Tiles:
    """UC Merced pictures cut into windows; none has panels, but for `UCMERCED_PANELS`, which are left out.

    Of each class the pictures from number 80 on are kept aside, and returned when `kept_aside` is true.
    """
    images = []
    with zipfile.ZipFile(folder / "ucmerced/images.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".jpg")):
            if Path(name).stem in UCMERCED_PANELS or (int(Path(name).stem[-2:]) >= 80) != kept_aside:
                continue
            image = read_image(archive.read(name), name=name)
            bottom, right = image.shape[0] - WINDOW_PX, image.shape[1] - WINDOW_PX
            for top, left in ((0, 0), (0, right), (bottom, 0), (bottom, right)):
                images.append(image[top : top + WINDOW_PX, left : left + WINDOW_PX])
    return Tiles(np.stack(images), np.zeros(len(images), int), share=1.0, drawn=0.6)


def generated(count: int, *, work: Path, seed: int = 0) -> Tiles:
    """Chips of generated scenes with their exact masks; scene i has seed `SCENE_SEED` + `seed` * count + i."""
    path = work / f"scenes-{count}-{seed}.npz"
    if not path.is_file():
        scenes = [render(WINDOW_PX, GSD_M, seed=SCENE_SEED + seed * count + i) for i in range(count)]
        masks = np.stack([(s.mask * 255).round().astype(np.uint8) for s in scenes])
        np.savez(path, images=np.stack([s.image for s in scenes]), masks=masks)
    with np.load(path) as stored:
        return Tiles(stored["images"], np.full(count, -1), share=1.0, masks=stored["masks"])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def resized(data: bytes, name: str, side: int) -> np.ndarray:
    image = Image.fromarray(read_image(data, name=name))
    return np.asarray(
        image.resize((side, side), Image.Resampling.BOX if side < image.width else Image.Resampling.BICUBIC)
    )


def mirrored(cut: np.ndarray) -> np.ndarray:
    """A cut of half the window, reflected to the whole window."""
    side = cut.shape[0]
    pad = ((0, WINDOW_PX - side), (0, WINDOW_PX - side), (0, 0))[: cut.ndim]
    return np.pad(cut, pad, mode="symmetric")


@dataclass(frozen=True)
class Elsewhere:
    """The sources that hold no tile of the target region, loaded once."""

    masked: Tiles
    background: Tiles
    generated: Tiles

    @classmethod
    def load(cls, folder: Path, *, work: Path, scenes: int = SCENES, seed: int = 0) -> "Elsewhere":
        """Sources from the data folder; rendered scenes are kept in `work`, since they take minutes."""
        return cls(masked(folder, seed=seed), background(folder), generated(scenes, work=work, seed=seed))


def first_stage(elsewhere: Elsewhere, *, steps: int = 4000, seed: int = 0, out: Path | None = None) -> Detector:
    """Without a label of the target region, on chips of half a window."""
    sources = [
        replace(elsewhere.masked, share=0.15),
        replace(elsewhere.background, share=0.65),
        replace(elsewhere.generated, share=0.2),
    ]
    return train(new_detector(seed=seed), sources, steps=steps, lr=1e-3, side=64, seed=seed, out=out)


def scenes_only(elsewhere: Elsewhere, *, steps: int = 1000, seed: int = 0, out: Path | None = None) -> Detector:
    """Trained on generated scenes and nothing else: what simulation alone is worth on real tiles."""
    sources = [replace(elsewhere.generated, share=1.0)]
    return train(new_detector(seed=seed), sources, steps=steps, lr=1e-3, side=64, seed=seed, out=out)


def second_stage(
    detector: Detector, labelled: Tiles, elsewhere: Elsewhere, *, steps: int = 1500, lr: float = 7e-4, seed: int = 0,
    out: Path | None = None,
) -> Detector:  # fmt: skip
    """With the labelled tiles, on whole windows; `detector` is left as it is."""
    sources = [
        replace(labelled, share=0.6),
        replace(elsewhere.masked, share=0.1),
        replace(elsewhere.background, share=0.15),
        replace(elsewhere.generated, share=0.15),
    ]
    return train(copy.deepcopy(detector), sources, steps=steps, lr=lr, seed=seed + 1, out=out)


@torch.inference_mode()
def predict(detector: Detector, images: UInt8[np.ndarray, "n h w 3"], *, batch: int = 64) -> Float[np.ndarray, " n"]:
    """Probability of panels in each window."""
    parts = [torch.from_numpy(images[i : i + batch]).permute(0, 3, 1, 2) for i in range(0, len(images), batch)]
    return np.concatenate([detector(part).logit.float().sigmoid().numpy() for part in parts])


@torch.inference_mode()
def area_factors(detector: Detector, tiles: Tiles) -> tuple[float, float]:
    """Factors on the estimated area of a window between which 90 % of the true areas of found panels lay."""
    assert tiles.masks is not None
    found: list[float] = []
    for image, mask in zip(tiles.images, tiles.masks, strict=True):
        reading = detector(torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0))
        estimate = float(footprint(reading, threshold=detector.info.threshold).fraction.sum())
        true = mask.sum() / 255 / PATCH_PX**2
        if estimate > 0 and true >= MIN_PANEL_PATCHES:
            found.append(true / estimate)
    low, high = np.quantile(found, [0.05, 0.95])
    return round(float(low), 3), round(float(high), 3)


def main() -> None:
    """Train the model that is bundled, and print what its card says."""
    parser = argparse.ArgumentParser(
        description="Train negah/aerial-tiny; fold 0 of five grouped Duke folds is kept aside."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with duke-solar, pv-masks, ucmerced")
    parser.add_argument("--out", type=Path, required=True, help="where checkpoints, the model and its scores go")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    labelled, groups = duke(args.data)
    aside = grouped_folds(groups, labelled.labels, folds=5) == 0
    known = replace(labelled, images=labelled.images[~aside], labels=labelled.labels[~aside])
    elsewhere = Elsewhere.load(args.data, work=args.out, seed=args.seed)
    base = first_stage(elsewhere, seed=args.seed, out=args.out / "first")
    detector = second_stage(base, known, elsewhere, seed=args.seed, out=args.out / "second")
    # Drawn panels make positives far more common in training than they are: the threshold is set on tiles as they are.
    chosen = best_threshold(known.labels, predict(detector, known.images), goal=accuracy)
    detector.info = replace(detector.info, threshold=round(chosen, 3))
    detector.info = replace(detector.info, area_ratio=area_factors(detector, masked(args.data, kept_aside=True)))
    path = args.out / "aerial-tiny.safetensors"
    save(detector, path, dtype=torch.float16)
    for name, value in score(load(path), args.data, seed=args.seed).items():
        print(f"{name}: {value}")


def score(detector: Detector, folder: Path, *, seed: int = 0) -> dict[str, Scores | float]:
    """What the card says, on what no stage was trained on: Duke fold 0, and the tiles kept aside elsewhere.

    The image statistics are taken at 0.5, the detector at its own threshold; `..._rate` is the share called positive.
    """
    labelled, groups = duke(folder)
    aside = grouped_folds(groups, labelled.labels, folds=5) == 0
    y, features, generator = labelled.labels, image_statistics(labelled.images), torch.Generator().manual_seed(seed)
    probe = fit_linear(features[~aside], y[~aside], groups[~aside])

    def measured(p: np.ndarray, threshold: float) -> Scores:
        return measure(y[aside], p, threshold=threshold, groups=groups[aside], generator=generator)

    jiangsu, ucmerced = masked(folder, kept_aside=True), background(folder, kept_aside=True)
    assert jiangsu.masks is not None
    patches = jiangsu.masks.sum((1, 2)) / 255 / PATCH_PX**2
    windows = {
        "jiangsu_true_positive_rate": jiangsu.images[patches >= MIN_PANEL_PATCHES],
        "jiangsu_false_positive_rate": jiangsu.images[patches < NO_PANEL_PATCHES],
        "ucmerced_false_positive_rate": ucmerced.images,
    }
    threshold = detector.info.threshold
    rates = {name: float((predict(detector, images) >= threshold).mean()) for name, images in windows.items()}
    return {
        "duke_fold_0": measured(predict(detector, labelled.images[aside]), threshold),
        "image_statistics": measured(probe.probability(features[aside]), 0.5),
        **rates,
    }


if __name__ == "__main__":
    main()
