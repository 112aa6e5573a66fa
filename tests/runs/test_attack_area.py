"""How far areas move: in the right directions, further than noise, and on pictures that can be stored."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from negah.errors import InputError
from negah.probe.detector import Detector
from negah.runs import attack_area as runs
from negah.runs.attack_area import Windows, attack_area, windows_of
from negah.solar.area import Cells
from negah.solar.calibration import Bins, Calibration, Fit
from negah.solar.survey import Measure


@pytest.fixture(scope="module")
def given():
    """A detector of random weights that finds panels in half of some random windows."""
    detector = Detector.random(window_px=32)
    windows = torch.randint(256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        detector.head.classifier.bias -= detector(windows).logit.median() + 1e-3
    return detector, Windows(windows, np.full(12, 92.16), np.full(12, 0.3))


def calibration() -> Calibration:
    cells, fit = Cells(2, 0.4, 0.0, 1.0, (0.5,)), Fit(0.0, 1.0, 1.0, 2.0, 0.5)
    return Calibration(
        "", 0.5, "", 30, 3, (0.3, 0.3), (1.0, 50.0), cells, fit, (Bins(0.3, (), (0.5,), (2.0,)),), 0.0, 1.0, 0.1, 0.1
    )


@pytest.mark.parametrize("made", [None, calibration()], ids=["first estimate", "calibrated"])
def test_areas_are_driven_both_ways_and_further_than_by_noise(given, made):
    detector, windows = given
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    found = attack_area(detector, windows, Measure(0.5, calibration=made), eps=(4 / 255, 1 / 255), steps=5, bf16=True)
    assert [round(moved.eps * 255) for moved in found] == [1, 4]
    for moved in found:
        assert (moved.lowest <= moved.before).all() and (moved.before <= moved.highest).all()
        assert (moved.noise_lowest <= moved.noise_highest).all()
        assert moved.highest.sum() - moved.lowest.sum() > 2 * (moved.noise_highest - moved.noise_lowest).sum()
    for small, large in pairwise(found):
        assert (large.lowest <= small.lowest).all() and (large.highest >= small.highest).all()
        assert large.highest.sum() > small.highest.sum()
    assert 0 < (found[0].before > 0).sum() < 12
    assert (found[-1].lowest[found[0].before > 0] == 0).any(), "no panel is hidden"
    assert (found[-1].highest[found[0].before == 0] > 0).any(), "no panel appears"
    assert all(torch.equal(value, state[name]) for name, value in detector.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in detector.parameters())


def test_whole_grey_levels_are_measured_on_pictures_that_can_be_stored(given, monkeypatch):
    detector, windows = given
    seen, measure = [], runs.measured_m2

    def watched(scorer, images, *args, **kwargs):
        seen.append(images)
        return measure(scorer, images, *args, **kwargs)

    monkeypatch.setattr(runs, "measured_m2", watched)
    attack_area(detector, windows, Measure(0.5), eps=(1 / 255,), steps=4, draws=1)
    assert len(seen) == 4  # as they are, up, down, random signs
    for images in seen:
        levels = (images * 255).round()
        assert (images * 255 - levels).abs().max() < 1e-4
        assert (levels - windows.pixels).abs().max() <= 1
    assert all((images * 255 - windows.pixels).abs().max() > 0.5 for images in seen[1:])


def test_what_cannot_be_done_is_named(given):
    detector, windows = given
    with pytest.raises(InputError, match="no window"):
        attack_area(detector, Windows(*(values[:0] for values in windows)), Measure(0.5))
    with pytest.raises(InputError, match="radii above 0"):
        attack_area(detector, windows, Measure(0.5), eps=(0.0,))
    with pytest.raises(InputError, match="whole grey levels"):
        attack_area(detector, windows, Measure(0.5, calibration=calibration()), eps=(0.5 / 255,))


def test_windows_are_those_of_a_survey(given, tmp_path):
    """At 0.3 m a picture of 64 x 32 px holds two windows of 32 px, at 0.15 m one of half the pixels each way."""
    detector, windows = given
    wide = np.concatenate([p.permute(1, 2, 0).numpy() for p in windows.pixels[:2]], 1)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (found,), failures = windows_of([str(tmp_path)], detector, gsd_m=0.3)
    assert torch.equal(found.pixels, windows.pixels[:2]) and [name for name, _ in failures] == [
        str(tmp_path / "broken.png")
    ]
    np.testing.assert_allclose(found.ground_m2, [9.6**2] * 2)
    assert found.gsd_m.tolist() == [0.3] * 2
    (one,), _ = windows_of([str(tmp_path)], detector, gsd_m=0.3, most=1)
    assert len(one.pixels) == 1
    (coarse,), _ = windows_of([str(tmp_path)], detector, gsd_m=0.15)
    assert coarse.pixels.shape == (1, 3, 16, 32) and coarse.ground_m2 == pytest.approx(9.6 * 4.8)


def test_windows_with_panels_are_drawn_first_and_others_only_to_fill_up(given, tmp_path):
    detector, windows = given
    wide = np.concatenate([p.permute(1, 2, 0).numpy() for p in windows.pixels], 1)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    measure = Measure(0.5)
    (every,), _ = windows_of([str(tmp_path)], detector, gsd_m=0.3, most=12, found_by=measure)
    (moved,) = attack_area(detector, every, measure, eps=(1 / 255,), steps=1, draws=1)
    held = moved.before > 0
    assert len(held) == 12 and 0 < held.sum() < 12
    draws = []
    for seed in (0, 0, 1, 2, 3):
        (some,), _ = windows_of([str(tmp_path)], detector, gsd_m=0.3, most=2, seed=seed, found_by=measure)
        at = [int((every.pixels == one).flatten(1).all(1).nonzero()[0, 0]) for one in some.pixels]
        assert held[at].all() and at == sorted(at)
        draws.append(at)
    assert draws[0] == draws[1] and len(set(map(tuple, draws))) > 1
    (most,), _ = windows_of([str(tmp_path)], detector, gsd_m=0.3, most=int(held.sum()) + 2, found_by=measure)
    (moved,) = attack_area(detector, most, measure, eps=(1 / 255,), steps=1, draws=1)
    assert (moved.before > 0).sum() == held.sum() and len(moved.before) == held.sum() + 2
