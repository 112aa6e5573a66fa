"""From labelled images to a saved detector and figures that may be believed, on pictures a child could sort."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from negah import probe, weights
from negah.errors import InputError, OutputError
from negah.nn.vit import ViT
from negah.probe.detector import Detector
from negah.probe.metrics import best_threshold
from negah.runs.probe import Options, Result, eval_probe, train_probe


def quick(**more: Any) -> Options:
    return Options(folds=3, epochs=30, batch=16, views=2, **more)


def picture(label: int, seed: int, side: int = 30) -> np.ndarray:
    """Noise; with a dark blue rectangle where the label is 1."""
    rng = np.random.default_rng(seed)
    image = rng.integers(110, 180, (side, side, 3), dtype=np.uint8)
    if label:
        r, c = rng.integers(2, side // 2, 2)
        image[r : r + 12, c : c + 12] = (20, 30, 70)
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures in 24 groups, from two sources, and a backbone with random weights."""
    home = tmp_path_factory.mktemp("probe")
    with (home / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "place", "source"])
        for i in range(48):
            label = i // 2 % 2 if i < 46 else -1
            Image.fromarray(picture(max(label, 0), i)).save(home / f"{i}.png")
            rows.writerow([f"{i}.png", label, i // 2, "north" if i < 20 else "south"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights.save(ViT(patch=8, dim=32, depth=1, heads=2, grid=(4, 4), layer_scale=None), home / "vit.safetensors")
    return home


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[Path, Result]:
    out = folder / "out"
    return out, train_probe(folder / "labels.csv", out, str(folder / "vit.safetensors"), quick(group="place"))


def test_all_four_stand_side_by_side_and_find_what_is_plain(trained):
    _, result = trained
    assert list(result.methods) == ["attentive head", "linear", "kNN", "image statistics"]
    for name, scores in result.methods.items():
        assert scores.samples == 46 and scores.groups == 23
        assert scores.auc.low <= scores.auc.value <= scores.auc.high
        assert scores.auc.value > 0.9, name
    assert result.split == "3 folds by group, 23 groups" and not result.failures
    assert [(s.source, s.images) for s in result.sources] == [("north", 20), ("south", 26)]


def test_no_group_is_scored_by_what_was_trained_on_it(trained):
    out, _ = trained
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == 46
    folds: dict[str, set[str]] = {}
    for row in rows:
        folds.setdefault(row["group"], set()).add(row["fold"])
    assert all(len(which) == 1 for which in folds.values()) and set.union(*folds.values()) == {"0", "1", "2"}


def test_the_threshold_of_a_fold_ignores_that_fold(trained):
    out, result = trained
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    label, fold = (np.array([int(row[name]) for row in rows]) for name in ("label", "fold"))
    p, used = (np.array([float(row[name]) for row in rows]) for name in ("attentive head", "threshold"))
    for k in range(3):
        assert used[fold == k] == pytest.approx(best_threshold(label[fold != k], p[fold != k]), abs=2e-6)
    assert result.threshold == pytest.approx(best_threshold(label, p), abs=2e-6)


def test_the_saved_detector_is_what_was_trained(trained, folder):
    out, result = trained
    detector = probe.load(out / "head.safetensors")
    assert detector.info.window_px == 32 and detector.info.threshold == result.threshold
    backbone = weights.load(folder / "vit.safetensors")
    assert torch.equal(detector.backbone.pos_embed, backbone.pos_embed)
    again = eval_probe(folder / "labels.csv", str(out / "head.safetensors"), quick(group="place"))
    assert again.methods["attentive head"].auc.value > 0.95  # on its own training images
    assert again.methods["image statistics"].auc == pytest.approx(result.methods["image statistics"].auc, abs=0.2)
    assert again.notes and "--gsd" in again.notes[0]


def test_everything_is_written_down(trained, folder):
    out, result = trained
    run = json.loads((out / "run.json").read_text())
    assert run["verb"] == "probe train" and run["arguments"]["group"] == "place" and "torch" in run["versions"]
    scores = json.loads((out / "scores.json").read_text())
    assert scores["methods"]["kNN"]["auc"]["value"] == pytest.approx(result.methods["kNN"].auc.value)
    assert "other folds" in scores["threshold_from"]
    with pytest.raises(OutputError, match="another run"):
        train_probe(folder / "labels.csv", out, str(folder / "vit.safetensors"), Options(group="place", folds=4))


def test_the_same_seed_gives_the_same_figures(trained, folder, tmp_path):
    _, result = trained
    again = train_probe(folder / "labels.csv", tmp_path / "out", str(folder / "vit.safetensors"), quick(group="place"))
    assert again.methods == result.methods and again.threshold == result.threshold


def test_a_split_is_asked_for_and_never_random_by_silence(folder, tmp_path):
    args = folder / "labels.csv", tmp_path / "out", str(folder / "vit.safetensors")
    with pytest.raises(InputError, match=r"--group COLUMN.*--split random"):
        train_probe(*args, quick())
    with pytest.raises(InputError, match=r"knows no locations"):
        train_probe(*args, quick(split="location"))
    with pytest.raises(InputError, match=r"--views"):
        train_probe(*args, Options(views=9))
    with pytest.raises(InputError, match=r"--size 30 is not a multiple.*give 32"):
        train_probe(*args, Options(group="place", size=30))


def test_unreadable_images_are_left_out_and_named_and_a_test_split_is_kept_out(folder, tmp_path):
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "group", "split"])
        for i in range(40):
            (tmp_path / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes() if i != 7 else b"broken")
            rows.writerow([f"{i}.png", i // 2 % 2, i // 2, "test" if i >= 30 else "train"])
    result = train_probe(tmp_path, tmp_path / "out", str(folder / "vit.safetensors"), quick(gsd_m=0.25))
    assert [name for name, _ in result.failures] == ["7.png"]
    assert result.methods["linear"].samples == 29 and result.test["linear"].samples == 10
    assert result.test["attentive head"].threshold == result.threshold
    assert probe.load(tmp_path / "out" / "head.safetensors").info.gsd_m == 0.25 and not result.notes


def test_lora_changes_the_backbone_it_saves_and_not_the_one_it_was_given(folder, tmp_path):
    options = Options(group="place", lora=2, folds=2, epochs=2, batch=16)
    result = train_probe(folder / "labels.csv", tmp_path / "out", str(folder / "vit.safetensors"), options)
    tuned, given = probe.load(tmp_path / "out" / "head.safetensors").backbone, weights.load(folder / "vit.safetensors")
    changed = {n for n, p in tuned.state_dict().items() if not torch.equal(p, given.state_dict()[n])}
    assert changed == {"blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight"}
    assert np.isfinite(result.methods["attentive head"].auc.value)


def test_a_detector_reads_large_images_window_by_window(tmp_path):
    """The same ground at half the pixel size has the same answer; a bigger image is no less than its best window."""
    detector = Detector.random(window_px=32)
    probe.save(detector, tmp_path / "d.safetensors")
    (tmp_path / "set").mkdir()
    images = [picture(i % 2, i, side=32) for i in range(8)]
    for i, image in enumerate(images):
        big = np.full((64, 64, 3), 140, np.uint8)
        big[:32, 32:] = image
        Image.fromarray(big).save(tmp_path / "set" / f"{i}-{'NP'[i % 2]}.png")
    eval_probe(tmp_path / "set", str(tmp_path / "d.safetensors"), Options(gsd_m=0.3), out=tmp_path / "out")
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "out" / "predictions.csv").open())}
    with torch.no_grad():
        for i, image in enumerate(images):
            alone = detector(torch.from_numpy(image).permute(2, 0, 1)[None]).logit.sigmoid().item()
            assert float(rows[f"{i}-{'NP'[i % 2]}.png"]["attentive head"]) >= alone - 1e-5
