"""From the bands of a GDAL dataset to 8-bit RGB: colours, stretch, and which pixels hold data.

Whatever a file holds (grey, palette, CMYK, alpha, masks, nodata, 16 bit, float) comes out as `Pixels`.  Values that are
not 8-bit are stretched between two percentiles of the whole raster, the same for every window of it, since a model that
was trained on 8-bit photographs must not see a panel's brightness depend on what else lies in its window.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from jaxtyping import Bool, UInt8
from numpy import ndarray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile

from negah.errors import InputError
from negah.images.windows import Box

STRETCH = (1.0, 99.0)  # percentiles that become 0 and 255: glints, hot pixels and dark water do not set the contrast
SAMPLE_PX = 1024  # longest side of the decimated read from which they are taken
SAMPLE_SPOTS, SPOT_PX = 8, 128  # without overviews: so many squares per axis, of so many pixels
MAX_BLOCK = 2**29  # bytes of a tile or strip; GDAL takes about twice that to decode it
RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
# Settings of GDAL, the reading library below rasterio, while we open and read; variables of these names in the
# environment come first.
GDAL = {
    # Bytes of decoded blocks that GDAL keeps, for all open rasters together.  Its own default is 5 % of the machine's
    # memory: 50 GB on a large server, which looks like a leak.  A row of 256 px blocks under a raster 20,000 px wide
    # takes 15 MB, so with this each block is decoded once however the windows lie across blocks.
    "GDAL_CACHEMAX": 192 * 2**20,
    # No listing of a server's folder, no waiting without end: a survey must go on to its next source.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_TIMEOUT": 60,
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
}
CMYK = (ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow, ColorInterp.black)


class Pixels(NamedTuple):
    """A piece of a picture.  rgb is 0 where not valid (outside, transparent, masked, nodata, NaN)."""

    rgb: UInt8[ndarray, "h w 3"]
    valid: Bool[ndarray, "h w"]


# Georeference is asked for explicitly, and its absence answered in the raster's own words.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


def gdal_settings(*, remote: bool = False, cache: int | None = None) -> rasterio.Env:
    """The context in which GDAL opens files and reads them.  cache: bytes of decoded blocks that it keeps meanwhile."""
    wanted: dict[str, Any] = GDAL if cache is None else {**GDAL, "GDAL_CACHEMAX": cache}
    settings = {key: value for key, value in wanted.items() if key not in os.environ}
    if not remote:
        # beside a local file, sidecars (.ovr, .msk, .aux.xml, world files) are looked for; on a server that is slow
        settings.pop("GDAL_DISABLE_READDIR_ON_OPEN", None)
    # a VRT may name Python code to run on its pixels: never
    return rasterio.Env(**settings, GDAL_VRT_ENABLE_PYTHON="NO")


@contextmanager
def open_dataset(source: Path | str | bytes, driver: str, *, name: str) -> Iterator[DatasetReader]:
    """Open a raster with the named driver of GDAL and no other, from a file, a /vsi name or bytes.

    Raises InputError where GDAL cannot open it, or it can only be read in pieces of more than MAX_BLOCK bytes.
    """
    with ExitStack() as stack:
        try:
            with gdal_settings(remote=isinstance(source, str) and source.startswith("/vsicurl/")):
                if isinstance(source, bytes):
                    dataset = stack.enter_context(stack.enter_context(MemoryFile(source)).open(driver=driver))
                else:
                    dataset = stack.enter_context(rasterio.open(source, driver=driver, sharing=False))
        except (RasterioError, OSError) as error:
            raise InputError(f"{name} cannot be opened: {_damaged(error, name)}") from None
        if not dataset.count:
            raise InputError(f"{name} holds no bands")
        # one strip may be the whole file, and must then be decoded whole to read a single pixel
        rows, cols = dataset.block_shapes[0]
        block = rows * cols * sum(np.dtype(kind).itemsize for kind in dataset.dtypes if kind in np.sctypeDict)
        if dataset.driver == "GTiff" and block > MAX_BLOCK:
            raise InputError(
                f"{name} is stored in pieces of {cols} x {rows} px, too large to read by windows: rewrite it in tiles, "
                f"e.g. gdal_translate -of COG {name} tiled.tif"
            )
        yield dataset


class Bands:
    """Reads RGB and validity from an open dataset.

    Colours are taken by the file's own colour names where it has them (so BGR and RGB + infrared come out right);
    otherwise the first three bands are red, green and blue, and fewer than three are grey.
    Raises InputError for bands that cannot be shown (complex numbers).
    """

    def __init__(self, dataset: DatasetReader, name: str):
        self._dataset = dataset
        self._name = name
        self._settings = gdal_settings()  # one per object, and not for two threads at once: see Raster's lock
        colours = dataset.colorinterp
        if all(colour in colours for colour in CMYK):
            shown = [colours.index(colour) + 1 for colour in CMYK]
        elif all(colour in colours for colour in RGB):
            shown = [colours.index(colour) + 1 for colour in RGB]
        elif colours[0] == ColorInterp.alpha:
            raise InputError(f"{name} holds an alpha band and no colours")
        else:
            # two bands are grey and, named so or not, its alpha or something else: never a colour
            count = sum(colour != ColorInterp.alpha for colour in colours)
            shown = [1, 2, 3] if count >= 3 else [1]
        self._shown = shown
        self._cmyk = len(shown) == 4
        self._dtype = np.dtype(dataset.dtypes[shown[0] - 1])
        if self._dtype.kind not in "uif":
            raise InputError(f"{name} holds numbers of type {dataset.dtypes[0]}, which are no picture")
        self._palette = self._read_palette() if colours[0] == ColorInterp.palette else None
        self._alpha = colours.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in colours else None
        self._nodata = [_as_type(dataset.nodatavals[i - 1], self._dtype) for i in shown]
        flags = dataset.mask_flag_enums[shown[0] - 1]
        # an alpha band and a nodata value are seen to here, in the same read as the colours
        self._mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
        structure = dataset.tags(shown[0], ns="IMAGE_STRUCTURE")
        self._levels = 2 ** int(structure.get("NBITS", 8)) - 1  # of an 8-bit band: files of 1, 2 or 4 bits exist
        self._inverted = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"

    def read(self, box: Box, shape: tuple[int, int]) -> Pixels:
        """The pixels of a box that lies inside the dataset, decimated by GDAL if `shape` (h, w) is smaller.

        Decimation averages, on overviews where there are some; it is for previews of large rasters.
        Raises InputError where the file is damaged.
        """
        window = _window(box)
        same = shape == (box.height, box.width)
        resampling = Resampling.nearest if same or self._palette is not None else Resampling.average
        indexes = [*self._shown, self._alpha] if self._alpha else self._shown
        mask = None
        try:
            with self._settings:
                values = self._dataset.read(
                    indexes, window=window, out_shape=(len(indexes), *shape), resampling=resampling
                )
                if self._mask:
                    mask = self._dataset.read_masks(self._shown[0], window=window, out_shape=shape)
        except RasterioError as error:
            raise InputError(f"{self._name} cannot be read {_at(box)}: {_damaged(error, self._name)}") from None
        valid = np.ones(shape, bool) if mask is None else mask != 0
        if self._alpha:
            valid &= values[-1] != 0
            values = values[:-1]
        valid &= ~self._is_nodata(values)
        rgb = self._to_rgb(values)
        if self._palette is not None:
            valid &= self._palette[values[0], 3] != 0
        if not valid.all():
            rgb[~valid] = 0
        return Pixels(rgb, valid)

    @cached_property
    def stretch(self) -> tuple[float, float]:
        """The values that become 0 and 255.

        8-bit values, also when they are stored in wider numbers, stay as they are: (0, 255).
        """
        if self._dtype == np.uint8:
            return 0.0, 255.0
        sample = self._sample()
        if not sample.size:
            return 0.0, 255.0
        if 0 <= sample.min() and 1 < sample.max() <= 255:
            return 0.0, 255.0
        low, high = np.percentile(sample, STRETCH)
        return (float(low), float(high)) if high > low else (float(sample.min()), float(sample.max()))

    def _to_rgb(self, values: ndarray) -> UInt8[ndarray, "h w 3"]:
        if self._palette is not None:
            return self._palette[values[0], :3]
        if self._dtype != np.uint8:
            low, high = self.stretch
            # float32 is exact for 16-bit numbers; wider ones need the digits
            wide = values.astype(np.float32 if self._dtype.itemsize <= 2 or self._dtype == np.float32 else np.float64)
            wide = np.clip(np.nan_to_num(wide, nan=low), low, high) - low
            values = np.rint(wide * (255 / max(high - low, 1e-30))).astype(np.uint8)
        elif self._levels < 255:
            values = (np.minimum(values, self._levels).astype(np.uint16) * 255 // self._levels).astype(np.uint8)
        if self._inverted:
            values = 255 - values
        if self._cmyk:
            paper = 255 - values.astype(np.uint16)
            values = ((paper[:3] * paper[3] + 127) // 255).astype(np.uint8)
        if len(values) == 1:
            return np.repeat(values[0][..., None], 3, axis=2)
        return np.ascontiguousarray(values.transpose(1, 2, 0))

    def _is_nodata(self, values: ndarray) -> Bool[ndarray, "h w"]:
        """No data: every shown band holds its nodata value, or any of them no finite number."""
        empty = np.zeros(values.shape[1:], bool)
        if None not in self._nodata:
            empty |= np.logical_and.reduce([band == none for band, none in zip(values, self._nodata)])
        if self._dtype.kind == "f":
            empty |= ~np.isfinite(values).all(axis=0)
        return empty

    def _sample(self) -> ndarray:
        """Values of valid pixels from all over the raster, in one dimension; the same at every call."""
        dataset = self._dataset
        height, width = dataset.height, dataset.width
        shrink = max(height, width) / SAMPLE_PX
        if shrink <= 1 or dataset.overviews(self._shown[0]):
            shape = (max(1, round(height / max(shrink, 1))), max(1, round(width / max(shrink, 1))))
            boxes = [(Box(0, 0, width, height), shape)]
        else:
            # a decimated read would decode every block of the raster; squares on a lattice touch few of them
            rows = np.linspace(0, max(height - SPOT_PX, 0), SAMPLE_SPOTS).astype(int).tolist()
            cols = np.linspace(0, max(width - SPOT_PX, 0), SAMPLE_SPOTS).astype(int).tolist()
            size = (min(SPOT_PX, height), min(SPOT_PX, width))
            boxes = [(Box(col, row, size[1], size[0]), size) for row in rows for col in cols]
        parts = []
        for box, shape in boxes:
            window = _window(box)
            try:
                with self._settings:
                    values = dataset.read(self._shown, window=window, out_shape=(len(self._shown), *shape))
                    mask = dataset.dataset_mask(window=window, out_shape=shape) != 0
            except RasterioError as error:
                raise InputError(f"{self._name} cannot be read {_at(box)}: {_damaged(error, self._name)}") from None
            parts.append(values[:, mask & ~self._is_nodata(values)].reshape(-1))
        return np.concatenate(parts)

    def _read_palette(self) -> UInt8[ndarray, "entries 4"]:
        """Colour (RGBA) of every value that the band can hold; black and opaque where the file names none."""
        entries = 256 if self._dtype == np.uint8 else 65536
        palette = np.zeros((entries, 4), np.uint8)
        palette[:, 3] = 255
        for value, colour in self._dataset.colormap(self._shown[0]).items():
            palette[value] = colour
        return palette


def _window(box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """A box the way rasterio takes it: rows and columns, each from first to end."""
    return (box.row, box.row + box.height), (box.col, box.col + box.width)


def _at(box: Box) -> str:
    return f"at column {box.col}, row {box.row}"


def _damaged(error: Exception, name: str) -> str:
    """What is wrong with a file of this name, for who does not know GDAL, and what GDAL says of it."""
    why = reason(error)
    if name.startswith("http") or "no such file" in why.lower() or "permission denied" in why.lower():
        return why
    return f"it is damaged or cut off, copy it anew (GDAL: {why})"


def reason(error: Exception) -> str:
    """What GDAL says is wrong, on one line; rasterio keeps it in the exception's cause."""
    return " ".join(str(error.__cause__ or error).split())[:300]


def _as_type(nodata: float | None, dtype: np.dtype) -> float | int | None:
    """The nodata value as the band's own numbers can hold it; None if they cannot, or if it is NaN (always no data)."""
    if nodata is None or np.isnan(nodata):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(dtype.type(nodata))
    limits = np.iinfo(dtype)
    return int(nodata) if limits.min <= nodata <= limits.max and nodata == int(nodata) else None
