"""Starts lie in the ball, directions are the steepest, projections are the nearest points."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from negah.adversarial.norms import L1, L2, Linf, Norm

NORMS = [Linf(), L2(), L1()]
DUAL = {"Linf": lambda g: g.abs().sum(1), "L2": lambda g: g.norm(dim=1), "L1": lambda g: g.abs().amax(1)}


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
@pytest.mark.parametrize("eps", [0.0, 0.03, torch.tensor([0.0, 0.5, 8.0])], ids=["0", "0.03", "each"])
def test_starts_fill_the_ball(norm: Norm, eps):
    images = torch.zeros(3, 3, 8, 8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    delta = norm.start(images, eps, generator)
    radius = torch.as_tensor(eps).expand(3)
    assert (norm.size(delta) <= radius * (1 + 1e-12)).all()
    assert ((norm.size(delta) > 0.9 * radius) | (radius == 0)).all()  # in 192 dimensions nearly all volume is there


def test_starts_are_uniform_in_a_ball_of_few_dimensions():
    """Of a ball of d dimensions, 2^-d lies within half the radius; the mean of each value is 0."""
    images = torch.zeros(20_000, 1, 1, 2, dtype=torch.float64)
    for norm in NORMS:
        delta = norm.start(images, 1.0, torch.Generator().manual_seed(1))
        assert (norm.size(delta) < 0.5).double().mean() == pytest.approx(0.25, abs=0.01)
        assert delta.mean((0, 1, 2)).abs().max() < 0.02
        assert (delta[..., 0] * delta[..., 1] > 0).double().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("norm", [Linf(), L2(), L1(spread=1e-9)], ids=lambda norm: norm.name)
def test_directions_reach_the_dual_norm(norm: Norm):
    """max of <g, d> over ||d|| <= 1 is the dual norm of g: L1 for Linf, L2 for L2, Linf for L1."""
    g = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = norm.direction(g)
    assert torch.allclose(norm.size(d), torch.ones(5, dtype=torch.float64))
    assert torch.allclose((g * d).flatten(1).sum(1), DUAL[norm.name](g.flatten(1)))


def test_l1_moves_a_share_of_the_values_by_equal_amounts():
    g = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    d = L1(spread=0.02).direction(g).flatten(1)
    assert ((d != 0).sum(1) == 6).all() and torch.allclose(d[d != 0].abs(), torch.tensor(1 / 6))
    with pytest.raises(ValueError, match="spread is a share"):
        L1(spread=0)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
def test_no_direction_without_a_gradient_and_one_for_the_smallest(norm: Norm):
    g = torch.zeros(2, 3, 4, 4)
    g[1, 0, 0, 0] = 1e-30
    d = norm.direction(g)
    assert (d[0] == 0).all() and norm.size(d)[1] == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), scale=st.sampled_from([1e-4, 0.1, 1.0, 100.0]), eps=st.sampled_from([1e-3, 0.1, 3.0])
)
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
def test_projections_are_the_nearest_points(norm: Norm, seed, scale, eps):
    """Nearest in L2: no point of the ball is closer, and points inside stay where they are."""
    generator = torch.Generator().manual_seed(seed)
    delta = scale * torch.randn(2, 1, 2, 3, generator=generator, dtype=torch.float64)
    found = norm.project(delta, eps)
    assert (norm.size(found) <= eps * (1 + 1e-9)).all()
    inside = norm.size(delta) <= eps
    assert torch.equal(found[inside], delta[inside])
    # Variational inequality: <delta - p, q - p> <= 0 for all q of the ball.
    for _ in range(20):
        q = norm.start(delta, eps, generator)
        assert (((delta - found) * (q - found)).flatten(1).sum(1) <= 1e-9 * scale * scale).all()


def test_each_image_may_have_a_ball_of_its_own():
    delta = torch.full((3, 1, 2, 2), 5.0)
    eps = torch.tensor([0.0, 1.0, 2.0])
    for norm in NORMS:
        assert torch.allclose(norm.size(norm.project(delta, eps)), eps)
