"""From what the head says to how much of each patch is panel.

The first, attention-based estimate.  Per patch j of a window,

    presence   p    = sigmoid(logit)                       of the window
    share      s_j  = min(1, n mean_h a_hj)                attention of the CLS query, 1 where it is the even share 1/n
    fraction   f_j  = sigmoid(e_j) s_j   if p >= threshold, else 0

and the window's panel area is sum_j f_j times the ground area of a patch.  Attention alone is a share of one, however
large the panel, so a window full of panel would measure as little as one with a single panel; evidence e_j is additive,
and the attention, which can only lower it, keeps evidence from where the head did not look.  A window in which no panel
is found measures exactly zero.

How it fails: neither factor was fitted to areas, so the estimate carries the detector's `area_ratio` as its interval,
where there is one, and a calibration on masks replaces it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from negah.probe.attentive import Reading


class Footprint(NamedTuple):
    """Panels of a batch of windows."""

    probability: Float[Tensor, " batch"]  # that there is a panel in the window
    fraction: Float[Tensor, "batch patch"]  # of each patch that is panel, in [0, 1]; patches row by row


def footprint(reading: Reading, *, threshold: float) -> Footprint:
    """Probability of each window and panel fraction of each of its patches; fp32, independent of the other windows."""
    probability = reading.logit.float().sigmoid()
    share = (reading.attention.float().mean(1) * reading.attention.shape[-1]).clamp(max=1)
    fraction = reading.patch_logits.float().sigmoid() * share
    return Footprint(probability, torch.where(probability[:, None] >= threshold, fraction, 0.0))


def mean_footprint(prints: list[Footprint]) -> Footprint:
    """The mean over several detectors of the same windows (an ensemble); of one, itself."""
    if len(prints) == 1:
        return prints[0]
    return Footprint(
        torch.stack([p.probability for p in prints]).mean(0), torch.stack([p.fraction for p in prints]).mean(0)
    )


@dataclass(frozen=True)
class FirstEstimate:
    """Areas as they are, in the place of a `negah.solar.calibration.Calibration`.

    ratio: factors between which 90 % of the true areas lie.  None: nothing is known of them, and all bounds are NaN.
    """

    ratio: tuple[float, float] | None = None

    def measure(
        self, area_m2: Float[ndarray, " n"], probability: Float[ndarray, " n"], gsd_m: Float[ndarray, " n"],
        ground_m2: Float[ndarray, " n"],
    ) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"], Float[ndarray, " n"]]:  # fmt: skip
        """Areas of windows and their bounds."""
        return area_m2, *self.interval(area_m2, gsd_m)

    def interval(
        self, area_m2: Float[ndarray, " n"], gsd_m: Float[ndarray, " n"]
    ) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
        """Bounds of areas."""
        low, high = self.ratio or (np.nan, np.nan)
        return area_m2 * low, area_m2 * high

    def total(self, sum_m2: float, area_m2: Float[ndarray, " n"]) -> tuple[float, float, float]:
        """The sum and its bounds, as if all errors went the same way."""
        low, high = self.ratio or (np.nan, np.nan)
        return sum_m2, sum_m2 * low, sum_m2 * high
