"""The house itself: what a checkout promises to whoever clones, installs or reads it."""

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from negah.cli.main import VERBS, find_verb, parse
from negah.cli.pretrain import Pretrain
from negah.cli.show import Verb
from negah.errors import NegahError
from negah.runs import pairs, recipes
from negah.runs.imagine import pretrain as diffusion

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "negah"
BUNDLED = SOURCE / "weights" / "bundled"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
PLAIN: list[str] = PYPROJECT["project"]["dependencies"]
EXTRAS: list[str] = [text for group in PYPROJECT["project"]["optional-dependencies"].values() for text in group]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def of_docs(name: str) -> ModuleType:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"negah_docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return of_docs("hooks")


def module_of(requirement: str) -> str:
    """The name by which a required package is imported."""
    package = re.split(r"[ \[>]", requirement)[0]
    known = {"pillow": "PIL", "scikit-learn": "sklearn", "opencv-python-headless": "cv2"}
    return known.get(package, package.replace("-", "_"))


def imported(node: ast.AST) -> set[str]:
    """Top-level names of the packages that a syntax node imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module and not node.level else set()


# What is in the package


def test_bundled_weights_are_small_and_each_has_a_card():
    files = sorted(path for path in BUNDLED.iterdir() if path.suffix != ".md")
    assert files, "no model is bundled: the survey would not work offline"
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) <= 40e6
    assert sum(path.stat().st_size for path in (BUNDLED / "imagine-tiny").rglob("*")) <= 14e6
    assert (BUNDLED / "aerial-tiny.safetensors").stat().st_size <= 10e6
    for path in files:
        card = path.with_suffix(".md").read_text(encoding="utf-8").lower()
        for word in ("data", "command", "seed", "hardware", "limits", "licen"):
            assert word in card, f"{path.stem}.md does not speak of {word}"


def test_nothing_that_the_package_needs_is_ignored_by_git():
    # hatchling leaves out what .gitignore names, so a pattern too wide would ship a wheel without its weights.
    patterns = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert not {"*.safetensors", "*.html", "*.js", "*.md", "weights/", "runs/"} & set(patterns)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


def test_no_room_is_empty():
    for room in ROOMS:
        assert len(list((SOURCE / room).glob("*.py"))) > 1, f"src/negah/{room} holds nothing"


def test_version_is_the_same_everywhere():
    version = re.search(r'__version__ = "(.+?)"', (SOURCE / "__init__.py").read_text(encoding="utf-8"))
    assert version
    assert f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# What is installed


def test_lower_bounds_have_reasons_and_torch_no_upper_bound():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    bounds = [line for line in lines if re.match(r'\s*("|requires).*>=', line)]
    assert len(bounds) > 10
    for line in bounds:
        assert re.search(r"#\s*\S+\s+\S+", line), f"a bound without a reason: {line.strip()}"
    assert not [text for text in PLAIN + EXTRAS if "<" in text or "==" in text]
    assert "torch >= 2.11" in PLAIN and "torchvision >= 0.26" in PLAIN


def test_everything_imported_is_installed():
    # What src imports at the top of a file must come with the plain install, and what a function imports by an extra.
    plain, extras = {module_of(text) for text in PLAIN}, {module_of(text) for text in EXTRAS}
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            for top in imported(node) - sys.stdlib_module_names - {"negah"}:
                known = plain if node in tree.body else plain | extras
                assert top in known, f"{path.relative_to(ROOT)} imports {top}, which pyproject.toml does not install"


def test_nothing_is_installed_in_vain():
    used = {
        top for path in SOURCE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text())) for top in imported(node)
    }
    # Not imported by us: geopandas reads files with pyogrio and GeoParquet with pyarrow, and torchvision stands here so
    # that whatever else brings it (timm, transformers) gets the one that fits torch.
    assert {module_of(text) for text in PLAIN} - used - {"pyogrio", "pyarrow", "torchvision"} == set()


# The floors


def test_import_contracts_stand():
    contracts = {contract["id"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
    layers = contracts["floors"]["layers"]
    floor = {name.strip(" ()"): depth for depth, layer in enumerate(layers) for name in re.split(r"[|:]", layer)}
    order = ["cli", "studio", "lab", "runs", "solar", "probe", "train", "images", "errors"]
    assert [floor[name] for name in order] == sorted(floor[name] for name in order)
    assert len({floor[name] for name in ("probe", "ssl", "language", "diffusion", "adversarial", "graph")}) == 1
    assert contracts["floors"]["exhaustive"] is True
    assert set(ROOMS) <= floor.keys(), "a room without a floor"
    assert contracts["solar-alone"]["layers"][1] == "solar"
    assert {"ssl", "language", "diffusion", "adversarial"} == {
        name.strip(" ()") for name in contracts["solar-alone"]["layers"][0].split(":")
    }


# The documentation


def test_every_page_is_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r":\s*([\w/.-]+\.md)\s*$", config, re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert named == pages


def test_every_room_has_its_reference_page():
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md")}
    assert set(ROOMS) | {"errors", "progress", "ranks"} == pages.keys()
    for room, text in pages.items():
        assert f"::: negah.{room}\n" in text


LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]


@pytest.mark.parametrize("page", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_links_of_the_built_site_are_followed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text('<h1 id="here">Other</h1>')
    (tmp_path / "index.html").write_text(
        '<a href="other/#here">a</a><a href="other/#gone">b</a><a href="https://example.org">c</a><img src="no.png">'
        '<script src="https://example.org/x.js"></script><a href="#">d</a>'
    )
    assert of_docs("links").problems(tmp_path) == [
        "index.html links to no.png", "index.html links to other/#gone", "index.html loads https://example.org/x.js",
    ]  # fmt: skip


def test_a_warning_of_the_documentation_is_an_error():
    # --quiet would keep warnings from mkdocs, which counts them as they are told, and --strict would mean nothing.
    (line,) = [x for x in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "mkdocs build" in x]
    assert "--strict" in line and "-q" not in line


def test_every_verb_is_documented(hooks):
    assert "<!-- commands -->" in (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    page = hooks.on_page_markdown("<!-- commands -->")
    for verb in VERBS:
        assert f"## negah {verb}\n\n```text\nusage: negah {verb}" in page
    assert "--debug" in page


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def printed(page: Path) -> dict[str, list[str]]:
    """The commands of a page's bash blocks that begin with negah, and the words after it."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = {line: shlex.split(line, comments=True) for line in lines}
    return {line: rest for line, (first, *rest) in ((line, said or [""]) for line, said in words.items())
            if first == "negah" and rest != ["--help"]}  # fmt: skip


def complete(verb: Verb) -> None:
    """Raises NegahError for what the verb itself would refuse before it reads anything."""
    if isinstance(verb, Pretrain):
        words = verb.method in get_args(pairs.Method)
        drawn = verb.method == "diffusion"
        verb.options(diffusion.Options if drawn else pairs.Options if words else recipes.Options).check()
        if not drawn:
            verb.named()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_printed_commands_are_understood_and_complete(page, capsys):
    for line, words in printed(page).items():
        try:
            complete(parse(*find_verb(words)))
        except (NegahError, SystemExit) as error:
            pytest.fail(f"{line}\n{error}\n{capsys.readouterr().err}")


MADE = {"clip": "model.safetensors", "coca": "model.safetensors", "simvlm": "model.safetensors", "diffusion": "model"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_printed_commands_name_files_that_those_before_them_write(page):
    made = {
        str(verb.out): MADE.get(verb.method, "backbone.safetensors")
        for words in printed(page).values()
        if isinstance(verb := parse(*find_verb(words)), Pretrain)
    }
    for line, words in printed(page).items():
        for word in words[2:]:
            folder, slash, name = word.partition("/")
            assert not slash or folder not in made or name == made[folder], f"{line}: {folder}/ holds {made[folder]}"


def test_a_command_that_lacks_an_option_or_has_a_wrong_one_is_told():
    for words, why in (
        (["clip", "--data", "captions.csv", "--out", "clip"], "--backbone is missing"),
        (["byol", "--data", "tiles/", "--backbone", "resnet18"], "--out"),
        (["coca", "--data", "captions.csv", "--backbone", "vit-micro/8", "--out", "coca", "--queue", "8"], "--queue"),
    ):
        with pytest.raises(NegahError, match=why):
            complete(parse("pretrain", words))


def test_the_builder_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(ROOT / "docs" / "builder.md", "python"))
    assert "import" in code
    exec(compile(code, "docs/builder.md", "exec"), {"__name__": "builder"})


# Figures


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_written_figures_are_those_of_their_sources(hooks, page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- result: ") == text.count("<!-- /result -->")
    assert hooks.rendered(text) == text, "a figure is not that of benchmarks/results: run `make results`"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_marker_does_not_break_a_paragraph(page):
    # Markdown ends a paragraph where a line begins with a comment.
    lines = page.read_text(encoding="utf-8").split("\n")
    inside = [line for before, line in pairwise(lines) if before.strip() and line.startswith("<!-- result:")]
    assert not inside, f"join to the line before: {inside[0][:60]}"


def test_results_say_what_it_takes_to_measure_again():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert result.keys() >= {"claim", "date", "commit", "versions", "hardware", "seeds", "rows", "headline"}, path
        assert result["headline"].keys() >= {"value", "unit", "target", "better"}, path
        assert result["rows"] and (ROOT / "benchmarks" / f"{path.stem}.py").is_file(), path


def test_the_readme_measures_nothing_outside_markers(hooks):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## How large are the errors\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert section and "<!-- result: " in section[1]
    assert hooks.unmarked_figures(section[1]) == []


def test_a_figure_is_written_from_its_source(hooks, tmp_path):
    (tmp_path / "speed.json").write_text(
        '{"claim": "fast", "date": "2030-01-02T03:04", "rows": [{"name": "ours", "tiles": 12.345, "ci": [0.5, 0.75]},'
        ' {"name": "not us", "tiles": 6}], "headline": {"value": 2.0571, "unit": "x", "target": 2, "better": "higher"}}'
    )

    def written(spec: str) -> str:
        return hooks.MARKER.fullmatch(hooks.rendered(f"<!-- result: {spec} -->old<!-- /result -->", tmp_path))["text"]

    assert written("speed headline.value .2f") == "2.06"
    assert written("speed headline") == "2.057 x (target ≥ 2)"
    assert written("speed rows[name=ours].tiles .1f") == "12.3"
    assert written("speed rows[name=ours].ci .2f") == "0.50 to 0.75"
    assert written("speed rows[name=not us].tiles .1f") == "6.0"
    assert "| not us | 6 |  |" in written("speed table")
    assert "| fast | 2.057 x (target ≥ 2) | 2030-01-02 | `benchmarks/results/speed.json` |" in written("* headlines")
    assert written("* missed").strip() == "None."
    (tmp_path / "slow.json").write_text(
        '{"claim": "slow", "date": "2030", "rows": [],'
        ' "headline": {"value": 3, "unit": "x", "target": 2, "better": "lower"}}'
    )
    assert "| slow |" in written("* missed") and "| fast |" not in written("* missed")
    lines = written("speed,slow headlines").splitlines()
    assert [line.split(" |")[0] for line in lines if "results" in line] == ["| fast", "| slow"]
    with pytest.raises(ValueError, match=r"absent\.json is not among"):
        written("speed,absent headlines")
    assert written("absent headline.value .3f") == "not measured yet"
    with pytest.raises(ValueError, match=r"speed\.json has no 'rows\[name=nobody\]\.tiles'"):
        written("speed rows[name=nobody].tiles")
    assert hooks.unmarked_figures("AUC 0.98\nsee [it](docs/2.md) and `v2`\n") == ["AUC 0.98"]


def test_a_method_is_shown_in_its_own_words(hooks):
    page = hooks.on_page_markdown("# SimCLR\n\n<!-- docstring: negah.ssl.simclr -->\n")
    assert "arXiv:2002.05709" in page and "\n    loss = mean_i" in page and "<!--" not in page


FILLED = ("<!-- docstring: ", "<!-- commands -->", "<!-- model cards -->", "<!-- benchmarks -->", "\n::: negah.")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_that_the_site_fills_says_where_else_it_can_be_read(hooks, page):
    text = page.read_text(encoding="utf-8")
    said = "<!-- not on the site -->\n" in text
    assert said or not any(marker in text for marker in FILLED)
    assert "not on the site" not in hooks.on_page_markdown(text)


# The rooms as one library


LOADERS = ["probe", "weights", "language", "diffusion"]


@pytest.mark.parametrize("room", LOADERS)
def test_rooms_load_and_save_alike(room):
    module = importlib.import_module(f"negah.{room}")
    load = inspect.signature(module.load)
    first = next(iter(load.parameters.values()))
    assert first.name == "name_or_path" and first.annotation == str | Path
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in list(load.parameters.values())[1:])
    assert load.parameters["device"].default == "cpu"
    if hasattr(module, "save"):
        save = inspect.signature(module.save)
        assert list(save.parameters)[1] == "path" and save.return_annotation is Path


def test_importing_negah_imports_no_room():
    code = "import sys, negah; assert not {'torch', 'numpy'} & set(sys.modules); print(negah.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "['__version__']", done.stderr
    for room in ROOMS:
        module = importlib.import_module(f"negah.{room}")
        assert all(hasattr(module, name) for name in getattr(module, "__all__", []))
