"""One moving average: where it starts, where it goes, what it leaves alone."""

import copy

import pytest
import torch
from torch import nn

from negah.train.ema import EMA
from negah.train.schedules import linear


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def test_at_step_0_it_is_the_model_and_shares_no_memory():
    model = network()
    ema = EMA(model, 0.99)
    for average, parameter in zip(ema.model.state_dict().values(), model.state_dict().values()):
        assert torch.equal(average, parameter) and average.data_ptr() != parameter.data_ptr()
    ema.update(model)
    assert all(torch.equal(a, p) for a, p in zip(ema.model.parameters(), model.parameters()))
    assert not any(p.requires_grad for p in ema.parameters()) and all(p.requires_grad for p in model.parameters())


def test_update_is_its_formula():
    model = network()
    ema = EMA(model, 0.9)
    expected = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, model.parameters())]
        ema.update(model)
    for average, e in zip(ema.model.parameters(), expected):
        torch.testing.assert_close(average, e)


def test_momentum_may_be_a_schedule_of_progress():
    model = network()
    ema, start = EMA(model, linear(0.5, 1.0)), copy.deepcopy(model)
    nn.init.zeros_(model[0].weight)
    ema.update(model, progress=1.0)
    assert torch.equal(ema.model[0].weight, start[0].weight)
    ema.update(model, progress=0.0)
    torch.testing.assert_close(ema.model[0].weight.detach(), 0.5 * start[0].weight.detach())


def test_buffers_are_copied():
    model = network().train()
    ema = EMA(model, 0.999)
    for _ in range(2):
        model(torch.randn(8, 4) * 3 + 1)
    ema.update(model)
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert ema.model[1].num_batches_tracked == 2


def test_another_architecture_is_refused():
    ema = EMA(network(), 0.9)
    with pytest.raises(ValueError, match="other parameters"):
        ema.update(nn.Linear(4, 5))
