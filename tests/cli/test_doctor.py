import json

import pytest
import torch

from negah.cli import show
from negah.cli.main import main
from negah.errors import install
from negah.runs import doctor


def test_json_says_what_there_is(capsys):
    status = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["libraries"]["torch"] == torch.__version__.split("+")[0]
    assert found["drivers"] == dict.fromkeys(doctor.DRIVERS, True)
    assert found["devices"][0]["kind"] == "cpu" and found["devices"][0]["memory"] > 10**8
    assert found["gdal"]["GDAL (rasterio)"] >= "3"
    assert all(place["free"] > 0 for place in found["places"])
    assert status == (2 if found["problems"] else 0)


def test_tables_for_people(capsys):
    main(["doctor"])
    text = capsys.readouterr().out
    for word in ("Versions", "torch", "GDAL", "Devices", "Bundled", "Disk space"):
        assert word in text


def test_what_extras_lack_is_told_with_the_command(monkeypatch):
    lines = [
        "torch>=2.11",
        'onnx; extra == "onnx"',
        'no-such-package>=2; extra == "onnx"',
        "numpy; extra == 'small'",
        'negah[onnx]; extra == "all"',
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: lines)
    installed = {"onnx": "1", "numpy": "2"}
    monkeypatch.setattr(doctor, "_version", installed.get)
    found = doctor.checkup()
    assert found.extras == (
        doctor.Extra("onnx", ("no-such-package",), install("onnx")),
        doctor.Extra("small", (), install("small")),
    )
    assert "torch is not installed: `pip install torch`" in found.problems


def test_an_install_without_models_is_a_problem(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_bundled", tuple)
    assert main(["doctor"]) == 2
    printed = capsys.readouterr()
    assert "no model is bundled" in printed.err and "All is well" not in printed.out


def test_bundled_models_are_listed_with_their_sizes(tmp_path, monkeypatch):
    folder = tmp_path / "weights" / "bundled"
    folder.mkdir(parents=True)
    (folder / "tiny.safetensors").write_bytes(b"x" * 1500)
    (folder / "tiny.md").write_text("card")
    (folder / "empty.safetensors").touch()
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "runs" / "doctor.py"))
    found = doctor.checkup()
    assert found.bundled == (doctor.Bundled("negah/empty", 0, False), doctor.Bundled("negah/tiny", 1500, True))
    assert any("negah/empty is empty" in line for line in found.problems)


def test_free_space_is_found_for_a_folder_that_does_not_exist_yet(tmp_path):
    assert doctor._free(tmp_path / "a" / "b") > 0


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (8_123_456, "8.12 MB"), (3.5e12, "3.5 TB")])
def test_size(count, text):
    assert show.size(int(count)) == text
