"""What to label next in a survey, and the total from the labels: `negah.solar.sampling` on a plan and a ledger.

Windows stand for the ground that no earlier window covers: the last one of a row or column is shifted inward, and only
its new strip counts, is named in the file, and is to be labelled.  So every piece of ground is in one window.
"""

import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from negah.errors import InputError, NegahError, OutputError
from negah.images.bands import gdal_settings
from negah.images.sources import Source
from negah.images.windows import Box
from negah.runs.page import document, picture_uri
from negah.solar.ledger import Ledger
from negah.solar.outputs import bounds_of, window_name
from negah.solar.plan import Axis, Plan, PlannedSource
from negah.solar.sampling import (
    LABELS,
    Row,
    Total,
    draw,
    expected_error,
    inclusion,
    read_labels,
    total,
    write_labels,
)

LOOKS = "label-next.html"
SHOWN = 300  # windows on that page ...
LONGEST = 256  # ... and pixels along a whole window, so that it stays below some 50 MB
LOOKS_STYLE = """
figure { display: inline-block; width: 13rem; margin: 0 1rem 1.5rem 0; vertical-align: top }
img { image-rendering: pixelated } figcaption { font-size: 15px; overflow-wrap: anywhere }
"""
ROUNDED_M2 = 0.001  # what an area loses in the file
NOISE = 0.5  # relative error of a find's size where no calibration tells it


@dataclass(frozen=True)
class Scored:
    """The windows that were scored, by what is new of them."""

    sources: Sequence[PlannedSource]  # in the order of their windows
    number: Int[ndarray, " n"]  # of the window in the survey
    area_m2: Float[ndarray, " n"]
    probability: Float[ndarray, " n"]
    ground_m2: Float[ndarray, " n"]

    def where(self, k: int) -> tuple[PlannedSource, int]:
        """The source of a window, and its index there."""
        firsts = [source.first for source in self.sources]
        source = self.sources[int(np.searchsorted(firsts, self.number[k], side="right")) - 1]
        return source, int(self.number[k]) - source.first


def scored(plan: Plan, ledger: Ledger) -> Scored:
    """All windows with a figure."""
    sources = sorted(plan.sources, key=lambda source: source.first)
    number = np.full(plan.windows, -1)
    area, probability, ground = (np.zeros(plan.windows) for _ in range(3))
    for source in sources:
        x, y = source.layout.x, source.layout.y
        first, end = source.first, source.first + len(source.layout)
        new_y, new_x = np.meshgrid(new_of(y), new_of(x), indexing="ij")
        share = new_y.ravel() / y.window * new_x.ravel() / x.window
        ground[first:end] = source.windows_m2(np.arange(len(source.layout))) * share
        for window in ledger.windows(first, end):
            if window.probability is None or window.area_m2 is None:
                continue
            k, part = window.id, 1.0
            if window.cells is not None and share[k - first] < 1:
                fraction = window.fractions(x.cells * y.cells).reshape(y.cells, x.cells)
                row, col = divmod(k - first, len(x.starts))
                new = weights(y, int(new_of(y)[row])) @ fraction @ weights(x, int(new_of(x)[col]))
                part = float(new / fraction.sum())
            number[k], area[k], probability[k] = k, window.area_m2 * part, window.probability
    have = number >= 0
    return Scored(sources, number[have], area[have], probability[have], ground[have])


def new_of(axis: Axis) -> Int[ndarray, " n"]:
    """How many pixels of each window along an axis the window before does not cover: those at its end."""
    return np.append(axis.window, np.minimum(axis.window, np.diff(axis.starts)))


def weights(axis: Axis, new: int) -> Float[ndarray, " cell"]:
    """What share of each cell along a window lies in its last `new` pixels."""
    edges = np.arange(axis.cells) * axis.cell
    return np.clip((edges + axis.cell - (axis.window - new)) / axis.cell, 0, 1)


def new_box(source: PlannedSource, index: int) -> Box:
    """The new part of a window, in source pixels."""
    row, col = divmod(index, len(source.layout.x.starts))
    box = source.layout.box(index)
    width, height = int(new_of(source.layout.x)[col]), int(new_of(source.layout.y)[row])
    return Box(box.col + box.width - width, box.row + box.height - height, width, height)


def check(out: Path, label_next: int | None, labels: Path | None, *, overlap: float, aoi: Path | None) -> int:
    """How many labels will not be used, see `read_labels`.

    Raises InputError on what could only fail at the end of a survey."""
    if label_next is None and labels is None:
        return 0
    if overlap:
        raise InputError("--label-next and --labels count every piece of ground once: leave out --overlap")
    if aoi is not None:
        raise InputError("--label-next and --labels count whole windows, which reach over --aoi: leave it out")
    if label_next is not None and label_next < 1:
        raise InputError(f"--label-next takes a number of windows, at least 1, not {label_next}")
    if label_next is not None and (out / LABELS).exists():
        raise InputError(f"{out / LABELS} is there already: fill it in and give it to --labels, or move it away")
    return 0 if labels is None else read_labels(labels).unused


def next_of(windows: Scored, count: int, *, noise: float, seed: int) -> list[Row]:
    """Windows whose labels narrow the total most."""
    if not len(windows.number):
        raise InputError("no window was scored, so there is none to label")
    error = expected_error(windows.area_m2, windows.probability, noise=noise, window_m2=windows.ground_m2)
    chance = inclusion(error, count)
    rows = []
    for k in draw(chance, seed=seed).tolist():
        source, index = windows.where(k)
        area, probability, drawn = float(windows.area_m2[k]), float(windows.probability[k]), float(chance[k])
        bounds = bounds_of(source, new_box(source, index))
        name = window_name(source, index)
        rows.append(Row(source.name, name, bounds, area, probability, drawn, len(windows.number)))
    return rows


class Shot(NamedTuple):
    """What is to be looked at in a window, and how much ground that is."""

    pixels: UInt8[ndarray, "h w 3"]
    ground_m2: float


def shots_of(plan: Plan, sources: Sequence[Source], rows: Sequence[Row]) -> list[Shot]:
    """These windows as pictures; grey where they cannot be read any more."""
    by_name, names = {source.name: source for source in sources}, {row.source for row in rows}
    planned = {source.name: source for source in plan.sources if source.name in names}
    indices = {name: {window_name(source, k): k for k in range(len(source.layout))} for name, source in planned.items()}
    shots = []
    for row in rows:
        source, index = planned[row.source], indices[row.source][row.window]
        box, whole = new_box(source, index), source.layout.box(index)
        shrink = max(1.0, max(whole.width, whole.height) / LONGEST)
        shape = max(1, round(box.height / shrink)), max(1, round(box.width / shrink))
        try:
            with gdal_settings(), by_name[row.source].open() as raster:
                pixels = raster.read(box, shape).rgb
        except NegahError:
            pixels = np.full((*shape, 3), 128, np.uint8)
        share = box.width * box.height / (whole.width * whole.height)
        shots.append(Shot(pixels, float(source.windows_m2(np.array([index]))[0]) * share))
    return shots


def write_next(rows: Sequence[Row], shots: Sequence[Shot], out: Path) -> None:
    """Write a page to look at and a table to fill in, each whole or not at all.  shots: of the first of the rows."""
    page = page_of(rows, shots)
    _written(out / LOOKS, lambda part: part.write_text(page, encoding="utf-8"))
    _written(out / LABELS, lambda part: write_labels(rows, part))


def _written(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        try:
            write(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}): make room in the folder") from None


def page_of(rows: Sequence[Row], shots: Sequence[Shot]) -> str:
    """A page of windows to label, numbered as a spreadsheet numbers their rows: the header is the first."""
    cells, most = [], max((max(shot.pixels.shape) for shot in shots), default=1)
    for number, (row, shot) in enumerate(zip(rows, shots), 2):
        width = shot.pixels.shape[1]
        told = f"measured, probability {row.probability:.2f}<br>{shot.ground_m2:,.0f} m² of ground<br>"
        told += html.escape(f"{row.source} {row.window}")
        cells.append(
            f'<figure><img src="{picture_uri(shot.pixels)}" alt="row {number}" style="width: {width / most:.1%}">'
            f"<figcaption><b>row {number}</b>: {row.area_m2:,.1f} m² <small>{told}</small></figcaption></figure>"
        )
    lead = (
        f"<p>Each picture is a row of {LABELS}, as a spreadsheet counts them: fill in <code>true_m2</code>, the area "
        "of panels in the picture in square metres, 0 for none, from row 2 on without a gap.</p>"
    )
    if len(shots) < len(rows):
        lead += f"<p>The first {len(shots):,} of {len(rows):,} windows.</p>"
    return document("Windows to label", ["<h1>Windows to label</h1>", lead, *cells], style=LOOKS_STYLE)


def labelled_total(windows: Scored, path: Path) -> tuple[Total, bool]:
    """The total of the surveyed ground from all areas and the labels of some windows.

    Also whether none of these was off while others have no label: then the interval is a point that knows too little.
    Raises InputError where the labels are not of this survey's windows, larger than these, or too few.
    """
    labels = read_labels(path)
    if labels.of_windows != len(windows.number):
        raise InputError(
            f"{path} was drawn from {labels.of_windows:,} windows, and this survey scored {len(windows.number):,}: "
            "give labels of the same survey"
        )
    found = places_of(windows, labels.rows)
    if unknown := [key for key in labels.rows if key not in found]:
        raise InputError(f"{path} names window {unknown[0][1]} of {unknown[0][0]}, which this survey did not score")
    sampled = np.array([found[key] for key in labels.rows])
    true, chance = np.array(list(labels.rows.values())).T
    if (large := np.flatnonzero(true > 1.01 * windows.ground_m2[sampled])).size:
        (name, window), most = list(labels.rows)[large[0]], float(windows.ground_m2[sampled[large[0]]])
        raise InputError(
            f"{path} has true_m2 {true[large[0]]:,.10g} for window {window} of {name}, which is {most:,.0f} m² of "
            "ground: give the square metres of panels in it"
        )
    same = np.allclose(true, windows.area_m2[sampled], rtol=0, atol=ROUNDED_M2)
    return total(windows.area_m2, sampled, true, chance), bool(same) and len(sampled) < len(windows.area_m2)


def places_of(windows: Scored, wanted: Mapping[tuple[str, str], object]) -> dict[tuple[str, str], int]:
    """Places among the windows of those that are wanted, by source and name."""
    names, found = {name for name, _ in wanted}, {}
    for source in windows.sources:
        if source.name not in names:
            continue
        end = source.first + len(source.layout)
        for k in range(*np.searchsorted(windows.number, (source.first, end)).tolist()):
            key = source.name, window_name(source, int(windows.number[k]) - source.first)
            if key in wanted:
                found[key] = k
    return found
