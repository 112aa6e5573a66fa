import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine

from negah.errors import InputError
from negah.solar.regions import Region, join, read_polygons, read_region

UTM = "EPSG:32633"


def panels(*shapes) -> geopandas.GeoDataFrame:
    area = np.array([s.area for s in shapes])
    figures = {"area_m2": area, "area_low": area / 2, "area_high": area * 2, "kw": area / 5}
    figures["probability"] = np.linspace(0.5, 0.9, len(area))
    return geopandas.GeoDataFrame(figures, geometry=list(shapes), crs=UTM)


def squares(count: int) -> geopandas.GeoDataFrame:
    """Ten-metre parcels side by side."""
    boxes = [shapely.box(500_000 + 10 * k, 0, 500_010 + 10 * k, 10) for k in range(count)]
    return geopandas.GeoDataFrame({"n": range(count)}, geometry=boxes, crs=UTM)


def test_panel_across_a_border_is_divided_by_area_and_counted_once():
    across = shapely.box(500_007, 2, 500_011, 4)  # 3 m here, 1 m there
    alone = shapely.box(500_021, 2, 500_022, 3)
    found = join(squares(4), panels(across, alone))
    assert found.panels.tolist() == [1, 0, 1, 0]
    assert found.panel_area_m2.tolist() == pytest.approx([6, 2, 1, 0])
    assert found.panel_kw.sum() == pytest.approx(9 / 5)
    assert found.panel_probability.tolist() == pytest.approx([0.5, 0.5, 0.9, np.nan], nan_ok=True)
    assert found.crs == UTM and found.n.tolist() == [0, 1, 2, 3]


def test_parcels_of_another_crs_give_the_same():
    shapes = panels(shapely.box(500_007, 2, 500_011, 4))
    here, there = join(squares(2), shapes), join(squares(2).to_crs(4326), shapes)
    assert there.panel_area_m2.tolist() == pytest.approx(here.panel_area_m2.tolist(), rel=1e-6)
    assert there.crs == "EPSG:4326"


def test_no_panels_leave_the_parcels_at_zero():
    found = join(squares(2), panels())
    assert found.panels.tolist() == [0, 0] and found.panel_area_m2.tolist() == [0, 0]


def test_region_in_pixels():
    affine = Affine(0.5, 0, 500_000, 0, -0.5, 1_000)
    box = Region(shapely.box(500_000, 990, 500_020, 1_000), pyproj.CRS(32633)).in_pixels(UTM, affine)
    assert box.equals(shapely.box(0, 0, 40, 20))
    lonlat = geopandas.GeoSeries([shapely.box(500_000, 990, 500_020, 1_000)], crs=UTM).to_crs(4326)
    turned = Region(lonlat[0], pyproj.CRS(4326)).in_pixels(UTM, affine)
    assert turned.symmetric_difference(box).area < 0.01 * box.area


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".parquet"])
def test_polygons_are_read_from_each_format(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    frame = squares(3) if suffix != ".geojson" else squares(3).to_crs(4326)
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_file(path)
    assert len(read_polygons(path, option="--parcels")) == 3
    assert read_region(path).geometry.geom_type in ("Polygon", "MultiPolygon")


def test_polygons_without_a_crs_are_refused(tmp_path):
    squares(1).set_crs(None, allow_override=True).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"--aoi .*a\.parquet.*CRS"):
        read_region(tmp_path / "a.parquet")
