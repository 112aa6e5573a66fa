import pytest
import torch

from negah.nn.mimetic import mimetic_, sines
from negah.nn.vit import Block, ViT


def test_attention_starts_near_the_identity():
    vit = mimetic_(ViT(patch=8, dim=64, depth=2, heads=2, grid=(5, 7)), generator=torch.Generator().manual_seed(0))
    for block in vit.blocks:
        assert isinstance(block, Block)
        q, k, v = block.attn.qkv.weight.chunk(3)
        for head in range(2):
            rows = slice(head * 32, (head + 1) * 32)
            assert (q[rows].T @ k[rows]).diagonal().mean() > 0.2  # positive, although cut to half the rank
        product = (block.attn.proj.weight @ v).detach()
        assert float(product.diagonal().mean()) == pytest.approx(-0.4, abs=0.02)
        assert float(product.fill_diagonal_(0).std()) == pytest.approx(0.4 / 64**0.5, rel=0.1)


def test_positions_are_sines_that_tell_neighbours_from_strangers():
    table = sines(5, 7, 64)
    assert table.shape == (35, 64)
    likeness = table @ table.T
    assert likeness[0, 1] > likeness[0, 3] and likeness[0, 7] > likeness[0, 21]
    row, column = 3, 2
    frequency = 10_000.0 ** (-torch.arange(16) / 16)
    assert torch.allclose(table[row * 7 + column, :16], torch.sin(column * frequency))
    assert torch.allclose(table[row * 7 + column, 48:], torch.cos(row * frequency))


def test_it_depends_on_nothing_but_the_generator():
    def made(seed: int) -> ViT:
        torch.manual_seed(0)
        return mimetic_(
            ViT(patch=8, dim=32, depth=1, heads=1, grid=(2, 2)), generator=torch.Generator().manual_seed(seed)
        )

    a, b, c = (made(seed).state_dict()["blocks.0.attn.qkv.weight"] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    with pytest.raises(ValueError, match="multiple of 4"):
        sines(2, 2, 30)
