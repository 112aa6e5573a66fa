"""Whole pictures from outside, as 8-bit RGB.  What comes in is treated as hostile.

PNG and JPEG go through Pillow, straight to the decoder that the first bytes call for: no other of Pillow's many formats
can be reached, and a tile of 101 x 101 pixels takes a fraction of a millisecond.  TIFF, JPEG 2000 and 16-bit PNG, which
Pillow reads in part or not at all, go through GDAL.  Nothing is decoded before the size that the header claims has been
checked.
"""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from negah.errors import InputError
from negah.images.bands import Bands, Pixels, open_dataset
from negah.images.windows import Box

MAX_PX = 2**28  # 16,384 squared, 805 MB as RGB: the largest picture that is decoded in one piece
HEAD = 32  # bytes that tell what a file is
DRIVERS = {"tiff": "GTiff", "png": "PNG", "jpeg": "JPEG", "jp2": "JP2OpenJPEG"}  # GDAL's names
ORIENTATION = 0x0112  # the EXIF and TIFF tag that says how the camera was held
# What Pillow's decoders raise on damaged files.
DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, OverflowError, struct.error, zlib.error)


def read_image(source: Path | bytes, *, name: str) -> UInt8[ndarray, "h w 3"]:
    """A picture, from a file or from its bytes, as RGB the way a viewer would show it.

    Grey, palette, CMYK and 16-bit pictures become RGB (wider values are stretched, see `bands`), alpha is dropped
    (transparent pixels are black), and EXIF rotation is applied.  `name` stands for it in messages.
    Raises InputError for what is empty, damaged, no picture, or has more than MAX_PX pixels.
    """
    kind = kind_of(head_of(source, name=name), name=name)
    if kind in ("png", "jpeg"):
        picture = open_picture(source, kind, name=name)
        if picture is not None:
            try:
                return picture.decode().rgb
            finally:
                picture.close()
    with open_dataset(source, DRIVERS[kind], name=name) as dataset:
        check_size(dataset.width, dataset.height, name=name)
        pixels = Bands(dataset, name).read(Box(0, 0, dataset.width, dataset.height), (dataset.height, dataset.width))
    orientation = tiff_orientation(source) if kind == "tiff" else 1
    return np.ascontiguousarray(turned(pixels.rgb, orientation))


class Picture(NamedTuple):
    """A PNG or JPEG whose header has been read.  width and height are those after EXIF rotation."""

    width: int
    height: int
    decode: Callable[[], Pixels]  # raises InputError where the file is damaged
    close: Callable[[], None]


def open_picture(source: Path | bytes, kind: str, *, name: str) -> Picture | None:
    """Read the header of a PNG or JPEG; None for a 16-bit PNG, of which Pillow would keep 8 bits.

    Raises InputError for a damaged header or more than MAX_PX pixels.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
    except OSError as error:
        raise InputError(f"{name} cannot be opened: {error.strerror or error}") from None
    try:
        # Not Image.open: it tries every format that it knows, and warns about sizes instead of refusing them.
        image = PngImageFile(file) if kind == "png" else JpegImageFile(file)
        if image.mode.startswith("I") or _png_depth(image) == 16:
            file.close()
            return None
        check_size(image.width, image.height, name=name)
        orientation = _exif_orientation(image)
    except InputError:
        file.close()
        raise
    except DAMAGE as error:
        file.close()
        raise InputError(f"{name} cannot be read as {kind.upper()}: {_line(error)}") from None

    def decode() -> Pixels:
        try:
            image.load()
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                rgba = np.asarray(image.convert("RGBA"))
                valid = rgba[..., 3] != 0
                rgb = np.where(valid[..., None], rgba[..., :3], np.uint8(0))
            else:
                rgb = np.array(image if image.mode == "RGB" else image.convert("RGB"))
                valid = np.ones(rgb.shape[:2], bool)
        except DAMAGE as error:
            raise InputError(f"{name} is damaged: {_line(error)}") from None
        return Pixels(np.ascontiguousarray(turned(rgb, orientation)), np.ascontiguousarray(turned(valid, orientation)))

    width, height = image.size if orientation < 5 else image.size[::-1]
    return Picture(width, height, decode, image.close)


def kind_of(head: bytes, *, name: str) -> str:
    """What a file is by its first bytes, whatever it is called: "png", "jpeg", "tiff" or "jp2".

    Raises InputError for anything else.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "jp2"
    if not head:
        raise InputError(f"{name} is empty (0 bytes): copy or download it again")
    what = "text" if head.isascii() and head.decode("ascii").replace("\n", " ").isprintable() else "other data"
    raise InputError(f"{name} is no picture but {what}, whatever its name says: PNG, JPEG, TIFF or JPEG 2000 is read")


def head_of(source: Path | bytes, *, name: str) -> bytes:
    """The first bytes of a file.  Raises InputError where it cannot be opened."""
    if isinstance(source, bytes):
        return source[:HEAD]
    try:
        with open(source, "rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise InputError(f"{name} cannot be opened: {error.strerror or error}") from None


def check_size(width: int, height: int, *, name: str) -> None:
    """Refuse a picture that would be decoded to more than MAX_PX pixels, before any memory is taken for it."""
    if width * height > MAX_PX or min(width, height) < 1:
        raise InputError(
            f"{name} claims {width} x {height} pixels, more than the {MAX_PX:,} that are decoded in one piece: if that "
            f"is no decompression bomb, convert it to tiles (gdal_translate -of COG)"
        )


def tiff_orientation(source: Path | bytes) -> int:
    """The orientation tag of a TIFF, 1 (upright) to 8; GDAL does not pass it on."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            return _as_orientation(TiffImageFile(file).tag_v2.get(ORIENTATION, 1))
    except DAMAGE:
        return 1  # a TIFF that GDAL reads and Pillow does not


def turned(a: ndarray, orientation: int) -> ndarray:
    """An array [h, w, ...] set upright, for each of the eight EXIF orientations."""
    turns: dict[int, Callable[[ndarray], ndarray]] = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }
    return turns[orientation](a) if orientation in turns else a


def _exif_orientation(image: PngImageFile | JpegImageFile) -> int:
    # `info` first: `getexif` of a PNG without EXIF would decode the whole picture in search of it
    if "exif" not in image.info:
        return 1
    try:
        return _as_orientation(image.getexif().get(ORIENTATION, 1))
    except DAMAGE:
        return 1


def _as_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_depth(image: PngImageFile | JpegImageFile) -> int:
    """Bits per channel of a PNG, from the raw mode its decoder was given ("RGB;16B"), else 8."""
    raw = image.tile[0].args if isinstance(image, PngImageFile) and image.tile else ""
    return 16 if "16" in str(raw) else 8


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
