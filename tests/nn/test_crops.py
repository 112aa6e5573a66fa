"""Crops of several sizes packed: the plain loop's values and gradients, and a share of the work left out."""

import pytest
import torch
from torch import Tensor

from negah.nn.crops import Shape, kept_rows, pack, residual, unpack
from negah.nn.vit import Block, Tokens, ViT

SIDES = [(24, 24), (8, 16), (24, 24), (16, 8), (8, 16)]  # sizes come back, and two have as many tokens
PARTS = [{}, {"ffn": "swiglu", "registers": 2}, {"layer_scale": None}]


def random_vit(dtype: torch.dtype = torch.float64, **changes) -> ViT:
    """Weights large enough that every part is seen in outputs and gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = ViT(**({"patch": 4, "dim": 32, "depth": 3, "heads": 4, "grid": (6, 6), "layer_scale": 1.0} | changes))
        for parameter in vit.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return vit.to(dtype).train()


def batches() -> tuple[list[Tensor], list[Tensor | None]]:
    """Crops of SIDES, and masks for the first and the third."""
    g = torch.Generator().manual_seed(1)
    images = [torch.rand(2 + i % 2, 3, *side, generator=g) for i, side in enumerate(SIDES)]
    hidden = [torch.rand(len(x), 36, generator=g) < 0.4 if i in (0, 2) else None for i, x in enumerate(images)]
    return images, hidden


def gradients(vit: ViT, views: list[Tokens]) -> dict[str, Tensor]:
    """Of a number into which every token of every crop goes with a weight of its own."""
    g = torch.Generator().manual_seed(2)
    total = sum((part * torch.randn(part.shape, generator=g)).sum() for view in views for part in view)
    assert isinstance(total, Tensor)
    names, parameters = zip(*vit.named_parameters())
    found = torch.autograd.grad(total, parameters)
    return dict(zip(names, found))


# Nothing dropped


@pytest.mark.parametrize("parts", PARTS)
def test_packed_crops_have_the_values_and_gradients_of_the_plain_loop(parts):
    vit, (images, hidden) = random_vit(**parts), batches()
    packed, plain = vit.many(images, hidden), [vit(x, masks) for x, masks in zip(images, hidden)]
    for ours, theirs in zip(packed, plain, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(gradients(vit, packed), gradients(vit, plain), rtol=1e-9, atol=1e-10)


def test_without_masks_and_with_one_size_too():
    vit, (images, _) = random_vit(), batches()
    for some in (images, images[:1], images[::2]):
        for ours, theirs in zip(vit.many(some), map(vit, some), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_evaluation_drops_nothing():
    vit, (images, hidden) = random_vit(drop_path=[0.5] * 3).eval(), batches()
    with torch.no_grad():
        for ours, x, masks in zip(vit.many(images, hidden), images, hidden, strict=True):
            torch.testing.assert_close(ours, vit(x, masks), rtol=1e-10, atol=1e-11)


def test_fp32_of_many_rows_is_as_near_as_fp32_allows():
    exact, vit, g = random_vit(), random_vit(torch.float32), torch.Generator().manual_seed(1)
    images = [torch.rand(8, 3, 24, 24, generator=g), torch.rand(16, 3, 8, 16, generator=g)]
    hidden = [torch.rand(8, 36, generator=g) < 0.4, None]
    views, others = vit.many(images, hidden), exact.many(images, hidden)
    for ours, theirs in zip(views, others, strict=True):
        torch.testing.assert_close(ours.cls.double(), theirs.cls, rtol=0, atol=1e-4)
    theirs = gradients(exact, others)
    for name, mine in gradients(vit, views).items():
        assert (mine.double() - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name


def test_bf16_autocast_is_near_and_trains():
    vit, (images, hidden) = random_vit(torch.float32, drop_path=[0.5] * 3), batches()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(vit, vit.many(images, hidden))
        close = vit.eval().many(images, hidden)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found.values())
    for ours, theirs in zip(close, vit.many(images, hidden), strict=True):
        assert (ours.cls - theirs.cls).norm() < 0.05 * theirs.cls.norm()


# Stochastic depth

CROPS: list[Shape] = [(4, 3), (10, 2)]


def packed(dtype: torch.dtype = torch.float64) -> Tensor:
    return pack([torch.ones(*shape, 8, dtype=dtype) for shape in CROPS])[0]


def test_a_branch_is_computed_for_the_kept_crops_of_each_size_alone():
    seen = []

    def thrice(block: Block, x: Tensor, shapes: list[Shape]) -> Tensor:
        seen.append((len(x), shapes))
        return 3 * x

    block = Block(8, 2, drop_path=0.3).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = torch.stack([residual(block, packed(), CROPS, thrice) for _ in range(300)])
    assert all(found == (3 * 3 + 7 * 2, [(3, 3), (7, 2)]) for found in seen)
    for part, (crops, kept) in zip(out.unbind(2)[0].split([12, 20], dim=1), ((4, 3), (10, 7)), strict=True):
        gains = part.unflatten(1, (crops, -1))
        assert (gains == gains[..., :1]).all()  # a crop is kept whole
        assert ((gains[..., 0] > 1).sum(1) == kept).all()
        assert (gains.mean(0) - 4).abs().max() < 0.5  # in the mean as if nothing were dropped


def test_one_crop_is_always_kept():
    rows = kept_rows([(1, 4)], [(1, 4)], torch.device("cpu"))
    assert rows.tolist() == [0, 1, 2, 3]
    block = Block(8, 2, drop_path=0.9).train()
    assert (residual(block, torch.ones(4, 8), [(1, 4)], lambda block, x, shapes: x) == 2).all()


def test_gradients_with_dropped_crops_are_those_of_finite_differences():
    block = Block(8, 2, drop_path=0.5, layer_scale=0.7).double().train()

    def run(x: Tensor, weight: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same crops each time
            return residual(block, x, CROPS, lambda block, x, shapes: torch.tanh(x @ weight))

    x, weight = torch.randn(32, 8, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), weight.requires_grad_()))


def test_unpacking_gives_back_what_was_packed():
    groups = [torch.randn(*shape, 8) for shape in CROPS]
    x, shapes = pack(groups)
    assert shapes == CROPS and all(map(torch.equal, unpack(x, shapes), groups))
