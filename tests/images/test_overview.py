import numpy as np
import pytest
import rasterio
from affine import Affine

from negah.errors import InputError
from negah.images.bands import Pixels
from negah.images.overview import READ_PX, READ_ROWS, mosaic, overview, within
from negah.images.raster import Raster
from negah.images.sources import find_sources


@pytest.mark.parametrize("size", [(20_000, 20_000), (300, 90_000), (90_000, 3), (200, 100)])
def test_an_overview_reads_every_row_once_and_little_at_a_time(size):
    boxes = []

    class Plain(Raster):
        def __init__(self):
            self.width, self.height = size

        def read(self, box, shape=None):
            assert shape
            boxes.append(box)
            return Pixels(np.full((*shape, 3), 7, np.uint8), np.ones(shape, bool))

    image, valid = overview(Plain(), within(Plain(), 1400))
    assert (image == 7).all() and valid.all() and max(image.shape) <= 1400
    a_row = size[0] * (size[1] / len(image) + 1)  # the least that can be read
    assert max(box.width * box.height for box in boxes) <= max(1.1 * READ_PX, 1.1 * READ_ROWS * size[0], a_row)
    tops = [box.row for box in boxes]
    assert tops == [0, *np.cumsum([box.height for box in boxes])[:-1]] and sum(b.height for b in boxes) == size[1]


def tile(path, colour, transform, *, crs="EPSG:32633", size=(60, 40)):
    with rasterio.open(
        path, "w", driver="GTiff", width=size[0], height=size[1], count=3, dtype="uint8", crs=crs, transform=transform
    ) as made:  # fmt: skip
        pixels = np.zeros((3, size[1], size[0]), np.uint8)
        pixels[:] = np.reshape(colour, (3, 1, 1))
        pixels[:, : size[1] // 2] //= 2  # the upper half of the file is darker
        made.write(pixels)
    return path


def test_a_mosaic_puts_pictures_where_they_lie(tmp_path):
    tile(tmp_path / "a.tif", (200, 0, 0), Affine(0.5, 0, 1000, 0, -0.5, 5000))
    tile(tmp_path / "b.tif", (0, 200, 0), Affine(0.5, 0, 1030, 0, -0.5, 4980))  # to its south-east
    tile(tmp_path / "c.tif", (0, 0, 200), Affine(0.5, 0, 1000, 0, 0.5, 4960))  # written from south to north
    found = mosaic(find_sources([tmp_path]), longest=1000)
    assert found.image.shape == (80, 120, 3) and found.left_out == ()
    assert found.transform * (0, 0) == (1000, 5000) and found.transform * (120, 80) == (1060, 4960)
    assert found.image[5, 5].tolist() == [100, 0, 0] and found.image[35, 5].tolist() == [200, 0, 0]
    assert found.image[45, 65].tolist() == [0, 100, 0]
    assert found.image[75, 5].tolist() == [0, 0, 100] and found.image[45, 5].tolist() == [0, 0, 200]
    assert found.image[5, 70].tolist() == [255] * 3
    small = mosaic(find_sources([tmp_path]), longest=60)
    assert small.image.shape == (40, 60, 3) and small.transform * (60, 40) == (1060, 4960)


def test_a_mosaic_leaves_out_what_has_no_place_on_it(tmp_path):
    at = Affine(0.5, 0, 1000, 0, -0.5, 5000)
    tile(tmp_path / "a.tif", (200, 0, 0), at)
    tile(tmp_path / "b.tif", (200, 0, 0), at, crs="EPSG:32634")
    tile(tmp_path / "c.tif", (200, 0, 0), at * Affine.rotation(20))
    tile(tmp_path / "d.tif", (200, 0, 0), at, crs=None)
    (tmp_path / "e.tif").write_bytes(b"II*\0")
    left_out = mosaic(find_sources([tmp_path]), longest=1000).left_out
    assert ["EPSG:32634" in line for line in left_out] == [True, False, False, False]
    assert [line.split(".tif")[0][-1] for line in left_out] == ["b", "c", "d", "e"]
    with pytest.raises(InputError, match="none of the pictures can be laid on a map: .*d.tif does not say"):
        mosaic(find_sources([tmp_path / "d.tif"]), longest=1000)
