"""`negah attack area` as it is typed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from negah.cli import main as cli
from negah.cli.attack import grey_levels, radius
from negah.cli.main import parse
from negah.probe import detector as detectors
from negah.probe.detector import Detector


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A detector of random weights that finds panels in about half of some noise."""
    detector = Detector.random(window_px=32)
    with torch.no_grad():
        some = torch.randint(256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        detector.head.classifier.bias -= detector(some).logit.median()
    path = tmp_path_factory.mktemp("model") / "d.safetensors"
    detectors.save(detector, path)
    return path


@pytest.fixture
def tiles(tmp_path):
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def words(tiles, model, *more: str) -> list[str]:
    return ["attack", "area", str(tiles), "--model", str(model), "--gsd", "0.3", "--steps", "2", *more]


def test_it_tells_how_far_the_sum_moves(tiles, model, capsys):
    assert cli.main(words(tiles, model, "--eps", "1/255", "4/255", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["windows"] == 4 and [round(row["eps"] * 255) for row in result["rows"]] == [1, 4]
    for row in result["rows"]:
        assert row["lowest"] <= result["before"] <= row["highest"]
    assert result["rows"][1]["highest"] > result["before"]
    assert cli.main(words(tiles, model, "--eps", "1/255")) == 0
    out = capsys.readouterr().out
    assert "4 windows" in out and "1/255" in out and "lowest m2" in out


def test_an_unreadable_picture_is_left_out_and_said(tiles, model, capsys):
    (tiles / "broken.png").write_bytes((tiles / "0.png").read_bytes()[:100])
    assert cli.main(words(tiles, model)) == 3
    out, err = capsys.readouterr()
    assert "4 windows" in out and "broken.png" in err


def test_the_help_shows_radii_as_they_are_typed(capsys):
    with pytest.raises(SystemExit):
        parse("attack area", ["--help"])
    assert "1/255" in capsys.readouterr().out and grey_levels(0.03) == "0.03"
    assert all(radius(grey_levels(value)) == value for value in (1 / 255, 2 / 255, 8 / 255, 0.25))


@pytest.mark.parametrize("content", [b"no json", b"\xff\xfe\x00", b"[]"])
def test_a_file_that_is_no_calibration_is_called_so(tiles, model, tmp_path, content, capsys):
    (tmp_path / "c.json").write_bytes(content)
    assert cli.main(words(tiles, model, "--calibration", str(tmp_path / "c.json"))) == 2
    assert "c.json is no calibration: give one written by `negah calibrate`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--eps", "0"), "radii above 0"),
        (("--eps", "8"), "more than the range of a pixel"),
        (("--images", "0"), "--images 0: give 1 or more"),
        (("--calibration", "nothing.json"), "nothing.json"),
        (("--eps", "much"), "much"),
    ],
)
def test_what_cannot_be_attacked_is_one_line(tiles, model, capsys, more, says):
    assert cli.main(words(tiles, model, *more)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err
