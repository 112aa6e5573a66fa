"""Notebooks out of the scripts of examples/: the same code, cell by cell.

    python docs/notebooks.py [FOLDER]          into build/notebooks by default

The text at the top of a script becomes the first cell; each part between empty lines a cell of code, and the comment
that begins it a cell of text above.  Notebooks are made when they are wanted and not kept: the scripts are tested.
"""

import ast
import json
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FOLDER = 'sys.argv[1] if sys.argv[1:] else "build/examples"'  # a notebook is given no arguments


def notebook(script: str) -> dict[str, Any]:
    """A notebook, in nbformat 4.5, of a script's text."""
    script = script.replace(FOLDER, '"build/examples"')
    if "sys." not in script:
        script = script.replace("import sys\n", "")
    cells = [("markdown", ast.get_docstring(ast.parse(script)) or "")]
    for part in parts(script):
        told = list(takewhile(lambda line: line.startswith("# "), part))
        cells += [("markdown", " ".join(line[2:] for line in told))] if told else []
        cells += [("code", "\n".join(part[len(told) :]))] if part[len(told) :] else []
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [cell(kind, text, number) for number, (kind, text) in enumerate(cells)],
        "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5,
    }  # fmt: skip


def parts(script: str) -> list[list[str]]:
    """The lines below the text at the top, parted by empty lines that are in no statement."""
    top, *statements = ast.parse(script).body
    lines = script.splitlines()
    inside = {number for node in statements for number in range(node.lineno - 1, node.end_lineno or 0)}
    found: list[list[str]] = [[]]
    for number in range(top.end_lineno or 0, len(lines)):
        if lines[number] or number in inside:
            found[-1].append(lines[number])
        elif found[-1]:
            found.append([])
    return found


def cell(kind: str, text: str, number: int) -> dict[str, Any]:
    """A cell; its id is its number, so that the same script makes the same file."""
    extra = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text, **extra}


def main(folder: Path) -> None:
    """Write a notebook for each script into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(EXAMPLES.glob("*.py")):
        target = folder / f"{path.stem}.ipynb"
        target.write_text(json.dumps(notebook(path.read_text(encoding="utf-8")), indent=1) + "\n", encoding="utf-8")
        print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "build/notebooks"))
