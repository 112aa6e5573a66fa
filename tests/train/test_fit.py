"""The loop learns what has a closed form, and its options do what they say."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from negah.errors import InputError, TrainingError
from negah.train import Batches, Objective, fit
from negah.train.schedules import constant, linear


class Regression(Objective):
    """Least squares on a linear layer; optionally through dropout, so that random numbers matter."""

    def __init__(self, features: int = 3, dropout: float = 0.0):
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: tuple[Tensor, Tensor] | list[Tensor]) -> dict[str, Tensor]:
        x, y = batch
        error = self.linear(self.dropout(x)).squeeze(-1) - y
        return {"loss": error.square().mean(), "abs_error": error.abs().mean()}


def problem(items: int = 64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(items, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.7 + 0.3 * torch.randn(items, generator=generator)
    return list(zip(x, y))


def whole(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


def weights(objective: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in objective.parameters()])


def test_reaches_the_least_squares_solution():
    objective = Regression()
    x, y = whole(problem())
    fit(objective, [(x, y)], steps=500, lr=0.1)
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    expected = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(weights(objective), expected, atol=1e-4, rtol=0)


def test_one_step_of_sgd_is_the_hand_computed_one():
    objective = Regression()
    x, y = whole(problem())
    fit(objective, [(x, y)], steps=1, lr=0.1, optimizer=SGD, schedule=constant())
    gradient = torch.cat([-2 * (x * y[:, None]).mean(0), -2 * y.mean()[None]])
    torch.testing.assert_close(weights(objective), -0.1 * gradient)


def test_accumulation_equals_the_large_batch():
    items = problem()
    large, small = Regression(), Regression()
    settings = {"steps": 20, "lr": 0.05, "optimizer": partial(SGD, momentum=0.9), "clip": 1.0, "log_every": 1}
    a = fit(large, Batches(items, 32, seed=1), **settings)
    b = fit(small, Batches(items, 8, seed=1), accumulate=4, **settings)
    torch.testing.assert_close(weights(large), weights(small))
    for row, other in zip(a.history, b.history):
        assert row == pytest.approx(other, rel=1e-4)


def test_clip_bounds_each_part_by_itself():
    class TwoParts(Regression):
        def param_groups(self):
            return [
                {"params": [self.linear.weight], "part": "weight"},
                {"params": [self.linear.bias], "part": "bias"},
            ]

    objective = TwoParts()
    x = torch.full((8, 3), 100.0)
    y = torch.full((8,), -1e4)
    fit(objective, [(x, y)], steps=1, lr=1.0, optimizer=SGD, schedule=constant(), clip=0.5)
    assert objective.linear.weight.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert objective.linear.bias.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_gradients_below_the_clip_are_left_alone():
    clipped, free = Regression(), Regression()
    batch = whole(problem())
    for objective, clip in ((clipped, 1e6), (free, None)):
        fit(objective, [batch], steps=5, lr=0.01, optimizer=SGD, clip=clip)
    assert torch.equal(weights(clipped), weights(free))


def test_learning_rate_warms_up_then_follows_the_schedule_and_the_groups_scale():
    seen = []

    class Watched(Regression):
        def param_groups(self):
            self.groups = [{"params": [self.linear.weight]}, {"params": [self.linear.bias], "lr_scale": 0.5}]
            return self.groups

        def after_step(self, progress):
            seen.append((progress, *(group["lr"] for group in self.groups)))

    fit(Watched(), [whole(problem())], steps=6, lr=0.4, warmup=2, schedule=linear(), optimizer=lambda g: SGD(g))
    factors = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert seen == [
        (pytest.approx(i / 6), pytest.approx(0.4 * f), pytest.approx(0.2 * f)) for i, f in enumerate(factors)
    ]


def test_weight_decay_follows_its_schedule_where_a_group_has_none():
    objective = Regression()
    nn.init.ones_(objective.linear.weight)
    nn.init.ones_(objective.linear.bias)
    zero = (torch.zeros(4, 3), objective.linear.bias.detach().expand(4).clone())  # no gradient anywhere
    fit(objective, [zero], steps=2, lr=0.1, optimizer=SGD, schedule=constant(), weight_decay=linear(0.0, 1.0))
    assert torch.allclose(objective.linear.weight, torch.full((1, 3), 1 - 0.1 * 0.5))  # progress 0, then 1/2
    assert torch.equal(objective.linear.bias, torch.ones(1))  # one dimension: not decayed by default


def test_bf16_computes_in_bf16_and_keeps_parameters_in_fp32():
    seen = set()

    class Watched(Regression):
        def forward(self, batch):
            seen.add(self.linear(batch[0]).dtype)
            return super().forward(batch)

    objective = Watched()
    result = fit(objective, [whole(problem())], steps=100, lr=0.1, precision="bf16")
    assert seen == {torch.bfloat16} and objective.linear.weight.dtype == torch.float32
    assert result.history[-1]["loss"] < 0.2 * result.history[0]["loss"]


def test_history_is_the_mean_over_the_steps_of_each_row():
    every = fit(Regression(), Batches(problem(), 8), steps=7, lr=0.05, log_every=1).history
    rows = fit(Regression(), Batches(problem(), 8), steps=7, lr=0.05, log_every=3).history
    assert [row["step"] for row in rows] == [3, 6, 7]
    assert rows[1]["loss"] == pytest.approx(sum(row["loss"] for row in every[3:6]) / 3)
    assert rows[0].keys() == {"step", "lr", "loss", "abs_error", "grad_norm"}


def test_nothing_changes_behind_the_callers_back():
    objective = Regression(dropout=0.5)
    objective.eval()
    before = torch.get_rng_state()
    fit(objective, Batches(problem(), 8), steps=3, lr=0.1, scores={"zero": lambda: 0.0})
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in objective.modules())
    assert all(p.grad is None for p in objective.parameters())


def test_the_seed_decides():
    def trained(seed: int) -> Tensor:
        torch.rand(seed + 1)  # the caller's random state must not matter
        objective = Regression(dropout=0.5)
        fit(objective, Batches(problem(), 8), steps=5, lr=0.1, seed=seed)
        return weights(objective)

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_scores_are_taken_in_evaluation_and_leave_the_training_as_it_was():
    def trained(**options) -> tuple[Regression, list]:
        objective = Regression(dropout=0.5)

        def score() -> float:
            assert not objective.training and not torch.is_grad_enabled()
            return float(torch.rand(()))

        if options:
            options["scores"] = {"random": score}
        result = fit(objective, Batches(problem(), 8), steps=7, lr=0.1, **options)
        return objective, result.scores

    scored, scores = trained(score_every=3)
    plain, _ = trained()
    assert [row["step"] for row in scores] == [3, 6, 7]
    assert torch.equal(weights(scored), weights(plain))


def test_one_function_may_take_several_scores_at_once():
    objective = Regression()

    def both() -> dict[str, float]:
        assert not objective.training
        return {"norm": float(objective.linear.weight.norm()), "zero": 0.0}

    result = fit(objective, Batches(problem(), 8), steps=4, lr=0.1, scores=both, score_every=2)
    assert [row.keys() for row in result.scores] == [{"step", "norm", "zero"}] * 2
    assert result.scores[-1]["norm"] == pytest.approx(float(objective.linear.weight.detach().norm()))


def test_batches_in_dicts_and_named_tuples_reach_the_objective():
    class FromDict(Regression):
        def forward(self, batch):
            return super().forward((batch["x"], batch["y"][0]))

    x, y = whole(problem())
    result = fit(FromDict(), [{"x": x, "y": [y], "name": "kept"}], steps=1, lr=0.1)
    assert result.step == 1


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoilt():
    items = problem(16)
    items[5] = (torch.full((3,), math.nan), items[5][1])
    batches = Batches(items, 4, seed=2)
    bad = next(k for k in range(4) if 5 in batches.indices(k))
    objective = Regression()
    with pytest.raises(TrainingError) as caught:
        fit(objective, batches, steps=8, lr=0.1)
    message = str(caught.value)
    assert f"loss is nan at step {bad + 1}, batch {bad}" in message and "\n" not in message
    assert ", ".join(map(str, batches.indices(bad))) in message
    assert weights(objective).isfinite().all()


def test_of_accumulated_batches_the_bad_one_is_named():
    good, bad = (torch.ones(2, 3), torch.ones(2)), (torch.ones(2, 3), torch.full((2,), math.inf))
    with pytest.raises(TrainingError, match=r"loss is inf at step 2, batch 5 "):
        fit(Regression(), [good] * 5 + [bad], steps=9, lr=0.0, accumulate=3)


def test_a_gradient_that_is_not_finite_stops_too():
    class Root(Regression):
        def forward(self, batch):
            return {"loss": self.linear.weight.abs().sum().sqrt() + self.linear.bias.sum()}  # slope inf * 0 at 0

    objective = Root()
    with pytest.raises(TrainingError, match="grad_norm is nan at step 1"):
        fit(objective, [0], steps=3, lr=0.1)
    assert torch.equal(weights(objective), torch.zeros(4))


def test_a_parameter_in_no_group_is_named():
    class Forgetful(Regression):
        def param_groups(self):
            return [{"params": [self.linear.weight]}]

    with pytest.raises(TrainingError, match=r"leaves out linear\.bias"):
        fit(Forgetful(), [whole(problem())], steps=1, lr=0.1)
    frozen = Forgetful()
    frozen.linear.bias.requires_grad_(False)
    assert fit(frozen, [whole(problem())], steps=1, lr=0.1).step == 1


def test_a_parameter_in_two_groups_is_named():
    class Twice(Regression):
        def param_groups(self):
            return [{"params": [self.linear.weight]}, {"params": [self.linear.bias, self.linear.weight]}]

    with pytest.raises(TrainingError, match=r"linear\.weight is in two"):
        fit(Twice(), [whole(problem())], steps=1, lr=0.1)


def test_nothing_to_learn_is_said():
    frozen = Regression()
    frozen.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to learn"):
        fit(frozen, [whole(problem())], steps=1, lr=0.1)

    class Detached(Regression):
        def forward(self, batch):
            return {"loss": super().forward(batch)["loss"].detach()}

    with pytest.raises(TrainingError, match="does not depend on any parameter"):
        fit(Detached(), [whole(problem())], steps=1, lr=0.1)


def test_batches_that_run_out_are_said():
    with pytest.raises(InputError, match="no batch number 2"):
        fit(Regression(), iter([whole(problem())] * 2), steps=3, lr=0.1)
