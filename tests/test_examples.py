"""Every script of examples/ runs offline, prints what it promises, and stays short enough to be read in one go."""

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script as `python examples/NAME.py FOLDER` would, in this process; returns what it printed."""

    def of(name: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "out")])
        with torch.random.fork_rng():
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return of


def numbers(pattern: str, text: str) -> list[float]:
    """What a pattern's one group finds in a text, as numbers."""
    found = [float(number) for number in re.findall(pattern, text)]
    assert found, f"{pattern} is not in:\n{text}"
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert f"    python examples/{path.name}" in text.split('"""')[1]
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert f"[{path.name}]({path.name})" in table


def test_a_notebook_is_the_same_code_in_cells(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("negah_docs_notebooks", EXAMPLES.parent / "docs" / "notebooks.py")
    assert spec and spec.loader
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    notebooks.main(tmp_path)
    for path in SCRIPTS:
        made = json.loads((tmp_path / f"{path.stem}.ipynb").read_text(encoding="utf-8"))
        assert (made["nbformat"], made["cells"][0]["cell_type"]) == (4, "markdown")
        code = [cell["source"] for cell in made["cells"] if cell["cell_type"] == "code"]
        compile("\n".join(code), path.name, "exec")
        assert len(code) >= 3 and not any("sys.argv" in cell for cell in code)
    monkeypatch.chdir(tmp_path)
    made = json.loads((tmp_path / "see_attention.ipynb").read_text(encoding="utf-8"))
    names: dict = {}
    for cell in made["cells"]:
        if cell["cell_type"] == "code":
            exec(cell["source"], names)
    assert (tmp_path / "build" / "examples" / "attention.png").is_file()


def test_there_are_ten():
    assert len(SCRIPTS) == 10


def test_a_town_is_surveyed(run, tmp_path):
    said = run("survey_a_town")
    (true,) = numbers(r"arrays, (\d+) m2", said)
    low, high = re.search(r"panel area: \d+ m² (\d+) to (\d+) m²", said).groups()
    assert float(low) < true < float(high)
    assert (tmp_path / "out" / "survey" / "report.html").is_file()


def test_attention_is_seen(run, tmp_path):
    said = run("see_attention")
    assert min(numbers(r"is ([\d.]+) times", said)) > 2  # on panels, against an even look
    assert Image.open(tmp_path / "out" / "attention.png").size == (6 * 172, 4 * 172)


def test_collapse_is_told_where_there_is_one(run):
    simclr, byol, bare = re.findall(r"^(?:SimCLR|BYOL).*\n    (.*)$", run("learn_without_labels"), re.MULTILINE)
    assert simclr == byol == "no sign of collapse"
    assert bare.startswith("complete collapse") and "there is no predictor" in bare


def test_features_are_measured_beside_the_baseline(run):
    shares = numbers(r"  (\d\.\d\d)  ", run("frozen_features"))  # kNN, linear, the head, statistics
    assert len(shares) == 4 and shares[2] > 0.7


def test_words_find_pictures(run):
    said = run("search_in_words")
    first = said.split("a house with a swimming pool\n")[1].splitlines()[0]
    assert "a swimming pool" in first.replace("no swimming pool", "")
    assert "16 pictures" in said


def test_pictures_are_drawn_at_each_scale(run, tmp_path):
    pytest.importorskip("diffusers")
    apart = numbers(r"differ by (0\.\d+)", run("draw_from_words"))
    assert len(apart) == 4 and min(apart) > 0.05
    assert Image.open(tmp_path / "out" / "guidance.png").size == (4 * 64, 2 * 64)


def test_the_detector_guides_what_is_drawn(run, tmp_path):
    pytest.importorskip("diffusers")
    said = run("guide_by_a_detector")
    before, after = numbers(r"says ([\d.]+)", said), numbers(r"guidance, ([\d.]+)", said)
    assert all(b > a for a, b in zip(before, after))
    assert (tmp_path / "out" / "guided.png").is_file()


def test_a_broken_attack_is_not_believed(run):
    said = run("fool_the_detector")
    slip, right = said.split("\nPGD:")
    assert "do not trust it: four times the steps" in slip
    assert "nothing was found that speaks against it" in right
    assert numbers(r"and (\d+)% when", slip) > numbers(r"and (\d+)% when", right)


def test_one_perturbation_beats_noise(run, tmp_path):
    said = run("universal_perturbation")
    (_, new), (noise,) = numbers(r"perturbation: (\d+)%", said), numbers(r"random signs: +(\d+)%", said)
    assert new > 2 * noise
    assert (tmp_path / "out" / "universal.png").is_file()


def test_neighbours_know_and_strangers_mislead(run):
    own, near, strangers = numbers(r": (\d+)%", run("ask_the_neighbours"))
    assert near > own + 10 and strangers < own
