"""Figures, model cards and benchmarks come into the documentation from the files in which they were measured.

A figure in README.md or in a page of docs/ stands between two markers that name its source:

    <!-- result: duke_grouped headline.value .3f -->0.987<!-- /result -->

the file benchmarks/results/duke_tiles.json, the path inside it, and a format.  A path walks through keys; in a list of
objects `rows[name=ours,fold=all].auc` takes the one row whose fields say so.  In place of a path, `headline` writes
the claim's headline with its target, and `table` all rows.  `<!-- result: a,b headlines -->` tabulates the headlines of
a.json and b.json in this order, `*` those of every benchmark; `<!-- result: * missed -->` those short of their targets.
A benchmark without a file reads "not measured yet"; a path that is not in its file is an error.

`python docs/hooks.py README.md` writes the figures into a file (`make results`), and tests/test_house.py fails while a
written figure differs from its source.  mkdocs calls the `on_...` functions; pages of the site may also hold
`<!-- model cards -->`, `<!-- benchmarks -->`, `<!-- commands -->` and `<!-- docstring: negah.ssl.simclr -->`.  Lines
that end with `<!-- not on the site -->` are for readers of the repository, who see none of these.
"""

import ast
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
CARDS = REPOSITORY / "src" / "negah" / "weights" / "bundled"
NOT_MEASURED = "not measured yet"
SPEC = re.compile(r"(\S+) ((?:\[[^\]]*\]|\S)+)(?: (\S+))?")  # values in brackets may hold spaces
NOT_ON_THE_SITE = re.compile(r"^.*<!-- not on the site -->\n+", re.MULTILINE)
DOCSTRING = re.compile(r"<!-- docstring: ([\w.]+) -->")
MARKER = re.compile(r"<!-- result: (?P<spec>[^\n]+?) -->(?P<text>.*?)<!-- /result -->", re.DOTALL)


def rendered(text: str, results: Path = RESULTS) -> str:
    """The text with the inside of every result marker written anew. ValueError names a marker that has no source."""
    return MARKER.sub(
        lambda match: f"<!-- result: {match['spec']} -->{_value(match['spec'], results)}<!-- /result -->", text
    )


def unmarked_figures(text: str) -> list[str]:
    """Lines of the text that hold digits outside result markers, links and code: figures that nobody can trace."""
    bare = MARKER.sub("", text)
    bare = re.sub(r"\]\([^)]*\)|`[^`]*`|<[^>]*>", "", bare)
    return [line for line in bare.splitlines() if re.search(r"\d", line)]


def benchmarks_page(results: Path = RESULTS) -> str:
    """One section per measured claim: what was claimed, what came out, on what, and every row."""
    sections = [_section(path) for path in sorted(results.glob("*.json"))]
    return "\n\n".join([_headlines(sorted(results.glob("*.json"))), *sections])


def cards_page(cards: Path = CARDS) -> str:
    """The cards of the bundled models, their headings one level down."""
    texts = [path.read_text(encoding="utf-8").strip() for path in sorted(cards.glob("*.md"))]
    return "\n\n".join(re.sub(r"^(#+ )", r"#\1", text, flags=re.MULTILINE) for text in texts) or "No model is bundled."


def commands_page() -> str:
    """Every verb as its own --help shows it."""
    from negah.cli.main import VERBS, main

    sections = []
    for verb in VERBS:
        text = io.StringIO()
        paper = mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1", TERM="dumb")  # what the help is laid out for
        with paper, contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main([*verb.split(), "--help"])
        lines = "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
        sections.append(f"## negah {verb}\n\n```text\n{lines}\n```")
    return "\n\n".join(sections)


def docstring_of(module: str) -> str:
    """What a module says of itself, as Markdown: its equations are indented, and so stand as they are."""
    path = REPOSITORY / "src" / Path(*module.split(".")).with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if text is None:
        raise ValueError(f"{module} has no docstring")
    return text


PAGES = {
    "<!-- benchmarks -->": benchmarks_page,
    "<!-- model cards -->": cards_page,
    "<!-- commands -->": commands_page,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page before it is rendered."""
    markdown = NOT_ON_THE_SITE.sub("", rendered(markdown))
    for marker, page in PAGES.items():
        if marker in markdown:
            markdown = markdown.replace(marker, page())
    # On the site nobody needs the markers, and one that begins a line would end the paragraph it stands in.
    markdown = MARKER.sub(lambda match: match["text"], markdown)
    return DOCSTRING.sub(lambda match: docstring_of(match[1]), markdown)


def _value(spec: str, results: Path) -> str:
    match = SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"'{spec}' is not a source, a path and at most one format")
    name, what, form = match[1], match[2], match[3] or ""
    if what == "headlines" or (name, what) == ("*", "missed"):
        files = (
            sorted(results.glob("*.json")) if name == "*" else [results / f"{some}.json" for some in name.split(",")]
        )
        return f"\n\n{_headlines(files, missed=what == 'missed')}\n\n"
    path = results / f"{name}.json"
    if not path.is_file():
        return NOT_MEASURED
    data = json.loads(path.read_text(encoding="utf-8"))
    if what == "headline":
        return _headline(data["headline"])
    if what == "table":
        return f"\n\n{_table(data['rows'])}\n\n"
    try:
        return _shown(_walk(data, what), form)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} has no '{what}' to be shown as '{form}': {error!r}") from error


def _walk(data: Any, path: str) -> Any:
    for step in re.findall(r"[^.\[\]]+|\[[^\]]*\]", path):
        if step.startswith("["):
            wanted = dict(pair.split("=", 1) for pair in step[1:-1].split(","))
            found = [row for row in data if all(str(row.get(key)) == value for key, value in wanted.items())]
            if len(found) != 1:
                raise KeyError(f"{len(found)} rows are {step}")
            data = found[0]
        else:
            data = data[int(step)] if isinstance(data, list) else data[step]
    return data


def _shown(value: Any, form: str = "") -> str:
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return " to ".join(_shown(item, form) for item in value) if len(value) == 2 else ", ".join(map(_shown, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return format(value, form or ".4g")
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item, form)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_shown(item, form) for item in value)
    return format(value, form)


def _headline(headline: dict[str, Any]) -> str:
    sign = {"higher": "≥", "lower": "≤"}[headline["better"]]
    target = "" if headline.get("target") is None else f" (target {sign} {_shown(headline['target'])})"
    return f"{_shown(headline['value'])} {headline['unit']}{target}"


def _headlines(files: Sequence[Path], *, missed: bool = False) -> str:
    rows = []
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path.name} is not among the results")
        data = json.loads(path.read_text(encoding="utf-8"))
        if not missed or _is_missed(data["headline"]):
            rows.append({
                "claim": data["claim"], "measured": _headline(data["headline"]), "date": str(data["date"])[:10],
                "source": f"`benchmarks/results/{path.name}`",
            })  # fmt: skip
    return _table(rows) if rows else "None." if missed else f"The benchmarks are {NOT_MEASURED}."


def _is_missed(headline: dict[str, Any]) -> bool:
    target = headline.get("target")
    if target is None:
        return False
    return headline["value"] < target if headline["better"] == "higher" else headline["value"] > target


def _section(path: Path) -> str:
    data = json.loads(path.read_text(encoding="utf-8"))
    facts = [f"- {key}: {_shown(value)}" for key, value in data.items() if key not in ("claim", "rows", "headline")]
    return "\n".join(
        [f"## {path.stem}", "", data["claim"], "", f"**{_headline(data['headline'])}**", "", *facts, "",
         _table(data["rows"])]
    )  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [
        [_shown(row[key]).replace("|", "\\|").replace("\n", " ") if key in row else "" for key in columns]
        for row in rows
    ]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(paths: list[str]) -> int:
    """Write the figures into the given files."""
    for path in map(Path, paths):
        old = path.read_text(encoding="utf-8")
        new = rendered(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
        print(f"{path}: {'written' if new != old else 'nothing has changed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
