import numpy as np
import pytest

from negah.solar.area import Glance, Known, Look
from negah.solar.audit import audit


def window(attention: np.ndarray, panel: np.ndarray, evidence: float = -5.0) -> Known:
    """attention [head, row, col] sums to at most one per head; panel [row, col] is 0 or 1."""
    share = np.log(np.maximum(attention * panel.size, 1e-6))
    return Known(Look(np.where(panel > 0, 5.0, evidence), share, None), np.kron(panel, np.ones((2, 2))))


def test_a_head_on_panels_one_on_a_sink_and_one_on_itself():
    panel = np.zeros((4, 4))
    panel[0, :2] = 1
    on_panels, on_a_sink, on_itself = np.zeros((4, 4)), np.zeros((4, 4)), np.full((4, 4), 0.01)
    on_panels[0, :2] = 0.5
    on_a_sink[3, 3] = 1
    seen = audit([window(np.stack([on_panels, on_a_sink, on_itself]), panel)])
    assert seen is not None and seen.windows == 1 and seen.covered == pytest.approx(2 / 16)
    good, sink, itself, evidence = seen.heads
    assert (good.pointing, good.inside) == pytest.approx((1, 1), abs=1e-4) and good.iou == 1
    assert good.sink == pytest.approx(0, abs=1e-4)
    assert sink.pointing == 0 and sink.inside == pytest.approx(0, abs=1e-4) and sink.sink == pytest.approx(1, abs=1e-4)
    assert itself.sink == pytest.approx(0.84) and itself.inside == pytest.approx(2 / 16)
    assert evidence.name == "evidence" and evidence.iou == 1 and evidence.pointing == 1 and evidence.sink is None


def test_it_is_the_first_look_that_is_asked_where_heads_look():
    panel = np.zeros((4, 4))
    panel[0, :2] = 1
    whole = window(np.full((1, 4, 4), 1 / 16), panel)
    first = Glance(whole.look.evidence, whole.look.share)
    box = Look(np.full((4, 6), 5.0), np.zeros((1, 4, 6)), first=first)  # all panel, and all of the attention on it
    assert audit([Known(box, whole.fraction)]) == audit([whole])


def test_windows_without_panels_say_nothing():
    bare = window(np.full((1, 4, 4), 1 / 16), np.zeros((4, 4)))
    assert audit([bare]) is None and audit([]) is None
