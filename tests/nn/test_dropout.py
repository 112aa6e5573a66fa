"""Dropout: its rate, its scale, its gradient, and that it is off when it should be."""

import pytest
import torch

from negah.nn.dropout import dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.6])
def test_a_share_is_dropped_and_the_mean_stays(rate):
    torch.manual_seed(0)
    x = torch.ones(200_000)
    out = dropout(x, rate)
    assert (out == 0).float().mean().item() == pytest.approx(rate, abs=0.005)
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])


def test_the_gradient_goes_where_the_values_went():
    torch.manual_seed(0)
    x = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    out = dropout(x, 0.3)
    (slope,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(slope * x, out)

    def same(x):
        torch.manual_seed(1)
        return dropout(x, 0.3)

    assert torch.autograd.gradcheck(same, x) and torch.autograd.gradgradcheck(same, x)


def test_it_is_off_when_not_training_and_follows_the_seed():
    x = torch.randn(9)
    assert dropout(x, 0.5, False) is x and dropout(x, 0.0) is x
    first, again = (torch.random.fork_rng(), torch.random.fork_rng())
    with first:
        torch.manual_seed(3)
        a = dropout(x, 0.5)
    with again:
        torch.manual_seed(3)
        assert dropout(x, 0.5).equal(a)
