"""`pretrain`: each method from pictures to a backbone that loads, and what goes wrong on the way."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from negah.errors import InputError, OutputError
from negah.runs.pretrain import Options, pretrain
from negah.ssl.collapse import CollapseWarning
from negah.weights import backbone

QUICK = {"epochs": 2, "batch": 8, "size": 32, "locals": 2, "prototypes": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of pictures, told apart by their colour."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (root / name).mkdir()
        for i in range(12):
            pixels = np.clip(np.array(colour) + rng.normal(0, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("method", "net"),
    [("simclr", "resnet10-cifar"), ("moco", "resnet10-cifar"), ("mocov3", "vit-micro/8"), ("byol", "resnet10-cifar"),
     ("dino", "resnet10-cifar"), ("dino", "vit-micro/8"), ("dinov2", "vit-micro/8")],
)  # fmt: skip
def test_each_method_makes_a_backbone_that_loads(folder, tmp_path, method, net):
    options = Options(**QUICK, score=(str(folder),), score_every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # six steps learn nothing, which the doctor may well say
        result = pretrain(method, [str(folder)], net, tmp_path, options)
    before, after = backbone(net, size=32), backbone(str(result.backbone))
    moved = [not torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values())]
    assert any(moved) and after.width == before.width
    assert np.isfinite(result.loss) and result.steps == 6 and result.tiles == 24
    assert [row["step"] for row in result.scores] == [3, 6] and 0 <= result.scores[-1]["linear"] <= 1
    assert result.diagnosis
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["arguments"]["method"] == method and run["versions"] and run["hardware"]


def test_the_same_call_again_goes_on_to_the_same_bits(folder, tmp_path, monkeypatch):
    from negah.train import batches

    whole = pretrain("byol", [str(folder)], "resnet10-cifar", tmp_path / "whole", Options(**QUICK))

    class Stop(Exception):
        pass

    start = batches.Batches.start

    def broken(self, at):
        for i, batch in enumerate(start(self, at)):
            if i == 4:
                raise Stop
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(batches.Batches, "start", broken)
        with pytest.raises(Stop):
            pretrain("byol", [str(folder)], "resnet10-cifar", tmp_path / "parts", Options(**QUICK))
    assert not (tmp_path / "parts" / "backbone.safetensors").exists()
    parts = pretrain("byol", [str(folder)], "resnet10-cifar", tmp_path / "parts", Options(**QUICK))
    first, second = backbone(str(whole.backbone)).state_dict(), backbone(str(parts.backbone)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.loss == parts.loss


def test_a_damaged_picture_is_left_out_and_told(folder, tmp_path):
    (tmp_path / "in").mkdir()
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        (tmp_path / "in" / f"{i}.png").write_bytes(path.read_bytes())
    (tmp_path / "in" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    result = pretrain("simclr", [str(tmp_path / "in")], "resnet10-cifar", tmp_path / "out", Options(**QUICK))
    assert result.tiles == 23 and [name.endswith("7.png") for name, _ in result.failures] == [True]


@pytest.mark.parametrize(
    ("method", "net", "changes", "message"),
    [
        ("dinov2", "resnet10-cifar", {}, "vision transformer"),
        ("byol", "resnet10-cifar", {"batch": 1}, "--batch 2"),
        ("byol", "resnet10-cifar", {"drop_path": 0.1}, "for transformers"),
        ("dino", "vit-micro/8", {"local": 12}, "multiple of the backbone's patch"),
        ("dino", "vit-micro/8", {"drop_path": 1.0}, "--drop-path"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(folder, tmp_path, method, net, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        pretrain(method, [str(folder)], net, tmp_path / "out", Options(**(QUICK | changes)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_anothers_run_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        pretrain("byol", [str(tmp_path / "empty")], "resnet10-cifar", tmp_path / "out", Options(**QUICK))
    pretrain("byol", [str(folder)], "resnet10-cifar", tmp_path / "out", Options(**QUICK))
    with pytest.raises(OutputError, match="holds another run"):
        pretrain("simclr", [str(folder)], "resnet10-cifar", tmp_path / "out", Options(**QUICK))
