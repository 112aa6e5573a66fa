"""The smooth area is the measured one where that has no steps, and the measured one is what a survey measures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.special import logit
from torch import Tensor

from negah.images.sources import find_sources
from negah.probe.detector import Detector
from negah.runs.calibrate import Pair, compare
from negah.solar.area import Cells
from negah.solar.calibration import Bins, Calibration, Fit
from negah.solar.sensitivity import SmoothArea, measured_m2
from negah.solar.survey import Measure

THRESHOLD, GROUND = 0.3, 92.16  # m2 of a window of 32 px of 0.3 m


def detector() -> Detector:
    """All windows are finds; evidence and attention differ within them."""
    made = Detector.random(window_px=32, dim=64)
    with torch.no_grad():
        made.head.block.attn.qkv.weight *= 8
        made.head.classifier.bias += 1.0
    return made


def windows(n: int = 5) -> Tensor:
    """Smooth pictures, as far as random ones go: [n, 3, 32, 32] uint8."""
    small = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(small, size=32, mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


def calibration(*, layer: tuple = (), level: float = 1.1) -> Calibration:
    """level: above 1 no group of cells is a speck."""
    cells, fit = Cells(2, level, -0.2, 0.8, (0.4, 0.3), layer), Fit(0.3, 0.9, 1.1, 1.0, 0.5)
    bins = (Bins(0.3, (), (0.5,), (2.0,)),)
    return Calibration("", THRESHOLD, "", 30, 3, (0.3, 0.3), (1.0, 50.0), cells, fit, bins, 0.0, 1.0, 0.1, 0.1)


def measured(scorer: Detector, x: Tensor, measure: Measure) -> np.ndarray:
    n = len(x)
    return measured_m2(
        scorer, x.float() / 255, measure, patch=8, ground_m2=np.full(n, GROUND), gsd_m=np.full(n, 0.3), batch=2
    )


def smooth(scorer: Detector, x: Tensor, measure: Measure) -> np.ndarray:
    """The smooth area without the term that stands for the threshold."""
    with torch.no_grad():
        gate = F.logsigmoid(scorer(x).logit - logit(THRESHOLD))
        return (SmoothArea(scorer, measure, patch=8)(x.float() / 255) - gate).double().exp().numpy()


def test_the_first_estimate_is_the_same_where_panels_are_found():
    scorer, x = detector(), windows()
    found = measured(scorer, x, Measure(THRESHOLD))
    assert (found > 0).all()
    np.testing.assert_allclose(smooth(scorer, x, Measure(THRESHOLD)) * GROUND, found, rtol=1e-4)


@pytest.mark.parametrize("of", ["labels", "masks"])
def test_a_calibrated_area_is_the_same_but_for_rounded_pixels(of):
    scorer, x = detector(), windows()
    rows = 0.3 * torch.randn(4, 65, generator=torch.Generator().manual_seed(3))
    layer = tuple(map(tuple, rows.tolist())) if of == "masks" else ()
    made = calibration(layer=layer)
    found = measured(scorer, x, Measure(THRESHOLD, calibration=made))
    share = smooth(scorer, x, Measure(THRESHOLD, calibration=made))
    # e^a x^b is of m2, and the smooth figure of shares: GROUND^b between them, and the mean of the residuals.
    np.testing.assert_allclose(share * GROUND**made.fit.b * made.fit.spread, found, rtol=0.02)


def test_the_slope_of_a_calibrated_area_is_that_of_its_values():
    scorer, x = detector(), windows(1).float() / 255
    area = SmoothArea(scorer, Measure(THRESHOLD, calibration=calibration()), patch=8)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(area(x).sum(), x)
    towards = slope / slope.norm()
    with torch.no_grad():
        rise = (area(x + 0.02 * towards) - area(x - 0.02 * towards)) / 0.04
    assert rise.item() == pytest.approx(slope.norm().item(), rel=0.05)


def test_what_is_measured_is_what_a_survey_measures(tmp_path):
    scorer, x = detector(), windows()
    pairs = []
    for i, image in enumerate(x):
        for kind, pixels in (("picture", image.permute(1, 2, 0).numpy()), ("mask", np.full((32, 32), 255, np.uint8))):
            Image.fromarray(pixels).save(tmp_path / f"{kind}{i}.png")
        pairs.append(Pair(*(find_sources([str(tmp_path / f"{kind}{i}.png")])[0] for kind in ("picture", "mask"))))
    seen, _, failures = compare(pairs, scorer, gsd_m=0.3, threshold=THRESHOLD, precision="fp32")
    assert not failures
    np.testing.assert_allclose(measured(scorer, x, Measure(THRESHOLD)), seen.first_m2, rtol=1e-3)
    made = calibration(level=0.5)
    area = made.area(seen.compared(seen.fractions(made.cells)).area_m2, seen.probability)
    np.testing.assert_allclose(measured(scorer, x, Measure(THRESHOLD, calibration=made)), area, rtol=1e-3)


def test_below_the_threshold_nothing_is_measured_and_the_smooth_area_still_has_a_slope():
    scorer, x = detector(), windows()
    high = replace(Measure(THRESHOLD), threshold=0.9999999)
    assert (measured(scorer, x, high) == 0).all()
    pixels = (x.float() / 255).requires_grad_()
    (slope,) = torch.autograd.grad(SmoothArea(scorer, high, patch=8)(pixels).sum(), pixels)
    assert (slope.flatten(1).norm(dim=1) > 1e-4).all()
