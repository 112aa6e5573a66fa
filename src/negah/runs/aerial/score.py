"""What a card says of a detector, measured on tiles that no stage of its training saw."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from negah.probe.attentive import Reading
from negah.probe.detector import Detector
from negah.runs.aerial.tiles import MIN_PANEL_PATCHES, NO_PANEL_PATCHES, PATCH_PX, Tiles, background, chosen, masked
from negah.solar.footprint import footprint


@torch.inference_mode()
def readings(detector: Detector, images: UInt8[np.ndarray, "n h w 3"], *, batch: int = 64) -> list[Reading]:
    """What the detector says of the windows, in fp32, batch by batch."""
    starts = range(0, len(images), batch)
    return [detector(torch.from_numpy(images[i : i + batch]).permute(0, 3, 1, 2)) for i in starts]


def predict(detector: Detector, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " n"]:
    """Probability of panels in each window."""
    return np.concatenate([reading.logit.sigmoid().numpy() for reading in readings(detector, images)])


def areas(detector: Detector, tiles: Tiles) -> tuple[np.ndarray, np.ndarray]:
    """Estimated and true panel area of each masked tile, in patches."""
    threshold = detector.info.threshold
    parts = [footprint(reading, threshold=threshold).fraction.sum(1) for reading in readings(detector, tiles.images)]
    return torch.cat(parts).numpy(), patches_of(tiles)


def area_factors(detector: Detector, tiles: Tiles) -> tuple[float, float]:
    """Factors on the estimated area of a window between which 90 % of the true areas of found panels lay."""
    estimate, true = areas(detector, tiles)
    found = (estimate > 0) & (true >= MIN_PANEL_PATCHES)
    low, high = np.quantile(true[found] / estimate[found], [0.05, 0.95])
    return round(float(low), 3), round(float(high), 3)


def patches_of(tiles: Tiles) -> Float[np.ndarray, " n"]:
    """Panel area of each masked tile, in patches."""
    assert tiles.masks is not None
    return tiles.masks.sum((1, 2)) / 255 / PATCH_PX**2


def elsewhere_windows(folder: Path) -> dict[str, UInt8[np.ndarray, "n h w 3"]]:
    """Windows that the recipe keeps aside in the other sources, by name: with panels, or without any."""
    jiangsu = masked(folder, kept_aside=True)
    patches = patches_of(jiangsu)
    return {
        "jiangsu_with_panels": chosen(jiangsu, patches >= MIN_PANEL_PATCHES).images,
        "jiangsu_without_panels": chosen(jiangsu, patches < NO_PANEL_PATCHES).images,
        "ucmerced_without_panels": background(folder, kept_aside=True).images,
    }
