"""How the measured area of a window answers to its pixels: a smooth version to climb, and the measurement itself.

A survey's area has steps (a threshold on the probability, specks that count as nothing, boxes, GrabCut), where a
gradient says nothing.  `SmoothArea` is its logarithm without them,

    log sigmoid(logit - logit threshold) + log area

with the first estimate's mean fraction (`negah.solar.footprint`) for the area, or the calibrated one: the closer look
at the box of the first (held fixed in the gradient, since it moves in steps), its cells' fractions, and
presence(p) spread e^a x^b of their sum x.  In the logarithm the first term keeps a slope where the window is far from a
find, and counts for little well above the threshold.

What it finds must be measured: `measured_m2` is what a survey makes of such a window, with all its steps.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy import ndarray
from scipy.special import logit
from torch import Tensor, nn

from negah.probe.attentive import Reading
from negah.solar.area import HALVES, Cells, glances
from negah.solar.footprint import footprint
from negah.solar.survey import Measure, Scorer, looked_closer

LEAST = 1e-6  # share of a window below which its logarithm stays


class SmoothArea(nn.Module):
    """Images in [0, 1] to the logarithm of the share of each that counts as panel; a module, so that modes are kept.

    Args:
        scorer: as in a survey, differentiable.
        patch: side of its patches in pixels.
    """

    def __init__(self, scorer: Scorer, measure: Measure, *, patch: int):
        super().__init__()
        self.scorer, self.measure, self.patch = scorer, measure, patch
        self.cut = float(logit(measure.threshold))
        self.train(scorer.training if isinstance(scorer, nn.Module) else False)

    def forward(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, " batch"]:
        reading = self.scorer(images)
        said = reading.logit.float()
        found = F.logsigmoid(said - self.cut)
        if (calibration := self.measure.calibration) is None:
            share = footprint(reading, threshold=0.0).fraction.mean(1)
            return found + share.clamp(min=LEAST).log()
        firsts = glances(_detached(reading), range(len(images)), rows=images.shape[2] // self.patch)
        shares = [self._closer(image, first.box, calibration.cells) for image, first in zip(images, firsts)]
        fit = calibration.fit
        presence = F.logsigmoid(fit.u + fit.v * said)
        return found + presence + fit.a + fit.b * torch.stack(shares).clamp(min=LEAST).log()

    def _closer(self, image: Float[Tensor, "3 h w"], box: Sequence[int], cells: Cells) -> Float[Tensor, ""]:
        """Share of the window that is panel by a closer look at the box, which is in patches."""
        col, row, width, height = (side * self.patch for side in box)
        part = image[None, :, row : row + height, col : col + width]
        larger = F.interpolate(part, scale_factor=cells.zoom, mode="bicubic").clamp(0, 1)
        reading, rows = self.scorer(larger), box[3] * cells.zoom
        if cells.layer:
            assert reading.outputs is not None
            layer = part.new_tensor(cells.layer)
            score = (reading.outputs[0].float() @ layer[:, :-1].T + layer[:, -1]).unflatten(0, (rows, -1))
            score = F.pixel_shuffle(score.permute(2, 0, 1)[None], HALVES)
        else:
            attention = reading.attention[0].float()
            share = (attention * attention.shape[-1]).clamp(min=1e-6).log()
            heads = (share.new_tensor(cells.heads)[:, None] * share).sum(0)
            score = cells.bias + cells.scale * reading.patch_logits[0].float() + heads
            score = F.interpolate(score.view(1, 1, rows, -1), scale_factor=HALVES, mode="bicubic")
        return score.sigmoid().mean() * (part[0].numel() / image.numel())


@torch.no_grad()
def measured_m2(
    scorer: Scorer, images: Float[Tensor, "n 3 h w"], measure: Measure, *, patch: int,
    ground_m2: Float[ndarray, " n"], gsd_m: Float[ndarray, " n"], batch: int = 32,
) -> Float[ndarray, " n"]:  # fmt: skip
    """Area of each window as a survey measures it; all pixels are valid.

    ground_m2: of the windows.  gsd_m: of the pictures they come from.  With a calibration pixels are rounded to 8 bits,
    as a survey has them.
    """
    areas = []
    for part in images.split(batch):
        reading = scorer(part)
        found = footprint(reading, threshold=measure.threshold)
        probability, fraction = found.probability.cpu().numpy(), found.fraction.cpu().numpy()
        if measure.calibration is not None:
            fraction = looked_closer(
                scorer, (part * 255).round().to(torch.uint8), {}, probability, reading, measure.calibration.cells,
                threshold=measure.threshold, patch=patch,
            )  # fmt: skip
        some = slice(sum(map(len, areas)), sum(map(len, areas)) + len(part))
        area = fraction.mean(1, dtype=np.float64) * ground_m2[some]
        areas.append(measure.sizes.measure(area, probability.astype(float), gsd_m[some], ground_m2[some])[0])
    return np.concatenate(areas)


def _detached(reading: Reading) -> Reading:
    return Reading(reading.logit.detach(), reading.attention.detach(), reading.patch_logits.detach())
