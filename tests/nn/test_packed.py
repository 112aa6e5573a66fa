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


def test_without_the_operators_plain_layers_are_kept(monkeypatch):
    def missing(*_: object):
        raise NotImplementedError("Could not run 'mkldnn::_reorder_linear_weight'")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing, raising=False)
    packed.available.cache_clear()
    try:
        assert not packed.available()
    finally:
        packed.available.cache_clear()
