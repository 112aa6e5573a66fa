"""`negah probe train` and `negah probe eval` as they are typed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from negah import probe, weights
from negah.cli.main import main
from negah.nn.vit import ViT
from negah.probe.detector import Detector


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Twelve tiles named as the uk20K set names them, dark if positive."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8) + np.uint8(120 * (i % 2))
        Image.fromarray(image).save(folder / f"{i}-{'PN'[i % 2]}.tif")
    return folder


def test_train_then_eval_in_json(tiles, tmp_path, capsys):
    torch.manual_seed(0)
    weights.save(ViT(patch=8, dim=16, depth=1, heads=2, grid=(4, 4), layer_scale=None), tmp_path / "vit.safetensors")
    where = ["--data", str(tiles), "--split", "random", "--folds", "2", "--gsd", "0.3", "--json"]
    out = tmp_path / "out"
    given = ["--backbone", str(tmp_path / "vit.safetensors"), "--out", str(out), "--epochs", "2"]
    assert main(["probe", "train", *where, *given]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["methods"]) == ["attentive head", "linear", "kNN", "image statistics"]
    assert result["methods"]["image statistics"]["auc"]["value"] == 1
    assert main(["probe", "eval", *where, "--model", str(out / "head.safetensors")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["threshold"] == pytest.approx(result["threshold"]) and again["status"] == "complete"


def test_the_table_states_figures_threshold_and_what_was_left_out(tiles, tmp_path, capsys):
    (tiles / "0-P.tif").write_bytes(b"no picture")
    probe.save(Detector.random(window_px=32), tmp_path / "d.safetensors")
    status = main(["probe", "eval", "--data", str(tiles), "--split", "random", "--folds", "2", "--gsd", "0.3",
                   "--model", str(tmp_path / "d.safetensors")])  # fmt: skip
    printed = capsys.readouterr()
    assert status == 3 and "left out 0-P.tif" in printed.err
    for word in ("AUC", "calibration error", "image statistics", "threshold: 0.500", "chosen when it was trained"):
        assert word in printed.out


def test_without_groups_it_says_what_to_give_and_stops(tiles, tmp_path, capsys):
    given = ["--backbone", "negah/aerial-tiny", "--out", str(tmp_path / "out")]
    assert main(["probe", "train", "--data", str(tiles), *given]) == 2
    error = capsys.readouterr().err
    assert "--group COLUMN" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
