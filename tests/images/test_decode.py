import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image, ImageOps

from negah.errors import InputError
from negah.images import decode
from negah.images.decode import read_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 11, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def png(image: Image.Image, **options) -> bytes:
    return saved(image, "PNG", **options)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(path, bands: np.ndarray, **profile) -> bytes:
    """A TIFF of bands [n, h, w]; interpretation and nodata by `profile`."""
    colours = profile.pop("colorinterp", None)
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "dtype": bands.dtype, **profile}
    with rasterio.open(path, "w", width=width, height=height, count=count, **profile) as dataset:
        dataset.write(bands)
        if colours:
            dataset.colorinterp = colours
    return path.read_bytes()


def test_rgb_png_comes_back_exactly_from_bytes_and_from_a_file(tmp_path):
    (tmp_path / "a.png").write_bytes(png(Image.fromarray(RGB)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", name="a"), RGB)
    np.testing.assert_array_equal(read_image(png(Image.fromarray(RGB)), name="a"), RGB)


def test_grey_and_one_bit():
    np.testing.assert_array_equal(read_image(png(Image.fromarray(GREY)), name="a"), GREY[..., None].repeat(3, 2))
    bits = GREY > 127
    np.testing.assert_array_equal(read_image(png(Image.fromarray(bits)), name="a"), bits[..., None].repeat(3, 2) * 255)


def test_palette():
    image = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(read_image(png(image), name="a"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_transparent_pixels_are_black(mode):
    alpha = np.where(RNG.random(GREY.shape) < 0.5, 0, 200).astype(np.uint8)
    colours = RGB if mode == "RGBA" else GREY[..., None]
    image = read_image(png(Image.fromarray(np.dstack([colours, alpha]), mode)), name="a")
    np.testing.assert_array_equal(image, np.where(alpha[..., None] > 0, colours, 0) + np.zeros_like(RGB))


def test_a_transparent_colour_of_a_png():
    image = read_image(png(Image.fromarray(RGB), transparency=tuple(RGB[2, 3].tolist())), name="a")
    assert (image[2, 3] == 0).all() and (image[0, 0] == RGB[0, 0]).all()


def test_cmyk_jpeg_shows_its_colours():
    red = Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK")
    image = read_image(saved(red, "JPEG", quality=95), name="a")
    assert np.abs(image.astype(int) - (220, 30, 40)).max() < 12


def test_cmyk_tiff_shows_its_colours(tmp_path):
    cmyk = np.stack([np.full((4, 5), v, np.uint8) for v in (0, 200, 100, 51)])
    image = read_image(tiff(tmp_path / "a.tif", cmyk, photometric="CMYK"), name="a")
    np.testing.assert_array_equal(image[0, 0], [204, 44, 124])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_rotation_is_undone_as_pillow_does(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(RGB), kind, exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(read_image(data, name="a"), want)


def test_exif_rotation_of_a_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (64, 32))
    image.paste((255, 255, 255), (0, 0, 16, 32))  # its left edge is the top once it is set upright
    upright = read_image(saved(image, "JPEG", exif=exif), name="a")
    assert upright.shape == (64, 32, 3) and upright[:12].min() > 200 and upright[20:].max() < 60


def test_exif_of_nonsense_does_not_keep_a_picture_from_being_read():
    data = saved(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    np.testing.assert_array_equal(read_image(data, name="a"), RGB)


def test_16_bit_grey_png_is_stretched_to_its_own_range():
    grey = np.linspace(1000, 3000, 40 * 50).reshape(40, 50).astype(np.uint16)
    image = read_image(png(Image.fromarray(grey)), name="a")
    assert image[0, 0, 0] == 0 and image[-1, -1, 0] == 255
    assert (np.diff(image[..., 0].ravel().astype(int)) >= 0).all() and len(np.unique(image)) > 200


def test_16_bit_rgb_png_is_read_in_full_depth(tmp_path):
    ramp = np.linspace(100, 355, 256).astype(np.uint16)  # one value of the high byte: 8 bits of it would be flat
    bands = np.stack([np.tile(ramp, (8, 1))] * 3)
    image = read_image(tiff(tmp_path / "a.png", bands, driver="PNG"), name="a")
    assert len(np.unique(image)) > 200


def test_jpeg_compressed_tiff(tmp_path):
    flat = np.stack([np.full((64, 64), v, np.uint8) for v in (200, 100, 50)])
    data = tiff(
        tmp_path / "a.tif", flat, compress="JPEG", photometric="YCBCR", tiled=True, blockxsize=64, blockysize=64
    )
    assert np.abs(read_image(data, name="a").astype(int) - (200, 100, 50)).max() < 4


def test_the_alpha_of_two_bands_is_no_colour(tmp_path):
    bands = np.stack([GREY, np.where(GREY > 99, 255, 0).astype(np.uint8)])
    image = read_image(tiff(tmp_path / "a.tif", bands, photometric="MINISBLACK", alpha="YES"), name="a")
    np.testing.assert_array_equal(image, np.where(GREY > 99, GREY, 0)[..., None].repeat(3, 2))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"this is no tiff,\nwhatever it is called", "no picture but text"),
        (b"\x00\x01\x02" * 30, "no picture but other data"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as PNG"),
        (png(Image.fromarray(RGB))[:-40], "damaged"),
        (png(Image.fromarray(RGB))[:20], "cannot be read as PNG"),
        (saved(Image.fromarray(RGB), "JPEG")[:-60], "damaged"),
        (saved(Image.fromarray(RGB), "JPEG")[:30], "cannot be read as JPEG"),
        (b"II*\0\x08\0\0\0", "cannot be opened"),
    ],
)
def test_what_is_no_picture_is_refused_on_one_line_with_its_name(data, says):
    with pytest.raises(InputError, match=says) as caught:
        read_image(data, name="roof.tif")
    assert "roof.tif" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("flip", range(0, 200, 7))
def test_damage_anywhere_gives_a_picture_or_an_input_error(flip):
    for data in (png(Image.fromarray(RGB)), saved(Image.fromarray(RGB), "JPEG"), saved(Image.fromarray(RGB), "TIFF")):
        broken = bytearray(data)
        broken[flip % len(broken)] ^= 0xFF
        try:
            read_image(bytes(broken), name="a")
        except InputError:
            pass


def test_a_missing_file():
    with pytest.raises(InputError, match="cannot be opened: No such file"):
        read_image(Path("/nowhere/a.png"), name="a")


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with nearly nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    with pytest.raises(InputError, match="100000 x 100000 pixels.*bomb"):
        read_image(bomb(100_000, 100_000), name="a")
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=10**6, height=10**6, count=1, dtype="uint8", tiled=True,
        sparse_ok=True, BIGTIFF="YES",
    ):  # fmt: skip
        pass
    with pytest.raises(InputError, match="pixels.*bomb"):
        read_image(tmp_path / "a.tif", name="a")


def test_a_large_orthophoto_is_not_taken_for_a_bomb_by_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # Pillow's own limit, below what aerial surveys hand out
    assert read_image(png(Image.fromarray(RGB)), name="a").shape == RGB.shape
    monkeypatch.setattr(decode, "MAX_PX", 76)
    with pytest.raises(InputError, match="11 x 7 pixels"):
        read_image(png(Image.fromarray(RGB)), name="a")
