import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, stdtrit

from negah.errors import InputError
from negah.solar import sampling
from negah.solar.sampling import Row, draw, expected_error, inclusion, read_labels, total, write_labels

WINDOW_M2 = 4000.0
HEAD = ",".join(name for name in sampling.COLUMNS if name != "row")  # as others may write it


def town(seed: int = 0, *, n: int = 3000, factor: float = 1.0, sure: float = 1.0, found: float = 1.0, alike=False):
    """area, probability, truth of windows of which a tenth hold panels of skewed sizes; small ones are missed more.

    factor: estimate / truth.  sure: how much surer the detector is than it should be.  found: share of the finds kept.
    alike: what is missed is as large as what is found.
    """
    rng = np.random.default_rng(seed)
    z = np.where(rng.random(n) < 0.1, rng.normal(3, 2, n), rng.normal(-6, 2, n))
    log_size = 3 + rng.normal(size=n) if alike else 2.5 + 0.25 * np.clip(z, -4, 4) + 0.8 * rng.normal(size=n)
    size = np.minimum(np.exp(log_size), WINDOW_M2)
    true = np.where(rng.random(n) < expit(z), size, 0.0)
    probability = expit(z * sure)
    area = np.where(probability >= 0.7, factor * size * rng.lognormal(0, 0.4, n), 0.0)
    return np.where(rng.random(n) < found, area, 0.0), probability, true


def chances(area, probability, count):
    return inclusion(expected_error(area, probability, noise=0.5, window_m2=WINDOW_M2), count)


def repeated(area, true, chance, *, draws: int = 250, keep: float = 1.0, weight: float | np.ndarray = 1.0):
    """[draw, (value, low, high)] of many draws of which the first part, `keep`, is labelled."""
    totals = []
    for seed in range(draws):
        sampled = draw(chance, seed=seed)
        sampled = sampled[: round(keep * len(sampled))]
        totals.append(total(area, sampled, true[sampled], keep * chance[sampled], weight=weight)[:3])
    return np.array(totals)


@pytest.mark.parametrize("count", [40, 100, 300])
@pytest.mark.parametrize(
    "changes",
    [{}, {"factor": 0.3}, {"factor": 3.0}, {"sure": 1.5}, {"found": 0.7}],
    ids=["good", "a third", "threefold", "too sure", "blind to some"],
)
def test_the_total_has_no_bias_and_its_interval_covers_nine_of_ten(changes, count):
    held, off = [], []
    for seed in range(6):
        area, probability, true = town(seed, **changes)
        totals = repeated(area, true, chances(area, probability, count))
        value, low, high = totals.T
        held.append((low <= true.sum()) & (true.sum() <= high))
        off.append((value - true.sum()) / value.std())
    assert 0.86 < np.mean(held) < 0.94
    assert abs(np.mean(off)) < 4 / np.sqrt(np.size(off))  # the mean of so many draws has this standard error


def test_large_panels_that_are_rarely_missed_are_where_the_interval_is_too_narrow():
    held = []
    for seed in range(8):
        area, probability, true = town(seed, n=4000, sure=1.5, alike=True)
        _, low, high = repeated(area, true, chances(area, probability, 100)).T
        held.append((low <= true.sum()) & (true.sum() <= high))
    assert 0.77 < np.mean(held) < 0.88  # what the module says of itself


def test_weights_are_those_of_the_total():
    area, probability, true = town()
    weight = np.random.default_rng(1).uniform(0.2, 1.0, len(area))
    value, low, high = repeated(area, true, chances(area, probability, 100), weight=weight, draws=800).T
    aim = (weight * true).sum()
    assert value.mean() == pytest.approx(aim, abs=4 * value.std() / np.sqrt(len(value)))
    assert 0.86 < ((low <= aim) & (aim <= high)).mean() < 0.94


def test_whoever_stops_early_has_a_wider_interval_that_holds():
    area, probability, true = town(factor=0.5)
    chance = chances(area, probability, 200)
    whole, half = repeated(area, true, chance, draws=800), repeated(area, true, chance, draws=800, keep=0.5)
    value, low, high = half.T
    assert value.mean() == pytest.approx(true.sum(), abs=4 * value.std() / np.sqrt(len(value)))
    assert 0.86 < ((low <= true.sum()) & (true.sum() <= high)).mean() < 0.94
    assert (high - low).mean() > 1.2 * (whole[:, 2] - whole[:, 1]).mean()


def test_half_the_width_of_labelling_at_random():
    for seed in range(3):
        area, probability, true = town(seed)
        widths = []
        for chance in (chances(area, probability, 100), np.full(len(area), 100 / len(area))):
            _, low, high = repeated(area, true, chance).T
            widths.append((high - low).mean())
        assert widths[0] < 0.5 * widths[1]


def test_the_formula_by_hand():
    area, sampled = np.array([10.0, 0.0, 5.0, 0.0]), np.array([0, 2, 3])
    got = total(area, sampled, np.array([12.0, 4.0, 1.0]), np.array([1.0, 0.5, 0.25]))
    # d / chance: 2, certain; -2 and 4.  A = (0.5 * -2 + 0.75 * 4) / 1.25 = 1.6; v = 2 (0.5 * 3.6^2 + 0.75 * 2.4^2)
    error = 6.313751514675043 * np.sqrt(2 * (0.5 * 3.6**2 + 0.75 * 2.4**2))  # t of 1 degree of freedom, 95 %
    assert got == pytest.approx((19.0, 17.0, 19.0 + error, 3))  # the labelled windows alone hold 17


def test_all_labelled_is_the_exact_sum():
    area, _, true = town(n=50)
    order = np.random.default_rng(0).permutation(50)
    for chance in (np.ones(50), np.full(50, 0.4)):
        got = total(area, order, true[order], chance)
        assert got.value == got.low == got.high == pytest.approx(true.sum()) and got.labels == 50


def test_certain_windows_add_nothing_to_the_interval():
    area, true = np.full(10, 5.0), np.full(10, 6.0)
    true[0] = 500.0
    sampled, chance = np.array([0, 3, 7, 8]), np.array([1.0, 1 / 3, 1 / 3, 1 / 3])
    assert total(area, sampled, true[sampled], chance) == pytest.approx((554.0, 554.0, 554.0, 4))  # the rest all lack 1


def test_figures_are_not_below_zero():
    area, sampled = np.full(10, 1.0), np.array([0, 1, 2])
    got = total(area, sampled, np.array([0.0, 0.0, 0.0]), np.array([0.1, 0.2, 0.3]))
    assert got.low == 0 and 0 <= got.value <= got.high


def test_the_labelled_windows_hold_at_least_what_they_hold():
    """One large array was missed, and all other labels are 0: the range must not reach below what was seen."""
    area, true, chance = np.zeros(100), np.zeros(100), np.full(100, 0.1)
    true[7] = 300.0
    got = total(area, np.array([7, 20, 30, 40]), true[[7, 20, 30, 40]], chance[[7, 20, 30, 40]])
    assert got.low == 300.0 < got.value == 3000.0 < got.high
    nothing = total(np.full(100, 9.0), np.array([7, 20, 30]), true[[7, 20, 30]], np.full(3, 0.9))
    assert nothing.low >= 300.0 and nothing.value >= 300.0 and nothing.high >= nothing.value


@pytest.mark.parametrize("changes", [{}, {"factor": 0.3}, {"found": 0.7}], ids=["good", "a third", "blind to some"])
def test_windows_drawn_later_tell_as_much_as_if_they_had_been_drawn_at_once(changes):
    held, off, widths = [], [], []
    for seed in range(4):
        area, probability, true = town(seed, **changes)
        error = expected_error(area, probability, noise=0.5, window_m2=WINDOW_M2)
        values = []
        for k in range(200):
            first = inclusion(error, 60)
            sampled = draw(first, seed=2 * k)
            left = np.setdiff1d(np.arange(len(area)), sampled)
            later = inclusion(error[left], 40)
            new = draw(later, seed=2 * k + 1)
            index, turn = np.append(sampled, left[new]), np.repeat([1, 2], [60, 40])
            got = total(area, index, true[index], np.append(first[sampled], later[new]), drawn=turn)
            values.append(got.value)
            held.append(got.low <= true.sum() <= got.high)
            widths.append(got.high - got.low)
        off.append((np.array(values) - true.sum()) / np.std(values))
        _, low, high = repeated(area, true, inclusion(error, 100)).T
        assert np.mean(widths) == pytest.approx((high - low).mean(), rel=0.25)
        widths.clear()
    assert 0.86 < np.mean(held) < 0.95
    assert abs(np.mean(off)) < 4 / np.sqrt(np.size(off))


def test_two_draws_by_hand():
    area, sampled = np.zeros(20), np.arange(6)
    true, chance = np.array([1.0, 3.0, 2.0, 2.0, 6.0, 1.0]), np.array([0.5, 0.5, 0.25, 0.25, 0.25, 1.0])
    got = total(area, sampled, true, chance, drawn=np.array([1, 1, 2, 2, 2, 2]))
    # the first draw: 2 + 6, variance 2 (0.5 * 2^2 + 0.5 * 2^2) = 8; the second: 1 + 3 known, 8 + 8 + 24 and 1 certain
    value = 2 / 5 * 8 + 3 / 5 * (4 + 40 + 1)
    a, b = (2 / 5) ** 2 * 8, (3 / 5) ** 2 * (3 / 2 * 0.75 * ((16 / 3) ** 2 * 2 + (32 / 3) ** 2))
    freedom = (a + b) ** 2 / (a**2 / 1 + b**2 / 2)
    assert got.value == pytest.approx(value)
    assert got.high - got.value == pytest.approx(stdtrit(freedom, 0.95) * np.sqrt(a + b))


def test_a_draw_of_one_window_waits_for_more():
    area, true = np.zeros(20), np.array([1.0, 3.0, 50.0])
    one = total(area, np.arange(3), true, np.array([0.5, 0.5, 0.1]), drawn=np.array([1, 1, 2]))
    assert one.high == pytest.approx(max(54.0, total(area, np.arange(2), true[:2], np.array([0.5, 0.5])).high))
    assert one.low == one.value == 54.0 and one.labels == 3


@pytest.mark.parametrize("sampled, more", [([], 2), ([0], 2), ([1], 1), ([0, 1], 1)])
def test_too_few_labels_say_how_many_more(sampled, more):
    chance = np.array([1.0, 0.3, 0.3, 0.4])
    index = np.array(sampled, dtype=np.int64)
    with pytest.raises(InputError, match=f"at least 2: fill in true_m2 of {more} more"):
        total(np.ones(4), index, np.ones(len(index)), chance[index])


@given(
    st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=60).map(np.array),
    st.integers(1, 70),
)
def test_inclusion_sums_to_the_count_caps_and_is_proportional_below(error, count):
    chance = inclusion(error, count)
    assert chance.sum() == pytest.approx(min(count, len(error)))
    assert (chance > 0).all() and (chance <= 1).all()
    below = chance < 1
    rate = chance[below] / error[below]
    assert np.allclose(rate, rate[:1])
    if below.any():  # whoever is certain would exceed 1 at the others' rate
        assert (error[~below] * rate[0] >= 1 - 1e-9).all()


def test_inclusion_caps_again_what_the_first_cap_pushes_over():
    # 3 * 100 / 115 caps the first; of the 2 left, 2 * 10 / 15 caps the second; 1 is shared by the rest
    assert inclusion(np.array([100.0, 10.0, 2.0, 2.0, 1.0]), 3) == pytest.approx([1, 1, 0.4, 0.4, 0.2])
    assert (inclusion(np.array([3.0, 1.0]), 2) == 1).all() and (inclusion(np.array([3.0, 1.0]), 9) == 1).all()


@pytest.mark.parametrize("error, count", [([1.0, 0.0], 1), ([1.0, np.nan], 1), ([1.0, np.inf], 1), ([1.0, 1.0], 0)])
def test_inclusion_refuses_what_no_chance_follows_from(error, count):
    with pytest.raises(ValueError, match="finite and above 0"):
        inclusion(np.array(error), count)


def test_draw_takes_the_count_once_each_with_the_right_frequencies():
    chance = inclusion(np.random.default_rng(0).lognormal(0, 1.5, 40), 12)
    assert 1 < (chance == 1).sum() < 12
    times, first, draws = np.zeros(40), np.zeros(40), 8000
    for seed in range(draws):
        sampled = draw(chance, seed=seed)
        assert len(sampled) == 12 == len(set(sampled.tolist()))
        times[sampled] += 1
        first[sampled[:3]] += 1
    error = np.sqrt(chance * (1 - chance) / draws)
    assert (np.abs(times / draws - chance) <= 4 * error).all()  # and so exactly always where the chance is 1
    assert np.allclose(first / draws, chance / 4, atol=4 * np.sqrt(0.25 * 0.75 / draws))  # a start is a random part


def test_draw_is_told_by_its_seed():
    chance = np.full(100, 0.1)
    assert (draw(chance, seed=3) == draw(chance, seed=3)).all()
    assert set(draw(chance, seed=3).tolist()) != set(draw(chance, seed=4).tolist())
    assert sorted(draw(np.ones(5), seed=0).tolist()) == [0, 1, 2, 3, 4]
    for chance in (np.full(3, 0.5), np.array([1.0, 0.2])):
        with pytest.raises(ValueError, match="whole number"):
            draw(chance, seed=0)


def test_what_may_be_far_off_has_the_larger_error():
    area = np.array([100.0, 10.0, 0.0, 0.0, 0.0, 1000.0, 10.0])
    probability = np.array([0.99, 0.99, 0.5, 0.01, 0.0, 0.8, 0.75])
    error = expected_error(area, probability, noise=0.3, window_m2=WINDOW_M2)
    assert (error > 0).all()
    assert error[0] > error[1] and error[6] > error[1]  # large finds, doubtful finds
    assert error[2] > error[3] > error[4]  # what was nearly found
    assert error[5] == pytest.approx(np.hypot(300, 400))  # a find that may be none: its whole area
    usual = np.sqrt((area[area > 0] ** 2).mean())
    assert error[2] == pytest.approx(np.sqrt(0.5) * usual)
    assert error[4] == pytest.approx(np.sqrt(0.001) * usual)


def test_a_survey_without_finds_still_draws_where_it_doubts_most():
    error = expected_error(np.zeros(3), np.array([0.6, 0.1, 0.0]), noise=0.3, window_m2=np.full(3, WINDOW_M2))
    assert error[0] > error[1] > error[2] > 0
    small = expected_error(np.array([0.0, 900.0]), np.array([0.25, 1.0]), noise=0.3, window_m2=np.array([50.0, 1e3]))
    assert small[0] == 25  # no window holds more than itself


ROWS = [
    Row("dé/a b.tif", "c0_r0", "0 0 9 9", 12.3456, 0.912345678, 1.0, 100),
    Row("dé/a b.tif", "c0_r224", "0 9 9 18", 0.0, 1e-7, 1.23456789e-5, 100),
    Row('say "hi", b.tif', "c0_r0", "0 0 9 9", 0.0, 0.2, 0.5, 100),
    Row("c.tif", "c0_r0", "0 0 9 9", 0.0, 0.2, 0.25, 100),
]


def filled(path, *values):
    """The file of ROWS with true_m2 as a spreadsheet gives it back: its mark in front, its line ends, an empty row."""
    write_labels(ROWS, path)
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([head, *([*row[:-1], value] for row, value in zip(rows, values)), [""] * 9])
    return path


def test_labels_come_back_as_they_were_written(tmp_path):
    path = tmp_path / sampling.LABELS
    write_labels(ROWS, path)
    assert path.read_text(encoding="utf-8").splitlines()[:2] == [
        ",".join(sampling.COLUMNS),
        "dé/a b.tif,c0_r0,0 0 9 9,12.346,0.912346,1,1,1 of 4,100,",
    ]
    got = read_labels(filled(path, "12.5", " 0 ", "1e2", "3"))
    assert got.of_windows == 100 and got.rows == {
        ("dé/a b.tif", "c0_r0"): (12.5, 1.0, 1), ("dé/a b.tif", "c0_r224"): (0.0, 1.23456789e-5, 1),
        ('say "hi", b.tif', "c0_r0"): (100.0, 0.5, 1), ("c.tif", "c0_r0"): (3.0, 0.25, 1),
    }  # fmt: skip


def test_rows_left_empty_lower_the_chance_of_the_others(tmp_path):
    got = read_labels(filled(tmp_path / sampling.LABELS, "12.5", "7", "", " "))
    assert got.rows["dé/a b.tif", "c0_r0"] == (12.5, 0.5, 1) and len(got.rows) == 2 and got.unused == 0


def test_sorting_changes_nothing_and_a_row_that_is_gone_is_a_gap(tmp_path):
    path = filled(tmp_path / sampling.LABELS, "12.5", "7", "3", "1")
    whole, (head, *lines) = read_labels(path), path.read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip(",")]
    path.write_text("\n".join([head, *lines[::-1]]), encoding="utf-8")
    assert read_labels(path) == whole and list(read_labels(path).rows) == list(whole.rows)
    path.write_text("\n".join([head, lines[3], lines[0], lines[2]]), encoding="utf-8")  # without the second
    got = read_labels(path)
    assert list(got.rows) == list(whole.rows)[:1] and got.unused == 2 and got.empty == 1
    assert next(iter(got.rows.values())).chance == 1.0 / 4  # one of four
    path.write_text("\n".join([head, *lines[1:]]), encoding="utf-8")
    with pytest.raises(InputError, match="no true_m2 in its first row"):
        read_labels(path)
    path.write_text("\n".join([head, lines[0].replace("1 of 4", "first")]), encoding="utf-8")
    with pytest.raises(InputError, match="row 2 of .* has row 'first', not one such as 3 of 20: leave it"):
        read_labels(path)


def test_tables_that_were_changed_are_refused(tmp_path):
    path = tmp_path / sampling.LABELS
    head = ",".join(sampling.COLUMNS)

    def write(*places: tuple[str, str]) -> None:
        lines = [f"{k},c0_r0,0 0 9 9,1,0.9,0.5,{draw},{row},100,3" for k, (draw, row) in enumerate(places)]
        path.write_text("\n".join([head, *lines]))

    for places, message in (
        ([("2", "1 of 1")], "has lost all rows of draw 1"),
        ([("1", "1 of 2"), ("3", "1 of 1")], "has lost all rows of draw 2"),
        ([("1", "1 of 1"), ("999999999", "1 of 1")], "has lost all rows of draw 2"),  # at once
        ([("1", "1 of 2"), ("1", "1 of 2")], "were changed in the column row"),
        ([("1", "1 of 2"), ("1", "2 of 400")], "were changed in the column row"),
        ([("1", f"{'1' * 5000} of 2")], "not one such as 3 of 20"),
        ([("1" * 5000, "1 of 2")], "not a number from 1 on"),
    ):
        write(*places)
        with pytest.raises(InputError, match=message):
            read_labels(path)


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_spreadsheets_save_is_read(tmp_path, mark, encoding):
    path = filled(tmp_path / sampling.LABELS, "12.5", "7", "3", "")
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = list(csv.reader(file))
    table[0] = [name.title() + " " for name in table[0]]
    table[1:] = [
        [value.replace(".", ",") if k in (3, 4, 5, 9) else value for k, value in enumerate(row)] for row in table[1:]
    ]
    before = read_labels(path)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=mark).writerows(table)
    assert read_labels(path) == before and next(iter(before.rows.values())).true_m2 == 12.5


def test_each_draw_has_its_own_share_and_their_order_is_kept(tmp_path):
    path = tmp_path / sampling.LABELS
    line = "{},c0_r0,0 0 9 9,1,0.9,0.5,{},100,{}"

    def write(*values: tuple[str, str, str]) -> None:
        path.write_text("\n".join([HEAD, *(line.format(*value) for value in values)]))

    write(("a", "1", "3"), ("b", "1", "4"), ("c", "2", "5"), ("d", "2", ""))
    got = read_labels(path)
    assert got.rows == {("a", "c0_r0"): (3, 0.5, 1), ("b", "c0_r0"): (4, 0.5, 1), ("c", "c0_r0"): (5, 0.25, 2)}
    assert got.empty == 1
    write(("a", "2", "3"), ("b", "1", "4"))
    with pytest.raises(InputError, match="has rows of a draw below those of a later one: keep the order of the file"):
        read_labels(path)
    write(("a", "first", "3"))
    with pytest.raises(InputError, match="row 2 of .* has draw 'first', not a number from 1 on: leave it"):
        read_labels(path)
    path.write_text("source,window,chance,of_windows,true_m2\na,c0_r0,0.5,100,3")  # as files were before
    assert read_labels(path).rows == {("a", "c0_r0"): (3, 0.5, 1)}


def test_rows_below_a_gap_do_not_count(tmp_path):
    got = read_labels(filled(tmp_path / sampling.LABELS, "12.5", "", "7", "3"))
    assert got.rows == {("dé/a b.tif", "c0_r0"): (12.5, 0.25, 1)} and got.unused == 2
    with pytest.raises(InputError, match="no true_m2 in its first row: fill it in from the top"):
        read_labels(filled(tmp_path / sampling.LABELS, "", "12.5", "7", "3"))


@pytest.mark.parametrize(
    "lines, message",
    [
        ("", "has no column source, window, chance, of_windows, true_m2: keep those"),
        (HEAD.replace("chance", "odds") + "\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,3", "has no column chance: keep"),
        (HEAD, "has no row with true_m2: fill in"),
        (
            HEAD + "\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,\nb,c0_r0,0 0 9 9,1,0.9,0.5,1,100,",
            "has no row with true_m2: fill in",
        ),
        (HEAD + "\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,many", "row 2 of .* has true_m2 'many': give square metres"),
        (
            HEAD + "\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,3\nb,c0_r0,0 0 9 9,1,0.9,0.5,1,100,-1",
            "row 3 of .* has true_m2 '-1': give",
        ),
        (HEAD + "\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,nan", "row 2 of .* has true_m2 'nan': give"),
        (HEAD + "\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,inf", "row 2 of .* has true_m2 'inf': give"),
        (HEAD + '\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,"12,5"', "row 2 of .* has true_m2 '12,5': give"),
        (HEAD + "\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,12,5", "row 2 of .* has more values than columns: write decimals"),
        (HEAD + "\na,c0_r0,0 0 9 9,1,0.9,0,1,100,3", "row 2 of .* has chance '0', not above 0 and at most 1: leave"),
        (HEAD + "\na,c0_r0,0 0 9 9,1,0.9,1.1,1,100,3", "row 2 of .* has chance '1.1', not"),
        (HEAD + "\na,c0_r0,0 0 9 9,1,0.9,nan,1,100,3", "row 2 of .* has chance 'nan', not"),
        (HEAD + "\na,c0_r0,0 0 9 9,1,0.9,,1,100,3", "row 2 of .* has chance '', not"),
        (HEAD + "\na,c0_r0,0 0 9 9,1,0.9,0.5,1,many,3", "no one number of windows"),
        (HEAD + "\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,3\nb,c0_r0,0 0 9 9,1,0.9,0.5,1,90,3", "no one number of windows"),
        (
            HEAD + "\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,3\n\na,c0_r0,0 0 9 9,1,0.9,0.5,1,100,",
            "row 4 of .* names window c0_r0 of a a second time: delete",
        ),
    ],
)
def test_bad_labels_are_one_clear_line(tmp_path, lines, message):
    path = tmp_path / sampling.LABELS
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_labels_that_cannot_be_read(tmp_path):
    for path, why in ((tmp_path / "none.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"labels .* cannot be read \\({why}.*give the label-next.csv"):
            read_labels(path)
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9)
    with pytest.raises(InputError, match="picture.csv (cannot be read|has no column)"):
        read_labels(tmp_path / "picture.csv")
