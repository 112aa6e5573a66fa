"""Sentences follow the figures, whichever way these came out."""

import torch

from negah.lab.conclusions import against, collapses, gains, trend, versus
from negah.lab.training import Learned, Pictures

PICTURES = Pictures(
    torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.long),
    torch.zeros(1000, 3, 2, 2, dtype=torch.uint8), torch.zeros(1000, dtype=torch.long),
)  # fmt: skip


def run(label: str, knn: float, kind: str = "none", seed: int = 0) -> Learned:
    return Learned(label, seed, [], [{"step": 0, "knn": 0.2}, {"step": 10, "knn": knn}], kind, "", 1.0)


def test_a_difference_counts_from_two_standard_errors():
    # Two standard errors of a difference near .3 in 1000 pictures: 2 sqrt(2 * .21 / 1000) = .041.
    assert against(0.3, 0.335, 1000) == against(0.335, 0.3, 1000) == "no different from"
    assert against(0.345, 0.3, 1000) == "above" and against(0.3, 0.345, 1000) == "below"
    assert against(0.335, 0.3, 4000) == "above"


def test_collapses_are_told_by_kind_and_seed():
    runs = [run("a", 0.3), run("b", 0.2, "complete"), run("c", 0.2, "complete"), run("c", 0.2, seed=1)]
    assert collapses(runs) == "Collapse: complete (b, c (1 of 2)). None: a, c (1 of 2)."
    assert collapses(runs[:1]) == "Collapse: nowhere. None: a."
    assert collapses(runs[1:2]) == "Collapse: complete (b). None: nowhere."


def test_gains_are_over_the_network_before_training():
    said = gains([run("a", 0.3), run("b", 0.21), run("c", 0.1)], PICTURES)
    assert (
        said
        == "kNN accuracy before training is 0.200; above it: a 0.300; no different from it: b 0.210; below it: c 0.100."
    )


def test_two_settings_and_ends_of_a_series_are_compared_by_the_mean_of_their_seeds():
    runs = [run("a", 0.2), run("a", 0.4, seed=1), run("b", 0.2)]
    assert versus(runs, "a", "b", PICTURES) == "a ends above b (0.300, 0.200)."
    assert versus(runs, "b", "a", PICTURES) == "b ends below a (0.200, 0.300)."
    by = {64: [run("x", 0.3)], 16: [run("x", 0.29)], 32: [run("x", 0.1)]}
    assert trend(by, PICTURES) == "with 64 no different from 16 (16: 0.290, 32: 0.100, 64: 0.300)"
