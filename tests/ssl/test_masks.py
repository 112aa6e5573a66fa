"""Block masks: how many, how much, in blocks, and the same again from the same generator."""

import pytest
import torch

from negah.ssl.masks import block_mask, block_masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_half_of_the_images_are_masked_over_the_whole_ratio():
    masks = block_masks(32, (14, 14), generator=generator())
    assert masks.shape == (32, 196) and masks.dtype == torch.bool
    counts = masks.sum(1)
    assert (counts > 0).sum() == 16
    shares = (counts[counts > 0] / 196).sort().values
    assert shares[0] >= 0.1 - 1 / 196 and shares[-1] <= 0.5
    strata = 0.1 + 0.4 * torch.arange(17) / 16
    assert ((shares >= strata[:-1] - 1 / 196) & (shares <= strata[1:])).all()  # one in each sixteenth of the range
    assert (counts > 0)[:16].any() and (counts > 0)[16:].any()  # of either view


@pytest.mark.parametrize("patches", [1, 5, 31, 98, 196])
def test_a_mask_hides_exactly_as_many_patches(patches):
    for seed in range(5):
        assert block_mask((14, 14), patches, generator=generator(seed)).sum() == patches


def test_hidden_patches_lie_together():
    def borders(mask: torch.Tensor) -> float:  # neighbours of which one is hidden, per hidden patch
        edges = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        return (edges / mask.sum()).item()

    blocks = [borders(block_mask((16, 16), 77, generator=generator(seed))) for seed in range(30)]
    scattered = [borders((torch.randperm(256, generator=generator(s)) < 77).view(16, 16)) for s in range(30)]
    assert sum(blocks) < 0.6 * sum(scattered)


def test_every_patch_is_hidden_about_as_often_and_grids_need_not_be_square():
    masks = block_masks(2000, (4, 6), share=1.0, generator=generator())
    often = masks.float().mean(0)
    assert masks.any(1).all() and often.min() > 0.1 and often.max() < 0.5


def test_the_same_generator_gives_the_same_masks_and_none_the_global_one():
    assert block_masks(8, (5, 5), generator=generator(3)).equal(block_masks(8, (5, 5), generator=generator(3)))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert block_masks(8, (5, 5)).equal(block_masks(8, (5, 5), generator=generator(3)))


def test_small_batches_and_grids_still_hide_something():
    masks = block_masks(1, (1, 2), ratio=(0.1, 0.2), generator=generator())
    assert masks.sum() == 1
    with pytest.raises(ValueError, match="5 patches to hide on a grid of 2 x 2"):
        block_mask((2, 2), 5)
