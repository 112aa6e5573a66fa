"""One raster, read by windows: any picture that negah reads looks the same from here.

GeoTIFF, COG, VRT and JPEG 2000 are read lazily through GDAL, so a raster may be far larger than memory.  PNG and JPEG
can only be decoded from their first line on: up to IN_MEMORY_PX they are decoded once, at the first read, and kept.
One that carries a georeference beside it (world file, .aux.xml) goes through GDAL, which knows those files.
"""

import math
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.io import DatasetReader

from negah.errors import GeoError
from negah.images.bands import Bands, Pixels, open_dataset
from negah.images.decode import (
    DRIVERS,
    Picture,
    check_size,
    head_of,
    kind_of,
    open_picture,
    tiff_orientation,
    turned,
)  # fmt: skip
from negah.images.geo import on_earth, pixel_size_m, turn_deg
from negah.images.windows import Box

IN_MEMORY_PX = 2**26  # 8,192 squared, 201 MB: PNG and JPEG up to this size are decoded once and kept
EXACT_PX = 2**24  # boxes up to this many source pixels are averaged exactly; larger ones are decimated by GDAL
DISAGREE = 0.05  # relative difference of two ground sizes that is worth a warning
# What GDAL looks for beside a PNG or JPEG, as endings of its name without and with its own suffix.
WORLD_FILES = {"png": (".pgw", ".pngw", ".wld"), "jpeg": (".jgw", ".jpgw", ".jpegw", ".wld")}
AUX = ".aux.xml"


class GroundSize(NamedTuple):
    """Mean ground size of a pixel in metres, and what the user should know about it (one line each)."""

    metres: float
    warnings: tuple[str, ...]


class Raster:
    """A picture or raster that is open; a context manager.

    name: what it is called in messages and tables.  width, height: in pixels, after EXIF rotation.
    crs, transform: the map projection and the affine map from pixel (column, row) to it; each None if not known.  A
    local (engineering) CRS, whose places have no longitude and latitude, counts as none, but its unit still gives the
    ground size.
    Reads are safe from any thread, one at a time: to read in parallel, open one Raster per thread.
    """

    def __init__(self, source: Path | str | bytes, *, name: str, kind: str | None = None):
        """Open a file, the bytes of one, or a /vsi name of GDAL's (str), which needs its kind: a key of DRIVERS.

        Raises InputError for what is missing, empty, damaged, too large to decode, or no picture.
        """
        self.name = name
        self.crs: CRS | None = None
        self.transform: Affine | None = None
        self._local_crs: CRS | None = None
        self._missing = "no CRS"
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._bands: Bands | None = None
        self._picture: Picture | None = None
        self._whole: Pixels | None = None
        try:
            self._open(source, kind)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "Raster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the raster cannot be read any more."""
        with self._lock:
            self._whole = None
            self._stack.close()

    def read(self, box: Box, shape: tuple[int, int] | None = None) -> Pixels:
        """The pixels of a box, resampled to `shape` (height, width) where given.

        What lies outside the raster is not valid.  Shrinking averages over areas (of valid pixels; a pixel is valid
        where at least half of its area is), growing is bicubic.  Boxes of more than EXACT_PX source pixels are
        decimated by GDAL on the raster's overviews, for previews.
        Raises InputError where the file is damaged, ValueError for an empty box or shape.
        """
        shape = shape or (box.height, box.width)
        if min(*shape, box.width, box.height) < 1:
            raise ValueError(f"cannot read {box} as {shape[0]} x {shape[1]} pixels")
        left, top = max(box.col, 0), max(box.row, 0)
        right, bottom = min(box.col + box.width, self.width), min(box.row + box.height, self.height)
        inside = Box(left, top, right - left, bottom - top)
        with self._lock:
            if inside.width < 1 or inside.height < 1:
                return _blank(*shape)
            if inside == box and shape == (box.height, box.width):
                return self._read(inside, shape)
            if box.width * box.height > EXACT_PX:
                return self._preview(box, inside, shape)
            pixels = self._read(inside, (inside.height, inside.width))
        if inside != box:
            pixels = _placed(pixels, top - box.row, left - box.col, (box.height, box.width))
        return resample(pixels, shape)

    @property
    def stretch(self) -> tuple[float, float] | None:
        """The values that become black and white, where they are not those of 8 bits; None where nothing is changed."""
        if self._bands is None or (limits := self._bands.stretch) == (0.0, 255.0):
            return None
        return limits

    def gsd_m(self, given: float | None = None) -> GroundSize:
        """Mean ground size of a pixel at the raster's centre (its ground sampling distance) in metres.

        given: what the user says; used where the raster does not say itself, otherwise compared with it.
        Raises GeoError where neither is known, and for a raster whose axes are turned against its CRS.
        """
        if given is not None and not 0 < given < math.inf:
            raise GeoError(f"{self.name}: a ground size must be a positive number of metres per pixel, not {given:g}")
        crs = self.crs or self._local_crs
        if crs is None or self.transform is None:
            if given is None:
                raise GeoError(
                    f"{self.name} has {self._missing}, so the ground size of its pixels is not known: "
                    f"give it in metres with --gsd 0.3"
                )
            return GroundSize(given, ())
        if turn := turn_deg(self.transform):
            raise GeoError(
                f"{self.name} is turned by {turn:.3g} degrees against its CRS: rectify it first, "
                f"e.g. gdalwarp -r bilinear -of COG {self.name} upright.tif"
            )
        try:
            width, height = pixel_size_m(crs, self.transform, self.width / 2, self.height / 2)
        except GeoError as error:
            raise GeoError(f"{self.name}: {error}") from None
        metres = math.sqrt(width * height)
        warnings = []
        if given is not None and abs(given - metres) > DISAGREE * metres:
            warnings.append(
                f"{self.name}: its georeference says {metres:.3g} m per pixel, --gsd says {given:g}: "
                f"the georeference is used"
            )
        if self.crs is None:
            warnings.append(
                f"{self.name}: its CRS is a local one, not tied to the earth: sizes are right, places are in pixels"
            )
        return GroundSize(metres, tuple(warnings))

    def _open(self, source: Path | str | bytes, kind: str | None) -> None:
        if isinstance(source, Path) and source.suffix.lower() == ".vrt":
            head_of(source, name=self.name)  # says why it cannot be opened, which GDAL does not
            return self._open_dataset(source, "VRT")
        if isinstance(source, str):
            return self._open_dataset(source, DRIVERS[kind or "tiff"])
        kind = kind_of(head_of(source, name=self.name), name=self.name)
        if kind in WORLD_FILES and not (isinstance(source, Path) and has_sidecar(source, kind)):
            picture = open_picture(source, kind, name=self.name)
            if picture is not None:
                self._stack.callback(picture.close)
                if picture.width * picture.height <= IN_MEMORY_PX:
                    self.width, self.height, self._picture = picture.width, picture.height, picture
                    return
        self._open_dataset(source, DRIVERS[kind])

    def _open_dataset(self, source: Path | str | bytes, driver: str) -> None:
        dataset = self._stack.enter_context(open_dataset(source, driver, name=self.name))
        if dataset.driver in ("PNG", "JPEG"):
            check_size(dataset.width, dataset.height, name=self.name)
        self.width, self.height = dataset.width, dataset.height
        self._bands = Bands(dataset, self.name)
        self._locate(dataset)
        if dataset.driver == "GTiff" and not isinstance(source, str) and self.transform is None:
            orientation = tiff_orientation(source)
            if orientation > 1:
                check_size(self.width, self.height, name=self.name)
                upright = self._bands.read(Box(0, 0, self.width, self.height), (self.height, self.width))
                self._whole = _turned(upright, orientation)
                self.height, self.width = self._whole.valid.shape

    def _locate(self, dataset: DatasetReader) -> None:
        placed = dataset.transform != Affine.identity()
        if placed:
            self.transform = dataset.transform
        if dataset.crs and placed:
            try:
                earthly = on_earth(dataset.crs)
            except GeoError as error:
                self._missing = f"a CRS of no use ({error})"
                return
            if earthly:
                self.crs = dataset.crs
            else:
                self._local_crs = dataset.crs
        elif dataset.crs:
            self._missing = "a CRS but no geotransform"
        elif placed:
            self._missing = "a geotransform but no CRS"
        elif dataset.gcps[0]:
            self._missing = "ground control points but is not rectified (gdalwarp does that)"

    def _read(self, inside: Box, shape: tuple[int, int]) -> Pixels:
        """A box that lies inside, at full resolution or (through GDAL) decimated to `shape`."""
        if self._whole is None and self._picture is not None:
            self._whole = self._picture.decode()
        if self._whole is not None:
            rows = slice(inside.row, inside.row + inside.height)
            cols = slice(inside.col, inside.col + inside.width)
            pixels = Pixels(self._whole.rgb[rows, cols].copy(), self._whole.valid[rows, cols].copy())
            return pixels if shape == pixels.valid.shape else resample(pixels, shape)
        assert self._bands is not None
        return self._bands.read(inside, shape)

    def _preview(self, box: Box, inside: Box, shape: tuple[int, int]) -> Pixels:
        """A large box: the part inside is read at the preview's own resolution and put in its place."""
        down, across = shape[0] / box.height, shape[1] / box.width
        top, left = round((inside.row - box.row) * down), round((inside.col - box.col) * across)
        bottom = round((inside.row + inside.height - box.row) * down)
        right = round((inside.col + inside.width - box.col) * across)
        if bottom <= top or right <= left:
            return _blank(*shape)
        return _placed(self._read(inside, (bottom - top, right - left)), top, left, shape)


def has_sidecar(path: Path, kind: str) -> bool:
    """Whether a PNG or JPEG has a file beside it that may say where on earth it lies."""
    stem = os.path.splitext(path)[0]
    if os.path.exists(f"{path}{AUX}"):
        return True
    endings = {end for e in WORLD_FILES[kind] for end in (e, e.upper())}
    return any(os.path.exists(stem + end) for end in endings)


def resample(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    """Pixels brought to `shape` (height, width): area average along an axis that shrinks, bicubic along one that grows.

    Only valid pixels count; where more than half of what a pixel covers is not valid, it is not either.
    """
    height, width = pixels.valid.shape
    if shape == (height, width):
        return pixels
    if pixels.valid.all():
        return Pixels(np.asarray(_resize(Image.fromarray(pixels.rgb), shape)), np.ones(shape, bool))
    if not pixels.valid.any():
        return _blank(*shape)
    share = np.asarray(_resize(Image.fromarray(pixels.valid.astype(np.float32)), shape, grow=Image.Resampling.BILINEAR))
    valid = share >= 0.5
    colours = [
        np.asarray(_resize(Image.fromarray(band.astype(np.float32)), shape, grow=Image.Resampling.BILINEAR))
        for band in pixels.rgb.transpose(2, 0, 1)  # 0 where not valid, so that the sums below are over valid pixels
    ]
    rgb = np.stack(colours, axis=2) / np.maximum(share, 0.5)[..., None]
    rgb = np.where(valid[..., None], np.rint(np.clip(rgb, 0, 255)), 0).astype(np.uint8)
    return Pixels(rgb, valid)


def _resize(
    image: Image.Image, shape: tuple[int, int], grow: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    shrink = Image.Resampling.BOX
    across, down = (grow if new > old else shrink for new, old in zip(shape[::-1], image.size))
    if across == down:
        return image.resize((shape[1], shape[0]), across)
    return image.resize((shape[1], image.height), across).resize((shape[1], shape[0]), down)


def _placed(part: Pixels, top: int, left: int, shape: tuple[int, int]) -> Pixels:
    """`part` on a canvas of `shape` on which nothing else is valid."""
    rgb, valid = _blank(*shape)
    height, width = part.valid.shape
    rgb[top : top + height, left : left + width] = part.rgb
    valid[top : top + height, left : left + width] = part.valid
    return Pixels(rgb, valid)


def _blank(height: int, width: int) -> Pixels:
    return Pixels(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool))


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    return Pixels(*(np.ascontiguousarray(turned(a, orientation)) for a in pixels))
