"""`negah generate` as it is typed: what it prints and writes, and one line for whatever cannot be used."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from negah.cli.main import main
from negah.diffusion.model import TextToImage
from negah.runs.generate import made_with


@pytest.fixture
def given(pipeline, tmp_path) -> list[str]:
    return [
        "generate",
        "a house",
        "a red roof",
        "--model",
        str(pipeline),
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "2",
    ]


def test_pictures_are_written_and_listed(given, tmp_path, capsys):
    assert main([*given, "--count", "2", "--seed", "3", "--grid", "--sampler", "ddim", "--guidance", "2"]) == 0
    printed = capsys.readouterr()
    for words in ("a red roof", "001-000004.png", "grid.png"):
        assert words in printed.out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"{p:03d}-{s:06d}.png" for p in (0, 1) for s in (3, 4)), "grid.png", "run.json"]
    with Image.open(tmp_path / "out" / names[0]) as picture:
        assert picture.size == (32, 32) and picture.mode == "RGB"
    about = made_with(tmp_path / "out" / names[3])
    assert (about["prompt"], about["seed"], about["sampler"], about["guidance"]) == ("a red roof", 4, "ddim", 2.0)


def test_json_names_each_picture(given, tmp_path, capsys):
    assert main([*given, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    out = tmp_path / "out"
    assert said["pictures"] == [
        [str(out / "000-000000.png"), "a house", 0],
        [str(out / "001-000000.png"), "a red roof", 0],
    ]
    assert said["grid"] is None and all(Path(path).is_file() for path, _, _ in said["pictures"])


def test_every_option_reaches_the_picture(given, tmp_path, capsys):
    Image.new("RGB", (32, 32), (90, 120, 60)).save(tmp_path / "tile.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "hole.png")
    typed = {
        "spacing": "karras", "negative": "trees", "interval": [0.5, 9.0], "rescale": 0.5, "apg": 0.0, "size": [16, 16],
        "start": str(tmp_path / "tile.png"), "strength": 0.9, "mask": str(tmp_path / "hole.png"), "precision": "bf16",
    }  # fmt: skip
    words = [
        str(word)
        for name, value in typed.items()
        for word in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]
    assert main([*given, *words]) == 0, capsys.readouterr().err
    about = made_with(tmp_path / "out" / "000-000000.png")
    assert {name: about[name] for name in typed} == typed
    assert main([*given, "--plus-plus", "--guidance", "0.6"]) == 0


def test_what_is_cut_from_a_prompt_is_said(given, capsys):
    given[1] = "house " * 80 + "pool"
    assert main(given) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("longer than 77 tokens; not seen: 'house house house house house pool'") == 1


@pytest.mark.parametrize(("typed", "said"), [
    (["--model", "nowhere.safetensors"], "no model at nowhere.safetensors"),
    (["--lora", "nowhere.safetensors"], "no LoRA at nowhere.safetensors"),
    (["--label", "roof"], "has no classifier/"),
    (["--size", "17", "16"], "multiples of 4 px"),
    (["--start", "nowhere.png"], "nowhere.png"),
    (["--mask", "nowhere.png"], "give it as --start"),
    (["--steps", "0"], "--steps 0"),
    (["--sampler", "plms"], "plms"),
])  # fmt: skip
def test_what_cannot_be_used_is_one_line_and_status_2(given, tmp_path, capsys, typed, said):
    assert main([*given, *typed]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == "" and "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()


def test_no_prompt_is_refused(given, capsys):
    assert main([given[0], *given[3:]]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_too_little_memory_is_one_line(given, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(TextToImage, "decode", full)
    assert main(given) == 2
    assert "out of memory: take smaller batches, smaller pictures, or bf16" in capsys.readouterr().err


def test_numbers_that_are_not_finite_are_one_line(given, monkeypatch, capsys):
    monkeypatch.setattr(TextToImage, "denoise", lambda self, x, sigma, context: x * torch.nan)
    assert main(given) == 2
    assert "not finite after step 1 of 2" in " ".join(capsys.readouterr().err.split())
