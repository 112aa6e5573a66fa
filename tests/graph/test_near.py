"""Graphs over space: neighbours by distance against all distances, and by border on plain shapes."""

import numpy as np
import pytest
import shapely

from negah.errors import InputError
from negah.graph.near import borders, nearest


def pairs(edges) -> set[tuple[int, int]]:
    return {(a, b) for a, b in edges.index.T.tolist() if a < b}


@pytest.mark.parametrize("reach", [None, 0.2])
def test_the_nearest_are_those_of_all_distances(reach):
    points = np.random.default_rng(0).random((40, 2))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    expected = set()
    for i, row in enumerate(distance):
        for j in np.argsort(row)[:3]:
            if reach is None or row[j] <= reach:
                expected.add((min(i, j), max(i, j)))
    edges = nearest(points, 3, reach=reach)
    assert pairs(edges) == expected
    assert edges.sum.dense().equal(edges.sum.T.dense()) and edges.sum.dense().diagonal().sum() == 0


def test_points_in_one_place_and_few_points():
    same = nearest(np.zeros((6, 2)), 2)
    assert same.nodes == 6 and same.sum.dense().diagonal().sum() == 0 and not same.isolated.any()
    assert pairs(nearest(np.array([[0.0, 0], [1, 0]]), 5)) == {(0, 1)}
    assert len(nearest(np.array([[0.0, 0]]), 5)) == 0
    assert len(nearest(np.array([[0.0, 0], [9, 0]]), 1, reach=3)) == 0


def test_borders_are_shared_by_more_than_a_corner():
    #  0 1     4 overlaps 3, and 5 is far away
    #  2 3
    boxes = [shapely.box(x, y, x + 1, y + 1) for x, y in ((0, 1), (1, 1), (0, 0), (1, 0), (1.5, -0.5), (9, 9))]
    assert pairs(borders(boxes)) == {(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)}
    assert pairs(borders(boxes, corners=True)) == {(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (0, 3), (1, 2)}
    assert borders(boxes).isolated.tolist() == [False] * 5 + [True]


def test_what_cannot_be_used_is_said():
    with pytest.raises(InputError, match="k=0"):
        nearest(np.zeros((2, 2)), 0)
    with pytest.raises(InputError, match="at least 1 point"):
        nearest(np.zeros((0, 2)), 1)
    with pytest.raises(InputError, match=r"point 1 is at \[nan, 0.0\]"):
        nearest(np.array([[0.0, 0], [np.nan, 0]]), 1)
    with pytest.raises(InputError, match="at least 1 shape"):
        borders([])
    bow = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    with pytest.raises(InputError, match=r"2 shapes cannot be used, the first is shape 1 \(Self-intersection"):
        borders([shapely.box(0, 0, 1, 1), bow, shapely.Polygon()])
