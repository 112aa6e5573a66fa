import errno
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from negah import __version__
from negah.cli import main as cli
from negah.cli import show
from negah.errors import InputError

# As a user's shell has it: stdout is buffered, whatever the tests run under.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "PYTHONUNBUFFERED": ""}


def shell(*words: str, **options) -> subprocess.CompletedProcess:
    """Run python with some words, as a user's shell would."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=ENVIRONMENT, **options)


@pytest.fixture
def failing(monkeypatch):
    """A way to have the verb `stumble` raise something; returns main's exit status."""

    def fail(problem: BaseException, *words: str) -> int:
        @dataclass
        class Stumble(show.Verb):
            """Stumble over something."""

            IF_INTERRUPTED = "stopped; run the same command again to continue"

            def run(self) -> int:
                raise problem

        monkeypatch.setitem(cli.VERBS, "stumble", Stumble)
        return cli.main(["stumble", *words])

    return fail


def test_help_names_every_verb_with_a_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    for verb in cli.VERBS:
        line = next(line for line in page.splitlines() if line.startswith(f"  {verb} "))
        assert line.rstrip().endswith("."), f"{verb} says nothing: {line}"
        assert len(line) <= 120
    assert "negah survey town.tif" in page
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_no_arguments_show_the_help(capsys):
    assert cli.main([]) == 0
    assert "usage: negah VERB" in capsys.readouterr().out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_each_verb_shows_an_example_and_the_common_switches(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*verb.split(), "--help"]) == 0
    page = capsys.readouterr().out
    assert not [line for line in page.splitlines() if len(line) > 80 and not line.startswith(("usage:", "    "))]
    assert not re.search(r"\(default: (None|False)?\)", page)
    assert f"usage: negah {verb}" in page
    assert "Example" in page and f"    negah {verb}" in page
    assert "--json" in page and "--debug" in page


def test_help_imports_nothing_heavy_and_is_quick():
    code = (
        "import sys, time; from negah.cli.main import main; main(['--help']);"
        "heavy = {'torch', 'rasterio', 'pyproj', 'geopandas', 'numpy', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy; print(time.process_time())"
    )
    result = shell("-c", code)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.splitlines()[-1]) < 1.5


def test_python_dash_m_is_the_command():
    result = shell("-m", "negah", "--version")
    assert (result.returncode, result.stdout) == (0, f"negah {__version__}\n")


def test_words_of_a_family_list_its_verbs(capsys):
    assert cli.main(["probe"]) == 0
    page = capsys.readouterr().out
    assert "probe train" in page and "probe eval" in page and "survey" not in page


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["surve", "x.tif"], "did you mean `negah survey`?"), (["probe", "trian"], "did you mean `negah probe train`?")],
)
def test_a_misspelt_verb_is_answered_with_the_nearest(words, hint, capsys):
    assert cli.main(words) == 2
    assert hint in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["survey", "town.tif", "--bogus"], "Unrecognized options: --bogus"),
        (
            ["survey", "town.tif", "--gsd", "30cm"],
            "--gsd 30cm: give a number with a decimal point and no unit",
        ),
        (
            ["survey", "town.tif", "--threshold", "0,8"],
            "--threshold 0,8: give a number with a decimal point",
        ),
        (["survey", "town.tif", "--label-next", "ten"], "--label-next ten: give a whole number; see"),
        (["scene", "town.tif", "--size-px", "2,000"], "--size-px 2,000: give a whole number; see"),
        (["survey", "town.tif", "--out"], "Missing value for argument '--out'"),
        (["survey", "town.tif", "--ouy", "map"], "Unrecognized options: --ouy, map; did you mean --out?"),
        (["survey", "--precision", "fp64"], "--precision fp64: give one of auto, fp32, bf16"),
        (["lab", "colapse"], "name colapse: did you mean collapse? give one of collapse, dino-byol,"),
        (["scene"], "Missing from negah scene: PATH"),
    ],
)
def test_wrong_arguments_are_answered_on_one_line(words, told, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"negah: {told}") and f"see `negah {words[0]} --help`" in err


def one_line(text: str) -> str:
    """The only line of a text."""
    assert text.count("\n") == 1 and text.endswith("\n"), text
    return text.rstrip("\n")


@pytest.mark.parametrize(
    ("problem", "status", "told"),
    [
        (InputError("town.tif has no CRS:\n  give --gsd 0.3"), 2, "negah: town.tif has no CRS: give --gsd 0.3"),
        (KeyboardInterrupt(), 130, "run the same command again to continue"),
        (OSError(errno.ENOSPC, "No space left on device", "out/panels.gpkg"), 2, "disk is full (out/panels.gpkg)"),
        (PermissionError(errno.EACCES, "Permission denied", "/secret"), 2, "Permission denied (/secret)"),
        (MemoryError("12 GB"), 2, "out of memory (12 GB)"),
        (ValueError("unlucky"), 1, "ValueError: unlucky (this is a bug in negah, run with --debug"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_are_one_line_and_a_status(failing, capsys, problem, status, told):
    assert failing(problem) == status
    printed = capsys.readouterr()
    assert told in one_line(printed.err)
    assert printed.out == ""


def test_debug_shows_where_it_happened(failing, capsys):
    assert failing(InputError("no such thing"), "--debug") == 2
    text = capsys.readouterr().err
    assert "Traceback" in text and "test_main.py" in text and text.endswith("negah: no such thing\n")


def test_a_hostile_file_name_cannot_steer_the_terminal(failing, capsys):
    failing(InputError("cannot read \x1b[2J\x07evil\u202etif.exe"))
    line = one_line(capsys.readouterr().err)
    assert line == r"negah: cannot read \x1b[2J\x07evil\u202etif.exe"
    show.table([("\x1b[31m[red]name[/red]", 3)])
    assert r"\x1b[31m[red]name[/red]" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "negah", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_json_has_no_nan_and_knows_our_types(capsys):
    @dataclass
    class Row:
        path: Path
        area: float
        count: np.int64
        values: np.ndarray

    show.as_json({"rows": [Row(Path("a/ß.tif"), math.nan, np.int64(3), np.array([1.5, np.inf]))], "none": None})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "rows": [{"path": "a/ß.tif", "area": None, "count": 3, "values": [1.5, None]}],
        "none": None,
    }


def test_numbers_are_set_right_and_long_cells_are_kept_whole(capsys):
    show.table([("a", 5), ("b" * 150, 1200)], header=("name", "count"))
    head, _, first, second = capsys.readouterr().out.rstrip().splitlines()
    assert len(first) == len(second) == len(head) == 150 + 3 + 5
    assert first.endswith("    5") and second.endswith(" 1200")


def test_long_work_tells_how_far_it_is_where_there_is_no_terminal(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: clock[0])
    for quiet in (False, True):
        with show.Bars(quiet=quiet) as bars:
            for done in range(5):
                bars("windows", done, 4)
                clock[0] += 12
    with show.progress(quiet=False) as bar:
        advance = show.stages(bar, quiet=False)
        clock[0] += 40
        advance("map", 0, 0)
    assert capsys.readouterr().err.splitlines() == ["windows: 3 of 4", "map"]
