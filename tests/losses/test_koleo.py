"""KoLeo against its formula and lightly; what it does with too few rows, and with equal ones.

Over two processes it is tested beside the losses that it trains with, in test_distill.py.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from negah.losses.koleo import koleo


def rows(n: int, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_its_formula_and_differentiable():
    x = rows(7)
    unit = F.normalize(x, dim=-1)
    nearest = [min((unit[i] - unit[j]).norm().item() for j in range(7) if j != i) for i in range(7)]
    assert koleo(x).item() == pytest.approx(-sum(math.log(d + 1e-8) for d in nearest) / 7, rel=1e-12)
    assert torch.autograd.gradcheck(koleo, [x.requires_grad_()])


def test_it_equals_lightlys():
    from lightly.loss import KoLeoLoss

    x = (3 * rows(12)).requires_grad_()
    ours, peers = koleo(x), KoLeoLoss()(x)
    torch.testing.assert_close(ours, peers, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, peers)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_rows_in_half_precision_give_finite_values(dtype):
    x = rows(6).to(dtype)
    x[3] = x[0]
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo(x)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and x.grad is not None and x.grad.isfinite().all()


def test_a_batch_of_one_has_no_neighbour_and_costs_nothing():
    x = rows(1).requires_grad_()
    loss = koleo(x)
    assert loss.item() == 0
    loss.backward()
    assert x.grad is not None and not x.grad.any()


def test_its_gradient_moves_neighbours_apart():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]], requires_grad=True)
    koleo(x).backward()
    assert x.grad is not None and x.grad[0, 1] > 0 and x.grad[1, 1] < 0  # descent turns them away from each other
