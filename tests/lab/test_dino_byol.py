"""The objective between BYOL and DINO is these two at its ends, and the experiment walks from one to the other."""

import json
from functools import partial
from itertools import pairwise

import torch

from negah.lab import dino_byol, training
from negah.lab.dino_byol import ALL, CHAIN, SWAPS, Between
from negah.lab.training import Effort, small_resnet
from negah.ssl import BYOL, DINO
from negah.train import Objective
from negah.train.schedules import constant

SIZES = {"hidden": 24, "dim": 12, "momentum": 0.9}


def crops(sides=(24, 24)) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.rand(6, 3, side, side, generator=g, dtype=torch.float64) for side in sides]


def step(objective: Objective, batch: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of a second step, so that teacher and center have moved, and the backbone's gradients."""
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        objective.after_step(0.0)
    return loss.detach(), {name: p.grad for name, p in objective.backbone.named_parameters()}


def equal(ours: Between, theirs: BYOL | DINO, batch: list[torch.Tensor]) -> None:
    for name, module in theirs.named_children():  # projector or head, predictor, teacher, center
        getattr(ours, {"projector": "head"}.get(name, name)).load_state_dict(module.state_dict())
    (loss, grads), (expected, gradients) = step(ours.double(), batch), step(theirs.double(), batch)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, gradients, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(ours.seen, {name: theirs.seen[name] for name in ours.seen})


def test_without_changes_it_is_byol():
    equal(Between(small_resnet(1), **SIZES), BYOL(small_resnet(2), **SIZES), crops())


def test_with_all_changes_it_is_dino_at_any_number_of_crops():
    theirs = partial(DINO, prototypes=12, hidden=24, bottleneck=8, head_norm=True, momentum=0.9, freeze_last=0.0)
    for sides in ((24, 24), (24, 24, 16, 16, 16)):
        ours = Between(small_resnet(1), **ALL, **SIZES, bottleneck=8, teacher_temperature=0.05)
        equal(ours, theirs(small_resnet(2), teacher_temperature=constant(0.05)), crops(sides))


def test_the_path_goes_from_one_end_to_the_other_by_single_changes():
    assert CHAIN[0].switches == {} and CHAIN[0].locals == 0
    assert CHAIN[-1].switches == ALL and CHAIN[-1].locals > 0
    for before, after in pairwise(CHAIN):
        assert before.switches != after.switches or before.locals != after.locals


def test_the_page_tells_of_each_step(tmp_path, monkeypatch):
    for name, number in (("TRAIN", 20), ("TEST", 10)):
        monkeypatch.setattr(training, name, number)
    page = dino_byol.run(tmp_path, Effort(steps=4, batch=8, say=lambda line: None))
    assert [panel.name for panel in page.panels] == ["path", "swaps"]
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["setting"] for row in record["panels"]["path"]["rows"]] == [step.label for step in CHAIN]
    assert [row["setting"] for row in record["panels"]["swaps"]["rows"]][2:] == [step.label for step in SWAPS]
    assert "DINO" in record["panels"]["path"]["found"]
