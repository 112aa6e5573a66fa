import copy

import pytest
import torch

from negah.nn import packed
from negah.nn.vit import Block, FeedForward

needs_operators = pytest.mark.skipif(
    not packed.available(), reason="this PyTorch or CPU lacks the operators; plain layers are used"
)


def block_in_bf16(ffn: FeedForward) -> Block:
    torch.manual_seed(0)
    block = Block(64, 2, ffn=ffn, layer_scale=None).eval()
    for layer in block.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.bias)
            layer.to(torch.bfloat16)
    return block


@needs_operators
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_a_packed_block_computes_what_the_plain_one_does(ffn: FeedForward):
    plain = block_in_bf16(ffn)
    fast = copy.deepcopy(plain)
    packed.pack(fast)
    assert not any(isinstance(layer, torch.nn.Linear) for layer in fast.modules())
    with torch.inference_mode():
        for batch in (1, 3, 20):  # whatever number of rows the order was chosen for
            x = torch.randn(batch, 17, 64)
            assert torch.allclose(fast(x), plain(x), atol=0.05)


@needs_operators
def test_gelu_is_the_exact_one():
    layer = torch.nn.Linear(1, 1, dtype=torch.bfloat16)
    with torch.inference_mode():
        layer.weight.fill_(1)
        layer.bias.fill_(0)
        x = torch.linspace(-3.2, -2.5, 20)[:, None].bfloat16()  # where the two differ by up to 15 %
        found = packed.PackedLinear(layer, gelu=True)(x).float()
    exact, approximate = (torch.nn.functional.gelu(x.float(), approximate=a) for a in ("none", "tanh"))
    assert torch.allclose(found, exact, rtol=0.01, atol=0)
    assert not torch.allclose(found, approximate, rtol=0.01, atol=0)


@needs_operators
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_compute_what_the_plain_ones_do(dtype: torch.dtype):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 128, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(128, 130, 3, padding=1),
        torch.nn.Conv2d(130, 16, 3, padding=1, stride=2), torch.nn.Conv2d(16, 16, 1, bias=False),
        torch.nn.Flatten(2), torch.nn.LazyLinear(7), torch.nn.Linear(7, 5, bias=False),
    )  # fmt: skip
    sides = (64, 32)  # the former is large enough for Winograd's way
    with torch.inference_mode():
        for side in sides:
            net[6] = torch.nn.Linear((side // 2) ** 2, 7)
            plain = copy.deepcopy(net).to(dtype)
            fast = copy.deepcopy(plain)
            packed.pack_layers(fast)
            assert not any(isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) for layer in fast.modules())
            for batch in (2, 1, 5):  # whatever the ways were chosen for
                x = torch.randn(batch, 3, side, side).to(dtype)
                wanted = plain(x)
                assert (fast(x) - wanted).abs().max() <= (1e-5 if dtype == torch.float32 else 0.03)


@needs_operators
def test_a_convolution_takes_inputs_of_other_sizes_than_the_first():
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(128, 128, 3, padding=1)
    with torch.inference_mode():
        for first, second in ((8, 64), (64, 8)):
            fast = packed.PackedConv2d(plain)
            for side in (first, second):
                x = torch.randn(2, 128, side, side)
                assert (fast(x) - plain(x)).abs().max() < 1e-5


@needs_operators
def test_layers_made_from_these_and_padding_by_other_than_zeros_are_left_alone():
    class Scaled(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    net = torch.nn.Sequential(Scaled(4, 4), torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    before = list(net)
    packed.pack_layers(net)
    assert list(net) == before


def test_without_the_operators_plain_layers_are_kept(monkeypatch):
    def missing(*_: object):
        raise NotImplementedError("Could not run 'mkldnn::_reorder_linear_weight'")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing, raising=False)
    packed.available.cache_clear()
    try:
        assert not packed.available()
    finally:
        packed.available.cache_clear()
