"""Windows as they are looked at: the tile, attention, evidence, the footprint, and the truth where it is known."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw
from scipy.special import expit

from negah.solar.calibration import PRESENT_M2, Calibration, Seen

SIDE, GAP, LINE = 168, 8, 16  # pixels of a picture, between pictures, of a line of text
COLUMNS = ("tile", "attention", "evidence", "footprint", "truth")
PAPER, INK = (250, 249, 246), (28, 32, 36)
LOW, HIGH = np.array([20.0, 20.0, 40.0]), np.array([255.0, 190.0, 70.0])  # colours of a map's ends
PANEL = np.array([255.0, 79.0, 160.0])


class Example(NamedTuple):
    """One row of the sheet.  Maps are in [0, 1]."""

    image: UInt8[ndarray, "h w 3"]
    attention: Float[ndarray, "row col"]
    evidence: Float[ndarray, "row col"]
    footprint: Float[ndarray, "row2 col2"]
    truth: Float[ndarray, "row2 col2"] | None
    caption: str


def examples(seen: Seen, calibration: Calibration, count: int) -> list[Example]:
    """Windows with panels from small to large, and how they were measured by a fit that knows them."""
    have = [k for k, known in enumerate(seen.known) if known is not None and seen.true_m2[k] >= PRESENT_M2]
    have.sort(key=lambda k: seen.true_m2[k])
    chosen = [have[i] for i in np.unique(np.linspace(0, len(have) - 1, count).round().astype(int))] if have else []
    rows = []
    for k in chosen:
        known = seen.known[k]
        assert known is not None and known.look.image is not None
        fraction = calibration.cells.fraction(known.look)
        one = np.array([fraction.sum(dtype=np.float64) * seen.cell_m2[k]])
        rest = (values[k : k + 1] for values in (seen.probability, seen.gsd_m, seen.ground_m2))
        area, low, high = calibration.measure(one, *rest)
        share = np.exp(known.look.glance.share).mean(0)
        caption = (
            f"true {seen.true_m2[k]:,.1f} m2, measured {area[0]:,.1f} ({low[0]:,.1f} to {high[0]:,.1f}), "
            f"probability {seen.probability[k]:.2f}"
        )
        evidence = expit(known.look.glance.evidence)
        rows.append(Example(known.look.image, share / share.max(), evidence, fraction, known.fraction, caption))
    return rows


def sheet(rows: list[Example]) -> Image.Image:
    """All examples in one picture."""
    width = GAP + len(COLUMNS) * (SIDE + GAP)
    height = GAP + LINE + len(rows) * (SIDE + LINE + GAP)
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    for column, name in enumerate(COLUMNS):
        pen.text((GAP + column * (SIDE + GAP), GAP), name, fill=INK)
    for number, row in enumerate(rows):
        top = GAP + LINE + number * (SIDE + LINE + GAP)
        pictures = [
            row.image, ramp(row.attention), ramp(row.evidence), tinted(row.image, row.footprint),
            None if row.truth is None else tinted(row.image, row.truth),
        ]  # fmt: skip
        for column, picture in enumerate(pictures):
            if picture is not None:
                page.paste(large(picture), (GAP + column * (SIDE + GAP), top))
        pen.text((GAP, top + SIDE + 2), row.caption, fill=INK)
    return page


def ramp(values: Float[ndarray, "row col"]) -> UInt8[ndarray, "row col 3"]:
    """A map from dark (0) to bright (1)."""
    return (LOW + (HIGH - LOW) * np.clip(values, 0, 1)[..., None]).round().astype(np.uint8)


def tinted(image: UInt8[ndarray, "h w 3"], fraction: Float[ndarray, "row col"]) -> UInt8[ndarray, "h w 3"]:
    """The tile, coloured as far as its cells are panel."""
    shape = image.shape[1], image.shape[0]
    share = Image.fromarray(fraction.astype(np.float32)).resize(shape, Image.Resampling.NEAREST)
    alpha = 0.65 * np.clip(np.asarray(share), 0, 1)[..., None]
    return (image * (1 - alpha) + PANEL * alpha).round().astype(np.uint8)


def large(picture: UInt8[ndarray, "h w 3"]) -> Image.Image:
    """Enlarged without smoothing, so that patches are seen as they are; longer sides are kept in proportion."""
    found = Image.fromarray(picture)
    scale = SIDE / max(found.size)
    return found.resize(
        (max(1, round(found.width * scale)), max(1, round(found.height * scale))), Image.Resampling.NEAREST
    )
