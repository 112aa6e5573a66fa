import math

import pytest
import torch

from negah.probe.attentive import Reading
from negah.solar.footprint import footprint, mean_footprint


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def reading(presence: list[float], attention: list, evidence: list) -> Reading:
    return Reading(
        torch.tensor([logit(p) for p in presence]),
        torch.tensor(attention, dtype=torch.float32),
        torch.tensor([[logit(e) for e in row] for row in evidence]),
    )


def test_fraction_is_evidence_times_attention_capped_at_the_even_share():
    # two heads over four patches: means .5, .25, .125, .125 -> shares 1 (capped from 2), 1, .5, .5
    attention = [[[0.6, 0.2, 0.1, 0.1], [0.4, 0.3, 0.15, 0.15]]]
    found = footprint(reading([0.9], attention, [[0.8, 0.5, 0.4, 0.01]]), threshold=0.5)
    assert found.probability.tolist() == pytest.approx([0.9])
    assert found.fraction.flatten().tolist() == pytest.approx([0.8, 0.5, 0.2, 0.005])


def test_window_below_the_threshold_measures_exactly_zero():
    even = [[[0.25] * 4]] * 2
    found = footprint(reading([0.49, 0.51], even, [[0.9] * 4] * 2), threshold=0.5)
    assert found.fraction[0].abs().max() == 0
    assert found.fraction[1].sum().item() == pytest.approx(3.6)


def test_window_full_of_panel_measures_full_size_although_attention_sums_to_one():
    found = footprint(reading([0.99], [[[0.25] * 4]], [[0.999] * 4]), threshold=0.5)
    assert found.fraction.sum().item() == pytest.approx(4 * 0.999, rel=1e-4)


def test_a_window_does_not_depend_on_its_batch_mates():
    generator = torch.Generator().manual_seed(0)
    batch = Reading(
        torch.randn(5, generator=generator),
        torch.rand(5, 3, 9, generator=generator).softmax(-1),
        torch.randn(5, 9, generator=generator),
    )
    together = footprint(batch, threshold=0.3)
    for k in range(5):
        alone = footprint(Reading(*(field[k : k + 1] for field in batch[:3])), threshold=0.3)
        torch.testing.assert_close(alone.fraction[0], together.fraction[k])  # vectorised sigmoids round differently


def test_half_precision_readings_are_measured_in_full_precision():
    half = Reading(torch.zeros(1).bfloat16(), torch.full((1, 1, 3), 1 / 3).bfloat16(), torch.zeros(1, 3).bfloat16())
    found = footprint(half, threshold=0.5)
    assert found.fraction.dtype == found.probability.dtype == torch.float32


def test_ensemble_is_the_mean_of_its_members():
    even = [[[0.5, 0.5]]]
    a = footprint(reading([0.9], even, [[0.8, 0.2]]), threshold=0.5)
    b = footprint(reading([0.3], even, [[0.8, 0.2]]), threshold=0.5)  # sees no panel: zero
    assert mean_footprint([a]) is a
    both = mean_footprint([a, b])
    assert both.probability.tolist() == pytest.approx([0.6])
    assert both.fraction.flatten().tolist() == pytest.approx([0.4, 0.1])
