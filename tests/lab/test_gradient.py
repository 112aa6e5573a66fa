"""The formula is the gradient, the check tells what is not, and the words follow the figures."""

import math
from functools import partial

import pytest
import torch

from negah.lab import costs, gradient
from negah.lab.gradient import FORMS, PATH, PLANTED, apart, checked, descended, finite_differences, gradients, pairs
from negah.lab.training import Effort
from negah.losses.contrast import contrast

EFFORT = Effort(steps=10, batch=16, seeds=2, say=lambda line: None)
OURS = "losses.contrast, tile by tile"


@pytest.fixture(scope="module")
def checks() -> dict:
    return {name: checked(loss) for name, loss in FORMS.items()}


def test_the_formula_is_the_gradient():
    inputs = pairs(30, 6)
    found = gradient.gradient(*(part.detach() for part in inputs))
    for form in (gradient.plain, gradient.tiled, gradient.kept, gradient.unguarded):
        torch.testing.assert_close(gradients(form, inputs, 7), list(found), rtol=1e-10, atol=1e-12)


def test_every_planted_fault_is_caught_by_what_it_breaks_and_ours_passes(checks):
    assert checks[OURS]["verdict"] == "passes"
    verdicts = {name: checks[name]["verdict"].removeprefix("caught by ").split(", ") for name in PLANTED}
    wrong = ["gradcheck", "finite differences", "autograd fp64", "autograd fp32"]
    assert verdicts["a norm left out of the derivative"][:4] == verdicts["one direction only"][:4] == wrong
    assert verdicts["tiles kept, not made again"] == ["memory"]
    assert verdicts["no maximum subtracted"][0] == "finite at 0.001"


def test_a_fault_of_the_temperature_alone_is_caught():
    def forgetful(x, y, temperature, tile):
        return contrast(x, y, temperature=temperature.detach(), symmetric=True, tile=tile) + 0 * temperature

    assert checked(forgetful)["verdict"].startswith("caught by gradcheck, finite differences, autograd fp64")


def test_finite_differences_are_those_of_each_entry():
    x, y, temperature = pairs(4, 3)
    found = finite_differences(lambda x, y, t, tile: (x**3).sum() + 2 * y.sum() * t, (x, y, temperature), 2)
    expected = [3 * x**2, 2 * temperature.expand(4, 3), 2 * y.sum()]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-6, atol=1e-6)


def test_nothing_is_near_to_nan():
    one, nan = torch.ones(2), torch.tensor([1.0, math.nan])
    assert apart([one], [one]) == 0 and apart([one, nan], [one, one]) == apart([nan], [nan]) == math.inf
    assert apart([2 * one], [4 * one]) == 0.5


def test_pull_and_push_are_the_gradient_weigh_the_same_and_leave_the_length_alone():
    x, y, _ = pairs(20, 6)
    pull, push, p = gradient.parts(x.detach(), y.detach(), 0.2)
    found = torch.autograd.grad(contrast(x, y, temperature=0.2), x)[0]
    step = gradient.across(pull + push, x.detach()) / (20 * x.detach().norm(dim=1, keepdim=True))
    torch.testing.assert_close(-step, found, rtol=1e-10, atol=1e-12)
    others = p.masked_fill(torch.eye(20, dtype=torch.bool), 0).sum(1, keepdim=True)
    torch.testing.assert_close(pull.norm(dim=1, keepdim=True) * 0.2, others)
    assert (found * x).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("steps", [1, 50])
def test_a_descent_goes_a_path_of_its_length_whatever_the_temperature(steps):
    x, y = gradient._in_groups(torch.arange(16) % 2, 0)
    for temperature in (0.02, 1.0):
        moved = torch.cat([a - b for a, b in zip(descended(x, y, temperature, steps), (x, y))]).norm(dim=1).mean()
        assert moved == pytest.approx(PATH) if steps == 1 else PATH / 2 < moved <= PATH


def test_every_panel_is_made_of_its_figures(tmp_path, monkeypatch, checks):
    monkeypatch.setattr(gradient, "SIZES", (64, 128))
    monkeypatch.setattr(costs, "LEAST_ROUNDS", 2)
    known = iter(checks.values())
    monkeypatch.setattr(gradient, "checked", lambda loss: next(known))
    page = gradient.run(tmp_path, EFFORT)
    found = {panel.name: panel.found for panel in page.panels}
    assert list(found) == ["formula", "check", "saves", "forces", "temperature"]
    assert f"{checks[OURS]['autograd fp64']:.0e} in fp64" in found["formula"]
    assert found["check"].startswith("4 of 4 planted faults are caught")
    saves, forces, temperature = (panel.rows for panel in page.panels[2:])
    assert f"{saves[-1]['memory']:.3f} of the plain form's" in found["saves"]
    if costs.ANEW.exists():
        assert saves[-1]["process MB"] > 0 and "of its own grew" in found["saves"]
    assert f"by {forces[0]['least growth of |x|']:.1e} of its length at least" in found["forces"]
    assert [row["setting"] for row in temperature[:2]] == ["before", "T = 0.02"]
    assert temperature[1]["pushing ±"] > 0  # of two seeds
    assert "steps 10, seeds 2, batch 16" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_conclusions_turn_with_the_figures():
    def rows(*groups: float) -> list[dict]:
        row = {"positive": 1.0, "others": 0.0, "least |x|": 1.0, "push of the nearest": 0.5, "push of its group": 0.5}
        return [row | {"setting": str(i), "its group": g, "pushing": 9 - i} for i, g in enumerate(groups)]

    told = partial(gradient._told_temperatures, n=16)
    assert "the fewer push: not throughout" in told(rows(0.9, 0.1, 0.5))
    assert "parts a group more than the highest" in told(rows(0.9, 0.1, 0.5))
    assert "parts a group no more than the highest" in told(rows(0.9, 0.5, 0.1))
    caught = {
        name: {"verdict": "passes"} | dict.fromkeys(("autograd fp64", "autograd fp32", "memory"), 1.0) for name in FORMS
    }
    panel = gradient.planted(caught)
    assert panel.found.startswith("0 of 4") and "Not caught: a norm left out" in panel.found
