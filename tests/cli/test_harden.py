"""`negah harden` as it is typed: what it prints, its exit status, and one line where something cannot be used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from negah.cli import main as cli
from negah.cli.harden import radius
from negah.errors import InputError
from negah.probe import detector as detectors
from negah.probe.detector import Detector

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty-four tiles in class folders, dark if there are panels, and a detector of random weights."""
    root = tmp_path_factory.mktemp("harden")
    rng = np.random.default_rng(0)
    for i in range(24):
        path = root / "tiles" / ("none", "panels")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8) + np.uint8(120 * (i % 2 == 0))
        Image.fromarray(image).save(path)
    detectors.save(Detector.random(window_px=16), root / "d.safetensors")
    return root


def words(folder: Path, out: Path, *more: str) -> list[str]:
    given = ["harden", "fgsm", "--model", str(folder / "d.safetensors"), "--data", str(folder / "tiles")]
    given += ["--split", "random", "--folds", "3", "--eps", "2/255", "--epochs", "2", "--batch", "4", "--out", str(out)]
    for name, value in zip(more[::2], more[1::2]):
        if name in given:
            given[given.index(name) + 1] = value
        else:
            given += [name, value]
    return given


def test_a_table_for_people(folder, tmp_path, capsys):
    assert cli.main(words(folder, tmp_path)) == 0
    out, err = capsys.readouterr()
    for part in ("8 images that were not learned from, Linf 2/255", "before", "after", "robust accuracy",
                 "recall under attack", "8 images; 8 watched", "of 4, epoch", "no catastrophic overfitting",
                 "threshold", "detector.safetensors"):  # fmt: skip
        assert part in out, part
    assert [line.partition(":")[0] for line in err.splitlines()[:2]] == ["epoch 1 of 2", "epoch 2 of 2"]


def test_json_for_machines_and_a_corrupt_picture_is_named(folder, tmp_path, capsys):
    shutil.copytree(folder / "tiles", tmp_path / "tiles")
    (tmp_path / "tiles" / "none" / "00.png").write_bytes(b"no picture")
    assert cli.main([*words(folder, tmp_path / "out", "--data", str(tmp_path / "tiles")), "--json"]) == 3
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["status"] == "some inputs failed" and found["failures"][0][0] == "none/00.png"
    assert set(found["before"]) == set(found["after"]) and 0 < found["threshold"] < 1
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in found["after"].values())
    assert "left out none/00.png" in err


def test_a_classifier_from_class_folders(folder, tmp_path, capsys):
    given = ["harden", "pgd", "--backbone", "resnet10-cifar", "--data", str(folder / "tiles"), "--size", "16"]
    given += ["--folds", "3", "--eps", "1/255", "--epochs", "1", "--batch", "8", "--out", str(tmp_path)]
    assert cli.main(given) == 0
    out = capsys.readouterr().out
    assert "robust accuracy" in out and "threshold" not in out
    assert {"backbone.safetensors", "classes.safetensors"} < {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--eps", "0"], "--eps 0: a radius is above 0"),
        (["--eps", "2/0"], "--eps 2/0: give a number or a fraction, such as 2/255"),
        (["--eps", "small"], "--eps small: give a number or a fraction"),
        (["--folds", "2"], "--folds 2: give 3 or more"),
        (["--beta", "6"], "--beta 6: a weight above 0, and of trades only"),
        (["--average", "1"], "--average 1: a momentum lies between 0 and 1"),
        (["--batch", "0"], "--batch 0: give 1 or more"),
        (["--split", "location"], "knows no locations"),
        (["--data", "{tmp}/one"], "images with and without panels are needed"),
        (["--data", "{tmp}/absent"], "does not exist"),
        (["--data", "{tmp}/bad"], "none of the 6 images of"),
        (["--model", "{tmp}/absent"], "no model file at"),
        (["--backbone", "resnet18"], "give either --model, a detector, or --backbone"),
        (["--out", "{tmp}/one/0-P.png"], "cannot write"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(folder, tmp_path, capsys, more, told):
    for place in ("one", "bad/panels", "bad/none"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(3):
            name = f"{i}-P.png" if place == "one" else f"{i}.png"
            (tmp_path / place / name).write_bytes(b"no picture")
    assert cli.main(words(folder, tmp_path / "out", *(text.format(tmp=tmp_path) for text in more))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and told in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("unknown", ["resnet99", "timm/resnet18"])
def test_a_classifier_that_cannot_begin_leaves_no_folder(folder, tmp_path, monkeypatch, unknown, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)  # as where it is not installed
    given = ["harden", "pgd", "--backbone", unknown, "--data", str(folder / "tiles"), "--eps", "1/255"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert ("pip install timm" if "timm" in unknown else "resnet99") in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_run_is_refused(folder, tmp_path, capsys):
    assert cli.main(words(folder, tmp_path, "--epochs", "1")) == 0
    before = (tmp_path / "detector.safetensors").read_bytes()
    capsys.readouterr()
    assert cli.main(words(folder, tmp_path, "--epochs", "1", "--eps", "1/255")) == 2
    err = capsys.readouterr().err
    assert "holds another run: eps" in err and "give another --out" in err and err.count("\n") == 1
    assert (tmp_path / "detector.safetensors").read_bytes() == before


def test_two_processes_write_one_detector_and_print_once(folder, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "negah", *words(folder, tmp_path)], capture_output=True, text=True, env=ENVIRONMENT,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("robust accuracy") == 1 and done.stderr.count("epoch 2 of 2") == 1
    assert json.loads((tmp_path / "run.json").read_text())["processes"] == 2
    before, after = load_file(folder / "d.safetensors"), load_file(tmp_path / "detector.safetensors")
    assert before.keys() == after.keys() and not all(torch.equal(before[name], after[name]) for name in before)


def test_a_radius_is_a_fraction_or_a_number():
    assert radius("2/255") == 2 / 255 and radius("0.25") == 0.25
    for wrong in ("", "nan", "1/2/3", "2/", "inf"):
        with pytest.raises(InputError, match="such as 2/255"):
            radius(wrong)
