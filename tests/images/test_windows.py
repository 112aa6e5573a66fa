import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negah.images.windows import Box, grid


@given(
    width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 30), share=st.floats(0.01, 1)
)  # fmt: skip
def test_windows_cover_every_pixel_and_stay_inside(width, height, size, share):
    stride = max(1, int(size * share))
    seen = np.zeros((height, width), int)
    boxes = list(grid(width, height, size, stride))
    for box in boxes:
        assert 0 <= box.col and box.col + box.width <= width and 0 <= box.row and box.row + box.height <= height
        assert box.width == min(size, width) and box.height == min(size, height)
        seen[box.row : box.row + box.height, box.col : box.col + box.width] += 1
    assert seen.min() >= 1
    assert len(set(boxes)) == len(boxes)
    assert boxes == sorted(boxes, key=lambda box: (box.row, box.col))


def test_without_overlap_only_the_last_window_is_shifted_inward():
    assert [box.col for box in grid(10, 4, 4, 4)] == [0, 4, 6]
    assert [box.col for box in grid(8, 4, 4, 4)] == [0, 4]


def test_a_raster_smaller_than_a_window_is_one_window_of_its_own_size():
    assert list(grid(101, 80, 104, 52)) == [Box(0, 0, 101, 80)]


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_leaves_gaps_or_stands_still_is_refused(stride):
    with pytest.raises(ValueError, match="stride"):
        list(grid(10, 10, 4, stride))
