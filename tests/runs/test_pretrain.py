"""`pretrain`: each method from pictures to a backbone that loads, and what goes wrong on the way."""

import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from negah.errors import InputError, OutputError
from negah.runs import recipes
from negah.runs.pretrain import Options, pretrain
from negah.runs.watch import Labelled
from negah.ssl.collapse import CollapseDoctor
from negah.train import Batches, checkpoint
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


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Heads a hundredth as large: their checkpoints would hold hundreds of megabytes."""
    for name in ("BYOL", "MoCoV3"):
        monkeypatch.setattr(recipes, name, partial(getattr(recipes, name), hidden=64))


def told_to_stop(monkeypatch, batch: int) -> None:
    """SIGTERM while a batch, counted from 0, is made: its step is then still finished."""
    start = Batches.start

    def stopping(self, at):
        for i, made in enumerate(start(self, at)):
            if at + i == batch:
                os.kill(os.getpid(), signal.SIGTERM)
            yield made

    monkeypatch.setattr(Batches, "start", stopping)


@pytest.mark.filterwarnings("ignore::negah.ssl.collapse.CollapseWarning")  # six steps learn nothing
@pytest.mark.parametrize(
    ("method", "net"),
    [("simclr", "resnet10-cifar"), ("moco", "resnet10-cifar"), ("mocov3", "vit-micro/8"), ("byol", "resnet10-cifar"),
     ("dino", "vit-micro/8"), ("dinov2", "vit-micro/8")],
)  # fmt: skip
def test_each_method_makes_a_backbone_and_goes_on_in_the_middle_of_an_epoch_to_the_same_bits(
    folder, tmp_path, monkeypatch, method, net
):
    # Checkpoints are large: here only when told to stop, and at the end.
    options = Options(**QUICK, score=(str(folder),), score_every=1, checkpoint_every=9)
    result = pretrain([str(folder)], tmp_path / "whole", method, net, options)
    assert result.steps == 6 and result.tiles == 24 and np.isfinite(result.loss) and result.diagnosis
    assert [(row["epoch"], row["step"]) for row in result.scores] == [(1, 3), (2, 6)]  # the last one is reported
    assert all(0 <= row[name] <= 1 for row in result.scores for name in ("knn20", "knn200", "linear"))
    before, after = backbone(net, size=32), backbone(str(result.backbone))
    moved = [not torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values())]
    assert any(moved) and after.width == before.width
    run = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert run["arguments"]["method"] == method and run["versions"] and run["hardware"] and run["finished"]

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        told_to_stop(patch, 4)
        pretrain([str(folder)], tmp_path / "parts", method, net, options)
    assert caught.value.code == 143
    assert checkpoint.load(tmp_path / "parts" / "checkpoint.pt")["step"] == 5  # an epoch is three steps
    assert not (tmp_path / "parts" / "backbone.safetensors").exists()
    told: list[str] = []
    again = pretrain([str(folder)], tmp_path / "parts", method, net, options, say=told.append)
    assert told[0] == f"going on with the run in {tmp_path / 'parts'}"
    assert replace(again, backbone=result.backbone) == result
    whole, parts = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    assert whole["history"] == parts["history"]
    for a, b in (
        (whole["objective"], parts["objective"]),
        (after.state_dict(), backbone(str(again.backbone)).state_dict()),
    ):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    for path in (tmp_path / "whole" / "maps").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / "maps" / path.name).read_bytes()


def test_maps_scores_and_a_line_at_fixed_epochs(folder, tmp_path):
    told: list[str] = []
    read: list[tuple[str, int, int]] = []
    options = Options(**(QUICK | {"epochs": 3}), score=(str(folder),), score_every=2)
    pretrain(
        [str(folder)], tmp_path, "simclr", "resnet10-cifar", options,
        say=told.append, progress=lambda *step: read.append(step),
    )  # fmt: skip
    assert read == [(stage, i, 24) for stage in ("pictures", "scores") for i in range(1, 25)]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["epoch-0002.png", "epoch-0003.png"]
    with Image.open(tmp_path / "maps" / "epoch-0003.png") as image:
        assert image.mode == "RGB"
    assert len(told) == 2 and told[0].startswith("epoch 2 of 3: loss ") and "linear" in told[1]
    written = json.loads((tmp_path / "scores.json").read_text())
    assert [row["epoch"] for row in written["scores"]] == [2, 3] and written["history"]


def test_what_is_held_out_is_a_fifth_of_each_class(folder, tmp_path):
    labelled = Labelled.load([str(folder)], 32, seed=1, progress=lambda *_: None)
    for label in (0, 1):
        assert int(labelled.held[labelled.labels == label].sum()) == 2  # of 12
    assert not torch.equal(labelled.held, Labelled.load([str(folder)], 32, seed=2, progress=lambda *_: None).held)


def test_a_batch_of_two_trains_and_says_that_nothing_can_be_told(folder, tmp_path):
    result = pretrain([str(folder)], tmp_path, "mocov3", "vit-micro/16", Options(**(QUICK | {"batch": 2, "epochs": 1})))
    assert np.isfinite(result.loss) and result.steps == 12
    assert result.diagnosis == "nothing can be told from fewer than 4 pictures in a batch"


def test_a_run_that_the_doctor_ends_is_scored_where_it_ended(folder, tmp_path, monkeypatch):
    def end(self, run):
        CollapseDoctor_after_step(self, run)
        if run.step == 4:
            self.readings.append({"step": 4, "kind": "complete"})
            run.history.append({"step": 4, "loss": 1.0})
            run.stop = "collapsed"

    CollapseDoctor_after_step = CollapseDoctor.after_step
    monkeypatch.setattr(CollapseDoctor, "after_step", end)
    options = Options(**QUICK, score=(str(folder),), score_every=1)
    result = pretrain([str(folder)], tmp_path, "simclr", "resnet10-cifar", options)
    assert result.stopped == "collapsed" and result.steps == 4
    assert [row["step"] for row in result.scores] == [3, 4] and result.scores[-1]["linear"] <= 1


def test_a_backbone_goes_on_at_a_higher_resolution(folder, tmp_path):
    first = pretrain([str(folder)], tmp_path / "low", "dinov2", "vit-micro/8", Options(**QUICK))
    more = Options(**(QUICK | {"size": 48, "epochs": 1}), lr=1e-6)
    second = pretrain([str(folder)], tmp_path / "high", "dinov2", str(first.backbone), more)
    low, high = backbone(str(first.backbone)), backbone(str(second.backbone))
    for a, b in zip(low.parameters(), high.parameters(), strict=True):  # it started from the first, and not anew
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert not torch.equal(low.vit.pos_embed, high.vit.pos_embed)
    assert high(torch.zeros(1, 3, 48, 48)).shape == (1, high.width)


def test_a_small_backbone_is_taught_by_a_finished_run(folder, tmp_path):
    quick = Options(**(QUICK | {"epochs": 1}), long=True)
    pretrain([str(folder)], tmp_path / "large", "dinov2", "vit-micro/8", quick)
    teach = replace(quick, long=False, prototypes=None, distil=str(tmp_path / "large"))
    result = pretrain([str(folder)], tmp_path / "small", "dinov2", "vit-tiny/8", teach)
    state, large = (checkpoint.load(tmp_path / name / "checkpoint.pt")["objective"] for name in ("small", "large"))
    assert len(state["head.last.weight"]) == 64 and backbone(str(result.backbone)).width == 192
    for name, value in large.items():  # the guide is the large run's teacher, and has not moved
        if name.startswith("teacher."):
            assert torch.equal(state[name.replace("teacher.", "guide.", 1)], value)
    with pytest.raises(InputError, match="--distil is for dinov2, not for dino"):
        pretrain([str(folder)], tmp_path / "other", "dino", "vit-micro/8", teach)
    with pytest.raises(InputError, match="there is no finished run"):
        pretrain([str(folder)], tmp_path / "other", "dinov2", "vit-micro/8", replace(teach, distil=str(tmp_path)))


def test_a_damaged_picture_is_left_out_and_told_also_of_the_labelled_ones(folder, tmp_path):
    given = tmp_path / "in"
    shutil.copytree(folder, given)
    (given / "red" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    options = Options(**QUICK, score=(str(given),))
    result = pretrain([str(given)], tmp_path / "out", "simclr", "resnet10-cifar", options)
    assert result.tiles == 23 and [Path(name).name for name, _ in result.failures] == ["7.png", "7.png"]


@pytest.mark.parametrize(
    ("method", "net", "changes", "message"),
    [
        ("dinov2", "resnet10-cifar", {}, "vision transformer"),
        ("byol", "resnet10-cifar", {"batch": 1}, "--batch 2"),
        ("byol", "resnet10-cifar", {"drop_path": 0.1}, "for transformers"),
        ("dino", "vit-micro/8", {"local": 12}, "multiple of the backbone's patch"),
        ("dino", "vit-micro/8", {"drop_path": 1.0}, "--drop-path"),
        ("byol", "resnet10-cifar", {"epochs": 0}, "--epochs 0: give 1 or more"),
        ("byol", "resnet10-cifar", {"checkpoint_every": 0}, "--checkpoint-every 0"),
        ("byol", "resnet10-cifar", {"lr": float("nan")}, "--lr nan"),
        ("byol", "resnet10-cifar", {"seed": -1}, "--seed -1"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(folder, tmp_path, method, net, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        pretrain([str(folder)], tmp_path / "out", method, net, Options(**(QUICK | changes)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_another_run_is_refused_by_what_differs(folder, tmp_path):
    pretrain([str(folder)], tmp_path, "byol", "resnet10-cifar", Options(**QUICK))
    with pytest.raises(
        OutputError, match=r"holds another run: method byol \(now simclr\), epochs 2 \(now 4\)"
    ) as caught:
        pretrain([str(folder)], tmp_path, "simclr", "resnet10-cifar", Options(**(QUICK | {"epochs": 4})))
    assert "\n" not in str(caught.value)
    done = pretrain([str(folder)], tmp_path, "byol", "resnet10-cifar", Options(**QUICK, workers=1, checkpoint_every=2))
    assert done.steps == 6


def test_a_run_without_a_checkpoint_makes_way(folder, tmp_path):
    (tmp_path / "run.json").write_text('{"arguments": {"batch": 32}, "started": ""}')
    assert pretrain([str(folder)], tmp_path, "byol", "resnet10-cifar", Options(**QUICK)).steps == 6
