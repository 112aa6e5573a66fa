"""Graphs over space: who lies next to whom, by distance or by a shared border.

    edges = nearest(centres_m, k=6, reach=100)        # each point and its 6 nearest, no farther than 100 m
    edges = borders(parcels.geometry)                 # polygons that share more than a corner

Both are undirected and unweighted and have no self-loops.  Coordinates are lengths on a plane, as of a projected
coordinate system: in degrees of longitude and latitude a distance means nothing.
"""

from collections.abc import Sequence

import numpy as np
import shapely
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.spatial import KDTree
from shapely.geometry.base import BaseGeometry

from negah.errors import InputError
from negah.graph.edges import Edges


def nearest(points: Float[ndarray, "node dim"], k: int, *, reach: float | None = None) -> Edges:
    """Each point and its k nearest, joined both ways if either is among the other's nearest.

    Fewer than k where there are not as many others; points in the same place are 0 apart.

    Args:
        points: places, in metres or whatever `reach` is in.
        reach: largest distance of two neighbours.

    Raises InputError for no points, coordinates that are not finite, and k below 1.
    """
    if k < 1:
        raise InputError(f"each point needs at least 1 neighbour to look for, got k={k}")
    if not len(points):
        raise InputError("a graph over space needs at least 1 point")
    lost = np.flatnonzero(~np.isfinite(points).all(1))
    if len(lost):
        at = int(lost[0])
        raise InputError(f"point {at} is at {points[at].tolist()}: coordinates must be finite numbers")
    count = min(k + 1, len(points))  # the point itself is among them, though not always first
    distance, found = KDTree(points).query(points, k=count, distance_upper_bound=np.inf if reach is None else reach)
    found, distance = found.reshape(len(points), count), distance.reshape(len(points), count)
    own = np.arange(len(points))[:, None]
    kept = np.isfinite(distance) & (found != own)
    # Of more than k points in one place a point may not find itself: then its last one is beyond the k.
    kept &= np.cumsum(kept, 1) <= k
    return _undirected(np.stack([np.broadcast_to(own, found.shape)[kept], found[kept]]), len(points))


def borders(shapes: Sequence[BaseGeometry], *, corners: bool = False) -> Edges:
    """Polygons whose borders or areas have more than points in common.

    Args:
        corners: whether touching in a point is enough.

    Raises InputError for no shapes, and for shapes that are empty or not valid.
    """
    polygons = np.asarray(list(shapes), dtype=object)
    if not len(polygons):
        raise InputError("a graph over space needs at least 1 shape")
    bad = shapely.is_missing(polygons) | shapely.is_empty(polygons) | ~shapely.is_valid(polygons)
    if bad.any():
        at = int(bad.nonzero()[0][0])
        why = shapely.is_valid_reason(polygons[at]) if polygons[at] is not None else "missing"
        raise InputError(
            f"{int(bad.sum())} shapes cannot be used, the first is shape {at} ({why}): repair or drop them"
        )
    left, right = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    once = left < right
    left, right = left[once], right[once]
    if not corners:
        # An area in common has a border, and that has a length as well.
        shared = shapely.length(shapely.intersection(polygons[left], polygons[right])) > 0
        left, right = left[shared], right[shared]
    return _undirected(np.stack([left, right]), len(polygons))


def _undirected(pairs: Int[ndarray, "2 pair"], nodes: int) -> Edges:
    pairs = np.unique(np.sort(pairs, 0), axis=1)
    return Edges.of(torch.from_numpy(pairs.astype(np.int64)), nodes, undirected=True)
