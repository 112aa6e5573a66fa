from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from negah.probe.attentive import Reading
from negah.probe.detector import Detector
from negah.solar.area import (
    Cells,
    Glance,
    Known,
    Look,
    best_level,
    fit_cells,
    glances,
    halved,
    look_at,
    quarters,
    refined,
    shrunk,
    without_specks,
)  # fmt: skip


def known(n: int, *, heads: int = 2, seed: int = 0, dim: int = 0) -> list[Known]:
    """Windows of 6 x 6 patches with a rectangle of panel; evidence is off by a bias and a scale, head 0 sees panels."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        fraction = np.zeros((12, 12), np.float32)
        top, left = rng.integers(0, 8, 2)
        fraction[top : top + rng.integers(2, 8), left : left + rng.integers(2, 8)] = 1
        patch = fraction.reshape(6, 2, 6, 2).mean((1, 3))
        truth = logit(np.clip(patch, 0.02, 0.98))
        share = np.stack([truth / 4, *rng.normal(0, 1, (heads - 1, 6, 6))])
        outputs = None
        if dim:
            parts = fraction.reshape(6, 2, 6, 2).transpose(0, 2, 1, 3).reshape(6, 6, 4)
            outputs = np.concatenate([parts, rng.normal(0, 0.1, (6, 6, dim - 4))], 2).astype(np.float32)
            truth = outputs[..., :4].sum(2) - 2
        found.append(Known(Look((truth + 3) / 2, share, outputs), fraction))
    return found


def test_bias_and_scale_of_the_evidence_are_taken_out():
    cells = fit_cells(known(60), zoom=1, from_masks=False)
    new = known(20, seed=9)
    area = np.array([cells.fraction(k.look).sum() for k in new])
    true = np.array([k.fraction.sum() for k in new])
    plain = np.array([expit(halved(k.look.evidence.astype(np.float32)[None])).sum() for k in new])
    assert np.median(abs(area / true - 1)) < 0.15 < 0.5 < np.median(abs(plain / true - 1))
    assert area.sum() == pytest.approx(true.sum(), rel=0.1)


def test_a_head_that_looks_elsewhere_is_left_out():
    some = known(60, heads=3)
    some = [k._replace(look=k.look._replace(evidence=np.zeros((6, 6)))) for k in some]  # only attention knows
    cells = fit_cells(some, zoom=1, from_masks=False)
    assert cells.heads[0] > 1 and max(cells.heads[1:]) < 0.1
    turned = [k._replace(look=k.look._replace(share=-k.look.share)) for k in some]
    assert fit_cells(turned, zoom=1, from_masks=False).heads[0] == 0  # not turned round


def test_few_masks_leave_the_head_as_it_was():
    cells = fit_cells(known(1)[:1], zoom=1, from_masks=False)
    assert abs(cells.bias) < 1.5 and 0.5 < cells.scale < 2


def test_evidence_from_masks_sees_quarters_of_patches():
    some, new = known(60, dim=8), known(20, dim=8, seed=9)
    some = [k._replace(look=k.look._replace(share=np.zeros((2, 6, 6)))) for k in some]
    own, anew = (fit_cells(some, zoom=1, from_masks=flag) for flag in (False, True))

    def iou(cells: Cells) -> float:
        return best_level([cells.fraction(k.look) for k in new], new)[1]

    assert len(anew.layer) == 4 and len(anew.layer[0]) == 9
    assert iou(anew) > 0.99 > iou(own) + 0.02


def test_quarters_lie_where_they_belong():
    parts = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    laid = quarters(parts)
    assert laid.shape == (4, 6)
    assert laid[:2, :2].tolist() == [[0, 1], [2, 3]] and laid[2:, 4:].tolist() == [[20, 21], [22, 23]]


def test_the_level_is_where_outlines_overlap_most():
    some = known(5)
    level, iou = best_level([k.fraction * 0.45 for k in some], some)
    assert 0.2 <= level < 0.45 and iou == pytest.approx(1)


def test_refining_moves_outlines_to_edges_of_colour():
    image = np.full((48, 48, 3), 60, np.uint8)
    image[10:30, 12:38] = (40, 60, 200)
    image = (image + np.random.default_rng(0).integers(0, 12, image.shape)).astype(np.uint8)
    true = np.zeros((48, 48), np.float32)
    true[10:30, 12:38] = 1
    blurred = np.zeros((12, 12), np.float32)
    blurred[2:8, 2:10], blurred[3:7, 4:9] = 0.45, 0.9  # sure inside, vague around, and too far to the left
    better = refined(blurred, image)
    truth = true.reshape(12, 4, 12, 4).mean((1, 3))
    assert np.abs(better - truth).mean() < 0.02 < 0.05 < np.abs(blurred - truth).mean()
    assert (refined(better, image) == refined(better.copy(), image)).all()  # the same every time
    for sure in (0.0, 0.9):
        assert (refined(np.full((12, 12), sure, np.float32), image) == np.float32(sure)).all()
    look = Look(logit(np.clip(blurred[::2, ::2], 0.01, 0.99)), np.zeros((1, 6, 6)), None, image)
    plain = Cells(1, 0.3, 0.0, 1.0, (0.0,))
    assert not (plain.fraction(look) == replace(plain, refine=True).fraction(look)).all()


def test_means_over_cells_are_exact():
    mask = (np.random.default_rng(0).random((125, 85)) < 0.3).astype(float)
    small = shrunk(mask, 52, 44)
    assert small.mean() == pytest.approx(mask.mean(), rel=1e-5)
    assert np.allclose(shrunk(np.array([[0.0, 1.0, 0.0]]), 1, 2), [[1 / 3, 1 / 3]])
    assert np.allclose(shrunk(np.array([[0.0, 1.0]]), 2, 4), [[0, 0, 1, 1], [0, 0, 1, 1]])


def test_pixels_without_data_are_no_panel():
    look = Look(np.full((2, 2), 3.0), np.zeros((1, 2, 2)), valid=np.array([[1.0, 0.5], [0.0, 1.0]]))
    fraction = Cells(1, 0.3, 0.0, 1.0, (0.0,)).fraction(look)
    assert (fraction[2:, :2] == 0).all() and np.allclose(fraction[:2, 2:], fraction[0, 0] / 2)


def test_specks_smaller_than_a_module_are_nothing_but_for_those_at_the_edge():
    fraction = np.full((8, 8), 0.1, np.float32)
    fraction[2, 2] = fraction[2, 3] = 0.9  # two cells
    fraction[0, 6] = 0.9  # one, which may go on above
    fraction[5:7, 5:7] = 0.9  # four
    left = without_specks(fraction, 0.3, least=4)
    assert left[2, 2] == left[2, 3] == 0 and left[0, 6] == fraction[0, 6]
    assert (left[5:7, 5:7] == fraction[5:7, 5:7]).all() and left[4, 0] == fraction[4, 0]
    assert (without_specks(fraction, 0.3, least=1) == fraction).all()


class Bright:
    """Evidence is the brightness of a patch, attention follows it; counts the sizes it was shown."""

    def __init__(self):
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: torch.Tensor, *, above: float | None = None) -> Reading:
        self.seen.append(tuple(images.shape))
        bright = torch.nn.functional.avg_pool2d(images.float() / 255, 8).mean(1).flatten(1)
        evidence = bright.logit(eps=0.01)
        return Reading(evidence.amax(1), bright.softmax(1).unsqueeze(1), evidence, bright.unsqueeze(2))


def glance(scorer, image: torch.Tensor) -> Glance:
    return glances(scorer(image[None]), [0], rows=image.shape[1] // 8)[0]


def test_a_closer_look_is_of_the_enlarged_box_around_the_evidence():
    scorer = Bright()
    image = torch.zeros(3, 40, 64, dtype=torch.uint8)
    image[:, :8, 16:24] = 255
    first = glance(scorer, image)
    assert first.box == (1, 0, 3, 2)  # a patch around, as far as the window goes
    look = look_at(scorer, image, first, patch=8, zoom=2)
    assert scorer.seen[1:] == [(1, 3, 32, 48)] and look.evidence.shape == (4, 6) and look.share.shape == (1, 4, 6)
    closer = look_at(scorer, image, first, patch=8, zoom=2, outputs=True)
    assert look.outputs is None and closer.outputs is not None and closer.outputs.shape == (4, 6, 1)
    assert (look.evidence[:2, 2:4] > 2).all() and (look.evidence[2:] < -2).all()
    fraction = Cells(2, 0.3, 3.0, 1.0, (0.0,)).fraction(look)
    assert fraction.shape == (20, 32) and fraction.min() >= 0 and fraction.max() <= 1
    box = look.inside(fraction)
    assert box.shape == (8, 12) and box.min() > 0 and fraction.sum() == pytest.approx(box.sum())
    assert (Known(look, fraction).inside == box).all()
    assert look.inside(image.permute(1, 2, 0).numpy()).shape == (16, 24, 3)


@pytest.mark.parametrize("evidence, box", [
    ({(0, 0): 3.0, (4, 5): 3.0}, (0, 0, 7, 6)),  # (column, row, width, height), a patch around
    ({(2, 2): 3.0, (6, 6): -1.0}, (1, 1, 3, 3)),  # 0.27 as a probability
    ({(2, 2): 3.0, (6, 6): -0.8}, (1, 1, 6, 6)),  # 0.31
    ({(2, 2): -3.0}, (1, 1, 3, 3)),  # all is weak: where it is strongest
    ({(2, 2): np.nan}, (1, 1, 3, 3)),  # a broken model's: the survey says so of the window, and goes on
])  # fmt: skip
def test_the_box_holds_all_evidence_and_is_never_empty(evidence, box):
    logits = np.full((7, 7), -6.0)
    for place, value in evidence.items():
        logits[place] = value
    assert Glance(logits, np.zeros((1, 7, 7))).box == box


def test_cells_are_fitted_on_boxes_as_surveys_see_them():
    """The same figures, however much empty window lies around what was looked at."""
    some = known(60, dim=6)
    wide = []
    for k in some:
        around = Glance(np.full((10, 10), -6.0), np.zeros((2, 10, 10)))
        around.evidence[3:7, 2:6] = 3.0  # with the margin, 6 x 6 patches
        fraction = np.zeros((20, 20), np.float32)
        fraction[4:16, 2:14] = k.fraction
        wide.append(Known(k.look._replace(first=around), fraction))
    for from_masks in (False, True):
        cells = fit_cells(some, zoom=1, from_masks=from_masks)
        assert fit_cells(wide, zoom=1, from_masks=from_masks) == cells
        whole = cells.fraction(wide[0].look)
        assert whole.shape == (20, 20) and (whole[4:16, 2:14] == cells.fraction(some[0].look)).mean() > 0.9


def test_areas_add_up_where_attention_only_shares():
    """Twice the panel is twice the area, though attention sums to one for both."""
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    areas = []
    for width in (16, 32):
        image[:, 16:48, 8 : 8 + width] = 255
        look = look_at(Bright(), image, glance(Bright(), image), patch=8, zoom=1)
        areas.append(Cells(1, 0.3, 0.0, 1.0, (0.0,)).fraction(look).sum())
    assert areas[1] / areas[0] == pytest.approx(2, rel=0.1)


def test_the_bundled_layout_can_be_looked_at():
    detector = Detector.random(window_px=32)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        look = look_at(detector, image, glance(detector, image), patch=8, zoom=2, outputs=True)
        assert look.outputs is not None and look.outputs.shape == (*look.evidence.shape, 32)
        whole = detector(image[None])
        assert whole.outputs is not None
        assert torch.allclose(detector.head.classifier(whole.outputs).squeeze(-1), whole.patch_logits, atol=1e-6)
