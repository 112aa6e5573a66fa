import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from negah.nn import vit
from negah.nn.vit import Block, ViT, attend

SMALL = {"patch": 4, "dim": 32, "depth": 3, "heads": 4, "grid": (6, 6)}


def random_vit(**changes) -> ViT:
    """Weights large enough that every part of the model is seen in its output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = ViT(**{**SMALL, "layer_scale": 1.0, **changes})
        for parameter in vit.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return vit.eval()


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def cubic(distance: float, a: float = -0.75) -> float:
    """Keys' kernel with the coefficient of torch and OpenCV."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def resized_by_hand(old: int, new: int, scale: float) -> torch.Tensor:
    """[new, old] weights of bicubic resizing, pixel by pixel: half-pixel centres, borders repeated."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) / scale - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[i, min(max(tap, 0), old - 1)] += cubic(centre - tap)
    return weights


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (5, 11), (40, 37), (52, 20)])
@pytest.mark.parametrize("interpolation", ["hub", "size"])
def test_positions_equal_bicubic_written_out(interpolation, rows, columns):
    vit = random_vit(grid=(37, 37), interpolation=interpolation)
    offset = 0.1 if interpolation == "hub" else 0.0
    down = resized_by_hand(37, rows, (rows + offset) / 37)
    across = resized_by_hand(37, columns, (columns + offset) / 37)
    grid = vit.pos_embed[0, 1:].detach().double().reshape(37, 37, -1)
    expected = torch.einsum("ro,cp,opd->rcd", down, across, grid).flatten(0, 1)
    found = vit.positions(rows, columns)[0]
    assert torch.equal(found[0], vit.pos_embed[0, 0])
    assert (found[1:] - expected).abs().max() < 1e-5


def test_interpolations_differ_only_away_from_their_own_grid():
    own, other = random_images(1, 3, 24, 24), random_images(1, 3, 32, 16)
    vits = [random_vit(interpolation=name) for name in ("hub", "size", "size-antialias")]
    for a, b in pairwise(vits):
        assert torch.equal(a(own).patches, b(own).patches)
        assert (a(other).patches - b(other).patches).abs().max() > 1e-4


def test_position_grid_may_be_oblong():
    vit = random_vit(grid=(4, 9))
    assert torch.equal(vit.positions(4, 9), vit.pos_embed)
    assert vit(random_images(1, 3, 36, 16)).patches.shape == (1, 36, 32)  # as many patches, the other way round
    assert not torch.allclose(vit.positions(9, 4), vit.pos_embed)


def test_patches_are_row_major():
    vit = random_vit(depth=0)
    image = random_images(1, 3, 24, 24)
    changed = image.clone()
    changed[:, :, 4:8, 12:16] = 255 - changed[:, :, 4:8, 12:16]  # row 1, column 3
    moved = (vit(image).patches - vit(changed).patches).abs().amax(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == [1 * 6 + 3]


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_uint8_and_float_agree(registers, ffn):
    vit = random_vit(registers=registers, ffn=ffn)
    images = random_images(2, 3, 24, 32)
    a, b = vit(images), vit(images / 255)
    assert a.registers.shape == (2, registers, 32) and a.patches.shape == (2, 48, 32)
    for x, y in zip(a, b):
        assert torch.equal(x, y)
    assert torch.equal(vit.tokens(images), torch.cat([a.cls[:, None], a.patches], dim=1))


def test_normalises_by_its_own_statistics():
    vit = random_vit(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = (torch.tensor([0.0, 1.0, 0.5]) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.6, 0.7])
    pixels = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 24, 24)
    assert torch.allclose(vit.normalise(pixels)[0, :, 0, 0], expected)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_attention_is_the_softmax_of_queries_and_keys(layer, registers):
    vit = random_vit(registers=registers)
    images = random_images(2, 3, 24, 24)
    found = vit.attention(images, layer)

    block = vit.blocks[layer]
    x = vit.embed(images)
    for earlier in vit.blocks[: layer % vit.depth]:
        x = earlier(x)
    normed = block.norm1(x)
    weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    width = 32 // 4
    for head in range(4):
        q, k = (
            normed @ weight[part * 32 + head * width :][:width].T + bias[part * 32 + head * width :][:width]
            for part in (0, 1)
        )
        by_hand = torch.stack([(q[i] @ k[i].T / math.sqrt(width)).softmax(-1) for i in range(2)])
        assert (found[:, head] - by_hand).abs().max() < 1e-6
    assert found.shape == (2, 4, 37 + registers, 37 + registers)


def test_fused_attention_uses_those_weights():
    attn = random_vit().blocks[0].attn
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    by_hand = attn.proj((attn.weights(x) @ attn.heads_of(x)[2]).transpose(1, 2).flatten(2))
    assert (attn(x) - by_hand).abs().max() < 1e-6


def test_intermediate_features():
    vit = random_vit(registers=2)
    images = random_images(2, 3, 24, 24)
    last, first = vit.intermediate(images, [-1, 0])
    for x, y in zip(last, vit(images)):
        assert torch.equal(x, y)
    by_hand = vit.split(vit.blocks[0](vit.embed(images)))
    (raw,) = vit.intermediate(images, [0], norm=False)
    assert torch.equal(raw.patches, by_hand.patches)
    assert torch.equal(first.cls, vit.norm(by_hand.cls))


def test_drop_path_skips_rows_and_keeps_the_mean():
    block = Block(32, 4, drop_path=0.5).train()
    x = torch.ones(8, 3, 32)
    seen = []

    def double(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return 2 * rows

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = torch.stack([block.residual(x, double) for _ in range(200)])
    assert set(seen) == {4}, "dropped rows must not be computed"
    assert set(out.unique().tolist()) == {1.0, 5.0}  # untouched, or 1 + 2 * 8 / 4
    assert (out.mean(dim=0) - 3.0).abs().max() < 0.6


def test_drop_path_grows_with_depth_and_rests_in_evaluation():
    vit = random_vit(drop_path=0.4)
    assert [block.drop_path for block in vit.blocks] == pytest.approx([0.0, 0.2, 0.4])
    images = random_images(4, 3, 24, 24)
    assert torch.equal(vit(images).cls, vit(images).cls)
    assert torch.equal(vit(images).cls, random_vit()(images).cls)
    assert not torch.equal(vit.train()(images).cls, vit(images).cls)


def test_rejects_what_it_cannot_do():
    vit = random_vit()
    with pytest.raises(ValueError, match="25 x 24 px does not divide into patches of 4 px"):
        vit(random_images(1, 3, 25, 24))
    with pytest.raises(ValueError, match="layer 3 does not exist"):
        vit.attention(random_images(1, 3, 24, 24), 3)
    with pytest.raises(ValueError, match="dim 32 is not a multiple of heads 5"):
        ViT(**{**SMALL, "heads": 5})


def test_every_parameter_but_the_mask_token_learns():
    vit = random_vit(registers=2, ffn="swiglu")
    out = vit(random_images(2, 3, 24, 16))
    (out.cls.square().sum() + out.patches.square().sum() + out.registers.square().sum()).backward()
    still = [name for name, parameter in vit.named_parameters() if parameter.grad is None]
    assert still == ["mask_token"]


def test_attention_written_out_for_bf16_training_on_a_cpu_is_the_fused_one():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 8, generator=generator).bfloat16().requires_grad_() for _ in range(3))
    wanted = torch.randn(2, 3, 17, 8, generator=generator)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    theirs = torch.autograd.grad((exact * wanted).sum(), (q, k, v))
    ours = torch.autograd.grad((attend(q, k, v) * wanted).sum(), (q, k, v))
    torch.testing.assert_close(attend(q, k, v).double(), exact, rtol=0, atol=0.02)  # a few units of bfloat16
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other.double(), rtol=0, atol=0.05)


@pytest.mark.parametrize("queries, most", [(50, 2**23), (1, 2**23), (50, 1)])
def test_attention_in_bfloat16_is_that_of_float32(monkeypatch, queries, most):
    monkeypatch.setattr(vit, "WRITTEN_OUT", most)
    q, k, v = (torch.randn(2, 3, n, 64, generator=torch.Generator().manual_seed(n)) for n in (queries, 50, 51))
    v = v[:, :, :50]
    exact = attend(q, k, v)
    with torch.inference_mode():
        rounded = attend(*(x.bfloat16() for x in (q, k, v)))
    assert rounded.shape == exact.shape and rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), exact, atol=0.03)
