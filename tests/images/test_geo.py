import math

import numpy as np
import pyproj
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin
from shapely.geometry import Polygon

from negah.errors import GeoError
from negah.images.geo import on_earth, pixel_size_m, turn_deg

BERLIN = (13.4, 52.0)


def raster_at(crs: CRS, lon: float, lat: float, size: float) -> Affine:
    """A transform whose upper left corner is at a place on earth, with square pixels of `size` CRS units."""
    x, y = pyproj.Transformer.from_crs(4326, crs.to_wkt(), always_xy=True).transform(lon, lat)
    return from_origin(x, y, size, size)


def true_area_m2(crs: CRS, transform: Affine, side: int) -> float:
    """Area on the ellipsoid of a square of pixels, from its outline: an independent way to the same number."""
    ring = np.linspace(0, side, 50)
    cols = np.concatenate([ring, np.full(50, side), ring[::-1], np.zeros(50)])
    rows = np.concatenate([np.zeros(50), ring, np.full(50, side), ring[::-1]])
    x = transform.a * cols + transform.b * rows + transform.c
    y = transform.d * cols + transform.e * rows + transform.f
    lon, lat = pyproj.Transformer.from_crs(crs.to_wkt(), 4326, always_xy=True).transform(x, y)
    return abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(Polygon(zip(lon, lat)))[0])


def test_utm_metres_are_within_a_tenth_of_a_percent_of_ground_metres():
    crs = CRS.from_epsg(32633)
    for lon, scale in ((15.0, 0.9996), (18.0, 1.00012)):  # on the central meridian, and at the edge of the zone
        width, height = pixel_size_m(crs, raster_at(crs, lon, 52.0, 0.3), 0, 0)
        assert width == pytest.approx(0.3 / scale, rel=1e-5)
        assert height == pytest.approx(width, rel=1e-6)


def test_degrees_become_metres_at_their_latitude():
    width, height = pixel_size_m(CRS.from_epsg(4326), from_origin(13.4, 52.0, 1e-5, 1e-5), 0, 0)
    # metres of a degree on WGS 84 at 52 degrees (closed form: radii of curvature N cos(lat) and M)
    e2, lat = 0.0066943799901413165, math.radians(52.0)
    n = 6378137 / math.sqrt(1 - e2 * math.sin(lat) ** 2)
    m = 6378137 * (1 - e2) / (1 - e2 * math.sin(lat) ** 2) ** 1.5
    assert width == pytest.approx(math.radians(1e-5) * n * math.cos(lat), rel=1e-6)
    assert height == pytest.approx(math.radians(1e-5) * m, rel=1e-6)


def test_web_mercator_is_divided_by_its_scale():
    # At 52 degrees a Web Mercator metre is 0.617 metres: an area that is not corrected comes out 2.6 times too large.
    crs = CRS.from_epsg(3857)
    transform = raster_at(crs, *BERLIN, 0.3)
    width, height = pixel_size_m(crs, transform, 0, 0)
    assert 0.3**2 / (width * height) == pytest.approx(2.63, abs=0.02)
    assert width == pytest.approx(0.3 * math.cos(math.radians(52.0)), rel=0.005)
    assert width * height == pytest.approx(true_area_m2(crs, transform, 500) / 500**2, rel=1e-3)


def test_us_survey_feet():
    crs = CRS.from_epsg(2227)  # California zone 3, US survey feet
    width, height = pixel_size_m(crs, raster_at(crs, -121.9, 37.3, 1.0), 0, 0)
    assert width == pytest.approx(1200 / 3937, rel=2e-4)
    assert height == pytest.approx(width, rel=1e-6)


@pytest.mark.parametrize(
    ("crs", "place", "size"),
    [
        ("EPSG:3035", (30.0, 65.0), 1.0),  # equal area, far from its centre: pixels are sheared on the ground
        ("EPSG:7405", (-1.5, 53.0), 1.0),  # compound: British grid with heights
        ("EPSG:27572", (2.3, 48.9), 1.0),  # Lambert zone II counted from Paris, in grads
        ("EPSG:2154", (2.3, 48.9), 1.0),
        ("ESRI:54009", (20.0, 52.0), 1.0),  # Mollweide
        ("EPSG:3031", (100.0, -75.0), 1.0),  # Antarctic stereographic
        ("EPSG:2263", (-74.0, 40.7), 1.0),  # New York, US survey feet
        ("+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180", (8.0, 50.0), 1e-5),  # turned pole
    ],
)  # fmt: skip
def test_the_product_is_the_true_area_in_any_crs(crs, place, size):
    crs = CRS.from_user_input(crs)
    transform = raster_at(crs, *place, size)
    width, height = pixel_size_m(crs, transform, 250, 250)
    assert width * height == pytest.approx(true_area_m2(crs, transform, 500) / 500**2, rel=2e-4)


def test_it_follows_the_place_within_a_raster():
    crs = CRS.from_epsg(3857)
    transform = raster_at(crs, *BERLIN, 10.0)
    north, south = (pixel_size_m(crs, transform, 0, row)[0] for row in (0, 20_000))
    assert south > north * 1.02


def test_beside_a_pole_and_the_date_line_nothing_breaks():
    crs = CRS.from_epsg(4326)
    world = from_origin(-180, 90, 0.01, 0.01)
    for row in (0, 1, 9000, 18000):
        for col in (0, 36000):
            assert np.isfinite(pixel_size_m(crs, world, col, row)).all()


def test_a_local_crs_counts_in_its_own_unit():
    crs = CRS.from_wkt('LOCAL_CS["site",UNIT["foot",0.3048]]')
    assert not on_earth(crs)
    assert pixel_size_m(crs, from_origin(0, 0, 2, 3), 0, 0) == pytest.approx((0.6096, 0.9144))


def test_a_place_off_the_earth_is_refused():
    with pytest.raises(GeoError, match="no place on earth"):
        pixel_size_m(CRS.from_epsg(4326), from_origin(500_000, 5_000_000, 0.3, 0.3), 0, 0)


def test_turned_axes_are_told_from_rounding():
    assert turn_deg(from_origin(5e5, 5e6, 0.3, 0.3)) == 0
    assert turn_deg(Affine(0.3, 1e-12, 5e5, -1e-12, -0.3, 5e6)) == 0
    assert turn_deg(from_origin(5e5, 5e6, 0.3, 0.3) @ Affine.rotation(12)) == pytest.approx(12)
    assert turn_deg(from_origin(5e5, 5e6, 0.3, 0.3) @ Affine.rotation(90)) == pytest.approx(90)
