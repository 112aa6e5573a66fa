"""Whole rasters made small: one of them, or all of a place in their positions, as a map to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from affine import Affine
from jaxtyping import UInt8
from numpy import ndarray
from rasterio.crs import CRS

from negah.errors import InputError, NegahError
from negah.images.bands import Pixels
from negah.images.geo import turn_deg
from negah.images.raster import Raster
from negah.images.sources import Source
from negah.images.windows import Box
from negah.progress import Progress, silent

READ_PX = 2**22  # source pixels that are read at a time: the bound on memory ...
READ_ROWS = 512  # ... but at least these rows, the height of common blocks, which would be decoded several times else


@dataclass(frozen=True)
class Mosaic:
    """Pictures in their places on one map.

    image: white where there is no picture.  crs, transform: where its pixels lie.  left_out: a line for each picture
    that is not on it, and why.
    """

    image: UInt8[ndarray, "h w 3"]
    crs: CRS
    transform: Affine
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Placed:
    source: Source
    transform: Affine
    left: float
    bottom: float
    right: float
    top: float


def within(raster: Raster, longest: int) -> tuple[int, int]:
    """Height and width of a raster whose longer side is made `longest` pixels; its own where that is smaller."""
    shrink = max(1.0, max(raster.width, raster.height) / longest)
    return max(1, round(raster.height / shrink)), max(1, round(raster.width / shrink))


def overview(raster: Raster, shape: tuple[int, int]) -> Pixels:
    """A whole raster in `shape` (height, width), read in bands so that memory does not grow with its height."""
    height, width = shape
    rgb, valid = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
    step = max(1, int(max(READ_PX / raster.width, READ_ROWS) * height / raster.height))
    for top in range(0, height, step):
        end = min(top + step, height)
        first, last = round(top * raster.height / height), round(end * raster.height / height)
        box = Box(0, first, raster.width, last - first)
        rgb[top:end], valid[top:end] = raster.read(box, (end - top, width))
    return Pixels(rgb, valid)


def mosaic(
    sources: Sequence[Source],
    *,
    longest: int,
    progress: Progress = silent,
) -> Mosaic:
    """All pictures in the CRS of the first that has any, on one map of at most `longest` pixels along its longer side.

    Raises InputError where none says its place.
    """
    placed, crs, left_out = _places(sources, progress)
    if crs is None:
        raise InputError(f"none of the pictures can be laid on a map: {left_out[0] if left_out else 'there are none'}")
    left, top = min(p.left for p in placed), max(p.top for p in placed)
    right, bottom = max(p.right for p in placed), min(p.bottom for p in placed)
    across, down = abs(placed[0].transform.a), abs(placed[0].transform.e)  # so that its pixels keep their shape
    shrink = max(1.0, (right - left) / across / longest, (top - bottom) / down / longest)
    map_ = Affine(across * shrink, 0, left, 0, -down * shrink, top)
    image = np.full((max(1, round((top - bottom) / -map_.e)), max(1, round((right - left) / map_.a)), 3), 255, np.uint8)
    for done, one in enumerate(placed):
        progress("drawing", done, len(placed))
        try:
            _draw(one, image, map_)
        except NegahError as error:
            left_out.append(str(error))
    return Mosaic(image, crs, map_, tuple(left_out))


def _places(sources: Sequence[Source], progress: Progress) -> tuple[list[_Placed], CRS | None, list[str]]:
    """Where the pictures lie, in the CRS of the first that has any, and why others cannot be shown."""
    placed: list[_Placed] = []
    left_out: list[str] = []
    crs: CRS | None = None
    for done, source in enumerate(sources):
        progress("finding its place", done, len(sources))
        try:
            with source.open() as raster:
                where, transform, width, height = raster.crs, raster.transform, raster.width, raster.height
        except NegahError as error:
            left_out.append(str(error))
            continue
        if where is None or transform is None:
            left_out.append(f"{source.name} does not say where it lies")
        elif turn_deg(transform):
            left_out.append(f"{source.name} is turned against its CRS")
        elif crs is not None and where != crs:
            left_out.append(f"{source.name} lies in {where}, the first picture in {crs}")
        else:
            crs = where
            (x0, x1), (y0, y1) = (sorted((c, c + step * n)) for c, step, n in (
                (transform.c, transform.a, width), (transform.f, transform.e, height),
            ))  # fmt: skip
            placed.append(_Placed(source, transform, x0, y0, x1, y1))
    return placed, crs, left_out


def _draw(one: _Placed, image: UInt8[ndarray, "h w 3"], map_: Affine) -> None:
    """Lay one picture in its place; what is smaller than a pixel of the map is not seen."""
    cols = [min(round((x - map_.c) / map_.a), image.shape[1]) for x in (one.left, one.right)]
    rows = [min(round((y - map_.f) / map_.e), image.shape[0]) for y in (one.top, one.bottom)]
    if cols[0] == cols[1] or rows[0] == rows[1]:
        return
    with one.source.open() as raster:
        rgb, valid = overview(raster, (rows[1] - rows[0], cols[1] - cols[0]))
    turn = (
        slice(None, None, -1 if one.transform.e > 0 else 1),
        slice(None, None, -1 if one.transform.a < 0 else 1),
    )
    rgb, valid = rgb[turn], valid[turn]
    image[slice(*rows), slice(*cols)][valid] = rgb[valid]
