"""Rates are chosen by training loss and scaled; company in batch norms is found out; words follow the figures."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from negah.lab import large_batch
from negah.lab.large_batch import GROUP, NETWORK, Unshuffled, lars, leak, ranked_first, tried
from negah.lab.training import Effort, Pictures
from negah.nn.backbone import Backbone
from negah.ssl import MoCo

EFFORT = Effort(steps=8, batch=16, seeds=2, say=lambda line: None)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    whole = Pictures.of(EFFORT)
    return Pictures(whole.train[:64], whole.train_labels[:64], whole.test[:64], whole.test_labels[:64])


def test_rates_are_chosen_by_training_loss_and_scaled_from_the_smallest_batch(pictures, monkeypatch):
    monkeypatch.setattr(large_batch, "GROWTH", (0.25, 1))
    monkeypatch.setattr(large_batch, "RATES", {"LARS": (1.0, 9.0), "SGD": (0.1, 0.9)})
    monkeypatch.setattr(large_batch, "FURTHER", 1)
    panel = lars(pictures, EFFORT)
    assert len(panel.rows) == 2 * 2 * 2
    for row in panel.rows:
        assert row["steps"] * row["batch"] == EFFORT.steps * EFFORT.batch / 2 and row["seeds"] == 2
        best = min(row["tried"], key=lambda one: one["loss"])
        assert row["rate for 256"] == best["rate"]
        assert len(row["tried"]) == 3  # of two rates, one is an end
    for name in ("LARS", "SGD"):
        mine = [row for row in panel.rows if row["optimizer"] == name]
        assert len({row["rate for 256"] for row in mine if row["how"] == "scaled"}) == 1
        small = [row for row in mine if row["batch"] == 4]
        assert small[0]["knn"] == small[1]["knn"]
        assert f"{name}, its rate scaled from batch 4 to 16, went from {100 * small[0]['knn']:.1f}" in panel.found


class Company(Backbone):
    """Says of a picture little but what its batch norm takes away: the mean of its company."""

    width = 3

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, eps=1.0, affine=False)  # so it hardly scales

    def forward(self, images):
        x = nn.functional.avg_pool2d(images.float(), images.shape[-1])
        return (x - self.norm(x)).flatten(1)


def test_a_network_that_reads_its_company_is_found_out(pictures, monkeypatch):
    torch.manual_seed(0)
    reads = Unshuffled(Company(), dim=8, queue=64, parts=16, layers=1)
    with monkeypatch.context() as patch:
        patch.setattr(large_batch, "views", lambda images, recipe, generator: [images / 255, images / 255])
        together, apart = (ranked_first(reads, pictures, how) for how in ("together", "apart"))
    assert together > 0.5 and apart < 0.2
    # A network whose norms see all pictures has no company to read, and the same of both.
    whole = MoCo(NETWORK(0), dim=8, queue=64, parts=1)
    before = [value.clone() for value in whole.state_dict().values()]
    together, apart = (ranked_first(whole, pictures, how) for how in ("together", "apart"))
    assert together == pytest.approx(apart, abs=1.5 / 64)
    assert all(torch.equal(a, b) for a, b in zip(before, whole.state_dict().values()))


def test_keys_share_company_with_their_queries_only_unshuffled(pictures):
    images = pictures.train[:16] / 255
    torch.manual_seed(0)
    moco = Unshuffled(NETWORK(0), dim=8, queue=64, parts=16 // GROUP)
    moco([images, images])
    queries = moco.projector(moco.backbone(images))
    torch.testing.assert_close(moco.keys(images), queries)
    assert not torch.allclose(MoCo.keys(moco, images), queries, atol=1e-3)


def test_the_leak_is_told_by_its_figures(pictures):
    panel = leak(pictures, replace(EFFORT, batch=18))  # not a multiple of a device's pictures
    assert [row["setting"] for row in panel.rows][2] == "whole batch" and len(panel.rows) == 3
    for row in panel.rows:
        assert row["seeds"] == 2 and 0 <= row["first, apart"] <= 1
        assert f"{row['setting']}: loss {row['loss']:.2f}, first in {100 * row['first, together']:.1f} %" in panel.found


@pytest.mark.parametrize(
    ("together", "told"), [(0.5, "company helps more (5.0 and 3.0"), (0.2, "company helps no more")]
)
def test_what_company_is_worth_follows_the_figures(together, told):
    names = ("by device, same company", "by device, shuffled", "whole batch")
    rows = [{"setting": name, "loss": 4.0, "first, together": 0.3, "first, apart": 0.1, "knn": 0.4} for name in names]
    rows[0] |= {"first, together": together, "loss": 3.0}
    rows[2] |= {"knn": 0.5}
    said = large_batch._told_leak(rows, 2000)
    assert told in said and "the loss is lower than shuffled" in said
    assert "kNN accuracy is no different from shuffled and below the whole batch" in said
    assert large_batch.gain({"first, together": 0.0, "first, apart": 0.0}) == 1


@pytest.mark.parametrize(
    ("lowest", "found"), [(2, [1, 2, 4]), (4, [1, 2, 4, 8]), (8, [1, 2, 4, 8, 16]), (0.2, [0.25, 0.5, 1, 2, 4])]
)
def test_rates_beyond_the_ends_are_tried_while_they_are_better(monkeypatch, lowest, found):
    monkeypatch.setattr(large_batch, "STEP", 2)
    assert sorted(tried((1, 2, 4), lambda rate: abs(math.log2(rate / lowest)))) == found


@pytest.mark.parametrize(
    ("lars_knn", "told"),
    [(0.4, "LARS is above SGD"), (0.2, "LARS is below SGD"), (0.31, "LARS is no different from SGD")],
)
def test_optimizers_are_told_apart_at_the_largest_batch_beyond_chance(lars_knn, told):
    rows = [
        {"optimizer": name, "batch": batch, "how": how, "knn": knn if batch == 8 else 0.5, "at the end": name == "SGD"}
        for name, knn in (("LARS", lars_knn), ("SGD", 0.3)) for batch in (2, 8) for how in ("scaled", "chosen anew")
    ]  # fmt: skip
    said = large_batch._told_lars(rows, [2, 8], 2000)
    assert f"At batch 8 {told} with rates that were scaled" in said
    assert said.endswith("beyond those tried for SGD at 2, SGD at 8.")
