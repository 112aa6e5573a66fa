"""LARS: its formula, another implementation of it, and what takes no part."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from negah.train import Objective, fit
from negah.train.optim import LARS, lars_groups


def tensors() -> list[nn.Parameter]:
    """A kernel, a matrix, one of zeros, one whose gradient will be zero; all in float64."""
    g = torch.Generator().manual_seed(0)
    sizes = [(4, 3, 3, 3), (5, 7), (3, 2), (2, 6)]
    weights = [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64)) for s in sizes]
    nn.init.zeros_(weights[2])
    return weights


def gradients(step: int, weights: list[nn.Parameter]) -> list[Tensor]:
    g = torch.Generator().manual_seed(10 + step)
    found = [torch.randn(w.shape, generator=g, dtype=torch.float64) * 10.0 ** (-2 * i) for i, w in enumerate(weights)]
    found[3].zero_()
    return found


def run(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: int = 5) -> list[Tensor]:
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.4 / (1 + step)
        for w, g in zip(weights, gradients(step, weights)):
            w.grad = g
        optimizer.step()
    return [w.detach().clone() for w in weights]


@pytest.mark.parametrize("decay", [1e-6, 0.05])
def test_steps_are_those_of_the_formula_and_of_lightly(decay):
    from lightly.utils.lars import LARS as Lightly

    weights = tensors()
    ours = run(LARS(weights, lr=1.0, momentum=0.9, weight_decay=decay), weights)

    weights = tensors()
    theirs = run(Lightly(weights, lr=1.0, momentum=0.9, weight_decay=decay, eps=0.0), weights)

    by_hand = [w.detach().clone() for w in tensors()]
    velocity = [torch.zeros_like(w) for w in by_hand]
    for step in range(5):
        for i, g in enumerate(gradients(step, tensors())):
            w = by_hand[i]
            if g.norm() == 0:
                update = torch.zeros_like(w)
            elif w.norm() == 0:
                update = g
            else:
                update = 1e-3 * w.norm() / (g.norm() + decay * w.norm()) * (g + decay * w)
            velocity[i] = 0.9 * velocity[i] + update
            by_hand[i] = w - 0.4 / (1 + step) * velocity[i]

    torch.testing.assert_close(ours, by_hand, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert torch.equal(ours[3], tensors()[3])  # no gradient, no step


def test_size_of_a_step_does_not_depend_on_that_of_the_gradient():
    for size in (1e-6, 1.0, 1e6):
        weight = nn.Parameter(torch.randn(20, 30, generator=torch.Generator().manual_seed(0)))
        before = weight.detach().clone()
        weight.grad = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)) * size
        LARS([weight], lr=2.0).step()
        torch.testing.assert_close((weight - before).norm() / before.norm(), torch.tensor(2e-3))


def test_without_adaptation_it_is_sgd():
    for group in ({"weight_decay": 0.0}, {"weight_decay": 0.01}):
        weights, others = tensors(), tensors()
        ours = run(LARS([{"params": weights, "adapt": False} | group], lr=0.1), weights)
        torch.testing.assert_close(ours, run(SGD([{"params": others} | group], lr=0.1, momentum=0.9), others))


def test_biases_and_norms_are_neither_adapted_nor_decayed():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    net[3].weight.requires_grad_(False)
    adapted, others = lars_groups(net)
    assert [p.shape for p in adapted["params"]] == [net[0].weight.shape] and adapted.keys() == {"params"}
    assert len(others["params"]) == 4 and others["weight_decay"] == 0.0 and others["adapt"] is False


def test_a_parameter_without_a_gradient_is_left_alone():
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([used, unused], weight_decay=0.1)
    assert optimizer.step(lambda: (2 * used).sum().backward() or 7.0) == 7.0
    assert torch.equal(unused, torch.ones(2, 2)) and (used < 1).all()


class Regression(Objective):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, batch):
        return {"loss": (self.net(batch).squeeze(-1) - batch.prod(1)).square().mean()}

    def param_groups(self):
        return lars_groups(self)


def test_a_run_of_fit_that_is_interrupted_ends_in_the_same_bits(tmp_path):
    batches = [torch.randn(16, 3, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    options = {"lr": 2.0, "optimizer": partial(LARS, momentum=0.8), "weight_decay": 1e-3, "log_every": 1}
    whole, halves = Regression(), Regression()
    history = fit(whole, batches, steps=20, **options).history
    assert history[-1]["loss"] < history[0]["loss"]

    class Stop(Exception):
        pass

    def stop() -> float:
        raise Stop

    with pytest.raises(Stop):
        fit(halves, batches, steps=20, out=tmp_path, checkpoint_every=8, scores={"x": stop}, score_every=10, **options)
    fit(halves, batches, steps=20, out=tmp_path, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), halves.state_dict().values()))
