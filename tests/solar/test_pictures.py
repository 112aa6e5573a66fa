import numpy as np
import pytest

from negah.images.bands import Pixels
from negah.images.raster import Raster
from negah.solar.pictures import MAP_READ, MAP_ROWS, overview_image


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

    image = overview_image(Plain(), longest=1400)
    assert (image == 7).all() and max(image.shape) <= 1400
    a_row = size[0] * (size[1] / len(image) + 1)  # the least that can be read
    assert max(box.width * box.height for box in boxes) <= max(1.1 * MAP_READ, 1.1 * MAP_ROWS * size[0], a_row)
    tops = [box.row for box in boxes]
    assert tops == [0, *np.cumsum([box.height for box in boxes])[:-1]] and sum(b.height for b in boxes) == size[1]
