"""`negah attack` as it is typed: what it prints and writes, and one line for whatever cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negah.cli.main import main

MODEL = """
import torch
from torch import nn

class Light(nn.Module):
    classes = ("dark", "light")

    def forward(self, images):
        over = 40 * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([-over, over], 1)
"""


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """A model that tells light pictures from dark ones, pictures 2 to 20 grey levels from its boundary, and a place."""
    (tmp_path / "mine.py").write_text(MODEL, encoding="utf-8")
    generator = np.random.default_rng(0)
    for i in range(20):
        kind = ("dark", "light")[i % 2]
        level = 127.5 + (2 + i) * (1 if i % 2 else -1)
        picture = (level + generator.integers(-20, 21, (8, 8, 3))).round().astype(np.uint8)
        (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "data" / kind / f"{i}.png")
    given = {"model": f"{tmp_path}/mine.py:Light", "data": f"{tmp_path}/data", "out": f"{tmp_path}/out"}
    return ["attack", *(word for name, value in given.items() for word in (f"--{name}", value)), "--steps", "5"]


def test_the_tables_say_how_robust_and_whether_to_trust_it(given, tmp_path, capsys):
    assert main([*given, "--eps", "4/255", "8/255", "16/255"]) == 0
    printed = capsys.readouterr()
    for words in ("20 images, Linf", "16/255", "1.000", "verdicts, on 20 images at eps 8/255", "gradients beat blind"):
        assert words in printed.out
    assert "ALARM" not in printed.out and printed.err == ""
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for words in ("How robust is", "<svg", "APGD", "data:image/png;base64", "dark. The model says dark", "4/255"):
        assert words in page
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert run["arguments"]["eps"] == [4 / 255, 8 / 255, 16 / 255] and run["versions"]["torch"]


def test_json_holds_what_the_file_does(given, tmp_path, capsys):
    assert main([*given, "--eps", "0.03", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "out" / "robustness.json").read_text(encoding="utf-8"))
    assert said.pop("status") == "complete" and said == stored
    # A picture falls when its mean is moved across the middle, which takes its distance from there.
    assert said["classes"] == {"dark": 0, "light": 1} and 0.5 < said["curve"][0]["robust"] < 0.8
    assert len(said["verdicts"]) == 15 and said["fooled_at"].count(None) == 20 * said["curve"][0]["robust"]


def test_an_unreadable_image_is_left_out_and_told(given, tmp_path, capsys):
    (tmp_path / "data" / "dark" / "broken.png").write_bytes(b"no picture")
    assert main([*given, "--eps", "8/255", "--images", "21"]) == 3
    printed = capsys.readouterr()
    assert "left out dark/broken.png" in printed.err and "20 images" in printed.out
    assert "1 images could not be read" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"--model": "nothing"}, "nothing is no model: give a detector"),
        ({"--model": "mine.py"}, "give mine.py:FUNCTION"),
        ({"--model": "timm/resnet18"}, "says nothing of weights"),
        ({"--eps": "0"}, "eps 0: a radius is above 0"),
        ({"--eps": "8"}, "eps 8 is more than the range of a pixel"),
        ({"--eps": "1/0"}, "--eps"),
        ({"--data": "nowhere"}, "nowhere does not exist"),
        ({"--positive": "light"}, "--positive light is for detectors"),
        ({"--images": "0"}, "--images 0: give 1 or more"),
        ({"--sample": "0"}, "sample 0: give 1 or more"),
        ({"--norm": "L2", "--eps": "nan"}, "eps nan: a radius is above 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(sum(value.items(), ())),
)
def test_what_cannot_be_used_is_one_line_and_leaves_no_folder(given, tmp_path, changed, says, capsys):
    assert main([*given, *(word for pair in changed.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_class_that_the_model_does_not_know_is_named(given, tmp_path, capsys):
    (tmp_path / "data" / "light").rename(tmp_path / "data" / "bright")
    assert main(given) == 2
    assert "class 'bright' of the data is none of the model's classes (dark, light)" in capsys.readouterr().err


def test_a_folder_without_images_is_told(given, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([*given, "--data", f"{tmp_path}/empty"]) == 2
    assert "empty holds no images" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_told_before_the_work(given, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*given, "--out", f"{tmp_path}/file"]) == 2
    assert "another --out" in capsys.readouterr().err


def test_images_of_several_sizes_need_one(given, tmp_path, capsys):
    Image.new("RGB", (9, 12)).save(tmp_path / "data" / "dark" / "other.png")
    assert main(given) == 2
    assert "2 sizes (8 x 8 px and others): give --size" in capsys.readouterr().err
    assert main([*given, "--size", "6", "--eps", "2/255"]) == 0
