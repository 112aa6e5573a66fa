"""`negah dreambooth` as it is typed: what it prints, its exit status, and one line where something cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negah.cli import main as cli

pytest.importorskip("diffusers")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def words(photos: Path, pipeline: Path, *more: str) -> list[str]:
    given = ["dreambooth", "--instance", str(photos), "--class-word", "house", "--token", "<new>"]
    given += ["--model", str(pipeline), "--out", str(photos.parent / "out"), "--steps", "2", "--every", "1"]
    given += ["--class-images", "2", "--samples", "2", "--sampler-steps", "2"]
    for name, value in zip(more[::2], more[1::2]):
        if name in given:
            given[given.index(name) + 1] = value
        else:
            given += [name, value]
    return given


def test_a_table_for_people(photos, pipeline, capsys):
    assert cli.main(words(photos, pipeline, "--prompts", "a {} in the sun")) == 0
    out, err = capsys.readouterr()
    for part in ("3 pictures of <new> house, 2 of the class", "held out loss", "fidelity", "class kept", "stop at",
                 "new to the model", "pytorch_lora_weights.safetensors", "report.html"):  # fmt: skip
        assert part in out, part
    assert "step 1: losses" in err
    assert json.loads((photos.parent / "out" / "run.json").read_text())["arguments"]["prompts"] == ["a {} in the sun"]


def test_json_for_machines_and_a_broken_picture_is_named(photos, pipeline, capsys):
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:60])
    assert cli.main([*words(photos, pipeline, "--method", "full", "--prior-weight", "0"), "--json"]) == 3
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["status"] == "some inputs failed" and found["images"] == {"instance": 2, "kept aside": 0, "class": 0}
    assert [row["step"] for row in found["scores"]] == [0, 1, 2] and Path(found["model"]).is_dir()
    assert "left out" in err and "1.png" in err


@pytest.mark.parametrize(
    "more, message",
    [
        (("--class-word", ""), "--class-word is empty"), (("--token", "house"), "is a word of this model already"),
        (("--instance", "nowhere"), "nowhere"), (("--samples", "1"), "--samples 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_a_line(photos, pipeline, capsys, more, message):
    assert cli.main(words(photos, pipeline, *more)) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("negah: ")]
    assert len(lines) == 1 and message in lines[0] and out == ""
    assert not (photos.parent / "out").exists()


def test_an_empty_folder_is_a_line(pipeline, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    assert cli.main(words(tmp_path / "photos", pipeline)) == 2
    assert "no pictures in" in capsys.readouterr().err
