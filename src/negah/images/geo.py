"""Ground size of pixels in metres, whatever coordinate reference system (CRS) a raster is in.

The unit of a CRS is no measure of the ground.  A degree has another length at each latitude, a survey foot is not a
metre, and a metre of Web Mercator is cos(latitude) metres long: at 52 degrees an uncorrected area comes out 2.6 times
too large; even UTM is off by up to 0.1 % in length.  So nothing here trusts units: the corners of a piece of ground
around the pixel are taken back to longitude and latitude on the CRS's own ellipsoid (no datum shift, no grid files, no
network), and the geodesics between them are measured (Karney 2013, "Algorithms for geodesics",
doi:10.1007/s00190-012-0578-z).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyproj
from affine import Affine
from pyproj.exceptions import CRSError, ProjError
from rasterio.crs import CRS

from negah.errors import GeoError

PROBE_M = 100.0  # metres over which a pixel is measured: short for the earth, long for an inverse projection's rounding
TURN = 1e-6  # rotation (radians) that is rounding: it moves the far side of a 20,000 px raster by 0.02 px


def pixel_size_m(crs: CRS, transform: Affine, col: float, row: float) -> tuple[float, float]:
    """Width and height in metres, on the ground, of the pixel at (col, row), which may be fractional.

    Their product is the pixel's true area, also where the projection shears it.
    Raises GeoError where the place is not on the earth, or the CRS is not tied to it and has no unit of length.
    """
    frame = _frame(crs.to_wkt())
    if frame.to_lonlat is None or frame.geod is None:
        return _length(transform.a, transform.d) * frame.unit_m, _length(transform.b, transform.e) * frame.unit_m
    try:
        right, down = _steps(frame, transform, col, row, 1.0, 1.0)
        right, down = _steps(frame, transform, col, row, _probe(right), _probe(down))
    except (ProjError, ValueError):
        x, y = transform.a * col + transform.b * row + transform.c, transform.d * col + transform.e * row + transform.f
        raise GeoError(
            f"pixel ({col:g}, {row:g}) lies at ({x:g}, {y:g}), which is no place on earth in its CRS "
            f"({_label(crs)}): give the raster its right CRS, for example with gdal_edit.py -a_srs EPSG:32633"
        ) from None
    width, height = _length(*right), _length(*down)
    area = abs(right[0] * down[1] - right[1] * down[0])
    if area == 0:  # a pole, where a row of a raster in degrees shrinks to a point
        return width, height
    shear = math.sqrt(area / (width * height))  # 1 where the pixel's axes meet at a right angle
    return width * shear, height * shear


def on_earth(crs: CRS) -> bool:
    """Whether places in this CRS have a longitude and latitude; local (engineering) systems have not."""
    return _frame(crs.to_wkt()).to_lonlat is not None


def turn_deg(transform: Affine) -> float:
    """By how much a raster's axes are turned (or sheared) against its CRS, in degrees; 0 if only by rounding."""
    turn = max(
        abs(math.atan2(transform.d, abs(transform.a))) if transform.d else 0.0,
        abs(math.atan2(transform.b, abs(transform.e))) if transform.b else 0.0,
    )
    return math.degrees(turn) if turn > TURN else 0.0


class _Frame(NamedTuple):
    """What measuring in a CRS takes; `to_lonlat` and `geod` are None for a local system with a unit of its own."""

    to_lonlat: pyproj.Transformer | None
    geod: pyproj.Geod | None
    unit_m: float


@lru_cache(maxsize=64)
def _frame(wkt: str) -> _Frame:
    try:
        crs = pyproj.CRS.from_wkt(wkt)
    except CRSError as error:
        text = " ".join(str(error).split())[:120]
        raise GeoError(f"its CRS cannot be understood ({text}): give it another with gdal_edit.py -a_srs") from None
    crs = _horizontal(crs)
    if crs.ellipsoid is None:
        unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 0.0
        if not unit > 0 or crs.axis_info[0].unit_name in ("degree", "radian"):
            raise GeoError(f"its CRS ({crs.name}) has no unit of length")
        return _Frame(None, None, unit)
    if crs.is_geocentric:
        raise GeoError(f"its CRS ({crs.name}) is geocentric, not a map: gdalwarp -t_srs EPSG:32633 makes one of it")
    ellipsoid = crs.ellipsoid
    # A geographic CRS of the same ellipsoid in degrees: the CRS's own may count in grads.
    shape = f"+a={ellipsoid.semi_major_metre!r} +b={ellipsoid.semi_minor_metre!r}"
    lonlat = pyproj.CRS.from_proj4(f"+proj=longlat {shape} +no_defs")
    geod = pyproj.Geod(a=ellipsoid.semi_major_metre, b=ellipsoid.semi_minor_metre)
    return _Frame(pyproj.Transformer.from_crs(crs, lonlat, always_xy=True), geod, 1.0)


def _horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    """The map part of a CRS: without heights, and without a datum shift that it may carry."""
    while True:
        if crs.is_compound:
            crs = crs.sub_crs_list[0]
        elif crs.is_bound and crs.source_crs is not None:
            crs = crs.source_crs
        else:
            return crs.to_2d()


def _steps(
    frame: _Frame, transform: Affine, col: float, row: float, across: float, along: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """East and north metres of one pixel to the right and of one down, measured over so many pixels both ways."""
    assert frame.to_lonlat is not None and frame.geod is not None
    cols = np.array([col, col + across / 2, col - across / 2, col, col])
    rows = np.array([row, row, row, row + along / 2, row - along / 2])
    x = transform.a * cols + transform.b * rows + transform.c
    y = transform.d * cols + transform.e * rows + transform.f
    lon, lat = frame.to_lonlat.transform(x, y)
    lat = np.where(np.abs(lat) <= 90, lat, np.nan)  # half a step beyond a pole: measured on the other side alone
    fine = np.isfinite(lon) & np.isfinite(lat)
    if not fine[0]:
        raise ValueError("not on earth")
    lon, lat = np.where(fine, lon, lon[0]), np.where(fine, lat, lat[0])
    azimuth, _, metres = frame.geod.inv(np.full(4, lon[0]), np.full(4, lat[0]), lon[1:], lat[1:])
    turn = np.radians(azimuth)
    sign = np.array([1.0, -1.0, 1.0, -1.0])
    east, north = sign * metres * np.sin(turn), sign * metres * np.cos(turn)
    out = []
    for pair, length in ((slice(0, 2), across), (slice(2, 4), along)):
        share = fine[1:][pair].sum() * length / 2
        if share == 0:
            raise ValueError("not on earth")
        out.append((float(east[pair].sum() / share), float(north[pair].sum() / share)))
    return out[0], out[1]


def _probe(pixel: tuple[float, float]) -> float:
    """Over how many pixels one of this size is measured."""
    length = _length(*pixel)
    return min(max(1.0, PROBE_M / length), 1e6) if length > 0 else 1.0


def _length(x: float, y: float) -> float:
    return math.hypot(x, y)


def _label(crs: CRS) -> str:
    code = crs.to_authority()
    return ":".join(code) if code else pyproj.CRS.from_wkt(crs.to_wkt()).name
