"""Whole pictures from outside, as 8-bit RGB.  What comes in is treated as hostile.

PNG and JPEG go through Pillow, straight to the decoder that the first bytes call for: no other of Pillow's many formats
can be reached, and a tile of 101 x 101 pixels takes a fraction of a millisecond.  TIFF, JPEG 2000 and 16-bit PNG, which
Pillow reads in part or not at all, go through GDAL.  Nothing is decoded before the size that the header claims has been
checked.
"""

import io
import os
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import rasterio
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from negah.errors import InputError
from negah.images.bands import Pixels

MAX_PX = 2**28  # 16,384 squared, 805 MB as RGB: the largest picture that is decoded in one piece
HEAD = 32  # bytes that tell what a file is
DRIVERS = {"tiff": "GTiff", "png": "PNG", "jpeg": "JPEG", "jp2": "JP2OpenJPEG"}
ORIENTATION = 0x0112  # the EXIF (and TIFF) tag that says how the camera was held
# What Pillow's decoders are known to raise on damaged files.
DAMAGE = (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, EOFError, OverflowError, struct.error,
          zlib.error, Image.DecompressionBombError)  # fmt: skip


def read_image(source: Path | bytes, *, name: str) -> UInt8[ndarray, "h w 3"]:
    """A picture, from a file or from its bytes, as RGB the way a viewer would show it.

    Grey, palette, CMYK and 16-bit pictures become RGB (wider values are stretched, see `bands`), alpha is dropped
    (transparent pixels are black), and EXIF rotation is applied.  `name` stands for it in messages.
    Raises InputError for what is empty, damaged, no picture, or would take more than MAX_PX pixels.
    """
    from negah.images.raster import Raster
    raise NotImplementedError
