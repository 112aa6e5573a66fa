"""Which windows of a finished survey to label next, and the region's total from the labels of such windows.

The total is a difference estimator (Särndal, Swensson and Wretman 1992, "Model Assisted Survey Sampling", chapter 6;
as prediction-powered inference in Angelopoulos et al. 2023, arXiv:2301.09633).  Of n windows with areas area_i some are
drawn, each with the known probability chance_i, and their true areas are looked up:

    value = sum_i weight_i area_i + sum_{i in sampled} d_i / chance_i,     d_i = weight_i (true_i - area_i)

Whatever the areas are, the second sum is without bias what the first is off: a bad detector makes the interval wide,
not wrong.  Windows are worth a label as far as they may be off: sum_i error_i^2 / chance_i is least, for so many
labels, where chance_i is proportional to error_i (Neyman 1934), as far as no chance exceeds 1 (`inclusion`).

They are drawn systematically in a random order (`draw`).  The variance is that of Hájek 1964 for sampling with unequal
probabilities and a fixed size, over the m labels with chance_i < 1, since the others were certain to be in:

    v = m / (m - 1) sum_i (1 - chance_i) (d_i / chance_i - A)^2,
    A = sum_i (1 - chance_i) d_i / chance_i / sum_i (1 - chance_i)
    interval = value +- t_{m - 1} sqrt(v)                               covers the total in about 9 of 10 draws

More windows may be drawn later, among those that were in no draw yet: draw k has chances given what the draws before it
hold, and its labels give a total of their own, in which the windows of the draws before count as known,

    value_k = sum_i weight_i area_i + sum_{i in draws before} d_i + sum_{i in draw k} d_i / chance_i

Each is without bias whatever the draws before hold, so two of them are uncorrelated (Des Raj 1956, JASA 51:269), and
their mean, weighted by the number of labels, has the variance sum_k share_k^2 v_k; the degrees of freedom of t are
Welch's and Satterthwaite's (m - 1 for one draw).

How it can fail: what is rare is met by luck only.  Where large panels are missed in a few of thousands of windows, most
draws hold few of them, and the interval does not know of what was not met: where a seventh of a simulated town's area
is missed so, it holds in 8 of 10 draws instead of 9.  `expected_error` counts what may be missed with the finds' mean
square and keeps a floor, so that such windows are drawn at all; only more labels tell more.

Departures: the three figures are never below what the labelled windows hold by themselves, and windows from the first
unlabelled one on count as never drawn (`read_labels`).
"""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.special import stdtrit

from negah.errors import InputError

LABELS = "label-next.csv"
COLUMNS = ("source", "window", "bounds", "area_m2", "probability", "chance", "draw", "row", "of_windows", "true_m2")
FIGURES = ("area_m2", "probability", "chance", "true_m2")  # columns with decimals
DOUBT = 0.001  # no probability is taken to be nearer to 0 or 1: a detector is wrong once in a thousand, however sure
USUAL = 0.01  # share of a window that panels cover, where a survey has no find to tell


class Total(NamedTuple):
    """A region's panel area and its interval of 90 %, m2; labels: how many windows it rests on."""

    value: float
    low: float
    high: float
    labels: int


class Row(NamedTuple):
    """A window to label, as `tiles.csv` names it.

    chance: with which it was drawn, by the `draw`-th draw, among those of the `of_windows` that no earlier draw took.
    """

    source: str
    window: str
    bounds: str
    area_m2: float
    probability: float
    chance: float
    of_windows: int
    draw: int = 1


class Label(NamedTuple):
    """What a window holds, m2, and with which chance it was labelled, as one of which draw."""

    true_m2: float
    chance: float
    draw: int = 1


class Labels(NamedTuple):
    """What was filled in, by (source, window), and among how many windows they were drawn.

    unused: rows that are filled in below the first empty one.  empty: rows that are not filled in.
    """

    rows: dict[tuple[str, str], Label]
    of_windows: int
    unused: int = 0
    empty: int = 0


def expected_error(
    area_m2: Float[ndarray, " n"],
    probability: Float[ndarray, " n"],
    *,
    noise: float,
    window_m2: float | Float[ndarray, " n"],
) -> Float[ndarray, " n"]:
    """How far each window's area may be off: a standard deviation, m2, never 0.

        error = sqrt((noise area)^2 + p (1 - p) size^2)     with a find,        size = max(area, usual)
        error = sqrt(p) usual                               without one,        usual = sqrt(mean of the finds' area^2)

    noise: relative error of a single find's size; to it comes whether there are panels at all, since a find may be
    none, with its whole area.  Without a find the area is 0 however likely panels are, so what counts is p size^2; and
    the mean square, not the median, since it is the few large ones that make a sum uncertain.  window_m2: what no size
    exceeds.
    """
    p = np.clip(probability, DOUBT, 1 - DOUBT)
    found = area_m2[area_m2 > 0]
    usual = float(np.sqrt((found**2).mean())) if len(found) else USUAL * window_m2
    size = np.minimum(np.maximum(area_m2, usual), window_m2)
    return np.hypot(noise * area_m2, np.sqrt(p * np.where(area_m2 > 0, 1 - p, 1.0)) * size)


def inclusion(error: Float[ndarray, " n"], count: int) -> Float[ndarray, " n"]:
    """Probabilities of being drawn, proportional to the error, at most 1, with the sum `count`.

    What would exceed 1 is certain, and the rest of the count is shared out anew, until nothing exceeds.  Where windows
    count with weights in the total, give weight * error.
    """
    if count < 1 or not (np.isfinite(error) & (error > 0)).all():
        raise ValueError("inclusion takes a count of at least 1 and errors that are finite and above 0")
    chance, free = np.ones(len(error)), np.arange(len(error))  # free: not certain
    while count < len(error):
        share = error[free] * (count - len(error) + len(free)) / error[free].sum()
        if (share < 1).all():
            chance[free] = share
            break
        free = free[share < 1]
    return chance


def draw(chance: Float[ndarray, " n"], *, seed: int) -> Int[ndarray, " m"]:
    """Indices of as many windows as the chances sum to, each drawn with exactly its chance.

    Systematic sampling: the chances laid end to end in a random order, and a mark at every whole number from a random
    start on.  The indices come in an order of chance too: who labels from the top and stops has labelled a random part.
    """
    rng = np.random.default_rng(seed)
    certain, rest = np.flatnonzero(chance >= 1), rng.permutation(np.flatnonzero(chance < 1))
    ends = np.cumsum(chance[rest])
    size = round(float(ends[-1])) if len(rest) else 0
    if len(rest) and abs(ends[-1] - size) > 1e-6:
        raise ValueError(f"chances must sum to a whole number, got {ends[-1] + len(certain)}: see inclusion")
    marks = rng.random() + np.arange(size)
    drawn = np.searchsorted(ends[:-1], marks, side="right")  # without the last end, whose rounding could lose a mark
    return rng.permutation(np.concatenate([certain, rest[drawn]]))


def total(
    area_m2: Float[ndarray, " n"],
    sampled: Int[ndarray, " m"],
    true_m2: Float[ndarray, " m"],
    chance: Float[ndarray, " m"],
    *,
    drawn: int | Int[ndarray, " m"] = 1,
    weight: float | Float[ndarray, " n"] = 1.0,
) -> Total:
    """The sum of all windows' true areas, from the areas of all and the truth of those sampled; see above.

    drawn: by which draw each came in.  weight: what each window counts for, as where windows overlap.  Where all are
    labelled the interval is a point.  Raises InputError where too few are labelled to tell how far the rest is off.
    """
    weight, drawn = np.broadcast_to(weight, area_m2.shape), np.broadcast_to(drawn, sampled.shape)
    least = float((weight[sampled] * true_m2).sum())
    if len(sampled) == len(area_m2):  # nothing is left to chance
        return Total(least, least, least, len(sampled))
    off = weight[sampled] * (true_m2 - area_m2[sampled])
    found = []
    for number in np.unique(drawn):
        mine, by_chance = drawn == number, (drawn == number) & (chance < 1)
        if (m := int(by_chance.sum())) > 1:
            value = (weight * area_m2).sum() + off[drawn < number].sum() + (off[mine] / chance[mine]).sum()
            rest, spread = 1 - chance[by_chance], off[by_chance] / chance[by_chance]
            found.append((m, value, m / (m - 1) * (rest * (spread - (rest * spread).sum() / rest.sum()) ** 2).sum()))
    if not found:
        m = int((chance < 1).sum())
        raise InputError(
            f"{m} of the {len(sampled)} labelled windows {'was' if m == 1 else 'were'} drawn with a chance below "
            f"1, and the total takes at least 2: fill in true_m2 of {max(1, 2 - m)} more in {LABELS}"
        )
    count, values, v = np.array(found).T
    v = (count / count.sum()) ** 2 * v
    freedom = v.sum() ** 2 / (v**2 / (count - 1)).sum() if v.any() else (count - 1).sum()
    value, error = float(count @ values / count.sum()), float(stdtrit(freedom, 0.95) * np.sqrt(v.sum()))
    return Total(max(least, value), max(least, value - error), max(least, value + error), len(sampled))


def write_labels(rows: Sequence[Row], path: Path, *, true_m2: Sequence[float | None] = ()) -> None:
    """The windows to label, with a column true_m2 to fill in, or filled in where `true_m2` knows it."""
    drawn, written = Counter(row.draw for row in rows), Counter[int]()
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(COLUMNS)
        for row, true in zip(rows, true_m2 or [None] * len(rows), strict=True):
            figures = f"{row.area_m2:.3f}", f"{row.probability:.6f}", f"{row.chance:.9g}", row.draw
            written[row.draw] += 1
            place = f"{written[row.draw]} of {drawn[row.draw]}", row.of_windows
            out.writerow((row.source, row.window, row.bounds, *figures, *place, "" if true is None else f"{true:.3f}"))


def read_drawn(path: Path) -> list[Row]:
    """The windows that `write_labels` wrote, in the order of the draw.  Raises InputError as `read_labels`."""
    return [
        Row(
            row["source"], row["window"], row.get("bounds", ""), _number(row.get("area_m2", "")),
            _number(row.get("probability", "")), _number(row["chance"]),
            int(row["of_windows"]) if re.fullmatch(r"\s*\d{1,12}\s*", row["of_windows"]) else 0, draw,
        )
        for _, (draw, _, _), row in _in_order(path)
    ]  # fmt: skip


def read_labels(path: Path) -> Labels:
    """The rows that are filled in, in the order in which they were drawn, to the first that is empty or missing.

    That order is random, so the first rows are a draw of their own.  Rows below a gap are not: who skips windows skips
    those that are hard to label, and these are off by more.  Sorting the file changes nothing, and a row that was
    deleted is a gap, as far as the file has the column `row`; without it (as others may write) the file's order counts.

    chance: of being drawn and labelled, so the file's times the share of its draw's rows that count.  Without it the
    labelled windows would stand for themselves alone, and what the others are off would be taken for nothing.  Raises
    InputError on what is wrong.
    """
    labels: dict[tuple[str, str], Label | None] = {}
    place: dict[tuple[str, str], tuple[int, int, int]] = {}
    table = _in_order(path)
    for number, (draw, at, of), row in table:
        where = f"row {number} of {path}"
        key = row["source"], row["window"]
        if key in labels:
            raise InputError(f"{where} names window {key[1]} of {key[0]} a second time: delete one of the two")
        labels[key], place[key] = None, (draw, at, of)
        if row["true_m2"].strip():
            true, chance = _number(row["true_m2"]), _number(row["chance"])
            if not 0 <= true < math.inf:
                raise InputError(f"{where} has true_m2 {row['true_m2']!r}: give square metres, such as 12.5, or 0")
            if not 0 < chance <= 1:
                raise InputError(f"{where} has chance {row['chance']!r}, not above 0 and at most 1: leave it as it was")
            labels[key] = Label(true, chance, draw)
    if not any(labels.values()):
        raise InputError(f"{path} has no row with true_m2: fill in the panel area, in m2, of the windows it names")
    drawn_among = {row["of_windows"].strip() for _, _, row in table}
    if len(drawn_among) > 1 or not re.fullmatch(r"\d{1,12}", among := drawn_among.pop()):
        raise InputError(f"{path} has no one number of windows in its column of_windows: leave it as it was")
    rows_of = {draw: of for draw, _, of in place.values()}
    lost = next(draw for draw in count(1) if draw not in rows_of)
    if lost <= max(rows_of):
        raise InputError(f"{path} has lost all rows of draw {lost}: without them the others cannot be counted")
    if len({(draw, at) for draw, at, _ in place.values()}) < len(place) or set(place.values()) != {
        (draw, at, rows_of[draw]) for draw, at, _ in place.values()
    }:
        raise InputError(f"{path} has rows that were changed in the column row: leave it as it was")
    whole = ((draw, at) for draw in sorted(rows_of) for at in range(1, rows_of[draw] + 1))
    counted: dict[tuple[str, str], Label] = {}
    for (key, label), expected in zip(labels.items(), whole):  # both in the order of the draw
        if label is None or place[key][:2] != expected:
            break
        counted[key] = label
    if not counted:
        raise InputError(
            f"{path} has no true_m2 in its first row: fill it in from the top, 0 for no panels, and skip no window"
        )
    share, given = Counter(label.draw for label in counted.values()), sum(each is not None for each in labels.values())
    counted = {
        key: label._replace(chance=label.chance * share[label.draw] / rows_of[label.draw])
        for key, label in counted.items()
    }
    return Labels(counted, int(among), given - len(counted), sum(rows_of.values()) - given)


def _in_order(path: Path) -> list[tuple[int, tuple[int, int, int], dict[str, str]]]:
    """Number in the file, (draw, place in it, of how many), and columns of each row, in the order of the draws."""
    rows, last = [], 1
    for number, row in _table(path):
        last = _draw_of(row.get("draw", ""), f"row {number} of {path}", before=last)
        rows.append((number, last, row))
    if "row" not in rows[0][2] and any(draw < before for (_, before, _), (_, draw, _) in pairwise(rows)):
        raise InputError(f"{path} has rows of a draw below those of a later one: keep the order of the file")
    size, seen, placed = Counter(draw for _, draw, _ in rows), Counter[int](), []
    for number, draw, row in rows:
        seen[draw] += 1
        at, of = seen[draw], size[draw]
        if "row" in row:
            found = re.fullmatch(r"\s*(\d{1,12}) of (\d{1,12})\s*", row["row"])
            if not found or not 1 <= int(found[1]) <= int(found[2]):
                raise InputError(
                    f"row {number} of {path} has row {row['row']!r}, not one such as 3 of 20: leave it as it was"
                )
            at, of = int(found[1]), int(found[2])
        placed.append((number, (draw, at, of), row))
    return sorted(placed, key=lambda each: each[1])


def _table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Number in the file and columns of each row that is not blank, at least one.

    Reads what spreadsheets save: separated by commas, semicolons or tabs, with decimal commas beside the latter two.
    Raises InputError where the file is not what `write_labels` wrote, filled in.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the labels {path} cannot be read ({error.strerror or error}): give the {LABELS} of a survey"
        ) from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        text = content.decode("utf-8-sig", errors="surrogateescape")
    head = text.split("\n", 1)[0]
    mark = max(",;\t", key=head.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
        lines = [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise InputError(f"the labels {path} cannot be read ({error}): give the {LABELS} of a survey") from None
    columns = [name.strip().lower() for name in lines[0][1]] if lines else []
    missing = [name for name in ("source", "window", "chance", "of_windows", "true_m2") if name not in columns]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}: keep those of {LABELS}")
    rows = []
    for number, line in lines[1:]:
        if not any(value.strip() for value in line):
            continue  # what spreadsheets leave behind
        if any(line[len(columns) :]):
            raise InputError(
                f"row {number} of {path} has more values than columns: write decimals with a point, as in 12.5"
            )
        row = dict(zip(columns, [*line, *[""] * (len(columns) - len(line))]))
        if mark != ",":
            row |= {name: row[name].replace(",", ".") for name in FIGURES if name in row}
        rows.append((number, row))
    if not rows:
        raise InputError(f"{path} has no row with true_m2: fill in the panel area, in m2, of the windows it names")
    return rows


def _draw_of(text: str, where: str, *, before: int) -> int:
    """Which draw a row is of: that of the row before where the file does not say."""
    if not text.strip():
        return before
    if not re.fullmatch(r"\s*\d{1,9}\s*", text) or int(text) < 1:
        raise InputError(f"{where} has draw {text!r}, not a number from 1 on: leave it as it was")
    return int(text)


def _number(text: str) -> float:
    """NaN, which lies in no range, where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
