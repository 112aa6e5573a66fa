"""Convolution by 3 x 3 kernels with a quarter of the multiplications: inference on CPUs, float32.

Winograd's minimal filtering, Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308.

    Y = A^T [ (G g G^T) . (B^T d B) ] A         eq. 12: a tile d of 6 x 6 px gives 4 x 4 px of the output

d . g as polynomials are multiplied by their values at five points and at infinity (Toom and Cook); summed over
channels, the product at each of the 36 pairs of points is a matrix product, 36 multiplications for what takes 144.

    A, G   values at the points; G's divided by N_j = prod_{l != j} (a_j - a_l)
    B      coefficients of prod_{l != j} (x - a_l): Lagrange's interpolation, transposed

Trap: values at points far from 1 lose digits.  With the usual 0, +-1, +-2 the root mean square error of a layer is
eleven times that of the direct sum, with 0, +-1/sqrt(2), +-sqrt(2) five times (Barabasz et al. 2020, arXiv:1803.10986,
choose points by search); kept low enough for float32, never for bfloat16.
Departure: both transforms are products with Kronecker matrices, [36, 36] by all pixels of a strip of tiles, which a
BLAS does faster than the few additions they consist of.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.polynomial import polynomial
from torch import Tensor

OUT, TAPS = 4, 3  # pixels of a tile of the output, and of the kernel, a side
SIDE = OUT + TAPS - 1
POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
STRIP_NUMBERS = 1_500_000  # transformed at a time, about: 6 MB, which stay in the cache between two steps


@cache
def matrices() -> tuple[Float[Tensor, "36 36"], Float[Tensor, "36 9"], Float[Tensor, "16 36"]]:
    """Of tiles, kernels and products, each for both axes at once: kron(B^T, B^T), kron(G, G), kron(A^T, A^T)."""
    values = np.vander(POINTS, max(OUT, TAPS), increasing=True)
    lagrange = np.zeros((SIDE, SIDE))
    scale = np.ones(SIDE - 1)
    for j, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        lagrange[j, :-1] = polynomial.polyfromroots(others)
        scale[j] = np.prod([point - other for other in others])
    lagrange[-1] = polynomial.polyfromroots(POINTS)  # at infinity: the highest coefficient
    a = np.vstack([values[:, :OUT], np.eye(OUT)[-1]])
    g = np.vstack([values[:, :TAPS] / scale[:, None], np.eye(TAPS)[-1]])
    both = (np.kron(lagrange, lagrange), np.kron(g, g), np.kron(a.T, a.T))
    tiles, kernels, products = (torch.from_numpy(matrix).float() for matrix in both)
    return tiles, kernels, products


def conv3x3(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "out c 3 3"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "n out h w"]:
    """What F.conv2d(x, weight, bias, padding=1) gives, to rounding; fastest where channels lie last, as they do in the
    result."""
    tiles, kernels, products = matrices()
    n, c, h, w = x.shape
    out = len(weight)
    down, across = -(-h // OUT), -(-w // OUT)
    kernel = (kernels @ weight.permute(2, 3, 1, 0).reshape(TAPS**2, c * out)).view(SIDE**2, c, out)
    result = x.new_empty(n, down, OUT, across, OUT, out)
    strip = max(1, STRIP_NUMBERS // (across * max(c, out) * SIDE**2))
    for image, made in zip(x.permute(0, 2, 3, 1), result):
        for first in range(0, down, strip):
            place = made[first : first + strip]
            top, bottom = OUT * first - 1, OUT * (first + len(place)) + 1
            rows = image[max(top, 0) : bottom]
            beyond = (0, 0, 1, 1 + OUT * across - w, max(0, -top), bottom - max(top, 0) - len(rows))
            windows = F.pad(rows, beyond).unfold(0, SIDE, OUT).unfold(1, SIDE, OUT)  # down, across, c, 6, 6: views
            tile = tiles @ windows.permute(3, 4, 0, 1, 2).reshape(SIDE**2, -1)
            multiplied = torch.bmm(tile.view(SIDE**2, -1, c), kernel).view(SIDE**2, -1)
            back = (products @ multiplied).view(OUT, OUT, len(place), across, out)
            place.copy_(back.permute(2, 0, 3, 1, 4))
    if bias is not None:
        result += bias
    return result.view(n, OUT * down, OUT * across, out)[:, :h, :w].permute(0, 3, 1, 2)


def worthwhile(x: Float[Tensor, "n c h w"], out: int) -> bool:
    """Whether `conv3x3` is the faster one, as measured on two cores with AVX-512: enough tiles for each kernel that is
    transformed, enough channels for each tile.  It does not depend on the batch, so neither does a picture."""
    c, h, w = x.shape[1:]
    return h * w >= 64 * OUT**2 and min(c, out) >= 128
