import sqlite3

import numpy as np
import pytest

from negah.errors import OutputError
from negah.solar.ledger import FILE, Input, Ledger, Window, pack
from negah.solar.plan import Failure, Plan

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


def interrupted():
    raise KeyboardInterrupt
    yield


@pytest.mark.parametrize(
    ("fingerprint", "inputs", "said"),
    [
        ({"model": "m", "gsd": 0.3}, INPUTS, None),
        ({"model": "other", "gsd": 0.3}, INPUTS, "model was m there and is other now"),
        ({"model": "m"}, INPUTS, "gsd was 0.3 there and is None now"),
        (FINGERPRINT, INPUTS[:1], "2 inputs and there are 1 now"),
        (FINGERPRINT, [INPUTS[0], Input("b.tif", 20, 7)], "b.tif has changed"),
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
