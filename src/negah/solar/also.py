"""Windows by how well a user's words fit them: a picture around each window, its vector, its cosine with the words'.

    plan -> pictures around its windows -> [look] -> ledger -> cosines -> also.csv, also.*

What makes vectors of pictures and of words is handed in: this room knows no such model.  Vectors are kept in the
ledger, so a survey that was stopped goes on, and more questions to a survey that is done cost no second look.

A picture has the ground size that the model learned from, where that is known, and then shows what its training
pictures show; it is never smaller than the window, so no ground is left out, and lies inside the raster.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import geopandas
import numpy as np
import pandas as pd
import shapely
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from rasterio.crs import CRS
from torch import Tensor

from negah.errors import NegahError
from negah.images.geo import pixel_size_m
from negah.images.sources import Source
from negah.images.windows import Box
from negah.progress import Progress, silent
from negah.solar.ledger import Ledger
from negah.solar.outputs import WGS84, bounds_of, window_name
from negah.solar.plan import Failure, Layout, Plan, PlannedSource, chunks
from negah.solar.regions import Region, apply
from negah.solar.survey import Loaded, Readers

# Pictures that the model looks at together; what shares a batch is the plan's, so results repeat bit for bit.
BATCH = 64
BLOCK = 65_536  # vectors in memory at a time
COLUMNS = ("source", "window", "bounds", "query", "cosine", "standing")
UNUSUAL = 0.99  # standing from which a window is counted

Look = Callable[[UInt8[Tensor, "batch 3 h w"]], Float[Tensor, "batch dim"]]
"""From pictures on the device to their unit vectors."""


@dataclass(frozen=True)
class Question:
    """Words, their unit vector, and the cosines of reference pictures with it, ascending; None without any."""

    words: str
    vector: Float[ndarray, " dim"]
    reference: Float[ndarray, " picture"] | None = None

    def standing(self, cosine: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
        """The share of the reference pictures that score lower; NaN where there is none, or no cosine."""
        if self.reference is None:
            return np.full(len(cosine), np.nan)
        share = np.searchsorted(self.reference, cosine) / len(self.reference)
        return np.where(np.isnan(cosine), np.nan, share)

    @property
    def by_chance(self) -> float:
        """Share of pictures that stand at UNUSUAL or higher if they are like the reference: each rank is as likely."""
        count = 0 if self.reference is None else len(self.reference)
        return (count + 1 - np.ceil(UNUSUAL * count)) / (count + 1)


@dataclass(frozen=True)
class Around(Layout):
    """A layout's windows, each read as the picture around it.

    across, down: of a picture, in pixels of the source.  size: of a picture as the model takes it.
    """

    across: int
    down: int
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        return self.size, self.size

    def box(self, index: int) -> Box:
        """The picture around a window, in source pixels: centred on it, but inside the raster."""
        window = super().box(index)
        col = window.col + (window.width - self.across) // 2
        row = window.row + (window.height - self.down) // 2
        col, row = (
            min(max(at, 0), most) for at, most in ((col, self.x.size - self.across), (row, self.y.size - self.down))
        )
        return Box(col, row, self.across, self.down)


def around(source: PlannedSource, size: int, gsd_m: float | None) -> Around:
    """Square pictures of `size` pixels around the windows of a source.

    gsd_m: ground size of a pixel that the model learned from; where it is None, pictures are as large as windows.
    """
    x, y = source.layout.x, source.layout.y
    metres = source.gsd_m, source.gsd_m
    if source.crs is not None:
        metres = pixel_size_m(CRS.from_wkt(source.crs), source.affine, source.width / 2, source.height / 2)
    side = max(x.window * metres[0], y.window * metres[1], size * (gsd_m or 0))
    side = min(side, x.size * metres[0], y.size * metres[1])
    across, down = (max(1, round(side / pixel)) for pixel in metres)
    return Around(x, y, across, down, size)


def look_around(
    plan: Plan,
    sources: Sequence[Source],
    look: Look,
    ledger: Ledger,
    *,
    size: int,
    gsd_m: float | None = None,
    region: Region | None = None,
    threads: int = 2,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> list[Failure]:
    """Look at every window that was scored and not looked at yet; returns what could not be, an entry per source.

    Args:
        sources: as given to `make_plan`.  size, gsd_m: see `around`.

    Raises OutputError when the ledger cannot be written.
    """
    done, total = ledger.looked
    progress("words", done, total)
    seen = replace(plan, sources=[replace(source, layout=around(source, size, gsd_m)) for source in plan.sources])
    todo = (
        chunk for chunk in chunks(seen, batch=BATCH, region=region)
        if ledger.unseen(chunk.first, chunk.first + len(chunk))
    )  # fmt: skip
    failures: dict[int, Failure] = {}
    with Readers(sources, patch=size, threads=threads) as readers:
        for chunk, loaded in readers.read_ahead(todo):
            vectors = _vectors(loaded, look, device)
            wanted = set(ledger.unseen(chunk.first, chunk.first + len(chunk)))
            looked_at = [(source, source.first + index) for source, index, looks in chunk.windows if looks]
            found = []
            for place, (source, number) in enumerate(looked_at):
                if number not in wanted:
                    continue
                if place in loaded.failed:
                    before = failures.get(
                        source.position, Failure(source.position, source.name, 0, loaded.failed[place])
                    )
                    failures[source.position] = replace(before, windows=before.windows + 1)
                else:
                    found.append((number, vectors[place].tobytes()))
            ledger.see(found)
            done += len(found)
            progress("words", done, total)
    return [failures[position] for position in sorted(failures)]


def _vectors(loaded: Loaded, look: Look, device: torch.device | str) -> Float[ndarray, "batch dim"]:
    """Of all pictures, also those that could not be read, so that the batch is the plan's.  Not finite: failed."""
    images = torch.from_numpy(loaded.rgb).to(device).permute(0, 3, 1, 2)
    with torch.inference_mode():
        vectors = look(images).float().cpu().numpy()
    for place in np.flatnonzero(~np.isfinite(vectors).all(1)).tolist():
        loaded.failed.setdefault(place, "what the model of words sees here is not a finite number")
    return vectors.astype(np.float16)


class Cosines(NamedTuple):
    """How well the questions' words fit the windows that were scored, source by source."""

    sources: Sequence[PlannedSource]
    source: Int[ndarray, " window"]  # its place among the sources
    index: Int[ndarray, " window"]  # of the window in its source
    cosine: Float[ndarray, "window question"]  # NaN where the picture could not be read


def cosines(plan: Plan, ledger: Ledger, questions: Sequence[Question]) -> Cosines:
    """From the vectors in the ledger."""
    places, indices, found = [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros((0, len(questions)), np.float32)]
    for place, source in enumerate(plan.sources):
        for begin in range(0, len(source.layout), BLOCK):
            first = source.first + begin
            rows = list(ledger.looks(first, min(first + BLOCK, source.first + len(source.layout))))
            if not rows:
                continue
            nothing = np.full(len(questions[0].vector), np.nan, np.float16).tobytes()
            vectors = np.frombuffer(b"".join(vector or nothing for _, vector in rows), np.float16)
            vectors = vectors.reshape(len(rows), -1).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            # one question at a time: its figures do not depend on what else is asked
            found.append(np.stack([vectors @ question.vector for question in questions], axis=1))
            places.append(np.full(len(rows), place))
            indices.append(np.array([number for number, _ in rows]) - source.first)
    return Cosines(plan.sources, np.concatenate(places), np.concatenate(indices), np.concatenate(found))


def best(cosine: Float[ndarray, " window"]) -> Int[ndarray, " k"]:
    """Windows from the best on, without those that have no cosine; equal ones in their order."""
    order = np.argsort(-cosine, kind="stable")  # NaN comes last
    return order[: len(order) - int(np.isnan(cosine).sum())]


def best_places(
    found: Cosines, question: int, *, size: int, gsd_m: float | None, count: int
) -> Iterator[tuple[int, PlannedSource, Box]]:
    """The best windows with their pictures, each place once: none whose middle lies in a picture before it."""
    shown: list[tuple[int, Box]] = []
    for window in best(found.cosine[:, question]).tolist():
        if len(shown) == count:
            return
        place, index = int(found.source[window]), int(found.index[window])
        source = found.sources[place]
        box = source.layout.box(index)
        col, row = box.col + box.width / 2, box.row + box.height / 2
        if any(
            p == place and b.col <= col < b.col + b.width and b.row <= row < b.row + b.height for p, b in shown
        ):  # fmt: skip
            continue
        picture = around(source, size, gsd_m).box(index)
        shown.append((place, picture))
        yield window, source, picture


def pixels(sources: Sequence[Source], source: PlannedSource, box: Box, longest: int) -> UInt8[ndarray, "h w 3"] | None:
    """A picture for people; None where it cannot be read any more."""
    try:
        with sources[source.position].open() as raster:
            shrink = max(1.0, max(box.width, box.height) / longest)
            return raster.read(box, (max(1, round(box.height / shrink)), max(1, round(box.width / shrink)))).rgb
    except (NegahError, OSError):
        return None


def write_also(found: Cosines, questions: Sequence[Question], path: Path) -> None:
    """also.csv: a row per scored window and question."""
    standings = [question.standing(found.cosine[:, k]) for k, question in enumerate(questions)]
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(COLUMNS)
        for window, (place, index) in enumerate(zip(found.source.tolist(), found.index.tolist(), strict=True)):
            source = found.sources[place]
            where = source.name, window_name(source, index), bounds_of(source, source.layout.box(index))
            for k, question in enumerate(questions):
                figures = float(found.cosine[window, k]), float(standings[k][window])
                out.writerow((*where, question.words, *("" if np.isnan(x) else f"{x:.4f}" for x in figures)))


def frames(
    found: Cosines, questions: Sequence[Question], *, most: int
) -> tuple[geopandas.GeoDataFrame | None, geopandas.GeoDataFrame | None]:
    """The `most` best windows of each question, best first: those of sources with a CRS, and of those without one.

    In the sources' CRS if they share one, else in EPSG:4326; None where there is no such source.
    """
    crs_of = np.array([source.crs for source in found.sources], dtype=object)[found.source]
    rows = [(k, window) for k in range(len(questions)) for window in best(found.cosine[:, k])[:most].tolist()]
    standings = [question.standing(found.cosine[:, k]) for k, question in enumerate(questions)]

    def frame(crs: str | None) -> geopandas.GeoDataFrame:
        mine = [(k, window) for k, window in rows if crs_of[window] == crs]
        sources = [found.sources[int(found.source[window])] for _, window in mine]
        indices = [int(found.index[window]) for _, window in mine]
        data = {
            "source": pd.Series([source.name for source in sources], dtype="str"),
            "window": pd.Series([window_name(*of) for of in zip(sources, indices)], dtype="str"),
            "query": pd.Series([questions[k].words for k, _ in mine], dtype="str"),
            "cosine": np.array([found.cosine[window, k] for k, window in mine], dtype=float),
            "standing": np.array([standings[k][window] for k, window in mine], dtype=float),
        }
        shapes = np.array([_outline(*of) for of in zip(sources, indices)], dtype=object)
        return geopandas.GeoDataFrame(data, geometry=geopandas.GeoSeries(shapes, crs=crs))

    every = dict.fromkeys(source.crs for source in found.sources)
    on_earth = [frame(crs) for crs in every if crs is not None]
    if len(on_earth) > 1:
        on_earth = [some.to_crs(WGS84) for some in on_earth]
    together = pd.concat(on_earth, ignore_index=True) if on_earth else None
    return together, frame(None) if None in every else None  # pyright: ignore[reportReturnType]


def _outline(source: PlannedSource, index: int) -> shapely.Polygon:
    """A window in its source's CRS, or in pixels where it has none."""
    col, row, width, height = source.layout.box(index)
    return shapely.transform(shapely.box(col, row, col + width, row + height), lambda xy: apply(source.affine, xy))
