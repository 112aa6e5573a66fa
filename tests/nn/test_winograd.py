import pytest
import torch
import torch.nn.functional as F

from negah.nn import winograd


@pytest.mark.parametrize("shape", [(2, 32, 16, 16), (1, 5, 61, 67), (3, 8, 1, 3), (1, 300, 40, 33)])
@pytest.mark.parametrize("last", [True, False])
def test_it_is_a_convolution(shape: tuple[int, int, int, int], last: bool):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    x = x.to(memory_format=torch.channels_last) if last else x
    weight = torch.randn(24, shape[1], 3, 3, generator=generator) / (9 * shape[1]) ** 0.5
    bias = torch.randn(24, generator=generator)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    found = winograd.conv3x3(x, weight, bias)
    assert found.shape == exact.shape
    assert found.stride(1) == 1
    assert (found - exact).abs().max() < 2e-5
    assert (winograd.conv3x3(x, weight) + bias[:, None, None] - exact).abs().max() < 2e-5


def test_the_matrices_are_exact_on_whole_polynomials():
    """One tile and one kernel in float64 against the sum that defines a convolution: nothing but rounding is off."""
    tiles, kernels, products = (matrix.double() for matrix in winograd.matrices())
    generator = torch.Generator().manual_seed(1)
    d, g = (torch.randn(side, side, generator=generator, dtype=torch.float64) for side in (6, 3))
    y = products @ ((kernels @ g.flatten()) * (tiles @ d.flatten()))
    assert torch.allclose(y.view(1, 1, 4, 4), F.conv2d(d[None, None], g[None, None]), atol=1e-5)


def test_rounding_is_what_the_docs_say():
    """About five times the error of the direct sum."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 256, 32, 32, generator=generator)
    weight = torch.randn(64, 256, 3, 3, generator=generator) / (9 * 256) ** 0.5
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    ours, direct = (
        (y - exact).pow(2).mean().sqrt() for y in (winograd.conv3x3(x, weight), F.conv2d(x, weight, padding=1))
    )
    assert ours < 2e-6
    assert ours < 12 * direct  # with the points 0, +-1, +-2 it is twice as large
