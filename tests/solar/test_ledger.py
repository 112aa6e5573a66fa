import sqlite3

import numpy as np
import pytest

from negah.errors import OutputError
from negah.solar.ledger import FILE, Input, Ledger, Window, pack
from negah.solar.plan import Axis, Failure, Ground, Layout, Plan, PlannedSource

FINGERPRINT = {"model": "m", "gsd": 0.3}
INPUTS = [Input("a.tif", 10, 5), Input("b.tif", 20, 6)]
PLAN = Plan([], [Failure(1, "b.tif", 0, "it is empty")])


def begun(folder) -> Ledger:
    ledger = Ledger(folder)
    ledger.begin(FINGERPRINT, INPUTS, PLAN)
    return ledger


def scored(k: int, probability: float, cells: np.ndarray | None = None) -> Window:
    return Window(k, 0, "ok", probability, 1.0, 0.5, 2.0, pack(cells) if cells is not None else None)


def test_what_was_committed_is_there_after_a_crash(tmp_path):
    ledger = begun(tmp_path)
    cells = np.linspace(0, 1, 9, dtype=np.float32)
    ledger.commit([scored(0, 0.1), scored(1, 0.9, cells)], [], 1.5)
    ledger.commit([Window(2, 0, "failed")], [(0, "a.tif", 2, "cut off"), (0, "a.tif", 3, "and again")], 0.5)
    # as after a kill: another reader finds the files as they lie on the disk, no close in between
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob(f"{FILE}*"):
        (copy / path.name).write_bytes(path.read_bytes())
    ledger.close()
    with Ledger(copy) as after:
        assert after.finished == 3 and after.seconds == 2.0
        windows = list(after.windows())
        assert [w.status for w in windows] == ["ok", "ok", "failed"] and windows[2].probability is None
        assert not windows[0].fractions(9).any()
        np.testing.assert_allclose(windows[1].fractions(9), cells, atol=5e-4)
        assert after.failures() == [Failure(0, "a.tif", 2, "cut off"), Failure(1, "b.tif", 0, "it is empty")]
        assert after.counts() == {"failed": 1, "ok": 2}
        assert [w.id for w in after.most_certain(0.05, 5)] == [1, 0]
        assert [w.id for w in after.least_certain(0.5, 5)] == [1]
        assert after.found(0.5) == 1 and after.probabilities(100) == [0.1, 0.9]


def test_a_commit_is_all_or_nothing(tmp_path):
    with begun(tmp_path) as ledger:
        ledger.commit([scored(0, 0.1)], [], 1.0)
        with pytest.raises(OutputError):
            ledger.commit([scored(1, 0.2), scored(0, 0.3)], [], 1.0)  # window 0 is there already
        assert ledger.finished == 1 and ledger.seconds == 1.0
        with pytest.raises(KeyboardInterrupt):
            ledger.commit([scored(1, 0.2)], interrupted(), 1.0)
        assert ledger.finished == 1


def test_of_a_finished_chunk_only_what_failed_is_replaced(tmp_path):
    def failed(k: int, reason: str) -> tuple[int, str, int, str]:
        return 0, "a.tif", k, reason

    with begun(tmp_path) as ledger:
        ledger.commit([scored(0, 0.1), Window(1, 0, "failed"), Window(2, 0, "failed")],
                      [failed(1, "cut off"), failed(2, "cut off")], 1.0)  # fmt: skip
        ledger.commit([Window(3, 0, "failed")], [failed(3, "cut off")], 1.0)
        assert ledger.plan().again == {1, 2, 3}
        with pytest.raises(KeyboardInterrupt):
            ledger.commit([scored(0, 0.5), scored(1, 0.6), scored(2, 0.7)], interrupted(), 1.0)
        assert ledger.plan().again == {1, 2, 3} and ledger.counts() == {"failed": 3, "ok": 1}
        # window 0, which could be read before, cannot now
        ledger.commit([Window(0, 0, "failed"), scored(1, 0.9), Window(2, 0, "failed")],
                      [failed(0, "gone"), failed(2, "gone")], 1.0)  # fmt: skip
        assert [w.probability for w in ledger.windows()] == [0.1, 0.9, None, None]
        assert ledger.plan().again == {2, 3} and ledger.finished == 4 and ledger.seconds == 3.0
        assert ledger.failures()[0].windows == 2


def test_a_repaired_source_is_to_be_read_whole_and_an_input_that_opens_now_joins(tmp_path):
    def planned(position: int, first: int) -> PlannedSource:
        axis = Axis(96, 32, 32, 4, 32)
        return PlannedSource(position, "x.tif", 96, 32, None, None, 0.3, True, Layout(axis, Axis(32, 32, 32, 4, 32)),
                             Ground([0.0], [0.0], [[0.09]]), first, ())  # fmt: skip

    inputs = [Input(name, 10, 5) for name in ("a.tif", "b.tif", "c.tif")]
    now = [Input("a.tif", 11, 9), Input("b.tif", 12, 9), inputs[2]]
    with Ledger(tmp_path) as ledger:
        ledger.begin(FINGERPRINT, inputs, Plan([planned(0, 0), planned(2, 3)], [Failure(1, "b.tif", 0, "empty")]))
        ledger.commit([scored(0, 0.9), Window(1, 0, "failed"), Window(2, 0, "outside-aoi"), scored(3, 0.8)],
                      [(0, "a.tif", 1, "cut off")], 1.0)  # fmt: skip
        assert ledger.changed(now) == [0, 1] and ledger.difference(FINGERPRINT, now) is None
        ledger.take_up(now, Plan([planned(1, 6)], []), [planned(0, 0)])
        plan = ledger.plan()
        assert [(s.position, s.first) for s in plan.sources] == [(0, 0), (2, 3), (1, 6)]
        assert plan.again == {0, 1} and plan.failures == [] and plan.windows == 9
        assert [w.status for w in ledger.windows()] == ["failed", "failed", "outside-aoi", "ok"]
        assert ledger.found(0.5) == 1 and ledger.failures() == [Failure(0, "x.tif", 2, ledger.failures()[0].reason)]
        assert ledger.changed(now) == [] and ledger.finished == 4


def interrupted():
    raise KeyboardInterrupt
    yield


@pytest.mark.parametrize(
    ("fingerprint", "inputs", "said"),
    [
        ({"model": "m", "gsd": 0.3}, INPUTS, None),
        ({"model": "other", "gsd": 0.3}, INPUTS, "model was m there and is other now"),
        ({"model": "m"}, INPUTS, "gsd was 0.3 there and is not given now"),
        (FINGERPRINT, INPUTS[:1], "2 inputs and there are 1 now"),
        (FINGERPRINT, [Input("a.tif", 10, 6), INPUTS[1]], "a.tif has changed"),
        (FINGERPRINT, [INPUTS[0], Input("b.tif", 20, 7)], None),  # it failed: it may have been repaired
        (FINGERPRINT, [INPUTS[0], Input("c.tif", 20, 6)], "b.tif, where there is c.tif now"),
    ],
)
def test_another_run_is_told_apart(tmp_path, fingerprint, inputs, said):
    with begun(tmp_path) as ledger:
        found = ledger.difference(fingerprint, inputs)
        assert found is None if said is None else said in (found or "")


def test_one_process_at_a_time(tmp_path):
    with begun(tmp_path), pytest.raises(OutputError, match="another process"):
        Ledger(tmp_path)


def test_a_damaged_ledger_is_said_in_a_line(tmp_path):
    (tmp_path / FILE).write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(OutputError, match="--overwrite"):
        Ledger(tmp_path)


def test_begun_tells_a_survey_from_an_empty_file(tmp_path):
    assert not Ledger.begun(tmp_path)
    sqlite3.connect(tmp_path / FILE).close()
    assert not Ledger.begun(tmp_path)
    begun(tmp_path).close()
    assert Ledger.begun(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]  # the log is folded in


def test_what_was_seen_is_kept_until_another_model_looks_or_the_file_changes(tmp_path):
    def axis(size: int) -> Axis:
        return Axis(size, 8, 8, 1, 8)

    ground = Ground([0.0], [0.0], [[1.0]])
    plan = Plan(
        [PlannedSource(k, f"{k}.tif", 16, 8, None, None, 1.0, True, Layout(axis(16), axis(8)), ground, 2 * k, ())
         for k in range(2)], [],
    )  # fmt: skip
    with Ledger(tmp_path) as ledger:
        ledger.begin(FINGERPRINT, INPUTS, plan)
        ledger.commit([scored(0, 0.1), Window(1, 0, "nodata"), scored(2, 0.2), scored(3, 0.3)], [], 1.0)
        ledger.look_with("a")
        assert ledger.unseen(0, 4) == [0, 2, 3] and ledger.looked == (0, 3)
        ledger.see([(0, b"zero"), (2, b"two")])
        assert ledger.unseen(0, 4) == [3] and ledger.looked == (2, 3)
        with pytest.raises(OutputError):
            ledger.see([(3, b"three"), (0, b"again")])
    with Ledger(tmp_path) as ledger:
        ledger.look_with("a")
        assert list(ledger.looks(0, 4)) == [(0, b"zero"), (2, b"two"), (3, None)]
        ledger.take_up(INPUTS, Plan([], []), plan.sources[1:])
        assert list(ledger.looks(0, 4)) == [(0, b"zero")] and ledger.looked == (1, 1)
        ledger.look_with("b")
        assert ledger.unseen(0, 4) == [0]
