"""What to label next in a survey, and the total from the labels: `negah.solar.sampling` on a plan and a ledger.

A window counts for the part of it that no earlier window covers, since the last one of a row or column is shifted
inward.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from negah.errors import InputError, OutputError
from negah.solar.ledger import Ledger
from negah.solar.outputs import bounds_of, window_name
from negah.solar.plan import Axis, Plan, PlannedSource
from negah.solar.sampling import (
    LABELS,
    Row,
    Total,
    draw,
    expected_error,
    inclusion,
    read_labels,
    total,
    write_labels,
)

NOISE = 0.5  # relative error of a find's size where no calibration tells it


@dataclass(frozen=True)
class Scored:
    """The windows that were scored: where they are, and what is known of them."""

    where: list[tuple[PlannedSource, int]]  # source, index in it
    area_m2: Float[ndarray, " n"]
    probability: Float[ndarray, " n"]
    window_m2: Float[ndarray, " n"]
    weight: Float[ndarray, " n"]


def scored(plan: Plan, ledger: Ledger) -> Scored:
    """All windows with a figure, in order."""
    where, rows = [], []
    for source in plan.sources:
        x, y = source.layout.x, source.layout.y
        new_x, new_y = new_share(x), new_share(y)
        columns = len(x.starts)
        middle = source.ground.pixel_m2(np.array([source.width / 2]), np.array([source.height / 2]))[0]
        for window in ledger.windows(source.first, source.first + len(source.layout)):
            if window.probability is None or window.area_m2 is None:
                continue
            index = window.id - source.first
            row, col = divmod(index, columns)
            where.append((source, index))
            rows.append(
                (window.area_m2, window.probability, middle * x.window * y.window, float(new_y[row] * new_x[col]))
            )
    area, probability, window_m2, weight = np.array(rows, dtype=float).reshape(-1, 4).T
    return Scored(where, area, probability, window_m2, weight)


def new_share(axis: Axis) -> Float[ndarray, " n"]:
    """Share of each window along an axis that the window before does not cover."""
    return np.append(1.0, np.minimum(1.0, np.diff(axis.starts) / axis.window))


def check(out: Path, label_next: int | None, labels: Path | None, overlap: float) -> None:
    """Raises InputError on what could only fail at the end of a survey."""
    if label_next is None and labels is None:
        return
    if overlap:
        raise InputError("--label-next and --labels count every piece of ground once: leave out --overlap")
    if label_next is not None and label_next < 1:
        raise InputError(f"--label-next takes a number of windows, at least 1, not {label_next}")
    if label_next is not None and (out / LABELS).exists():
        raise InputError(
            f"{out / LABELS} is there already: fill it in and give it to --labels, or delete it to draw anew"
        )
    if labels is not None:
        read_labels(labels)


def write_next(out: Path, windows: Scored, count: int, *, noise: float, seed: int) -> Path:
    """Draw windows whose labels narrow the total most, and write them for the user to fill in."""
    error = expected_error(windows.area_m2, windows.probability, noise=noise, window_m2=windows.window_m2)
    chance = inclusion(windows.weight * error, count)

    def rows() -> Iterator[Row]:
        for k in draw(chance, seed=seed).tolist():
            source, index = windows.where[k]
            name, figures = window_name(source, index), (windows.area_m2[k], windows.probability[k], chance[k])
            yield Row(source.name, name, bounds_of(source, index), *map(float, figures))

    path = out / LABELS
    try:
        write_labels(path, rows())
    except OSError as error_:
        raise OutputError(f"{path} cannot be written ({error_.strerror or error_}): make room in the folder") from None
    return path


def labelled_total(windows: Scored, path: Path) -> Total:
    """The total of the surveyed windows from their areas and the labels of some.

    Raises InputError where the labels are not of this survey's windows, or too few.
    """
    labels = read_labels(path)
    number = {(source.name, window_name(source, index)): k for k, (source, index) in enumerate(windows.where)}
    if unknown := [key for key in labels if key not in number]:
        raise InputError(f"{path} names window {unknown[0][1]} of {unknown[0][0]}, which this survey did not score")
    sampled = np.array([number[key] for key in labels])
    true, chance = np.array(list(labels.values())).T
    return total(windows.area_m2, sampled, true, chance, weight=windows.weight)
