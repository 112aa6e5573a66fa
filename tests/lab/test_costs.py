"""Time is read against a neighbour's, and memory is counted right."""

import pytest
import torch

from negah.lab.costs import ANEW, LEAST_ROUNDS, Cost, costs, highest, peak_memory
from negah.lab.training import Effort

EFFORT = Effort(steps=10, say=lambda line: None)


def test_peak_memory_is_that_of_tensors_alive_together():
    x = torch.zeros(250_000)  # a megabyte, from before

    def three():
        a, b = x + 1, x + 2
        del a
        c, d = b + 1, b + 2
        return c, d

    assert peak_memory(three) == pytest.approx(3e6, rel=0.01)
    assert peak_memory(three) == peak_memory(three)


def test_costs_run_in_turns_and_are_read_against_their_neighbours():
    order: list[str] = []
    found = costs({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, EFFORT)
    assert order[:8] == ["a", "b"] * 4
    assert len(found["a"].seconds) == LEAST_ROUNDS
    # The machine slows down fourfold on the way: the ratio of neighbours does not notice.
    slow, fast = Cost([2.0, 2.0, 8.0, 8.0, 8.0], 100), Cost([1.0, 1.0, 4.0, 4.0, 4.0], 50)
    row = fast.row(slow)
    assert row["speed"] == row["speed, lower quarter"] == row["speed, upper quarter"] == 2.0
    assert row["memory"] == 0.5 and row["ms"] == 4000


@pytest.mark.skipif(not ANEW.exists(), reason="only Linux tells the highest size of a process")
def test_the_highest_size_of_a_process_is_that_of_a_run_and_not_of_one_before():
    def held(megabytes: int):
        return lambda: torch.ones(megabytes * 250_000)

    assert highest(held(400))[0] == pytest.approx(400e6, rel=0.05)
    above, whole = highest(held(100))
    assert above == pytest.approx(100e6, rel=0.1) and whole > above
