"""`negah pretrain clip|coca|simvlm` and `negah caption`, on a few drawn pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from negah.cli.main import main
from negah.errors import InputError, WeightsError
from negah.language import CoCa
from negah.language.captions import Captions
from negah.language.load import gsd_of, load_both, reference_of
from negah.language.score import captions, scores, vectors
from negah.runs.caption import caption
from negah.runs.pairs import Options, pretrain
from negah.weights import backbone
from negah.weights.files import read

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200), "white": (240, 240, 240)}
SMALL = Options(epochs=1, batch=4, size=16, vocabulary=600, length=12, width=16, layers=2)
BACKBONES = {"clip": "vit-micro/8", "coca": "vit-micro/8", "simvlm": "resnet10-cifar"}


@pytest.fixture
def data(tmp_path):
    rows = []
    for name, rgb in COLOURS.items():
        for i in range(2):
            Image.fromarray(np.full((18, 18, 3), rgb, np.uint8)).save(tmp_path / f"{name}{i}.png")
            rows.append(f"{name}{i}.png,a {name} field,the field is {name}")
    path = tmp_path / "captions.csv"
    path.write_text("file,caption1,caption2\n" + "\n".join(rows))
    return path


@pytest.mark.parametrize("method", ["clip", "coca", "simvlm"])
def test_a_run_writes_a_model_that_is_read_again_whole(method, data, tmp_path):
    found = pretrain([str(data)], tmp_path / "out", method, BACKBONES[method], SMALL)
    assert found.pictures == 8 and found.texts == 8 and found.steps == 2
    model, tokens = load_both(str(found.model))
    pairs = Captions.read(data, 16)
    asked = scores(model, tokens, pairs)
    assert ("exact" in asked) == (method != "clip") and ("text_to_image_1" in asked) == (method != "simvlm")
    assert model.size == 16
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["arguments"]["method"] == method and "finished" in record


def test_coca_learns_what_it_is_shown(data, tmp_path):
    options = Options(
        epochs=150, batch=8, size=16, side=16, vocabulary=600, length=12, width=32, layers=2, lr=2e-3,
        score=(str(data),), score_every=150, checkpoint_every=150,
    )  # fmt: skip
    found = pretrain([str(data)], tmp_path / "out", "coca", "vit-micro/8", options)
    last = found.scores[-1]
    assert last["exact"] == 1 and last["text_to_image_1"] == 1 and last["image_to_text_1"] == 1
    result = caption([data.parent / "red0.png"], model=str(found.model))
    assert result.captions[0][1] in ("a red field", "the field is red")


def test_a_run_goes_on_where_it_was_stopped(data, tmp_path):
    whole = pretrain([str(data)], tmp_path / "whole", "clip", "vit-micro/8", SMALL)
    again = pretrain([str(data)], tmp_path / "whole", "clip", "vit-micro/8", SMALL)
    assert again.steps == whole.steps
    one, other = (load_both(str(found.model))[0].state_dict() for found in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_pictures_that_are_missing_are_told_and_status_is_3(data, tmp_path, capsys):
    data.write_text(data.read_text() + "\ngone.png,a gone field,gone\n")
    out = tmp_path / "out"
    status = main(
        ["pretrain", "clip", "--data", str(data), "--backbone", "vit-micro/8", "--size", "16", "--epochs", "1",
         "--batch", "4", "--vocabulary", "600", "--width", "16", "--layers", "2", "--out", str(out), "--json"]
    )  # fmt: skip
    printed = json.loads(capsys.readouterr().out)
    assert status == 3 and printed["failures"][0][0] == "gone.png"
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "method", "backbone", "message"),
    [
        ({"batch": 100}, "clip", "vit-micro/8", "8 pictures do not fill a batch of 100"),
        ({"layers": 3}, "coca", "vit-micro/8", "--layers 3"),
        ({"vocabulary": 9}, "clip", "vit-micro/8", "--vocabulary 9"),
        ({}, "simvlm", "vit-micro/8", "simvlm sees by the first stages of a residual network"),
        ({}, "clip", "resnet10-cifar", "clip sees by a vision transformer"),
        ({"size": 15}, "simvlm", "resnet10-cifar", "--size 15 is not a multiple of 4"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, method, backbone, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        pretrain([str(data)], tmp_path / "out", method, backbone, Options(**{**vars(SMALL), **options}))


@pytest.mark.parametrize(
    ("given", "message"),
    [(["clip", "--queue", "5"], "--queue is not for clip"), (["byol", "--vocabulary", "600"], "--vocabulary is not")],
)
def test_options_of_other_methods_are_refused(given, message, data, tmp_path, capsys):
    method, *more = given
    arguments = ["pretrain", method, "--data", str(data), "--backbone", "vit-micro/8", *more]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_captions_of_one_pixel_and_of_drawing(data, tmp_path, capsys):
    found = pretrain([str(data)], tmp_path / "out", "simvlm", "resnet10-cifar", SMALL)
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    arguments = ["caption", str(tmp_path / "dot.png"), str(tmp_path / "bad.png"), "--model", str(found.model), "--json"]
    assert main(arguments) == 3
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["captions"]) == 1 and len(printed["failures"]) == 1
    dot = [tmp_path / "dot.png"]
    drawn = [caption(dot, model=str(found.model), share=0.9, seed=3).captions for _ in range(2)]
    assert drawn[0] == drawn[1]
    with pytest.raises(InputError, match="no beams"):
        caption(dot, model=str(found.model), beams=2, share=0.5)
    with pytest.raises(InputError, match="--beams 100000: give 100 or less"):
        caption(dot, model=str(found.model), beams=100_000)
    with pytest.raises(InputError, match="--seed .*: give a number from 0"):
        caption(dot, model=str(found.model), share=0.5, seed=2**70)
    with pytest.raises(InputError, match="no picture to be used in .*bad.png"):
        caption([tmp_path / "bad.png"], model=str(found.model))
    clip = pretrain([str(data)], tmp_path / "clip", "clip", "vit-micro/8", SMALL)
    with pytest.raises(WeightsError, match="a CLIP, which writes nothing"):
        caption(dot, model=str(clip.model))
    model, tokens = load_both(str(found.model))
    assert len(list(captions(model, tokens, [torch.zeros(3, 16, 16, dtype=torch.uint8)] * 3))) == 3
    with pytest.raises(WeightsError, match="is a SimVLM, which writes captions"):
        from negah.runs.search import search

        search(["a field"], dot, model=str(found.model))


def test_a_model_tells_its_ground_size_and_keeps_vectors_of_held_out_pictures(data, tmp_path):
    held = tmp_path / "held.csv"
    held.write_text("file,caption\nred0.png,a red field\nblue1.png,a blue field\n")
    options = Options(**{**vars(SMALL), "extent": 32.0, "score": (str(held),)})
    found = pretrain([str(data)], tmp_path / "out", "coca", "vit-micro/8", options)
    checkpoint = read(found.model)
    model, _ = load_both(str(found.model))
    assert gsd_of(checkpoint) == 2.0
    assert isinstance(model, CoCa)
    expected = vectors(model, Captions.read(held, 16).images)
    torch.testing.assert_close(reference_of(checkpoint), expected, atol=2e-3, rtol=0)
    plain = pretrain([str(data)], tmp_path / "plain", "clip", "vit-micro/8", SMALL)
    kept = reference_of(read(plain.model))
    assert kept is not None and len(kept) == 8 and gsd_of(read(plain.model)) is None
    with pytest.raises(WeightsError, match="a model of pictures and words, no backbone"):
        backbone(found.model)
