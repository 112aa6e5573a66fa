"""Which samples may be tested on, given which were trained on: whole groups, or whole neighbourhoods, change sides.

Aerial tiles overlap and neighbours share roofs, so a random split tests on what was trained on: among the Duke tiles
26 % of a random validation set leaks. Therefore folds keep groups whole (`grouped_folds`); where no groups are known,
tiles nearer to each other than a distance become one (`location_groups`); a random split exists only under its own
name (`random_folds`), and `folds_of` refuses to choose it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from negah.errors import InputError

Values = ArrayLike | torch.Tensor | float | Sequence[int] | Sequence[float] | Sequence[str]

EARTH_RADIUS_M = 6_371_008.8  # mean radius, IUGG
NEIGHBOUR_M = 500.0


def folds_of(
    labels: Values,
    *,
    groups: Values | None = None,
    lat: Values | None = None,
    lon: Values | None = None,
    distance_m: float = NEIGHBOUR_M,
    folds: int = 5,
    seed: int = 0,
) -> Int[ndarray, " n"]:
    """The fold (0..folds-1) of each sample: by groups where they are given, else by location, else InputError.

    labels [n]: any integers, -1 for unlabelled samples, which are spread over the folds like a class of their own.
    lat, lon [n]: degrees.
    """
    if groups is not None:
        return grouped_folds(groups, labels, folds=folds, seed=seed)
    if lat is not None and lon is not None:
        return grouped_folds(location_groups(lat, lon, distance_m=distance_m), labels, folds=folds, seed=seed)
    raise InputError(
        "cannot split: neither groups nor locations of the samples are known, and tiles that overlap would stand on "
        "both sides of a random split; give --group COLUMN, or columns lat and lon, or, if the samples are truly "
        "independent, --split random"
    )


def grouped_folds(groups: Values, labels: Values, *, folds: int = 5, seed: int = 0) -> Int[ndarray, " n"]:
    """Folds that keep every group whole and share out each class as evenly as the groups allow.

    groups [n]: any integers or strings; labels [n]: integers. Greedy, largest group first (in an order drawn from
    `seed` among equals), each to the fold that has least of the classes it brings. The same arguments give the same
    folds on every machine. Raises InputError when there are fewer groups than folds.
    """
    member = np.unique(np.asarray(groups), return_inverse=True)[1]
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    if member.shape != classes.shape or member.ndim != 1:
        raise InputError(f"{len(classes)} labels but {len(member)} groups: one group per sample")
    if folds < 2:
        raise InputError(f"at least 2 folds are needed to test on what was not trained on, got {folds}")
    count = int(member.max()) + 1 if len(member) else 0
    if count < folds:
        raise InputError(
            f"{count} groups cannot fill {folds} folds: give fewer folds, a finer group column or distance"
        )
    held = np.zeros((count, int(classes.max()) + 1))
    np.add.at(held, (member, classes), 1)
    shuffled = np.random.default_rng(seed).permutation(count)
    order = shuffled[np.argsort(-held.sum(1)[shuffled], kind="stable")]

    share = held / held.sum(0)  # a class counts by its share, so that a rare one weighs as much as a common one
    filled = np.zeros((folds, held.shape[1]))
    size = np.zeros(folds)
    fold = np.empty(count, dtype=np.int64)
    for group in order:
        # The growth of sum_f sum_c filled_fc^2 when the group goes to f is 2 filled_f . share + a constant. Equal
        # growth is decided by size, so that no fold stays empty.
        growth = (filled @ share[group]).round(12)
        best = int(np.lexsort((size, growth))[0])
        fold[group] = best
        filled[best] += share[group]
        size[best] += held[group].sum()
    return fold[member]


def location_groups(lat: Values, lon: Values, *, distance_m: float = NEIGHBOUR_M) -> Int[ndarray, " n"]:
    """Groups 0.. of samples such that any two within `distance_m` of each other stand in the same group.

    lat, lon [n] in degrees (WGS 84); distances are great circles, so the poles and the date line are no edges.
    The groups are the connected components, so a town covered without gaps is one group: choose the distance smaller
    than the gaps, larger than a tile. Raises InputError on coordinates off the Earth or missing.
    """
    points = _on_sphere(np.asarray(lat, dtype=float), np.asarray(lon, dtype=float))
    chord = 2 * np.sin(min(distance_m / (2 * EARTH_RADIUS_M), np.pi / 2))
    pairs = KDTree(points).query_pairs(chord, output_type="ndarray")
    links = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(len(points), len(points)))
    return connected_components(links, directed=False)[1].astype(np.int64)


def random_folds(labels: Values, *, folds: int = 5, seed: int = 0) -> Int[ndarray, " n"]:
    """Folds stratified by label of samples taken to be independent. Only for data in which no two samples overlap."""
    return grouped_folds(np.arange(len(np.asarray(labels))), labels, folds=folds, seed=seed)


def _on_sphere(lat: Float[ndarray, " n"], lon: Float[ndarray, " n"]) -> Float[ndarray, "n 3"]:
    bad = ~(np.isfinite(lat) & np.isfinite(lon) & (np.abs(lat) <= 90) & (np.abs(lon) <= 360))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{int(bad.sum())} of {len(lat)} samples have no usable location (first: row {first}, lat {lat[first]}, "
            f"lon {lon[first]}): give degrees in columns lat and lon"
        )
    a, b = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)], axis=1)
