"""The examples in docstrings say what is so."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).resolve().parent.parent / "src"
LEAST = 12  # functions that show an example


def examples() -> list[doctest.DocTest]:
    """A test for each docstring in the package that holds a `>>>`."""
    found, parser = [], doctest.DocTestParser()
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if ">>> " not in text:
            continue
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                told = ast.get_docstring(node) or ""
                name = f"{module}.{getattr(node, 'name', '')}".rstrip(".")
                case = parser.get_doctest(told, {"module": module}, name, str(path), getattr(node, "lineno", 1))
                found += [case] if case.examples else []
    return found


EXAMPLES = examples()


def test_the_functions_that_are_used_most_show_an_example():
    assert len(EXAMPLES) >= LEAST


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: case.name.removeprefix("negah."))
def test_an_example_in_a_docstring_is_true(case):
    case.globs = dict(vars(importlib.import_module(case.globs["module"])))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        said: list[str] = []
        doctest.DocTestRunner(verbose=False).run(case, out=said.append)
    assert not said, "".join(said)
