"""Climbing any score: known optima, the best point kept, and nothing left behind."""

import pytest
import torch
from torch import Tensor, nn

from negah.adversarial import L2, Linf
from negah.adversarial.ascend import ascend
from negah.errors import InputError


def images(n: int = 6, seed: int = 0) -> Tensor:
    return 0.3 + 0.4 * torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Weighted(nn.Module):
    """w . x, and a dropout that training mode would switch on."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight, self.drop = nn.Parameter(weight), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x * self.weight).flatten(1).sum(1)


WEIGHT = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("norm", "eps", "step"), [(Linf(), 0.1, WEIGHT.sign()), (L2(), 0.5, WEIGHT / WEIGHT.norm())], ids=["Linf", "L2"]
)
def test_a_linear_score_reaches_the_far_side_of_the_ball(norm, eps, step):
    x = images()
    torch.testing.assert_close(ascend(Weighted(WEIGHT), x, eps=eps, norm=norm, steps=10), x + eps * step)


def test_the_image_itself_stays_where_nothing_is_higher():
    """A peak at the image: the gradient there is 0, and every other point is lower."""
    x = images(1)
    peak = lambda z: -(z - x).square().flatten(1).sum(1)  # noqa: E731
    assert torch.equal(ascend(peak, x, eps=0.1, steps=5), x)


def test_the_best_point_is_kept_when_later_ones_are_lower():
    """A narrow ridge that steps of this length jump over, again and again."""
    x = images(1)
    met = []

    def ridge(z: Tensor) -> Tensor:
        score = -((z - x).mean((1, 2, 3)) - 0.011).abs()
        met.append(score.detach())
        return score

    found = ascend(ridge, x, eps=0.1, steps=7)
    assert torch.equal(ridge(found), torch.stack(met[1:]).amax(0))  # the first was asked by the check of the arguments


def test_the_model_is_left_as_it_was():
    model = Weighted(WEIGHT.clone()).train()
    ascend(model, images(), eps=0.1, steps=3)
    assert model.training and model.drop.training and model.weight.grad is None and model.weight.requires_grad


def test_what_cannot_be_done_is_named():
    with pytest.raises(InputError, match="steps is a count"):
        ascend(Weighted(WEIGHT), images(), eps=0.1, steps=0)
    with pytest.raises(InputError, match="not finite"):
        ascend(lambda x: x.flatten(1).sum(1) / 0, images(), eps=0.1)
    with pytest.raises(InputError, match="not in 0 to 1"):
        ascend(Weighted(WEIGHT), images() * 255, eps=0.1)
    with pytest.raises(InputError, match="radius of a ball"):
        ascend(Weighted(WEIGHT), images(), eps=-1.0)
