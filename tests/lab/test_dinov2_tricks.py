"""What is compared computes the same, and the words follow the figures."""

import pytest
import torch

from negah.lab import costs, dinov2_tricks
from negah.lab.dinov2_tricks import Multiplied, WrittenOut
from negah.lab.training import Effort, Pictures
from negah.nn.vit import Block, SelfAttention

EFFORT = Effort(steps=10, batch=16, say=lambda line: None)


def test_attention_written_out_is_attention():
    torch.manual_seed(0)
    fused, written = SelfAttention(32, 2), WrittenOut(32, 2)
    written.load_state_dict(fused.state_dict())
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(written(x), fused(x))
    for attention in (fused, written):
        attention(x).square().sum().backward()
    torch.testing.assert_close(written.qkv.weight.grad, fused.qkv.weight.grad, rtol=1e-4, atol=1e-4)


def test_a_branch_multiplied_by_zero_is_left_out_of_some_rows_and_scaled_in_others():
    torch.manual_seed(0)
    block = Multiplied(32, 2, layer_scale=None, drop_path=0.5).train()
    x = torch.randn(400, 1, 32)
    change = block.residual(x, torch.ones_like) - x
    assert set(change.flatten().round().tolist()) == {0.0, 2.0}  # all of a row or nothing, twice where it is kept
    assert change.mean() == pytest.approx(1.0, abs=0.15)
    plain = Block(32, 2, layer_scale=None, drop_path=0.5).eval()
    plain.load_state_dict(block.state_dict())
    torch.testing.assert_close(block.eval()(x), plain(x))


def test_every_panel_is_made_of_its_figures(tmp_path, monkeypatch):
    for name, value in {"SIDES": (32, 64), "GLOBAL": 32, "LOCAL": 16}.items():
        monkeypatch.setattr(dinov2_tricks, name, value)
    monkeypatch.setattr(costs, "LEAST_ROUNDS", 2)
    whole = Pictures.of(EFFORT)
    few = Pictures(whole.train[:40], whole.train_labels[:40], whole.test[:20], whole.test_labels[:20])
    monkeypatch.setattr(Pictures, "of", lambda effort: few)
    page = dinov2_tricks.run(tmp_path, EFFORT)
    packing, depth, attention, distillation = page.panels
    assert [panel.name for panel in page.panels] == ["packing", "depth", "attention", "distillation"]
    by = {row["setting"]: row for panel in page.panels for row in panel.rows}
    # Memory is exact, so what the tricks save of it can be asserted.
    assert by["packed"]["memory"] < 1
    assert by["left out 0.5"]["memory"] < by["left out 0.1"]["memory"] < by["times zero 0.1"]["memory"]
    assert by["fused, 65 tokens"]["memory"] < 1
    assert by["crop by crop"]["speed"] == by["off"]["memory"] == by["small"]["speed"] == 1
    for panel, name in ((packing, "packed"), (depth, "times zero 0.3"), (attention, "fused, 17 tokens")):
        row = by[name]
        assert f"{row['speed']:.2f} times as fast" in panel.found and f"{row['memory']:.2f} of its mem" in panel.found
    assert distillation.rows[2]["setting"] == "small, distilled"
    assert f"{100 * distillation.rows[2]['knn']:.1f} %" in distillation.found
