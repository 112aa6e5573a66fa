"""What to label next in a survey, and the total from the labels: `negah.solar.sampling` on a plan and a ledger.

Windows stand for the ground that no earlier window covers: the last one of a row or column is shifted inward, and only
its new strip counts, is named in the file, and is to be labelled.  So every piece of ground is in one window.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from negah.errors import InputError, NegahError, OutputError
from negah.images.bands import gdal_settings
from negah.images.sources import find_sources
from negah.images.windows import Box
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


def write_next(rows: Sequence[Row], out: Path) -> None:
    """Write them for the user to fill in, whole or not at all."""
    path, part = out / LABELS, out / f"{LABELS}.part"
    try:
        try:
            write_labels(rows, part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}): make room in the folder") from None


def pictures_of(
    out: Path, paths: Sequence[str], rows: Sequence[Row], *, root: Path | None = None
) -> list[UInt8[ndarray, "h w 3"]]:
    """What is to be looked at in these windows of the survey in `out`; grey where it cannot be read any more.

    root: as of that survey.
    """
    sources = {source.name: source for source in find_sources(paths, root=root)}
    with Ledger(out) as ledger:
        planned = {source.name: source for source in ledger.plan().sources}
    pictures = []
    for row in rows:
        source = planned[row.source]
        index = next(k for k in range(len(source.layout)) if window_name(source, k) == row.window)
        box = new_box(source, index)
        try:
            with gdal_settings(), sources[row.source].open() as raster:
                pictures.append(raster.read(box).rgb)
        except NegahError:
            pictures.append(np.full((box.height, box.width, 3), 128, np.uint8))
    return pictures


def labelled_total(windows: Scored, path: Path) -> Total:
    """The total of the surveyed ground from all areas and the labels of some windows.

    Raises InputError where the labels are not of this survey's windows, or too few.
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
    return total(windows.area_m2, sampled, true, chance)


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
