"""How far a small change of the pixels can move the square metres that are measured of windows.

    found = attack_area(detector, windows, Measure(threshold), ground_m2=..., gsd_m=..., eps=(1 / 255, 2 / 255))
    found[1].lowest.sum(), found[1].before.sum(), found[1].highest.sum()

In the Linf ball around each window, `adversarial.ascend` climbs the smooth logarithm of its area, upwards and downwards
(`solar.sensitivity.SmoothArea`); what counts is what a survey then measures.  Beside it stand random signs of the same
size: noise that means no harm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn

from negah.adversarial.ascend import ascend
from negah.adversarial.universal import random_signs
from negah.errors import InputError
from negah.probe.detector import Detector
from negah.solar.sensitivity import SmoothArea, measured_m2
from negah.solar.survey import Measure

BATCH = 16  # windows that are climbed at a time


@dataclass(frozen=True)
class Moved:
    """Areas of windows in m2, at one radius: as they are, the lowest and the highest reached.

    noise_lowest, noise_highest: of the draws of random signs, each window by itself.
    """

    eps: float
    before: Float[ndarray, " n"]
    lowest: Float[ndarray, " n"]
    highest: Float[ndarray, " n"]
    noise_lowest: Float[ndarray, " n"]
    noise_highest: Float[ndarray, " n"]


def attack_area(
    detector: Detector, windows: UInt8[Tensor, "n 3 h w"], measure: Measure, *, ground_m2: Float[ndarray, " n"],
    gsd_m: Float[ndarray, " n"], eps: Sequence[float] = (0.5 / 255, 1 / 255, 2 / 255), steps: int = 20, draws: int = 3,
    seed: int = 0, search: Callable[[nn.Module], nn.Module] = lambda smooth: smooth,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Moved]:  # fmt: skip
    """One `Moved` for each radius, in rising order; what was reached at a smaller radius counts at a larger one.

    At a radius of whole grey levels, pixels are rounded to 8 bits before they are measured: such a picture can be
    stored.  Other radii say what the network's own input can do.

    Args:
        windows: at the detector's ground size; sides multiples of its patch.
        ground_m2: of each window.  gsd_m: of the picture that it comes from.
        steps: of the climb, each way.  draws: of random signs.
        search: wraps what is climbed, such as `adversarial.evaluate.Bf16`.

    Raises InputError where there is no window, for a radius of 0 or less, and, with a calibration, for one that is not
    a whole number of grey levels: the closer look knows 8 bits only.
    """
    if not len(windows):
        raise InputError("there is no window to attack")
    radii = sorted(eps)
    if not radii or radii[0] <= 0:
        raise InputError(f"eps {[*radii]}: give radii above 0, in units of the whole range of a pixel")
    if measure.calibration is not None and not all(map(whole, radii)):
        raise InputError(
            f"eps {[*radii]}: with a calibration give whole grey levels, k / 255, as a survey reads 8 bits"
        )
    device = next(detector.parameters()).device
    windows, patch = windows.to(device), detector.patch
    measured = partial(measured_m2, detector, measure=measure, patch=patch, ground_m2=ground_m2, gsd_m=gsd_m)
    clean = windows.float() / 255
    up = search(SmoothArea(detector, measure, patch=patch).eval())
    scores = {"highest": up, "lowest": Negative(up)}
    before = measured(clean)
    reached, found = {"highest": before, "lowest": before}, []
    generator, parts = torch.Generator().manual_seed(seed), clean.split(BATCH)
    for number, radius in enumerate(radii):
        keep: Callable[[Tensor], Tensor] = eight_bits if whole(radius) else lambda x: x
        for turn, (name, better) in enumerate((("highest", np.maximum), ("lowest", np.minimum))):
            points = []
            for k, part in enumerate(parts):
                points.append(ascend(scores[name], part, eps=radius, steps=steps))
                progress((2 * number + turn) * len(parts) + k + 1, 2 * len(radii) * len(parts))
            reached[name] = better(reached[name], measured(keep(torch.cat(points))))
        noisy = np.stack([
            measured(keep((clean + torch.cat([random_signs(x[None], radius, generator) for x in clean])).clamp(0, 1)))
            for _ in range(draws)
        ])  # fmt: skip
        found.append(Moved(radius, before, reached["lowest"], reached["highest"], noisy.min(0), noisy.max(0)))
    return found


class Negative(nn.Module):
    """Downwards."""

    def __init__(self, score: nn.Module):
        super().__init__()
        self.score = score
        self.train(score.training)

    def forward(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, " batch"]:
        return -self.score(images)


def whole(radius: float) -> bool:
    """Whether a radius is so many grey levels of 8 bits."""
    return abs(radius * 255 - round(radius * 255)) < 1e-6


def eight_bits(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Pixels as they can be stored; from whole levels a point stays in its ball."""
    return (images * 255).round() / 255
