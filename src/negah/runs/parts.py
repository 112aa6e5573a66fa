"""Who may be judged on what: labelled images in folds that keep whole what belongs together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray

from negah.errors import InputError
from negah.probe.labels import Samples
from negah.probe.splits import NEIGHBOUR_M, folds_of, location_groups, random_folds
from negah.progress import Progress

Split = Literal["group", "location", "random"]
Seen = TypeVar("Seen")
TESTED = -1  # in place of a fold


def readable(
    samples: Samples, look: Callable[[UInt8[ndarray, "h w 3"]], Seen], *, progress: Progress
) -> tuple[list[Seen], Samples, list[tuple[str, str]]]:
    """What `look` sees of each image, the samples that could be read, and (name, reason) of those that could not.

    Raises InputError where none can be read.
    """
    seen, kept, failures = [], [], []
    for i, name in enumerate(samples.names):
        try:
            seen.append(look(samples.image(i)))
            kept.append(i)
        except InputError as error:
            failures.append((name, str(error)))
        progress("images read", i + 1, len(samples))
    if not kept:
        raise InputError(f"none of the {len(samples)} images of {samples.origin} can be read (first: {failures[0][1]})")
    return seen, samples.take(np.array(kept)).labelled(), failures


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """How labelled images are split.

    group: csv column of images that belong together. positive: the class that counts as 1. split: by what folds are
    made; None takes groups, else locations, and never the random one. distance_m: tiles nearer than this stay together
    in a split by location.
    """

    group: str | None = None
    positive: str | None = None
    split: Split | None = None
    distance_m: float = NEIGHBOUR_M
    folds: int = 5
    seed: int = 0

    def groups(self, samples: Samples) -> tuple[ndarray, Split]:
        """What must not be parted, and by what it was found.

        Raises InputError when nothing is known (see `probe.splits.folds_of`).
        """
        how = self.split or ("group" if samples.groups is not None else "location")
        if how == "random":
            return np.arange(len(samples)), how
        if how == "group" and samples.groups is not None:
            return samples.groups, how
        if how == "location" and samples.lat is not None and samples.lon is not None:
            return location_groups(samples.lat, samples.lon, distance_m=self.distance_m), how
        if self.split is not None:
            what = (
                "groups: give --group COLUMN" if how == "group" else "locations: give columns lat and lon, or GeoTIFFs"
            )
            raise InputError(f"--split {how}: {samples.origin} knows no {what}")
        folds_of(samples.labels)  # raises, saying what to give
        raise AssertionError("a split was made without groups or locations")

    def folds_of(self, samples: Samples, groups: ndarray, how: Split) -> Int[ndarray, " n"]:
        """The fold of each sample, or TESTED where a csv marks it as test (and so images of both labels).

        Raises InputError where a group stands both in the test split and outside it.
        """
        tested = np.zeros(len(samples), bool) if samples.split is None else np.char.lower(samples.split) == "test"
        if len(np.unique(samples.labels[tested])) < 2:
            tested[:] = False
        crossing = np.intersect1d(groups[tested], groups[~tested])
        if len(crossing):
            raise InputError(
                f"{samples.origin}: {len(crossing)} groups stand both in the test split and outside it (first: "
                f"{crossing[0]}): move each group to one side"
            )
        fold = np.full(len(samples), TESTED)
        labels, seed = samples.labels[~tested], self.seed
        if how == "random":
            fold[~tested] = random_folds(labels, folds=self.folds, seed=seed)
        else:
            fold[~tested] = folds_of(labels, groups=groups[~tested], folds=self.folds, seed=seed)
        return fold
