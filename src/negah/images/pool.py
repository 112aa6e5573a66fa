"""Tiles to train on without labels: whatever pictures there are, all as uint8 squares of one size.

    pool = Pool(["photos/", "city.tif", "scenes:500"], side=224)
    batches = Batches(pool, 64, collate=Views(dino()))

Everything is read once at the start: what cannot be read is left out and remembered, tiles that occur twice are noted,
and as many as the budget allows stay in memory.  The others are read again each time they are asked for.
"""

import hashlib
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from negah.errors import InputError
from negah.images.bands import Pixels
from negah.images.listed import some
from negah.images.raster import Raster
from negah.images.scenes import render
from negah.images.scenes.town import mix
from negah.images.sources import Source, clean, find_sources
from negah.images.windows import Box, grid
from negah.progress import Progress, silent

Cut = Literal["georeferenced", "all", "none"]

MIN_VALID = 0.9  # share of a tile's pixels that must hold data: the edge of a survey flight is not a thing to learn
SCENE_GSD_M = 0.3
SCENES = re.compile(r"scenes:(\d+)(?::(\d+))?")  # scenes:COUNT or scenes:COUNT:SEED
BLOCK_BYTES = 64 * 2**20  # tiles are kept in blocks of about this size, which worker processes share
RUN = 64  # windows of a raster that are read at a time


@dataclass(frozen=True)
class Picture:
    """A tile that is a picture's middle square (box None), or a window of it."""

    source: Source
    box: Box | None = None

    @property
    def name(self) -> str:
        return self.source.name if self.box is None else f"{self.source.name}@{self.box.col},{self.box.row}"

    def pixels(self, side: int) -> Pixels:
        raster = opened(self.source)
        if self.box is None:
            short = min(raster.width, raster.height)
            middle = Box((raster.width - short) // 2, (raster.height - short) // 2, short, short)
            return raster.read(middle, (side, side))
        return raster.read(self.box)


@dataclass(frozen=True)
class Drawn:
    """A tile that is a generated scene."""

    seed: int
    number: int

    @property
    def name(self) -> str:
        return f"scenes:{self.seed}/{self.number}"

    def pixels(self, side: int) -> Pixels:
        rgb = render(side, SCENE_GSD_M, seed=mix(self.seed, self.number)).image
        return Pixels(rgb, np.ones((side, side), bool))


Tile = Picture | Drawn


class Pool(torch.utils.data.Dataset):
    """A data set of uint8 tiles [3, side, side].

    Args:
        paths: pictures, folders and archives of them, rasters, addresses (see `find_sources`), or sources that were
            found already; "scenes:500" stands for 500 generated scenes of 0.3 m per pixel, "scenes:500:7" for those of
            seed 7.
        side: of the tiles, in pixels.
        cut: which pictures are cut into windows of `side` pixels at their own resolution, edge to edge, the last of a
            row and column shifted inward: "georeferenced" ones, "all" or "none".  Of the others, and of those shorter
            than `side`, the middle square is resized to `side`.
        memory: bytes of tiles that are kept decoded.
        threads: that read at the start.
        progress: told a stage, and how much of how many is done.

    Windows of which less than MIN_VALID holds data are left out, and counted in `skipped`.

    Attributes:
        names: of each tile: what its picture is called in `find_sources`; of a window, followed by @column,row.
        failures: (name, reason) of pictures that are left out, wholly or in part, since they cannot be read.
        duplicates: (name, earlier name) of tiles whose pixels are those of an earlier one; they stay in the pool.

    Raises InputError where nothing is found, and where nothing of it can be used.
    """

    def __init__(
        self,
        paths: Sequence[str | Path | Source],
        side: int,
        *,
        cut: Cut = "georeferenced",
        memory: int = 4 * 2**30,
        threads: int = min(8, os.cpu_count() or 1),
        progress: Progress = silent,
    ):
        if side < 1:
            raise InputError(f"tiles are at least 1 px large, not {side}")
        if cut not in get_args(Cut):
            raise InputError(f"pictures to cut are one of {', '.join(get_args(Cut))}, not {cut}")
        self.side, self.cut = side, cut
        self.tiles: list[Tile] = []
        self.names: list[str] = []
        self.failures: list[tuple[str, str]] = []
        self.duplicates: list[tuple[str, str]] = []
        self.skipped = 0
        self._blocks: list[Tensor] = []
        self._per_block = max(1, BLOCK_BYTES // (3 * side * side))
        self._room = memory // (3 * side * side)
        self._first: dict[bytes, int] = {}  # hash of the pixels: number of the tile

        sources = [path for path in paths if isinstance(path, Source)]
        scenes, others = _told_apart([path for path in paths if not isinstance(path, Source)])
        sources += find_sources(others) if others or not (scenes or sources) else []
        windows: list[list[Picture]] = []
        for done, (source, found) in enumerate(in_order(self._look, sources, threads), 1):
            if isinstance(found, list):
                windows += found
            else:
                self._take(Picture(source), found)
            progress("pictures", done, len(sources))
        faults: dict[str, list[str]] = {}
        for done, (run, found) in enumerate(in_order(self._read_run, windows, threads), 1):
            for tile, pixels in zip(run, found):
                if isinstance(pixels, str):
                    faults.setdefault(tile.source.name, []).append(pixels)
                else:
                    self._take(tile, pixels)
            progress("windows", done, len(windows))
        self.failures += [(name, f"{len(reasons)} windows: {reasons[0]}") for name, reasons in faults.items()]
        for done, (tile, pixels) in enumerate(in_order(lambda tile: tile.pixels(side), scenes, threads), 1):
            self._take(tile, pixels)
            progress("scenes", done, len(scenes))
        del self._first
        if not self.tiles:
            why = f"first: {self.failures[0][1]}" if self.failures else f"{self.skipped} windows without data"
            named = [clean(path.name if isinstance(path, Source) else str(path)) for path in paths]
            raise InputError(f"no picture to be used in {some(named)} ({why})")

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 side side"]:
        """A tile, not to be written to.  Raises InputError where one that is not in memory can no longer be read."""
        index = range(len(self))[index]  # IndexError at the end, by which a loop over the pool stops
        if index < self._kept:
            return self._blocks[index // self._per_block][index % self._per_block]
        return channels_first(self.tiles[index].pixels(self.side))

    @property
    def _kept(self) -> int:
        return min(self._room, len(self.tiles))

    def _look(self, source: Source) -> Pixels | str | list[list[Picture]]:
        """A picture's tile, or why there is none, or the windows to cut it into, in runs to be read together."""
        try:
            raster = opened(source)
            located = raster.crs is not None or raster.transform is not None
            wanted = self.cut == "all" or (self.cut == "georeferenced" and located)
            if wanted and min(raster.width, raster.height) >= self.side:
                boxes = [Picture(source, box) for box in grid(raster.width, raster.height, self.side, self.side)]
                return [boxes[i : i + RUN] for i in range(0, len(boxes), RUN)]
            return Picture(source).pixels(self.side)
        except InputError as error:
            return str(error)

    def _read_run(self, run: Sequence[Picture]) -> list[Pixels | str]:
        found: list[Pixels | str] = []
        for tile in run:
            try:
                found.append(tile.pixels(self.side))
            except InputError as error:
                found.append(str(error))
        return found

    def _take(self, tile: Tile, found: Pixels | str) -> None:
        """Add a tile, unless it could not be read or shows nothing."""
        if isinstance(found, str):
            self.failures.append((tile.name, found))
            return
        share = float(found.valid.mean())
        if share < MIN_VALID:
            if isinstance(tile, Picture) and tile.box is not None:
                self.skipped += 1
            else:
                self.failures.append((tile.name, f"{tile.name}: only {share:.0%} of its pixels hold data"))
            return
        index = len(self.tiles)
        self.tiles.append(tile)
        self.names.append(tile.name)
        key = hashlib.blake2b(found.rgb.tobytes(), digest_size=16).digest()
        if (earlier := self._first.setdefault(key, index)) != index:
            self.duplicates.append((self.names[index], self.names[earlier]))
        if index < self._room:
            if index % self._per_block == 0:
                rows = min(self._per_block, self._room - index)
                self._blocks.append(torch.empty(rows, 3, self.side, self.side, dtype=torch.uint8))
            self._blocks[-1][index % self._per_block] = channels_first(found)


def folder_labels(names: Sequence[str]) -> tuple[Int[Tensor, " tile"], list[str]]:
    """The folder that each picture lies in, as a label: (labels, classes), classes in alphabetical order.

    Raises InputError where there are fewer than two folders.
    """
    folders = [Path(name).parent.name for name in names]
    classes = sorted(set(folders))
    if len(classes) < 2:
        raise InputError(f"all pictures lie in one folder ({', '.join(classes)}): labels need a folder for each class")
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[folder] for folder in folders]), classes


def opened(source: Source) -> Raster:
    """The raster, open: each thread keeps the last one, so that neighbouring windows do not open it anew.

    A process that was forked off opens its own: two that seek in one file get in each other's way.
    """
    key = os.getpid(), source
    if getattr(_last, "key", None) != key:
        if hasattr(_last, "raster"):
            _last.raster.close()
        _last.key = None  # what is closed is not found again, should the next one not open
        _last.raster, _last.key = source.open(), key
    return _last.raster


_last = threading.local()


def _told_apart(paths: Sequence[str | Path]) -> tuple[list[Drawn], list[str | Path]]:
    """The generated scenes that the paths name, and the paths of files."""
    scenes: list[Drawn] = []
    others: list[str | Path] = []
    for path in paths:
        if match := SCENES.fullmatch(str(path)):
            scenes += [Drawn(int(match[2] or 0), i) for i in range(int(match[1]))]
        elif str(path).startswith("scenes:"):
            raise InputError(f"{clean(str(path))} is not scenes:COUNT or scenes:COUNT:SEED, such as scenes:500")
        else:
            others.append(path)
    return scenes, others


def in_order(work: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[tuple[Any, Any]]:
    """(item, work(item)) in order, by several threads that run ahead by a few items only."""
    with ThreadPoolExecutor(threads, "read") as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > 4 * threads:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()


def channels_first(pixels: Pixels) -> UInt8[Tensor, "3 h w"]:
    """What models take."""
    return torch.from_numpy(pixels.rgb.copy()).permute(2, 0, 1).contiguous()
