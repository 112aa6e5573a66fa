import json
import math
import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from negah.errors import GeoError, InputError
from negah.images.bands import Pixels
from negah.images.raster import Raster, resample
from negah.images.windows import Box, grid

RNG = np.random.default_rng(0)
UTM = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_800_000, 0.3, 0.3)}


def tiff(path: Path, bands: np.ndarray, **profile) -> Path:
    """A GeoTIFF of bands [n, h, w]."""
    colours, mask = profile.pop("colorinterp", None), profile.pop("mask", None)
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "dtype": bands.dtype, **UTM, **profile}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", width=width, height=height, count=count, **profile) as dataset,
    ):
        if colours:
            dataset.colorinterp = colours
        dataset.write(bands)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def photo(height: int, width: int, count: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (count, height, width), dtype=np.uint8)


def opened(path: Path) -> Raster:
    return Raster(path, name=path.name)


def test_windows_put_together_are_the_raster(tmp_path):
    bands = photo(300, 410)
    with opened(
        tiff(tmp_path / "a.tif", bands, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    ) as raster:
        assert (raster.width, raster.height) == (410, 300)
        whole = np.zeros((300, 410, 3), np.uint8)
        for box in grid(410, 300, 104, 104):
            rgb, valid = raster.read(box)
            assert valid.all()
            whole[box.row : box.row + box.height, box.col : box.col + box.width] = rgb
    np.testing.assert_array_equal(whole, bands.transpose(1, 2, 0))


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_outside_the_raster_nothing_is_valid(tmp_path, name):
    bands = photo(20, 30) | 1
    path = tmp_path / name
    if name == "a.tif":
        tiff(path, bands)
    else:
        Image.fromarray(bands.transpose(1, 2, 0)).save(path)
    with opened(path) as raster:
        rgb, valid = raster.read(Box(-4, 15, 12, 10))
        assert valid[:5, 4:].all() and valid.sum() == 5 * 8
        np.testing.assert_array_equal(rgb[:5, 4:], bands.transpose(1, 2, 0)[15:, :8])
        assert not rgb[~valid].any()
        assert not raster.read(Box(30, 0, 5, 5), (3, 3)).valid.any()


def test_an_empty_box_is_a_programming_error(tmp_path):
    with opened(tiff(tmp_path / "a.tif", photo(8, 8))) as raster, pytest.raises(ValueError, match="cannot read"):
        raster.read(Box(0, 0, 0, 4))


def test_shrinking_averages_over_areas(tmp_path):
    bands = photo(60, 90)
    with opened(tiff(tmp_path / "a.tif", bands)) as raster:
        rgb, valid = raster.read(Box(0, 0, 90, 60), (20, 30))
    want = bands.reshape(3, 20, 3, 30, 3).mean(axis=(2, 4)).transpose(1, 2, 0)
    assert valid.all() and np.abs(rgb - want).max() <= 1


def test_growing_is_smooth_and_keeps_places(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 200, 5, dtype=np.uint8), (3, 10, 40)).copy()
    with opened(tiff(tmp_path / "a.tif", ramp)) as raster:
        rgb = raster.read(Box(0, 0, 40, 10), (10, 160)).rgb
    x = (np.arange(160) + 0.5) / 4 - 0.5
    assert np.abs(rgb[5, 8:-8, 0] - np.interp(x, np.arange(40), ramp[0, 0])[8:-8]).max() <= 1


def test_nodata_does_not_bleed_into_what_is_beside_it():
    rgb = np.full((40, 40, 3), 200, np.uint8)
    valid = np.ones((40, 40), bool)
    valid[:, :15], rgb[:, :15] = False, 0
    for shape in ((10, 10), (13, 13), (90, 90), (10, 90)):
        small = resample(Pixels(rgb, valid), shape)
        assert (small.rgb[small.valid] == 200).all() and not small.rgb[~small.valid].any()
        assert small.valid.mean() == pytest.approx(25 / 40, abs=0.06)


def test_large_boxes_are_decimated_with_the_same_geometry(tmp_path):
    size = 4200  # more than EXACT_PX
    bands = np.zeros((1, size, size), np.uint8)
    bands[0, size // 2 :, size // 4 :] = 250
    path = tiff(tmp_path / "a.tif", bands, tiled=True, compress="deflate")
    with opened(path) as raster:
        rgb, valid = raster.read(Box(0, 0, size, size), (100, 100))
        assert valid.all()
        want = np.zeros((100, 100))
        want[50:, 25:] = 250
        assert np.abs(rgb[..., 0] - want).max() <= 1
        rgb, valid = raster.read(Box(-size, 0, 2 * size, size), (50, 100))  # half of it outside
        assert not valid[:, :50].any() and valid[:, 50:].all() and rgb[40, 90, 0] == 250


# -- what bands can hold -------------------------------------------------------------------------------------------


def test_one_band_is_grey(tmp_path):
    bands = photo(9, 8, 1)
    with opened(tiff(tmp_path / "a.tif", bands)) as raster:
        np.testing.assert_array_equal(raster.read(Box(0, 0, 8, 9)).rgb, bands[0][..., None].repeat(3, 2))


def test_colours_are_found_by_name(tmp_path):
    bands = photo(9, 8, 4)
    names = [ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red]  # infrared first, then BGR
    with opened(tiff(tmp_path / "a.tif", bands, colorinterp=names)) as raster:
        np.testing.assert_array_equal(raster.read(Box(0, 0, 8, 9)).rgb, bands[[3, 2, 1]].transpose(1, 2, 0))


@pytest.mark.parametrize("count", [2, 4])
def test_alpha_says_what_is_valid(tmp_path, count):
    bands = photo(9, 8, count)
    bands[-1] = np.where(bands[-1] > 100, 255, 0)
    names = [ColorInterp.gray] if count == 2 else [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    with opened(tiff(tmp_path / "a.tif", bands, colorinterp=[*names, ColorInterp.alpha])) as raster:
        rgb, valid = raster.read(Box(0, 0, 8, 9))
    np.testing.assert_array_equal(valid, bands[-1] == 255)
    assert not rgb[~valid].any()
    np.testing.assert_array_equal(rgb[valid][:, 0], bands[0][valid])


def test_a_nodata_value_needs_all_bands(tmp_path):
    bands = np.full((3, 4, 4), 9, np.uint8)
    bands[:, 0, 0] = 0
    bands[0, 1, 1] = 0  # a black channel is still a colour
    with opened(tiff(tmp_path / "a.tif", bands, nodata=0)) as raster:
        valid = raster.read(Box(0, 0, 4, 4)).valid
    assert not valid[0, 0] and valid.sum() == 15


def test_a_nodata_value_that_the_type_cannot_hold_is_ignored(tmp_path):
    path = tmp_path / "a.vrt"
    tiff(tmp_path / "a.tif", np.zeros((1, 4, 4), np.uint8))
    path.write_text(
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1">'
        "<NoDataValue>-9999</NoDataValue><SimpleSource><SourceFilename relativeToVRT='1'>a.tif</SourceFilename>"
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with opened(path) as raster:
        assert raster.read(Box(0, 0, 4, 4)).valid.all()


def test_an_internal_mask_says_what_is_valid(tmp_path):
    mask = RNG.random((40, 50)) < 0.5
    with opened(tiff(tmp_path / "a.tif", photo(40, 50), mask=mask)) as raster:
        np.testing.assert_array_equal(raster.read(Box(5, 5, 30, 30)).valid, mask[5:35, 5:35])


def test_palette_tiff(tmp_path):
    indexes = RNG.integers(0, 4, (1, 6, 7), dtype=np.uint8)
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=7, height=6, count=1, dtype="uint8", photometric="palette"
    ) as d:
        d.write(indexes)
        d.write_colormap(1, {0: (1, 2, 3, 255), 1: (200, 100, 50, 255), 2: (9, 9, 9, 255), 3: (255, 255, 0, 255)})
    colours = np.array([(1, 2, 3), (200, 100, 50), (9, 9, 9), (255, 255, 0)], np.uint8)
    with opened(path) as raster:
        np.testing.assert_array_equal(raster.read(Box(0, 0, 7, 6)).rgb, colours[indexes[0]])


def test_fewer_than_8_bits_are_brought_to_full_contrast(tmp_path):
    bands = RNG.integers(0, 4, (1, 6, 16), dtype=np.uint8)
    with opened(tiff(tmp_path / "a.tif", bands, nbits=2)) as raster:
        np.testing.assert_array_equal(raster.read(Box(0, 0, 16, 6)).rgb[..., 0], bands[0] * 85)


def test_16_bit_is_stretched_the_same_in_every_window_and_at_every_opening(tmp_path):
    bands = (RNG.normal(1500, 200, (3, 500, 600)).clip(0, 4000)).astype(np.uint16)
    bands[:, :250] += 800
    bands[:, :5, :5] = 65535  # a glint does not take the contrast from all the rest
    path = tiff(tmp_path / "a.tif", bands, tiled=True)
    with opened(path) as raster:
        whole = raster.read(Box(0, 0, 600, 500)).rgb
    with opened(path) as raster:  # a dark window first
        part = raster.read(Box(100, 300, 104, 104)).rgb
    np.testing.assert_array_equal(part, whole[300:404, 100:204])
    assert whole[300:].mean() < whole[:200].mean() - 50
    low, high = np.percentile(bands[:, 5:], (1, 99))
    want = (bands.transpose(1, 2, 0) - low) * 255 / (high - low)
    assert np.abs(whole - want.clip(0, 255)).max() < 12  # the percentiles come from a sample


def test_a_large_raster_is_stretched_from_a_sample_of_all_of_it(tmp_path):
    ramp = np.linspace(200, 9000, 3000).astype(np.uint16)
    bands = np.broadcast_to(ramp[:, None], (1, 3000, 1500))
    with opened(tiff(tmp_path / "a.tif", bands, tiled=True, compress="deflate")) as raster:
        rgb = raster.read(Box(0, 0, 100, 3000)).rgb
        assert rgb[0].max() == 0 and rgb[-1].min() == 255
        assert 115 < rgb[1500].mean() < 140


def test_nodata_does_not_count_in_the_stretch(tmp_path):
    bands = RNG.integers(1000, 2000, (1, 100, 100)).astype(np.uint16)
    bands[:, :80] = 0
    with opened(tiff(tmp_path / "a.tif", bands, nodata=0)) as raster:
        rgb, valid = raster.read(Box(0, 0, 100, 100))
    assert not valid[:80].any() and valid[80:].all()
    assert 110 < rgb[80:].mean() < 145


def test_8_bit_values_in_wider_numbers_stay_as_they_are(tmp_path):
    bands = photo(50, 60).astype(np.uint16)
    with opened(tiff(tmp_path / "a.tif", bands)) as raster:
        np.testing.assert_array_equal(raster.read(Box(0, 0, 60, 50)).rgb, bands.transpose(1, 2, 0))


def test_float_with_nan_nodata(tmp_path):
    bands = RNG.normal(0.2, 0.05, (3, 40, 50)).astype(np.float32)
    bands[:, :10] = np.nan
    bands[1, 20, 20] = np.inf
    with opened(tiff(tmp_path / "a.tif", bands, nodata=math.nan)) as raster:
        rgb, valid = raster.read(Box(0, 0, 50, 40))
    assert not valid[:10].any() and not valid[20, 20] and valid.sum() == 30 * 50 - 1
    assert rgb[10:].std() > 30 and not rgb[:10].any()


def test_nan_everywhere_is_nodata_everywhere(tmp_path):
    bands = np.full((1, 40, 50), np.nan, np.float32)
    with opened(tiff(tmp_path / "a.tif", bands)) as raster:
        assert not raster.read(Box(0, 0, 50, 40), (10, 10)).valid.any()


def test_the_lowest_float_as_nodata(tmp_path):
    bands = RNG.normal(0.2, 0.05, (1, 40, 50)).astype(np.float32)
    bands[:, :10] = np.finfo(np.float32).min
    with opened(tiff(tmp_path / "a.tif", bands, nodata=-3.4028234663852886e38)) as raster:
        assert raster.read(Box(0, 0, 50, 40)).valid.sum() == 30 * 50


def test_a_constant_raster_does_not_divide_by_zero(tmp_path):
    with opened(tiff(tmp_path / "a.tif", np.full((1, 9, 9), 700, np.uint16))) as raster:
        assert raster.read(Box(0, 0, 9, 9)).valid.all()


def test_complex_numbers_are_no_picture(tmp_path):
    path = tiff(tmp_path / "a.tif", np.zeros((1, 4, 4), np.complex64))
    with pytest.raises(InputError, match="complex64"):
        opened(path)


# -- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "empty"), (b"hello, I am a text", "no picture but text"), (b"II*\0" * 9, "opened")]
)
def test_what_is_no_tiff_is_refused_when_it_is_opened(tmp_path, content, says):
    path = tmp_path / "roof.tif"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        opened(path)
    assert "roof.tif" in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_tiff_is_an_input_error_and_quiet(tmp_path, capfd):
    path = tiff(tmp_path / "a.tif", photo(400, 400), tiled=True, compress="deflate")
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(InputError) as caught, opened(path) as raster:
        for box in grid(400, 400, 100, 100):
            raster.read(box)
    assert "a.tif" in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_missing_file_says_so(tmp_path):
    for name in ("a.tif", "a.png", "a.vrt"):
        with pytest.raises(InputError, match="cannot be opened: No such file"):
            opened(tmp_path / name)


def test_a_truncated_png_fails_when_it_is_read(tmp_path):
    Image.fromarray(photo(50, 50).transpose(1, 2, 0)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with opened(tmp_path / "a.png") as raster, pytest.raises(InputError, match="a.png is damaged"):
        raster.read(Box(0, 0, 10, 10))


def test_one_tile_as_large_as_memory_is_refused(tmp_path):
    tags = [(256, 32_000), (257, 32_000), (258, 8), (259, 8), (262, 1), (277, 1)]
    tags += [(322, 32_000), (323, 32_000), (324, 8), (325, 9)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<4sI", b"II*\0", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(header)
    with pytest.raises(InputError, match="32000 x 32000 px.*gdal_translate"):
        opened(tmp_path / "a.tif")


def test_a_name_that_is_also_an_address(tmp_path):
    path = tiff(tmp_path / "a#1?x=2 %20é.tif", photo(8, 9))
    with opened(path) as raster:
        assert raster.width == 9


# -- georeference --------------------------------------------------------------------------------------------------


def test_gsd_from_utm(tmp_path):
    with opened(tiff(tmp_path / "a.tif", photo(100, 100))) as raster:
        assert raster.crs == CRS.from_epsg(32633) and raster.transform == UTM["transform"]
        metres, warnings = raster.gsd_m(None)
        assert metres == pytest.approx(0.3 / 0.9996, rel=1e-4) and warnings == ()


def test_gsd_of_web_mercator_is_that_of_the_ground(tmp_path):
    path = tiff(tmp_path / "a.tif", photo(50, 50), crs="EPSG:3857", transform=from_origin(1.49e6, 6_800_125, 0.3, 0.3))
    with opened(path) as raster:
        assert raster.gsd_m(None).metres == pytest.approx(0.3 * math.cos(math.radians(52)), rel=0.005)


def test_unknown_gsd_is_refused_with_how_to_give_it(tmp_path):
    path = tiff(tmp_path / "a.tif", photo(8, 8), crs=None, transform=None)
    with opened(path) as raster:
        assert raster.crs is None and raster.transform is None
        with pytest.raises(GeoError, match=r"no CRS.*--gsd 0\.3"):
            raster.gsd_m(None)
        assert raster.gsd_m(0.25) == (0.25, ())
        for wrong in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(GeoError, match="positive"):
                raster.gsd_m(wrong)


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ({"crs": None}, "a geotransform but no CRS"),
        ({"transform": None}, "a CRS but no geotransform"),
    ],
)
def test_half_a_georeference_is_none(tmp_path, profile, says):
    with opened(tiff(tmp_path / "a.tif", photo(8, 8), **profile)) as raster, pytest.raises(GeoError, match=says):
        raster.gsd_m(None)


def test_a_given_gsd_that_contradicts_the_file_is_not_believed(tmp_path):
    with opened(tiff(tmp_path / "a.tif", photo(8, 8))) as raster:
        assert raster.gsd_m(0.31).warnings == ()
        metres, (warning,) = raster.gsd_m(0.5)
        assert metres == pytest.approx(0.3, rel=1e-3) and "0.5" in warning and "a.tif" in warning


@pytest.mark.parametrize("degrees", [12, 90])
def test_a_rotated_raster_is_refused_with_how_to_rectify_it(tmp_path, degrees):
    path = tiff(tmp_path / "a.tif", photo(8, 8), transform=UTM["transform"] @ Affine.rotation(degrees))
    with opened(path) as raster, pytest.raises(GeoError, match=f"turned by {degrees} degrees.*gdalwarp"):
        raster.gsd_m(0.3)


def test_a_raster_with_its_south_up_has_the_same_gsd(tmp_path):
    path = tiff(tmp_path / "a.tif", photo(8, 8), transform=Affine(0.3, 0, 5e5, 0, 0.3, 5.8e6))
    with opened(path) as raster:
        assert raster.gsd_m(None).metres == pytest.approx(0.3, rel=1e-3)


def test_a_local_crs_gives_sizes_but_no_place(tmp_path):
    crs = 'LOCAL_CS["site",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
    with opened(tiff(tmp_path / "a.tif", photo(8, 8), crs=crs)) as raster:
        assert raster.crs is None
        metres, (warning,) = raster.gsd_m(None)
        assert metres == pytest.approx(0.3) and "local" in warning


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_with_files_beside_it_is_on_the_map(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(photo(20, 30).transpose(1, 2, 0)).save(path)
    with opened(path) as raster:
        assert raster.transform is None
    world = path.with_suffix(".pgw" if suffix == ".png" else ".jgw")
    world.write_text("0.3\n0\n0\n-0.3\n500000.15\n5799999.85\n")
    with opened(path) as raster:
        assert raster.crs is None and raster.transform is not None
        with pytest.raises(GeoError, match="geotransform but no CRS"):
            raster.gsd_m(None)
    wkt = CRS.from_epsg(32633).to_wkt().replace('"', "&quot;")
    Path(f"{path}.aux.xml").write_text(f"<PAMDataset><SRS>{wkt}</SRS></PAMDataset>")
    with opened(path) as raster:
        assert raster.crs == CRS.from_epsg(32633)
        assert raster.gsd_m(None).metres == pytest.approx(0.3, rel=1e-3)
        assert raster.read(Box(0, 0, 30, 20)).valid.all()


def test_vrt_over_two_rasters(tmp_path):
    left, right = photo(50, 40), photo(50, 40)
    tiff(tmp_path / "left.tif", left)
    tiff(tmp_path / "right.tif", right, transform=UTM["transform"] @ Affine.translation(40, 0))
    sources = [
        "".join(
            f"<SimpleSource><SourceFilename relativeToVRT='1'>{name}.tif</SourceFilename>"
            f"<SourceBand>{band}</SourceBand>"
            f"<SrcRect xOff='0' yOff='0' xSize='40' ySize='50'/><DstRect xOff='{x}' yOff='0' xSize='40' ySize='50'/>"
            "</SimpleSource>"
            for name, x in (("left", 0), ("right", 40))
        )
        for band in (1, 2, 3)
    ]
    bands = "".join(
        f"<VRTRasterBand dataType='Byte' band='{i}'>{source}</VRTRasterBand>" for i, source in enumerate(sources, 1)
    )
    (tmp_path / "a.vrt").write_text(
        "<VRTDataset rasterXSize='80' rasterYSize='50'><SRS>EPSG:32633</SRS>"
        f"<GeoTransform>500000, 0.3, 0, 5800000, 0, -0.3</GeoTransform>{bands}</VRTDataset>"
    )
    with opened(tmp_path / "a.vrt") as raster:
        rgb = raster.read(Box(30, 10, 20, 20)).rgb
        assert raster.gsd_m(None).metres == pytest.approx(0.3, rel=1e-3)
    np.testing.assert_array_equal(rgb, np.concatenate([left, right], axis=2)[:, 10:30, 30:50].transpose(1, 2, 0))


def test_a_text_is_no_vrt_because_it_is_called_so(tmp_path):
    (tmp_path / "a.vrt").write_text("hello")
    with pytest.raises(InputError, match="a.vrt"):
        opened(tmp_path / "a.vrt")


def test_a_vrt_in_disguise_does_not_open_other_files(tmp_path):
    tiff(tmp_path / "secret.tif", photo(8, 8))
    (tmp_path / "a.tif").write_text(
        "<VRTDataset rasterXSize='8' rasterYSize='8'><VRTRasterBand dataType='Byte' band='1'><SimpleSource>"
        "<SourceFilename relativeToVRT='1'>secret.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(InputError, match="no picture but text"):
        opened(tmp_path / "a.tif")


def test_cog_with_overviews(tmp_path):
    bands = photo(1024, 1024)
    path = tiff(tmp_path / "plain.tif", bands)
    with rasterio.open(path) as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "a.tif", driver="COG", blocksize=256, overview_resampling="average")
    with opened(tmp_path / "a.tif") as raster:
        np.testing.assert_array_equal(
            raster.read(Box(100, 200, 104, 104)).rgb, bands[:, 200:304, 100:204].transpose(1, 2, 0)
        )


# -- threads and memory --------------------------------------------------------------------------------------------


def test_reads_from_many_threads_are_right(tmp_path):
    bands = photo(512, 512)
    with (
        opened(tiff(tmp_path / "a.tif", bands, tiled=True, blockxsize=64, blockysize=64)) as raster,
        ThreadPoolExecutor(8) as pool,
    ):
        boxes = list(grid(512, 512, 50, 50))
        for box, pixels in zip(boxes, pool.map(raster.read, boxes)):
            np.testing.assert_array_equal(
                pixels.rgb.transpose(2, 0, 1),
                bands[:, box.row : box.row + box.height, box.col : box.col + box.width],
            )


def test_memory_does_not_grow_with_the_raster(tmp_path):
    # decoded 108 MB, all of which GDAL's own default would keep; the limit of 192 MB is lowered to make a small test
    size = 6000
    noise = RNG.integers(0, 3, (3, 256, size), dtype=np.uint8)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=size, height=size, count=3, dtype="uint8", tiled=True,
        compress="deflate", zlevel=1, interleave="pixel", **UTM,
    ) as dataset:  # fmt: skip
        for row in range(0, size - 256, 256):
            dataset.write(noise, window=((row, row + 256), (0, size)))
    script = """
import resource, sys
from negah.images import bands
assert bands.GDAL["GDAL_CACHEMAX"] <= 256 * 2**20
bands.GDAL["GDAL_CACHEMAX"] = 16 * 2**20
from pathlib import Path
from negah.images.raster import Raster
from negah.images.windows import Box
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with Raster(Path(sys.argv[1]), name="a") as raster:
    raster.read(Box(0, 0, 104, 104))
    before = peak()
    for row in range(0, 23 * 256, 256):
        raster.read(Box(0, row, 6000, 256))
    print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.tif")], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert json.loads(done.stdout) < 70


def test_a_file_that_breaks_off_is_said_to_be_damaged(tmp_path):
    """What GDAL says of it stands in brackets."""
    path = tmp_path / "cut.tif"
    noise = np.random.default_rng(0).integers(0, 255, (3, 256, 256), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=256, height=256, count=3, dtype="uint8", tiled=True, blockxsize=64,
        blockysize=64, photometric="RGB", interleave="pixel",
    ) as file:  # fmt: skip
        file.write(noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with Raster(path, name="cut.tif") as raster:
        with pytest.raises(
            InputError, match=r"cut\.tif cannot be read at column 128, row 192: it is damaged or cut off"
        ):
            raster.read(Box(128, 192, 64, 64))
    path.write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"cannot be opened: it is damaged or cut off, copy it anew \(GDAL: "):
        Raster(path, name="cut.tif")
