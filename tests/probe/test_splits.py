"""No group and no neighbourhood on both sides; classes shared out; never random by silence."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negah.errors import InputError
from negah.probe.splits import folds_of, grouped_folds, location_groups, random_folds


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(5, 40))
@settings(max_examples=60, deadline=None)
def test_groups_stay_whole_and_no_fold_is_empty(seed, folds, groups):
    rng = np.random.default_rng(seed)
    member = np.concatenate([np.arange(groups), rng.integers(0, groups, 60)])
    labels = rng.integers(0, 2, len(member))
    fold = grouped_folds(member, labels, folds=folds, seed=seed)
    assert all(len(np.unique(fold[member == g])) == 1 for g in np.unique(member))
    assert set(fold) == set(range(folds))


def test_classes_are_shared_out_evenly_when_groups_are_small():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(1000) < 0.1, 1, 0)
    labels[rng.random(1000) < 0.3] = -1
    fold = grouped_folds(np.arange(1000) // 2, labels, folds=5)
    for label in (-1, 0, 1):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 2


def test_folds_depend_on_the_seed_and_on_nothing_else():
    groups, labels = np.arange(300) // 3, np.arange(300) % 2
    first = grouped_folds(groups, labels, seed=1)
    assert np.array_equal(first, grouped_folds([f"g{g:03}" for g in groups], labels, seed=1))
    assert not np.array_equal(first, grouped_folds(groups, labels, seed=2))


def test_neighbours_are_one_group_also_over_the_date_line_and_the_pole():
    lat = [52.0, 52.001, 52.002, 52.1, 0.0, 0.0, 89.9999, 89.9999]
    lon = [5.0, 5.0, 5.0, 5.0, 179.9995, -179.9995, 0.0, 180.0]
    group = location_groups(lat, lon, distance_m=130.0)  # 0.001 degree of latitude is 111 m
    assert group[0] == group[1] == group[2]  # the ends are 222 m apart, and linked by the middle
    assert group[4] == group[5] and group[6] == group[7]
    assert len(set(group)) == 4


@given(st.integers(0, 10**6), st.floats(20, 400))
@settings(max_examples=20, deadline=None)
def test_two_location_groups_never_come_nearer_than_the_distance(seed, distance):
    rng = np.random.default_rng(seed)
    lat, lon = 60 + rng.random(60) * 0.02, 10 + rng.random(60) * 0.04
    group = location_groups(lat, lon, distance_m=distance)
    a, b = np.radians(lat), np.radians(lon)
    haversine = np.sin((a[:, None] - a) / 2) ** 2 + np.cos(a[:, None]) * np.cos(a) * np.sin((b[:, None] - b) / 2) ** 2
    metres = 2 * 6_371_008.8 * np.arcsin(np.sqrt(haversine))
    assert metres[group[:, None] != group].min(initial=np.inf) > distance * (1 - 1e-9)


def test_a_split_is_never_random_by_silence():
    with pytest.raises(InputError, match=r"--group COLUMN.*lat and lon.*--split random"):
        folds_of([0, 1] * 10)
    assert set(random_folds([0, 1] * 10)) == set(range(5))


def test_groups_come_before_locations():
    labels, groups = [0, 1] * 10, np.arange(20) // 2
    by_group = folds_of(labels, groups=groups, lat=np.zeros(20), lon=np.zeros(20))
    assert np.array_equal(by_group, grouped_folds(groups, labels))
    by_place = folds_of(labels, lat=np.arange(20) // 4, lon=np.zeros(20))
    assert all(len(set(by_place[i : i + 4])) == 1 for i in range(0, 20, 4))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: grouped_folds([1, 1, 2], [0, 1, 0], folds=5), "2 groups cannot fill 5 folds"),
        (lambda: grouped_folds([1, 2], [0, 1], folds=1), "at least 2 folds"),
        (lambda: grouped_folds([1, 2, 3], [0, 1]), "one group per sample"),
        (lambda: location_groups([50.0, 95.0], [0.0, 0.0]), "row 1, lat 95"),
        (lambda: location_groups([50.0, np.nan], [0.0, 0.0]), "1 of 2 samples"),
    ],
)
def test_impossible_splits_say_what_to_give(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_duke_folds_keep_overlapping_tiles_together(data_dir):
    tiles = pd.read_csv(data_dir / "duke-solar" / "labels.csv")
    labels = tiles["label"].fillna(-1).to_numpy(dtype=int)
    fold = grouped_folds(tiles["overlap_group"].to_numpy(), labels)
    of = dict(zip(tiles["id"], fold))
    overlaps = pd.read_csv(data_dir / "duke-solar" / "overlaps.csv")
    assert all(of[a] == of[b] for a, b in zip(overlaps["id_a"], overlaps["id_b"]))
    positives = np.bincount(fold[labels == 1])
    assert positives.max() - positives.min() <= 2
