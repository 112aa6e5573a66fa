import numpy as np
import pytest
import torch
from torch import Tensor

from negah.solar.baselines import component, lost, min_max, token_cut

GRID = (6, 8)
METHODS = [lost, token_cut]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


def box(top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask.flatten()


def planted(mask: Tensor, *, noise: float = 0.1, seed: int = 0) -> Tensor:
    """Features of one image: one direction in the object, one that is negatively correlated with it elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    ground, thing = torch.zeros(16), torch.zeros(16)
    ground[0], thing[0], thing[1] = 1.0, -0.6, 0.8
    return torch.where(mask[:, None], thing, ground) + noise * torch.randn(len(mask), 16, generator=generator)


# LOST and TokenCut


@each_method
@pytest.mark.parametrize("mask", [box(1, 2, 2, 3), box(0, 0, 1, 1), box(4, 5, 2, 3) | box(2, 5, 2, 1)])
def test_a_planted_object_is_found_exactly(method, mask):
    found = method(torch.stack([planted(mask, seed=seed) for seed in range(3)]), grid=GRID)
    assert found.dtype == torch.float32
    assert (found == mask.float()).all()


@each_method
def test_of_several_objects_one_is_found_and_corners_do_not_join(method):
    parts = [box(0, 0, 2, 2), box(2, 2, 2, 2)]
    found = method(planted(parts[0] | parts[1], noise=0.0)[None], grid=GRID)[0]
    assert any(found.equal(part.float()) for part in parts)


@each_method
def test_a_panel_over_more_than_half_of_the_window_is_taken_for_the_ground(method):
    panel = box(0, 0, 6, 6)
    assert method(planted(panel)[None], grid=GRID)[0].equal((~panel).float())


@each_method
def test_an_image_does_not_depend_on_its_batch_mates(method):
    generator = torch.Generator().manual_seed(1)
    batch = torch.stack([planted(box(k, k, 2, 3), noise=0.4, seed=k) for k in range(4)])
    batch[3] = torch.randn(48, 16, generator=generator) * 100
    together = method(batch, grid=GRID)
    for k in range(4):
        assert method(batch[k : k + 1], grid=GRID)[0].equal(together[k])
    assert method(batch[:0], grid=GRID).shape == (0, 48)


@each_method
@pytest.mark.parametrize("value", [-1.0, 0.0, 1e-30, 1.0, 1e4])
def test_constant_features_do_not_crash(method, value):
    found = method(torch.full((2, 48, 16), value), grid=GRID)
    assert ((found == 0) | (found == 1)).all()


@each_method
def test_half_precision_features_and_the_callers_tensor(method):
    mask = box(1, 2, 2, 3)
    features = planted(mask)[None].bfloat16().requires_grad_()
    before = features.detach().clone()
    found = method(features, grid=GRID)
    assert found.dtype == torch.float32 and not found.requires_grad and found[0].equal(mask.float())
    assert features.equal(before)


@each_method
def test_a_grid_that_the_patches_do_not_fill_is_refused(method):
    with pytest.raises(ValueError, match="48 patches do not fill a grid of 7 x 7"):
        method(planted(box(1, 2, 2, 3))[None], grid=(7, 7))


def test_lost_needs_features_without_a_common_offset():
    mask = box(1, 2, 2, 3)
    shifted = planted(mask)[None] + 3
    assert lost(shifted, grid=GRID).mean() == 1
    assert lost(shifted - shifted.mean(1, keepdim=True), grid=GRID)[0].equal(mask.float())


def test_lost_compares_with_the_seed_set_and_expand_bounds_it():
    # On a line: the seed 0 (degree 2) goes with 1; 2 goes with 1 only, and is found through it or not at all.
    chain = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.2, 1.0], [-1.0, 0.4], [-1.0, 0.3], [-1.0, 0.2]])
    assert lost(chain[None], grid=(1, 6), expand=1)[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert lost(chain[None], grid=(1, 6), expand=6)[0].tolist() == [1, 1, 1, 0, 0, 0]


def test_token_cut_is_the_cheapest_normalised_cut():
    # Against all bipartitions of 3 x 4 patches, of which 5 and 6 are alike across the object's border.
    mask = torch.zeros(12)
    mask[[6, 7, 10, 11]] = 1
    ground, thing, shade = torch.eye(3)
    features = torch.where(mask[:, None] > 0, thing, ground)
    features[[5, 6]] += 0.7 * shade
    x = torch.nn.functional.normalize(features, dim=1).double()
    e = torch.where(x @ x.T >= 0.2, 1.0, 1e-5).numpy().astype(np.float64)
    sides = np.array([[(code >> bit) & 1 for bit in range(12)] for code in range(1, 2**11)], float)
    cut = np.einsum("cp,pq,cq->c", sides, e, 1 - sides)
    cost = cut / (sides @ e.sum(1)) + cut / ((1 - sides) @ e.sum(1))
    best = torch.from_numpy(sides[cost.argmin()]).float()
    found = token_cut(features[None], grid=(3, 4))[0]
    assert found.equal(mask) and (found.equal(best) or found.equal(1 - best))


def test_a_component_without_its_seed_is_empty():
    mask = np.array([True, True, False, True])
    assert component(mask, 0, (1, 4)).tolist() == [True, True, False, False]
    assert not component(mask, 2, (1, 4)).any()


# Min-max


def test_min_max_is_the_mean_over_heads_stretched_and_cut():
    # means .4, .1, .2, .3 -> stretched 1, 0, 1/3, 2/3
    attention = torch.tensor([[[0.6, 0.1, 0.2, 0.1], [0.2, 0.1, 0.2, 0.5]]])
    assert min_max(attention).tolist() == [[1, 0, 0, 1]]
    assert min_max(attention, threshold=0.3).tolist() == [[1, 0, 1, 1]]


def test_min_max_measures_a_small_and_a_large_panel_alike():
    # The same patches are the telling ones; eight times, the rest of a panel three times as attended as the ground.
    telling, small, large = box(1, 2, 2, 2), box(1, 2, 2, 3), box(0, 0, 6, 6)
    relative = torch.stack([1.0 + 2 * panel + 5 * telling for panel in (small, large)])
    found = min_max((relative / relative.sum(1, keepdim=True))[:, None])
    assert large.sum() == 6 * small.sum()
    assert found[0].equal(found[1]) and found[0].sum() == telling.sum()


@pytest.mark.parametrize("noise", [1e-4, 1e-2])
def test_min_max_finds_something_where_nothing_is(noise):
    generator = torch.Generator().manual_seed(0)
    even = torch.full((5, 2, 48), 1 / 48) * (1 + noise * torch.rand(5, 2, 48, generator=generator))
    assert (min_max(even).mean(1) > 0.2).all()


def test_min_max_of_an_image_does_not_depend_on_its_batch_mates():
    attention = torch.randn(4, 3, 48, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 5)[:, None, None]
    together = min_max(attention.softmax(-1))
    for k in range(4):
        assert min_max(attention[k : k + 1].softmax(-1))[0].equal(together[k])


@pytest.mark.parametrize("value", [0.0, 1 / 48, 1.0])
def test_min_max_of_constant_attention_is_nothing(value):
    assert (min_max(torch.full((2, 3, 48), value)) == 0).all()
