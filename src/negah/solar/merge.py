"""From windows to a map: cells of the whole raster, and panels as connected cells.

A cell is the mean over the windows that cover its centre, each sampled at the patch that holds the centre.  Panels are
connected cells (touching at a side or a corner) of at least LEVEL.  Both are made strip by strip, in the order in which
the windows come from the ledger: a strip is as high as a row of windows, a panel that goes on in the next strip stays
open until it ends, so a panel on a seam is one panel, and memory is one strip plus the open panels, however high the
raster.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import shapely
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import ndimage
from shapely.geometry.base import BaseGeometry

from negah.solar.ledger import Window
from negah.solar.plan import Layout

LEVEL = 0.3  # panel fraction from which a cell belongs to a panel
CORNERS_TOUCH = np.ones((3, 3), int)


class Strip(NamedTuple):
    """Rows of cells, finished.  NaN where no window says anything (nodata, failed, outside the area of interest)."""

    row: int  # of the first
    fraction: Float[ndarray, "row col"]  # panel fraction of each cell
    measured: Float[ndarray, "row col"]  # the same, as it counts for areas: calibrated, if the survey is
    probability: Float[ndarray, "row col"]  # mean over the windows that cover the cell
    peak: Float[ndarray, "row col"]  # highest probability among them
    refined: Float[ndarray, "row col"]  # highest refined probability among them; 0 where none was refined


@dataclass
class Component:
    """A panel: its cells row by row."""

    rows: Int[ndarray, " cell"]
    cols: Int[ndarray, " cell"]
    measured: Float[ndarray, " cell"]
    probability: float
    refined: float

    def area_px(self, layout: Layout) -> float:
        """Panel area in square source pixels: fraction times the part of each cell inside the raster, summed."""
        width, height = np.diff(layout.x.cell_edges), np.diff(layout.y.cell_edges)
        return float((self.measured.astype(float) * width[self.cols] * height[self.rows]).sum())

    def outline(self, layout: Layout) -> BaseGeometry:
        """The cells' outline in source pixels; several polygons where cells touch at a corner only."""
        # In units of cells first, where edges meet exactly and points in the middle of an edge are exactly that.
        squares = shapely.box(self.cols, self.rows, self.cols + 1, self.rows + 1)
        outline = shapely.simplify(shapely.coverage_union_all(squares), 0)
        cell, size = np.array([layout.x.cell, layout.y.cell]), np.array([layout.x.size, layout.y.size])
        return shapely.transform(outline, lambda xy: np.minimum(xy * cell, size))


def strips(layout: Layout, windows: Iterable[Window]) -> Iterator[Strip]:
    """The cells of a whole source, from its windows in order (as `Ledger.windows` gives them)."""
    shape = layout.y.cells, layout.x.cells
    width, across = layout.x.cell_count, len(layout.x.starts)
    # sums of fraction, probability; highest probability; count; sum of what counts for areas; highest refined
    base, held = 0, np.zeros((6, 0, width), np.float32)
    todo = iter(windows)
    for band, (first, end, patch_y) in enumerate(layout.y.cover):
        held = np.concatenate([held, np.zeros((6, max(0, end - base - held.shape[1]), width), np.float32)], axis=1)
        rows = held[:, first - base : end - base]
        for (left, right, patch_x), window in zip(layout.x.cover, (next(todo) for _ in range(across)), strict=True):
            if window.probability is None:
                continue
            part = rows[:, :, left:right]
            if window.cells is not None:
                cells = window.fractions(shape[0] * shape[1]).reshape(shape)[patch_y[:, None], patch_x]
                part[0] += cells
                part[4] += cells * np.float32(window.factor or 1)
            part[1] += window.probability
            np.maximum(part[2], window.probability, out=part[2])
            part[3] += 1
            np.maximum(part[5], window.refined or 0, out=part[5])
        finished = (layout.y.cover[band + 1][0] if band + 1 < len(layout.y.cover) else end) - base
        if finished > 0:
            yield _strip(base, held[:, :finished])
            base, held = base + finished, held[:, finished:]


def components(pieces: Iterable[Strip], *, level: float = LEVEL) -> Iterator[Component]:
    """Panels in the order in which they end, from strips that follow each other from the first row on."""
    open_: dict[int, list[Component]] = {}  # by label: parts of panels that touch the last row so far
    edge = np.zeros(0, np.int64)  # labels of that row, 0 where there is no panel
    total = 0
    for piece in pieces:
        with np.errstate(invalid="ignore"):
            mask = piece.fraction >= level  # NaN compares as False
        if not open_ and not mask.any():  # most of the world: nothing ends here and nothing begins
            edge = np.zeros(mask.shape[1], np.int64)
            continue
        labels, count = cast(tuple[ndarray, int], ndimage.label(mask, CORNERS_TOUCH))
        labels = np.where(labels > 0, labels + total, 0)
        parent = {label: label for label in [*open_, *range(total + 1, total + count + 1)]}
        total += count
        for above, below in _touching(edge, labels[0]):
            a, b = _root(parent, above), _root(parent, below)
            parent[max(a, b)] = min(a, b)
        parts = {**open_, **_parts(piece, labels)}
        merged: dict[int, list[Component]] = {}
        for label in sorted(parts):
            merged.setdefault(_root(parent, label), []).extend(parts[label])
        edge = np.array([_root(parent, label) if label else 0 for label in labels[-1].tolist()], np.int64)
        going_on = set(edge.tolist())
        open_ = {}
        for label, pieces_of in merged.items():
            if label in going_on:
                open_[label] = pieces_of
            else:
                yield _join(pieces_of)
    for parts_left in open_.values():
        yield _join(parts_left)


def _strip(row: int, held: Float[ndarray, "6 row col"]) -> Strip:
    count = held[3]
    seen = np.where(count > 0, count, np.nan)
    return Strip(
        row, held[0] / seen, held[4] / seen, held[1] / seen, np.where(count > 0, held[2], np.nan).astype(np.float32),
        held[5],
    )  # fmt: skip


def _touching(edge: Int[ndarray, " before"], row: Int[ndarray, " col"]) -> set[tuple[int, int]]:
    """Pairs of labels of two rows that touch at a side or a corner."""
    pairs: set[tuple[int, int]] = set()
    if not len(edge) or not edge.any() or not row.any():
        return pairs
    for above, below in ((edge, row), (edge[1:], row[:-1]), (edge[:-1], row[1:])):
        both = (above > 0) & (below > 0)
        pairs.update(zip(above[both].tolist(), below[both].tolist(), strict=True))
    return pairs


def _root(parent: dict[int, int], label: int) -> int:
    while parent[label] != label:
        parent[label] = parent[parent[label]]
        label = parent[label]
    return label


def _parts(piece: Strip, labels: Int[ndarray, "row col"]) -> dict[int, list[Component]]:
    """The panels of one strip by label."""
    rows, cols = np.nonzero(labels)
    if not len(rows):
        return {}
    label = labels[rows, cols]
    order = np.argsort(label, kind="stable")
    rows, cols, label = rows[order], cols[order], label[order]
    starts = np.flatnonzero(np.append(True, np.diff(label) != 0))
    peak = np.maximum.reduceat(piece.peak[rows, cols], starts)
    refined = np.maximum.reduceat(piece.refined[rows, cols], starts)
    ends = np.append(starts[1:], len(label))
    return {
        int(label[a]): [
            Component(
                (rows[a:b] + piece.row).astype(np.int32), cols[a:b].astype(np.int32),
                piece.measured[rows[a:b], cols[a:b]], float(top), float(after),
            )
        ]
        for a, b, top, after in zip(starts, ends, peak, refined, strict=True)
    }  # fmt: skip


def _join(parts: list[Component]) -> Component:
    if len(parts) == 1:
        return parts[0]
    rows, cols = np.concatenate([p.rows for p in parts]), np.concatenate([p.cols for p in parts])
    order = np.lexsort((cols, rows))
    measured = np.concatenate([p.measured for p in parts])
    return Component(
        rows[order], cols[order], measured[order], max(p.probability for p in parts), max(p.refined for p in parts)
    )
