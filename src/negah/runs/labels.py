"""What to label next in a survey, and the total from the labels: `negah.solar.sampling` on a plan and a ledger.

Windows stand for the ground that no earlier window covers: the last one of a row or column is shifted inward, and only
its new strip counts, is named in the file, and is to be labelled.  So every piece of ground is in one window.
"""

import html
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count as counting
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
from negah.runs.telling import LABELLED, NONE_OFF, OTHERWISE, TO_LABEL, UNUSED, counted
from negah.solar.ledger import Ledger
from negah.solar.outputs import bounds_of, window_name
from negah.solar.plan import Axis, Plan, PlannedSource
from negah.solar.report import border
from negah.solar.sampling import (
    LABELS,
    Row,
    Total,
    draw,
    expected_error,
    inclusion,
    read_drawn,
    read_labels,
    total,
    write_labels,
)

SHOWN = 300  # windows on that page ...
LONGEST = 256  # ... and pixels along a whole window, so that it stays below some 50 MB
LOOKS_STYLE = """
figure { display: inline-block; width: 13rem; margin: 0 1rem 1.5rem 0; vertical-align: top }
.photo { position: relative } img { display: block; width: 100%; image-rendering: pixelated }
.photo svg { position: absolute; inset: 0; width: 100%; height: 100% }
.photo path { fill: none; stroke: #ffd23f; stroke-width: 1.5; vector-effect: non-scaling-stroke }
#marks:not(:checked) ~ figure path { display: none }
.bar { border-bottom: 3px solid; margin: 3px 0 0; font-size: 13px; line-height: 1.2; white-space: nowrap }
figcaption { font-size: 15px; overflow-wrap: anywhere }
"""
ROUNDED_M2 = 0.001  # what an area loses in the file
FEW = 50  # labels from which on a range holds about as often as it should, see benchmarks/label_next.py
NOISE = 0.5  # relative error of a find's size where no calibration tells it


@dataclass(frozen=True)
class Scored:
    """The windows that were scored, by what is new of them."""

    sources: Sequence[PlannedSource]  # in the order of their windows
    number: Int[ndarray, " n"]  # of the window in the survey
    area_m2: Float[ndarray, " n"]
    probability: Float[ndarray, " n"]
    ground_m2: Float[ndarray, " n"]

    @cached_property
    def firsts(self) -> Int[ndarray, " source"]:
        """Number of the first window of each source."""
        return np.array([source.first for source in self.sources])

    def where(self, k: int) -> tuple[PlannedSource, int]:
        """The source of a window, and its index there."""
        source = self.sources[int(np.searchsorted(self.firsts, self.number[k], side="right")) - 1]
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


def check(out: Path, label_next: int | None, labels: Path | None, *, overlap: float, aoi: Path | None) -> None:
    """Raises InputError on what could only fail at the end of a survey."""
    if label_next is None and labels is None:
        return
    if overlap:
        raise InputError("--label-next and --labels count every piece of ground once: leave out --overlap")
    if aoi is not None:
        raise InputError("--label-next and --labels count whole windows, which reach over --aoi: leave it out")
    if label_next is not None and label_next < 1:
        raise InputError(f"--label-next takes a number of windows, at least 1, not {label_next}")
    if labels is None:
        if (out / LABELS).exists():
            raise InputError(
                f"{out / LABELS} is there already: fill it in and give it to --labels, with --label-next beside it for "
                "more windows, or move it away"
            )
        return
    known = read_labels(labels)
    if label_next is None:
        return
    for other in _files(out):
        try:
            more = len(read_drawn(other)) > len(read_drawn(labels))
        except InputError:  # no table of windows, whatever its name
            continue
        if more and other.resolve() != labels.resolve():
            raise InputError(
                f"{other} is there already, with more windows to label: fill it in and give it to --labels, or move it "
                "away"
            )
    if known.empty:
        rows = counted(known.empty, "row")
        raise InputError(
            f"{labels} has {rows} without true_m2: fill {'it' if known.empty == 1 else 'them'} in before more windows "
            "are drawn, or leave out --label-next"
        )


class Consulted(NamedTuple):
    """What labels say of a survey.

    total: None without labels; rests_on: in words, on what its range does; ranged: whether it has one.  rows: to label
    next, in the file `path`.  notes: for the report.  remarks: on labels that are few or were not used.
    """

    total: Total | None = None
    rests_on: str = ""
    ranged: bool = True
    rows: Sequence[Row] = ()
    path: Path | None = None
    notes: Sequence[str] = ()
    remarks: Sequence[str] = ()


def consulted(
    plan: Plan, ledger: Ledger, out: Path, *, count: int | None, path: Path | None, seed: int, noise: float, whole: bool
) -> Consulted:
    """Rest a survey's total on the labels in the file `path`, and draw `count` windows that have none.

    noise: relative error of a find's size.  whole: all of the ground counts, once, so that it could rest on labels.
    """
    if count is None and path is None:
        return Consulted(remarks=_left_out(plan, ledger, out, 0) if whole else [])
    windows = scored(plan, ledger)
    found, none_off, rests_on, notes, remarks = None, False, "", [], []
    if path is not None:
        found, none_off = labelled_total(windows, path)
        rests_on = f"90 %, from {found.labels:,} labelled windows"
        if none_off:
            rests_on = f"no range: none of the {found.labels:,} labelled windows was off"
        notes += [LABELLED, *[NONE_OFF] * none_off]
        known = read_labels(path)
        if known.unused:
            one = known.unused == 1
            row, are = ("1 that is filled in", "is") if one else (f"{known.unused:,} that are filled in", "are")
            remarks.append(UNUSED.format(path=path, count=row, are=are))
        if found.labels < min(FEW, len(windows.number)):
            empty = f", and {counted(known.empty, 'row')} of {path} {'is' if known.empty == 1 else 'are'} empty"
            few = f"a range from fewer than {FEW} is wide and holds less often than it says"
            remarks.append(f"{counted(found.labels, 'label')} tell little: {few}{empty * (known.empty > 0)}.")
        if not _as_drawn(windows, path):
            remarks.append(OTHERWISE.format(path=path))
        remarks += _left_out(plan, ledger, out, len(known.rows))
    if count is None:
        return Consulted(found, rests_on, not none_off, notes=notes, remarks=remarks)
    rows, table = next_of(windows, count, noise=noise, seed=seed, labels=path), free_path(out)
    notes.append(TO_LABEL.format(path=table, page=table.with_suffix(".html").name, count=len(rows)))
    return Consulted(found, rests_on, not none_off, rows, table, notes, remarks)


def next_of(windows: Scored, number: int, *, noise: float, seed: int, labels: Path | None = None) -> list[Row]:
    """Windows whose labels would tell most of the total: `number` of those that have none yet.

    labels: what is labelled already, all of it; these windows are not drawn again.
    """
    before = read_drawn(labels) if labels is not None else []
    taken = places_of(windows, {(row.source, row.window): row for row in before}).values()
    left = np.setdiff1d(np.arange(len(windows.number)), list(taken))
    if not len(left):
        raise InputError("no scored window is without a label, so there is none to draw: leave out --label-next")
    turn = 1 + max((row.draw for row in before), default=0)
    error = expected_error(windows.area_m2, windows.probability, noise=noise, window_m2=windows.ground_m2)[left]
    chance = inclusion(error, number)
    rows = []
    for k in draw(chance, seed=seed + turn - 1).tolist():
        source, index = windows.where(int(left[k]))
        area, probability = float(windows.area_m2[left[k]]), float(windows.probability[left[k]])
        name, bounds = window_name(source, index), bounds_of(source, new_box(source, index))
        rows.append(Row(source.name, name, bounds, area, probability, float(chance[k]), len(windows.number), turn))
    return rows


class Shot(NamedTuple):
    """What is to be looked at in a window, how much ground that is, and what was found there.

    fraction: how much of each cell of the whole window is panel.  part: left, top, width and height of what `pixels`
    shows of these cells, in cells.
    """

    pixels: UInt8[ndarray, "h w 3"]
    ground_m2: float
    fraction: Float[ndarray, "row col"]
    part: tuple[float, float, float, float]


def shots_of(plan: Plan, ledger: Ledger, sources: Sequence[Source], rows: Sequence[Row]) -> list[Shot]:
    """These windows as pictures; grey where they cannot be read any more."""
    by_name, names = {source.name: source for source in sources}, {row.source for row in rows}
    planned = {source.name: source for source in plan.sources if source.name in names}
    indices = {name: {window_name(source, k): k for k in range(len(source.layout))} for name, source in planned.items()}
    shots = []
    for row in rows:
        source, index = planned[row.source], indices[row.source][row.window]
        box, whole = new_box(source, index), source.layout.box(index)
        x, y = source.layout.x, source.layout.y
        shrink = max(1.0, max(whole.width, whole.height) / LONGEST)
        shape = max(1, round(box.height / shrink)), max(1, round(box.width / shrink))
        try:
            with gdal_settings(), by_name[row.source].open() as raster:
                pixels = raster.read(box, shape).rgb
        except NegahError:
            pixels = np.full((*shape, 3), 128, np.uint8)
        share = box.width * box.height / (whole.width * whole.height)
        ground = float(source.windows_m2(np.array([index]))[0]) * share
        window = next(ledger.windows(source.first + index, source.first + index + 1))
        fraction = window.fractions(x.cells * y.cells).reshape(y.cells, x.cells)
        left, top = (box.col - whole.col) / x.cell, (box.row - whole.row) / y.cell
        shots.append(Shot(pixels, ground, fraction, (left, top, box.width / x.cell, box.height / y.cell)))
    return shots


def free_path(out: Path) -> Path:
    """Where the next windows to label are written to: no file that may hold labels is ever written over."""
    names = (LABELS if k == 1 else f"{Path(LABELS).stem}-{k}.csv" for k in counting(1))
    return next(out / name for name in names if not (out / name).exists())


def write_next(
    rows: Sequence[Row], shots: Sequence[Shot], path: Path, *, level: float, labels: Path | None = None
) -> None:
    """Write a table to fill in and beside it a page to look at, each whole or not at all.

    shots: of the first of the rows.  level: fraction from which a cell is panel.  labels: what was labelled before,
    which comes first in the table.
    """
    before, true = (read_drawn(labels), read_labels(labels).rows) if labels is not None else ([], {})
    known = [true[row.source, row.window].true_m2 for row in before]
    page = page_of(rows, shots, level=level, table=path.name, first=2 + len(before))
    _written(path.with_suffix(".html"), lambda part: part.write_text(page, encoding="utf-8"))
    _written(path, lambda part: write_labels([*before, *rows], part, true_m2=[*known, *[None] * len(rows)]))


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


def page_of(rows: Sequence[Row], shots: Sequence[Shot], *, level: float, table: str, first: int) -> str:
    """A page of windows to label, numbered as a spreadsheet numbers their rows in `table`, from `first` on."""
    cells, most = [], max((max(shot.pixels.shape) for shot in shots), default=1)
    for number, (row, shot) in enumerate(zip(rows, shots), first):
        height, width, _ = shot.pixels.shape
        told = f"measured, probability {row.probability:.2f}<br>{shot.ground_m2:,.0f} m² of ground<br>"
        told += html.escape(f"{row.source} {row.window}")
        edges = " ".join(f"{value:.6g}" for value in shot.part)
        metres = math.sqrt(shot.ground_m2 * width / height)  # along the picture
        length = round_length(metres / 2)
        found = border(shot.fraction >= level)
        cells.append(
            f'<figure><div style="width: {width / most:.1%}"><div class="photo">'
            f'<img src="{picture_uri(shot.pixels)}" alt="row {number}">'
            f'<svg viewBox="{edges}" preserveAspectRatio="none" aria-hidden="true"><path d="{found}"/>'
            f'</svg></div><div class="bar" style="width: {length / metres:.1%}">{length:g} m</div></div>'
            f"<figcaption><b>row {number}</b>: {row.area_m2:,.1f} m² <small>{told}</small></figcaption></figure>"
        )
    lead = (
        f"<p>Each picture is a row of {html.escape(table)}, as a spreadsheet counts them: fill in <code>true_m2</code>,"
        " the square metres of panels in the picture, 0 for none, from the first of these rows on without a gap. A bar "
        "is as long on the ground as it says; yellow lines are around what was found, which may be wrong; "
        "what was measured counts fainter places too.</p>"
    )
    if len(shots) < len(rows):
        lead += f"<p>The first {len(shots):,} of {len(rows):,} windows.</p>"
    switch = '<input type="checkbox" id="marks" checked> <label for="marks">show what was found</label><br><br>'
    return document("Windows to label", ["<h1>Windows to label</h1>", lead, switch, *cells], style=LOOKS_STYLE)


def round_length(most: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that is not above `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))


def _files(out: Path) -> list[Path]:
    """Tables of windows to label in a folder, the newest first."""
    found = [path for path in out.glob(f"{Path(LABELS).stem}*.csv") if path.is_file()]
    return sorted(found, key=lambda path: -path.stat().st_mtime_ns)


def _left_out(plan: Plan, ledger: Ledger, out: Path, count: int) -> list[str]:
    """Says that more labels of this survey lie in its folder than the `count` that were given."""
    windows = None
    for path in _files(out):
        try:
            if (there := len(read_labels(path).rows)) <= count:
                continue
            windows = windows or scored(plan, ledger)
            if not _as_drawn(windows, path):
                continue
            labelled_total(windows, path)
        except InputError:  # nothing is filled in yet, or it is of another survey
            continue
        return [f"{path} holds {counted(there, 'label')} on which this total does not rest: give it to --labels."]
    return []


def _as_drawn(windows: Scored, path: Path) -> bool:
    """Whether the areas that were measured when windows were drawn are those of this survey."""
    rows = {(row.source, row.window): row.area_m2 for row in read_drawn(path)}
    found = places_of(windows, rows)
    now = np.array([windows.area_m2[found[key]] for key in rows if key in found])
    then = np.array([area for key, area in rows.items() if key in found])
    return bool(np.allclose(now, then, rtol=0.01, atol=0.1, equal_nan=True))


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
    for row in read_drawn(path):
        if (key := (row.source, row.window)) in labels.rows and row.bounds:
            source, index = windows.where(found[key])
            if row.bounds.split() != bounds_of(source, new_box(source, index)).split():
                raise InputError(
                    f"{path} has other bounds for window {row.window} of {row.source}: it is of another image"
                )
    sampled = np.array([found[key] for key in labels.rows])
    true, chance, turn = np.array(list(labels.rows.values())).T
    if (large := np.flatnonzero(true > 1.01 * windows.ground_m2[sampled])).size:
        (name, window), most = list(labels.rows)[large[0]], float(windows.ground_m2[sampled[large[0]]])
        raise InputError(
            f"{path} has true_m2 {true[large[0]]:,.10g} for window {window} of {name}, which is {most:,.0f} m² of "
            "ground: give the square metres of panels in it"
        )
    same = np.allclose(true, windows.area_m2[sampled], rtol=0, atol=ROUNDED_M2)
    return total(windows.area_m2, sampled, true, chance, drawn=turn.astype(int)), bool(same) and len(sampled) < len(
        windows.area_m2
    )


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
