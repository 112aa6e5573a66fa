"""Windows of a raster: where to look, so that nothing is left out."""

from collections.abc import Iterator
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle of pixels: its upper left corner (column, row) and its size.  It may reach outside the raster."""

    col: int
    row: int
    width: int
    height: int


def grid(width: int, height: int, size: int, stride: int) -> Iterator[Box]:
    """Square windows of `size` that together cover a raster of `width` x `height` pixels, row by row.

    The last window of a row or column is shifted inward, so that all lie inside.  An axis shorter than `size` gets one
    window of its own length.  Raises ValueError for a stride that would leave gaps (more than `size`) or stand still.
    """
    if min(width, height, size) < 1:
        raise ValueError(f"a grid needs positive sizes, got {width} x {height} in windows of {size}")
    if not 1 <= stride <= size:
        raise ValueError(f"the stride must lie between 1 and the window's {size} pixels, got {stride}")
    columns = starts(width, size, stride)
    for row in starts(height, size, stride):
        for col in columns:
            yield Box(col, row, min(size, width), min(size, height))


def starts(length: int, size: int, stride: int) -> list[int]:
    """First pixel of each window along an axis, in order and without repeats."""
    last = max(length - size, 0)
    return [*range(0, last, stride), last]
