"""Products by another library: the same numbers, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from negah.nn.linear import FEWEST, Linear, product


def operands(rows: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=g).requires_grad_() for shape in ((rows, 24), (40, 24), (40,))]


@pytest.mark.parametrize("rows", [1, FEWEST - 1, FEWEST, 3 * FEWEST + 1])
@pytest.mark.parametrize("biased", [True, False])
def test_products_are_those_of_linear(rows, biased):
    inputs = operands(rows)[: 3 if biased else 2]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    ours, theirs = product(*inputs), F.linear(*exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-4)
    wanted = torch.randn(rows, 40)
    mine = torch.autograd.grad((ours * wanted).sum(), inputs)
    for gradient, other in zip(mine, torch.autograd.grad((theirs * wanted).sum(), exact), strict=True):
        torch.testing.assert_close(gradient.double(), other, rtol=0, atol=1e-3)


def test_rows_may_be_strided():
    x, weight, bias = operands(2 * FEWEST)
    torch.testing.assert_close(product(x[::2], weight, bias), F.linear(x[::2], weight, bias), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_pytorch(dtype):
    inputs = [x.detach().to(dtype) for x in operands(2 * FEWEST)]
    assert torch.equal(product(*inputs), F.linear(*inputs))


def test_autocast_is_obeyed():
    with torch.autocast("cpu", torch.bfloat16):
        assert product(*operands(2 * FEWEST)).dtype == torch.bfloat16


def test_the_layer_is_nn_linear():
    layer, plain = Linear(24, 40), nn.Linear(24, 40)
    layer.load_state_dict(plain.state_dict())
    x = operands(2 * FEWEST)[0]
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-5)
