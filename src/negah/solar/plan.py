"""What a survey will look at, decided before anything is scored: every source, its windows, its cells, its batches.

A window is `info.window_px` pixels of `info.gsd_m` on the ground, whatever the source's own pixels are; it is cut in
source pixels and resampled to the model's input.  The raster is also divided into cells of one patch each (or a part of
one, where areas are measured finer), from its upper left corner; without overlap the patches of a window are cells, and
where a window is shifted (overlap, the last one of a row) a cell takes the patch that holds its centre.

The plan alone decides which windows share a batch, so a survey that was stopped and continued runs the same batches and
comes to the same numbers, bit for bit.  Windows are numbered through all sources; nothing here lists them, so memory
does not grow with a raster.  A source that could not be opened at first, and can be later, joins at the end: no window
that is finished changes its number or its batch.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Float
from numpy import ndarray
from shapely.geometry.base import BaseGeometry

from negah.errors import GeoError, InputError
from negah.images.geo import pixel_size_m
from negah.images.sources import Source
from negah.images.windows import Box
from negah.probe.detector import DetectorInfo
from negah.solar.regions import Region

LATTICE = 9  # points per axis at which the true area of a pixel is computed; between them it is interpolated
MOST_GSD_M = 10.0  # that --gsd may say: more is most likely meant in centimetres
LONGEST_RUN = 4096  # windows in a chunk, however few of them are scored


@dataclass(frozen=True)
class Axis:
    """One axis of a source's windows and cells.

    size: of the raster, in its pixels.  window, stride: of the windows, in the same.  cells: along a window.
    model: pixels of the model's input along a window.
    """

    size: int
    window: int
    stride: int
    cells: int
    model: int

    @cached_property
    def starts(self) -> ndarray:
        """First pixel of each window; the last window is shifted inward, so that all lie inside."""
        starts = np.arange(0, max(1, self.size - self.window + self.stride), self.stride)
        return np.minimum(starts, self.size - self.window)

    @property
    def cell(self) -> float:
        """Side of a cell in source pixels."""
        return self.window / self.cells

    @property
    def cell_count(self) -> int:
        """Cells along the raster; the last may reach over its edge."""
        return math.ceil(self.size / self.cell - 1e-9)

    @cached_property
    def cell_edges(self) -> Float[ndarray, " edge"]:
        """Edges of the cells in source pixels, the last cut off at the raster's edge."""
        edges = np.minimum(np.arange(self.cell_count + 1) * self.cell, self.size)
        edges[-1] = self.size  # despite rounding: 13 times 15 / 13 is less than 15
        return edges

    @cached_property
    def cell_centres(self) -> Float[ndarray, " cell"]:
        """Centres of the cells (of their part inside the raster)."""
        return (self.cell_edges[:-1] + self.cell_edges[1:]) / 2

    @cached_property
    def cover(self) -> list[tuple[int, int, ndarray]]:
        """For each window: the cells [first, end) whose centres lie in it, and the patch that holds each centre."""
        covers = []
        centres = self.cell_centres + 1e-7  # one that lies on a border belongs to what begins there, despite rounding
        for start in self.starts:
            first, end = np.searchsorted(centres, (start, start + self.window))
            patch = ((centres[first:end] - start) / self.cell).astype(int)
            covers.append((int(first), int(end), np.minimum(patch, self.cells - 1)))
        return covers


@dataclass(frozen=True)
class Layout:
    """Windows and cells of one source; windows row by row."""

    x: Axis
    y: Axis

    def __len__(self) -> int:
        return len(self.x.starts) * len(self.y.starts)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        return self.y.model, self.x.model

    def box(self, index: int) -> Box:
        """The window in source pixels."""
        row, col = divmod(index, len(self.x.starts))
        return Box(int(self.x.starts[col]), int(self.y.starts[row]), self.x.window, self.y.window)

    def boxes(self, first: int, end: int) -> ndarray:
        """Windows [first, end) as an array [n, 4] of minx, miny, maxx, maxy in source pixels."""
        row, col = np.divmod(np.arange(first, end), len(self.x.starts))
        x, y = self.x.starts[col], self.y.starts[row]
        return np.stack([x, y, x + self.x.window, y + self.y.window], axis=1)


@dataclass(frozen=True)
class Ground:
    """True area of a pixel in m2 anywhere in a raster: exact on a lattice, bilinear between.

    Over the extent of a raster the scale of a map projection is smooth: on 9 points a 100 km wide Web Mercator raster
    is interpolated to within 1e-6.
    """

    cols: list[float]
    rows: list[float]
    areas_m2: list[list[float]]  # [rows][cols]

    def pixel_m2(self, cols: Float[ndarray, " n"], rows: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
        """Area of a pixel at each place."""
        areas = np.asarray(self.areas_m2)
        if areas.size == 1:
            return np.full(len(cols), areas[0, 0])
        j, u = _between(self.cols, cols)
        i, v = _between(self.rows, rows)
        upper = areas[i, j] * (1 - u) + areas[i, j + 1] * u
        lower = areas[i + 1, j] * (1 - u) + areas[i + 1, j + 1] * u
        return upper * (1 - v) + lower * v


@dataclass(frozen=True)
class PlannedSource:
    """One raster that will be surveyed.

    position: among all inputs, failed ones included.  first: number of its first window in the survey.
    transform: (a, b, c, d, e, f) from pixel to `crs`; both None where the raster has no CRS.
    opens_chunk: it joined a plan that was begun, so its windows must not fill up a chunk that may be finished.
    """

    position: int
    name: str
    width: int
    height: int
    crs: str | None
    transform: tuple[float, ...] | None
    gsd_m: float
    in_range: bool
    layout: Layout
    ground: Ground
    first: int
    notes: tuple[str, ...]
    opens_chunk: bool = False

    @property
    def affine(self) -> Affine:
        """Pixel to source coordinates; the identity where there is no CRS."""
        return Affine(*self.transform) if self.crs and self.transform else Affine.identity()

    def windows_m2(self, indices: ndarray) -> Float[ndarray, " n"]:
        """Ground area of windows, taken at their centres."""
        x, y = self.layout.x, self.layout.y
        row, col = np.divmod(indices, len(x.starts))
        pixel = self.ground.pixel_m2(x.starts[col] + x.window / 2, y.starts[row] + y.window / 2)
        return pixel * x.window * y.window

    def as_dict(self) -> dict:
        """As plain values, for the ledger; written out, since `asdict` takes its time on thousands of tiles."""
        x, y = ([a.size, a.window, a.stride, a.cells, a.model] for a in (self.layout.x, self.layout.y))
        ground = [self.ground.cols, self.ground.rows, self.ground.areas_m2]
        return {**vars(self), "layout": [x, y], "ground": ground}

    @classmethod
    def from_dict(cls, values: dict) -> "PlannedSource":
        """The reverse of `as_dict`."""
        x, y = values["layout"]
        return cls(**{
            **values,
            "layout": Layout(Axis(*x), Axis(*y)),
            "ground": Ground(*values["ground"]),
            "transform": tuple(values["transform"]) if values["transform"] else None,
            "notes": tuple(values["notes"]),
        })  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """An input that cannot be surveyed, or windows of it that could not be read.  windows: how many; 0 means all."""

    position: int
    source: str
    windows: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """All that a survey will look at, in order, and what it cannot.

    again: numbers of the windows that failed and are to be read once more.
    """

    sources: list[PlannedSource]
    failures: list[Failure]
    again: frozenset[int] = frozenset()

    @cached_property
    def windows(self) -> int:
        """Number of windows."""
        return sum(len(source.layout) for source in self.sources)


class Chunk:
    """Consecutive windows that are read, scored and committed together; at most one batch of them is scored."""

    def __init__(self, first: int, shape: tuple[int, int]):
        self.first = first
        self.shape = shape
        self.windows: list[tuple[PlannedSource, int, bool]] = []  # source, index in it, whether it is scored

    def __len__(self) -> int:
        return len(self.windows)


def make_plan(
    sources: Sequence[Source],
    info: DetectorInfo,
    *,
    patch: int,
    fine: int = 1,
    gsd_m: float | None = None,
    overlap: float = 0.0,
    region: Region | None = None,
    threads: int = 2,
    only: Collection[int] | None = None,
    verb: str = "surveyed",
) -> Plan:
    """Open every source once and lay out its windows; one that cannot be opened or measured becomes a failure.

    fine: cells along a patch.  gsd_m: metres per pixel of rasters that do not say.  overlap: share of a window's side,
    in [0, 0.9).  only: positions of the sources to plan (None: all); these may fail one and all.
    verb: what is to be done with them, for messages.
    Raises InputError when no source at all can be surveyed.
    """
    if not 0 <= overlap < 0.9:
        raise InputError(f"--overlap must be at least 0 and below 0.9 of a window's side, not {overlap:g}")
    if gsd_m is not None and not 0 < gsd_m < math.inf:
        raise InputError(f"--gsd must be a positive number of metres per pixel, not {gsd_m:g}")
    if gsd_m is not None and gsd_m > MOST_GSD_M:
        raise InputError(f"--gsd {gsd_m:g}: no panel can be seen in pixels of so many metres; 30 cm are --gsd 0.3")

    def attempt(item: tuple[int, Source]) -> PlannedSource | Failure:
        position, source = item
        try:
            return _plan_source(
                position, source, info, patch=patch, fine=fine, gsd_m=gsd_m, overlap=overlap, region=region
            )
        except Exception as error:  # whatever a damaged file makes a library raise: the survey goes on
            return Failure(position, source.name, 0, " ".join(str(error).split()) or type(error).__name__)

    planned, failures, first = [], [], 0
    with ThreadPoolExecutor(threads) as pool:
        todo = ((k, source) for k, source in enumerate(sources) if only is None or k in only)
        while block := list(islice(todo, 256)):  # not all at once, so that Ctrl-C is answered soon
            for result in pool.map(attempt, block):
                if isinstance(result, Failure):
                    failures.append(result)
                    continue
                planned.append(replace(result, first=first))
                first += len(result.layout)
    if not planned and only is None:
        more = f" (and {len(failures) - 1} more that fail)" if len(failures) > 1 else ""
        raise InputError(f"nothing can be {verb}: {failures[0].reason}{more}")
    return Plan(planned, failures)


def chunks(plan: Plan, *, batch: int, region: Region | None = None, start: int = 0) -> Iterator[Chunk]:
    """The survey's chunks from window `start` on, which must be the first of a chunk; before it those to read again.

    The same plan, batch and region give the same chunks wherever one starts.
    """
    for chunk in _all_chunks(plan, batch, region):
        if chunk.first >= start or not plan.again.isdisjoint(range(chunk.first, chunk.first + len(chunk))):
            yield chunk


def _all_chunks(plan: Plan, batch: int, region: Region | None) -> Iterator[Chunk]:
    chunk, scored = Chunk(0, (0, 0)), 0
    for source in plan.sources:
        pixels = region.in_pixels(source.crs, source.affine) if region and source.crs else None
        if source.layout.shape != chunk.shape or source.opens_chunk:
            if len(chunk):
                yield chunk
            chunk, scored = Chunk(source.first, source.layout.shape), 0
        for begin in range(0, len(source.layout), LONGEST_RUN):
            end = min(begin + LONGEST_RUN, len(source.layout))
            inside = _inside(source.layout.boxes(begin, end), pixels)
            for index in range(begin, end):
                look = bool(inside[index - begin])
                chunk.windows.append((source, index, look))
                scored += look
                if scored == batch or len(chunk) == LONGEST_RUN:
                    yield chunk
                    chunk, scored = Chunk(source.first + index + 1, source.layout.shape), 0
    if len(chunk):
        yield chunk


@lru_cache(maxsize=256)
def axis_of(size: int, pixel_m: float, info: DetectorInfo, *, patch: int, fine: int = 1, overlap: float) -> Axis:
    """Windows along an axis of `size` pixels that are `pixel_m` metres long; `fine` cells along a patch.

    A raster shorter than a window gives one window of its own size, whose input is as many patches as it takes.
    Thousands of tiles of one size share one axis, and what it computes of its cells.
    """
    side = max(1, round(info.window_px * info.gsd_m / pixel_m))
    if size <= side:
        needed = math.ceil(size * pixel_m / info.gsd_m / patch - 1e-6)
        patches = min(max(1, needed), info.window_px // patch)
        return Axis(size, size, size, patches * fine, patches * patch)
    patches = info.window_px // patch
    stride = max(1, round(max(1, round(patches * (1 - overlap))) * side / patches))
    return Axis(size, side, stride, patches * fine, info.window_px)


def _plan_source(
    position: int,
    source: Source,
    info: DetectorInfo,
    *,
    patch: int,
    fine: int,
    gsd_m: float | None,
    overlap: float,
    region: Region | None,
) -> PlannedSource:
    with source.open() as raster:
        mean, warnings = raster.gsd_m(gsd_m)
        width, height = raster.width, raster.height
        georeference = None if raster.crs is None or raster.transform is None else (raster.crs, raster.transform)
        if region is not None and georeference is None:
            raise GeoError(f"{source.name} has no CRS, so polygons cannot be laid over it: leave out --aoi for it")
        middle = pixel_size_m(*georeference, width / 2, height / 2) if georeference else (mean, mean)
        layout = Layout(
            axis_of(width, middle[0], info, patch=patch, fine=fine, overlap=overlap),
            axis_of(height, middle[1], info, patch=patch, fine=fine, overlap=overlap),
        )
        if georeference and len(layout) > 1:
            ground = _ground(*georeference, width, height)
        else:
            ground = Ground([0.0], [0.0], [[float(middle[0] * middle[1])]])
        notes = list(warnings)
        if stretch := raster.stretch:
            notes.append(
                f"{source.name}: its values are not of 8 bits, and were stretched (black {stretch[0]:.6g}, white "
                f"{stretch[1]:.6g}): what is found may differ from an 8-bit picture of the same place"
            )
        low, high = info.gsd_range_m
        in_range = low <= mean <= high
        if not in_range:
            notes.append(
                f"{source.name}: its pixels are {mean:.3g} m wide, outside the {low:g} to {high:g} m that "
                f"{info.name} was made for: its figures may be far off"
            )
        return PlannedSource(
            position=position,
            name=source.name,
            width=width,
            height=height,
            crs=georeference[0].to_wkt() if georeference else None,
            transform=tuple(georeference[1])[:6] if georeference else None,
            gsd_m=mean,
            in_range=in_range,
            layout=layout,
            ground=ground,
            first=0,
            notes=tuple(notes),
        )


def _ground(crs, transform, width: int, height: int) -> Ground:
    cols, rows = np.linspace(0, width, LATTICE).tolist(), np.linspace(0, height, LATTICE).tolist()
    sizes = [[pixel_size_m(crs, transform, col, row) for col in cols] for row in rows]
    return Ground(cols, rows, [[float(dx * dy) for dx, dy in line] for line in sizes])


def _between(points: list[float], at: ndarray) -> tuple[ndarray, ndarray]:
    """Index of the lattice interval that holds each place, and where in it, in [0, 1]."""
    grid = np.asarray(points)
    k = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, len(grid) - 2)
    return k, np.clip((at - grid[k]) / (grid[k + 1] - grid[k]), 0, 1)


def _inside(boxes: ndarray, pixels: BaseGeometry | None) -> Bool[ndarray, " n"]:
    if pixels is None:
        return np.ones(len(boxes), bool)
    return shapely.intersects(pixels, shapely.box(*boxes.T.astype(float)))
