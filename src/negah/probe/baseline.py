"""What no network is needed for: image statistics and a logistic regression, reported beside every probe.

A detector that cannot beat colour and edges has learnt colour and edges. Panels are dark, bluish, straight-edged and
on bright roofs, so these statistics do find some of them; sources that differ in camera or season they tell apart
without looking at a panel, which is the warning that this baseline is for.

Per image, resized to 96 px by area so that all are measured at one scale: moments (mean, deviation, skewness) of red,
green, blue, brightness and two opponent colours; histograms of each colour and of their 4 x 4 x 4 cube; energy and
quantiles of the gradient at three scales; orientations of the gradient in 4 x 4 cells (HOG, Dalal and Triggs 2005,
without overlapping blocks), their mean and maximum over the cells.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

SIDE = 96
CELLS, ORIENTATIONS = 4, 9


def image_statistics(images: Iterable[UInt8[ndarray, "_ _ 3"]]) -> Float[ndarray, "n d"]:
    """Statistics of RGB images (uint8, each of any size, or an array [n, h, w, 3]), float32.

    Needs only one image in memory at a time when given an iterator. Classified by `probe.linear.fit_linear`.
    """
    rows = [_statistics(_resized(image)) for image in images]
    return (
        torch.stack(rows).numpy() if rows else np.empty((0, len(_statistics(torch.zeros(3, SIDE, SIDE)))), np.float32)
    )


def _resized(image: UInt8[ndarray, "h w 3"]) -> Float[Tensor, "3 side side"]:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # a copy: decoded images may be read-only
    return F.interpolate(pixels[None], size=(SIDE, SIDE), mode="bilinear", antialias=True)[0].clamp(0, 1)


def _statistics(rgb: Float[Tensor, "3 side side"]) -> Float[Tensor, " d"]:
    red, green, blue = rgb
    grey = rgb.mean(0)
    channels = torch.stack([red, green, blue, grey, red - green, blue - (red + green) / 2]).flatten(1)
    return torch.cat([_moments(channels), _histograms(rgb.flatten(1)), _edges(grey)])


def _moments(channels: Float[Tensor, "c px"]) -> Float[Tensor, " d"]:
    mean = channels.mean(1, keepdim=True)
    std = channels.std(1, keepdim=True, unbiased=False)
    skew = ((channels - mean) / (std + 1e-3)).pow(3).mean(1)
    return torch.cat([mean[:, 0], std[:, 0], skew])


def _histograms(rgb: Float[Tensor, "3 px"]) -> Float[Tensor, " d"]:
    fine = (rgb * 16).long().clamp(max=15)
    each = torch.stack([torch.bincount(c, minlength=16) for c in fine]).flatten()
    coarse = fine // 4
    cube = torch.bincount((coarse[0] * 4 + coarse[1]) * 4 + coarse[2], minlength=64)
    return (torch.cat([each, cube]) / rgb.shape[1]).sqrt()  # Hellinger: small shares count as they should


def _edges(grey: Float[Tensor, "side side"]) -> Float[Tensor, " d"]:
    found = []
    for scale in (1, 2, 4):
        dx, dy = _gradient(F.avg_pool2d(grey[None, None], scale)[0, 0] if scale > 1 else grey)
        size = (dx.square() + dy.square()).sqrt()
        found.append(torch.quantile(size.flatten(), torch.tensor([0.5, 0.9, 0.99])))
        found.append(torch.stack([size.mean(), size.square().mean().sqrt()]))
    dx, dy = _gradient(grey)
    size = (dx.square() + dy.square()).sqrt()
    angle = torch.atan2(dy, dx) % torch.pi  # an edge has no sign
    which = (angle * (ORIENTATIONS / torch.pi)).long().clamp(max=ORIENTATIONS - 1)
    votes = torch.zeros(ORIENTATIONS, *grey.shape).scatter_(0, which[None], size[None])
    cells = F.adaptive_avg_pool2d(votes, CELLS).flatten(1)
    cells = cells / (cells.norm(dim=0, keepdim=True) + 1e-3)
    return torch.cat([*found, cells.flatten(), cells.mean(1), cells.amax(1)])


def _gradient(grey: Float[Tensor, "h w"]) -> tuple[Tensor, Tensor]:
    """Central differences, columns then rows; zero at the border."""
    dx, dy = torch.zeros_like(grey), torch.zeros_like(grey)
    dx[:, 1:-1] = (grey[:, 2:] - grey[:, :-2]) / 2
    dy[1:-1] = (grey[2:] - grey[:-2]) / 2
    return dx, dy
