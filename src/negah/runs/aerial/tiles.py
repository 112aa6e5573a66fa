"""What the recipe learns from: tiles of several sources, and the random views that are made of them.

Real tiles with image labels (Duke) or without any, real tiles with masks (Jiangsu), real pictures without panels (UC
Merced), generated scenes, and panels drawn onto whatever has none.  Mask-free crops of the masked tiles are the
negatives of their own source, so the source says nothing of the label.
"""

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from negah.images.augment import move, recolour
from negah.images.decode import read_image
from negah.images.paste import paste_panels
from negah.images.scenes import render
from negah.probe.splits import grouped_folds, location_groups

GSD_M = 0.3
WINDOW_PX = 104
PATCH_PX = 8
# Pictures with panels or collectors, or with something that cannot be told from them, found by looking at all of them.
UCMERCED_PANELS = frozenset({
    "denseresidential42", "denseresidential80", "mediumresidential33", "mediumresidential46", "denseresidential46",
    "sparseresidential87", "denseresidential43", "mobilehomepark20", "mobilehomepark23", "sparseresidential71",
    "mediumresidential88", "mediumresidential91", "denseresidential65", "intersection43",
})  # fmt: skip
SCENES = 3000
SCENE_SEED = 100_000  # far from the seeds that tests and demonstrations use
MIN_PANEL_PATCHES = 0.35  # a mask of less than this many patches (2 m2) is not called present ...
NO_PANEL_PATCHES = 0.02  # ... and of less than this is called absent; between the two presence is not asked for
MASKED, UNLABELLED = -1, -2  # in `Tiles.labels`, beside 0 and 1


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

    images [n, h, w, 3] uint8; masks [n, h, w] uint8 (255: all panel) or None; labels [n]: 1, 0, MASKED (the mask
    tells) or UNLABELLED.  `share` of every batch comes from this source.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    labels: np.ndarray
    masks: UInt8[np.ndarray, "n h w"] | None = None
    share: float = 1.0


class Mixture:
    """Tiles of several sources as one data set, with the sampler and the collation that `Batches` asks for.

    side: of the views, in pixels.  strength: of the changes of colour.  exact: share of views that are not resampled.
    crossed: share of views that hold a piece of another.
    """

    def __init__(
        self, sources: Sequence[Tiles], *, side: int, strength: float = 1.0, exact: float = 0.0, crossed: float = 0.0
    ):
        self.sources, self.side, self.strength, self.exact, self.crossed = sources, side, strength, exact, crossed
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
        """Tiles to views: cut, move, recolour."""
        images = torch.from_numpy(np.stack([self.sources[s].images[i] for s, i in items])).permute(0, 3, 1, 2)
        blank = np.zeros(images.shape[-2:], np.uint8)
        masks = [blank if (m := self.sources[s].masks) is None else m[i] for s, i in items]
        mask = torch.from_numpy(np.stack(masks)).unsqueeze(1).float() / 255
        labels = torch.tensor([int(self.sources[s].labels[i]) for s, i in items])

        if self.side < images.shape[-1]:
            top, left = torch.randint(images.shape[-1] - self.side + 1, (2,), generator=generator).tolist()
            images = images[..., top : top + self.side, left : left + self.side]
            mask = mask[..., top : top + self.side, left : left + self.side]
        views, mask = move(images, mask, size=self.side, generator=generator, exact=self.exact)
        views = recolour(views, generator=generator, strength=self.strength)
        fraction = F.avg_pool2d(mask, PATCH_PX).flatten(1)
        if self.crossed:
            views, fraction, labels = cross(views, fraction, labels, share=self.crossed, generator=generator)
        patches = fraction.sum(1)
        known = labels == MASKED
        present = torch.where(known, (patches >= MIN_PANEL_PATCHES).float(), (labels == 1).float())
        clear = (patches >= MIN_PANEL_PATCHES) | (patches < NO_PANEL_PATCHES)
        asked = torch.where(known, clear, labels != UNLABELLED).float()
        dense = (known | (labels == 0)).float()
        return Batch(views, fraction, present, asked, dense)


def cross(
    views: Float[Tensor, "batch 3 h w"], fraction: Float[Tensor, "batch patch"], labels: Int[Tensor, " batch"], *,
    share: float, generator: torch.Generator,
) -> tuple[Float[Tensor, "batch 3 h w"], Float[Tensor, "batch patch"], Int[Tensor, " batch"]]:  # fmt: skip
    """CutMix (Yun et al. 2019, arXiv:1905.04899): a rectangle of whole patches comes from the next view of the batch.

    Where the panels of both are known, those of the crossed view are; otherwise it has no label, and only a teacher can
    say what is in it.
    """
    count, side = len(views), views.shape[-1] // PATCH_PX
    crossed = torch.rand(count, generator=generator) < share
    first = torch.randint(side - 1, (2, count, 1), generator=generator)
    extent = torch.randint(3, side, (2, count, 1), generator=generator)
    place = torch.arange(side)
    rows, columns = (place >= first) & (place < first + extent)
    other = rows[:, :, None] & columns[:, None, :] & crossed[:, None, None]
    pixels = other.repeat_interleave(PATCH_PX, 1).repeat_interleave(PATCH_PX, 2).unsqueeze(1)
    truth = (labels == MASKED) | (labels == 0)
    mixed = torch.where(truth & truth.roll(-1), MASKED, UNLABELLED)
    return (
        torch.where(pixels, views.roll(-1, 0), views),
        torch.where(other.flatten(1), fraction.roll(-1, 0), fraction),
        torch.where(crossed, mixed, labels),
    )


@dataclass(frozen=True)
class Duke:
    """The Duke tiles, and the group of overlapping tiles that each belongs to; those without a label beside."""

    labelled: Tiles
    groups: np.ndarray
    unlabelled: Tiles
    unlabelled_groups: np.ndarray

    def folds(self, count: int = 5, *, seed: int = 0) -> np.ndarray:
        """Fold of each labelled tile; overlapping tiles share one."""
        return grouped_folds(self.groups, self.labelled.labels, folds=count, seed=seed)

    def without(self, aside: np.ndarray) -> tuple[Tiles, Tiles]:
        """Labelled and unlabelled tiles, less those that `aside` marks and any that overlap with them."""
        clear = ~np.isin(self.unlabelled_groups, self.groups[aside])
        assert not np.isin(self.groups[~aside], self.groups[aside]).any(), "a group is kept aside in part"
        return chosen(self.labelled, ~aside), chosen(self.unlabelled, clear)


def chosen(tiles: Tiles, which: np.ndarray) -> Tiles:
    """Some tiles of a source."""
    masks = None if tiles.masks is None else tiles.masks[which]
    return replace(tiles, images=tiles.images[which], labels=tiles.labels[which], masks=masks)


def joined(first: Tiles, second: Tiles) -> Tiles:
    """Two sources without masks as one."""
    assert first.masks is None and second.masks is None
    return replace(
        first,
        images=np.concatenate([first.images, second.images]),
        labels=np.concatenate([first.labels, second.labels]),
    )


def duke(folder: Path) -> Duke:
    """The Duke tiles of the data folder, enlarged from 101 to 104 px as a survey does it."""
    rows = read_csv(folder / "duke-solar/labels.csv")
    with zipfile.ZipFile(folder / "duke-solar/tiles.zip") as archive:
        images = np.stack([resized(archive.read(row["file"]), row["file"], WINDOW_PX) for row in rows])
    labels = np.array([int(row["label"] or UNLABELLED) for row in rows])
    groups = np.array([int(row["overlap_group"]) for row in rows])
    known = labels != UNLABELLED
    return Duke(
        Tiles(images[known], labels[known]), groups[known],
        Tiles(images[~known], labels[~known]), groups[~known],
    )  # fmt: skip


def masked(folder: Path, *, kept_aside: bool = False, seed: int = 0) -> Tiles:
    """The 0.1 m Jiangsu tiles at `GSD_M`, cut to quarters; mask-free ones are negatives of their own source.

    Every fifth neighbourhood (tiles within 300 m of each other) is kept aside: trained on by nothing, returned when
    `kept_aside` is true.
    """
    rows, fold = jiangsu(folder, folds=5)
    return cuts(folder, [row for row, k in zip(rows, fold, strict=True) if (k == 0) == kept_aside], seed=seed)


def jiangsu(folder: Path, *, folds: int) -> tuple[list[dict[str, str]], np.ndarray]:
    """Rows of the 0.1 m Jiangsu tiles, and the fold of each; neighbourhoods stay whole."""
    rows = [row for row in read_csv(folder / "pv-masks/tiles.csv") if row["set"] == "jiangsu-pv01"]
    places = location_groups([float(r["lat"]) for r in rows], [float(r["lon"]) for r in rows], distance_m=300)
    return rows, grouped_folds(places, np.zeros(len(rows), int), folds=folds)


def cuts(folder: Path, rows: Sequence[dict[str, str]], *, seed: int = 0) -> Tiles:
    """Quarters of masked tiles: the four corners and four at random, each mirrored up to the window, all alike."""
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
    return Tiles(np.stack(images), np.full(len(images), MASKED), np.stack(masks))


def only_labels(tiles: Tiles) -> Tiles:
    """Masked tiles as if somebody had only said of each picture whether it shows panels."""
    assert tiles.masks is not None
    patches = tiles.masks.sum((1, 2)) / 255 / PATCH_PX**2
    labels = np.where(patches >= MIN_PANEL_PATCHES, 1, np.where(patches < NO_PANEL_PATCHES, 0, UNLABELLED))
    return replace(tiles, labels=labels, masks=None)


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
    return Tiles(np.stack(images), np.zeros(len(images), int))


def with_panels(tiles: Tiles, *, copies: int = 1, seed: int = 0, large: float = 0.0) -> Tiles:
    """Those of the tiles that have no panels, `copies` times, each time with other panels drawn onto them.

    large: see `paste_panels`.
    """
    generator, images, masks = torch.Generator().manual_seed(seed), [], []
    empty = tiles.images[tiles.labels == 0]
    for start in range(0, copies * len(empty), 64):
        rows = np.arange(start, min(start + 64, copies * len(empty))) % len(empty)
        bare = torch.from_numpy(empty[rows]).permute(0, 3, 1, 2).float() / 255
        drawn, mask = paste_panels(bare, gsd_m=GSD_M, generator=generator, large=large)
        images.append((drawn * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
        masks.append((mask * 255).round().to(torch.uint8).squeeze(1).numpy())
    return Tiles(np.concatenate(images), np.full(copies * len(empty), MASKED), np.concatenate(masks))


def generated(count: int, *, work: Path, seed: int = 0) -> Tiles:
    """Chips of generated scenes with their exact masks; scene i has seed `SCENE_SEED` + `seed` * count + i."""
    path = work / f"scenes-{count}-{seed}.npz"
    if not path.is_file():
        scenes = [render(WINDOW_PX, GSD_M, seed=SCENE_SEED + seed * count + i) for i in range(count)]
        masks = np.stack([(s.mask * 255).round().astype(np.uint8) for s in scenes])
        np.savez(path, images=np.stack([s.image for s in scenes]), masks=masks)
    with np.load(path) as stored:
        return Tiles(stored["images"], np.full(count, MASKED), stored["masks"])


@dataclass(frozen=True)
class Elsewhere:
    """The sources that hold no tile of the target region, loaded once."""

    masked: Tiles | None  # None where no real mask may be learned from
    background: Tiles
    drawn: Tiles  # panels drawn onto the background
    generated: Tiles

    @classmethod
    def load(cls, folder: Path, *, work: Path, scenes: int = SCENES, seed: int = 0) -> "Elsewhere":
        """Sources from the data folder; rendered scenes are kept in `work`, since they take minutes."""
        bare = background(folder)
        drawn = with_panels(bare, seed=seed)
        return cls(masked(folder, seed=seed), bare, drawn, generated(scenes, work=work, seed=seed))


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
