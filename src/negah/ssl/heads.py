"""The small networks behind a backbone: projectors and predictors, all of them MLPs that differ in depth and norms.

projector(width, 2048, 128, last_norm=True)                                   SimCLR
projector(width, width, 128, norm=False)                                      MoCo v2
projector(width, 4096, 256, layers=3, last_norm=True, last_affine=False)      MoCo v3; its predictor has 2 layers
projector(width, 4096, 256)                                                   BYOL, projector and predictor
"""

from itertools import pairwise

from torch import nn

from negah.nn.norm import GlobalBatchNorm1d


def projector(
    width: int, hidden: int, out: int, *, layers: int = 2, norm: bool = True, last_norm: bool = False,
    last_affine: bool = True,
) -> nn.Sequential:  # fmt: skip
    """MLP from `width` to `out`: linear, batch norm, ReLU; the last layer has no ReLU.

    A linear layer has a bias only where no norm follows, which would take it away again.

    Args:
        layers: linear layers; 1 leaves `hidden` unused.
        norm: batch norm after all layers but the last, with the statistics of all processes.
        last_norm: batch norm after the last layer as well.
        last_affine: whether that one has a learned gain and shift.
    """
    widths = [width] + [hidden] * (layers - 1) + [out]
    parts: list[nn.Module] = []
    for k, (before, after) in enumerate(pairwise(widths)):
        last = k == layers - 1
        normed = last_norm if last else norm
        parts.append(nn.Linear(before, after, bias=not normed))
        if normed:
            parts.append(GlobalBatchNorm1d(after, affine=last_affine or not last))
        if not last:
            parts.append(nn.ReLU(inplace=True))
    return nn.Sequential(*parts)
