"""Generated towns as a survey sees them: windows side by side, what the detector says of each, and what is there.

In half of the towns panels clump: streets differ in how many buildings have them, as `images.scenes.town` draws it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import rasterio
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from negah.images.scenes import write_town
from negah.probe.detector import Detector
from negah.progress import Progress, silent
from negah.runs.aerial.tiles import MASKED, MIN_PANEL_PATCHES, NO_PANEL_PATCHES, PATCH_PX
from negah.runs.record import fingerprint_of

SIDE = 12  # windows along a town, about 370 m
ADOPTION = 0.05, 0.5  # part of a town's buildings with modules, from and to
CLUMPING = 0.2, 0.7  # of towns in which panels clump
TOWN_SEED = 700_000  # far from the seeds that tests and demonstrations use
BATCH = 16


@dataclass(frozen=True)
class Windows:
    """The windows of one town, row by row.

    feature: of the backbone, see `Reading`.  logit: of the detector, before the sigmoid.  place: centres in metres.
    label: 1 with panels, 0 without, MASKED where there is too little of one to ask.
    """

    feature: Float[ndarray, "window dim"]
    logit: Float[ndarray, " window"]
    place: Float[ndarray, "window 2"]
    label: Int[ndarray, " window"]


def windows_of(detector: Detector, seed: int, *, adoption: float, clumping: float, side: int = SIDE) -> Windows:
    """Draw a town and look at it, `side` windows of the detector along each side."""
    px, gsd_m = detector.info.window_px, detector.info.gsd_m
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "town.tif"
        drawn = write_town(path, size_px=side * px, gsd_m=gsd_m, seed=seed, adoption=adoption, clumping=clumping)
        with rasterio.open(drawn.image) as file:
            image = np.moveaxis(file.read(), 0, -1)
        with rasterio.open(drawn.mask) as file:
            mask = file.read(1)
    images = image.reshape(side, px, side, px, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, px, px)
    patches = mask.reshape(side, px, side, px).sum((1, 3), dtype=float).ravel() / 255 / PATCH_PX**2
    features, logits = [], []
    with torch.inference_mode():
        for batch in torch.from_numpy(np.ascontiguousarray(images)).split(BATCH):
            reading = detector(batch, above=1.0)  # its patches are not asked for
            features.append(reading.feature)
            logits.append(reading.logit)
    centre = (np.arange(side) + 0.5) * px * gsd_m
    x, y = np.meshgrid(centre, centre)
    label = np.where(patches >= MIN_PANEL_PATCHES, 1, np.where(patches < NO_PANEL_PATCHES, 0, MASKED))
    return Windows(
        torch.cat(features).numpy().astype(np.float16), torch.cat(logits).numpy(),
        np.stack([x.ravel(), y.ravel()], axis=1), label,
    )  # fmt: skip


def towns(
    detector: Detector, seeds: Sequence[int], *, work: Path, clumping: float | None = None,
    progress: Progress = silent,
) -> list[Windows]:  # fmt: skip
    """A town for each seed, kept in `work`, since drawing one takes seconds.

    clumping: of all of them; None: none in every other town, and anything within CLUMPING in the rest.
    """
    mark, found = fingerprint_of(detector)[:12], []
    work.mkdir(parents=True, exist_ok=True)
    for done, seed in enumerate(seeds, 1):
        rng = Random(TOWN_SEED + seed)
        adoption, drawn = rng.uniform(*ADOPTION), rng.uniform(*CLUMPING) if seed % 2 else 0.0
        clumps = drawn if clumping is None else clumping
        path = work / f"{mark}-{seed}-{clumps:.4f}.npz"
        if not path.is_file():
            windows = windows_of(detector, TOWN_SEED + seed, adoption=adoption, clumping=clumps)
            part = path.with_suffix(".part.npz")
            np.savez(part, **vars(windows))
            part.replace(path)
        with np.load(path) as stored:
            found.append(Windows(**stored))
        progress("towns", done, len(seeds))
    return found
