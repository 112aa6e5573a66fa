"""`negah audit` as it is typed."""

import json

import pytest

from negah.cli.main import main

FILE = """
import os, sys
import torch

def last(h, messages):
    print("noise")
    return messages[-1] + h

def forever(h, messages):
    while True:
        pass

def ends(h, messages):
    os._exit(7)
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def test_an_expression_is_certified(capsys):
    assert main(["audit", "mean(messages) + sigmoid(h)"]) == 0
    said = capsys.readouterr().out
    assert ": certified" in said and "symmetric reduction" in said and "every n and every d" in said


def test_a_function_of_a_file_is_refuted(path, capsys):
    assert main(["audit", f"{path}:last", "--json"]) == 4
    out, err = capsys.readouterr()
    found = json.loads(out)  # what the function prints does not mix with it
    assert found["verdict"] == "refuted" and found["function"] == "last"
    shown = found["counterexample"]
    assert shown["permutation"] == [1, 0] and len(shown["messages"]) == 2 and shown["difference"] == 1
    assert "is executed" in err


@pytest.mark.parametrize("name, said", [("forever", "may loop forever"), ("ends", "ended Python (exit status 7)")])
def test_functions_that_do_not_return(path, capsys, name, said):
    assert main(["audit", f"{path}:{name}", "--limit-s", "1"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("target, said", [
    ("absent.py:f", "absent.py is not there"), ("mine.py", "name the function after a colon"),
    ("import os", "is not an expression"), ("eval(h)", "is not understood"),
])  # fmt: skip
def test_what_is_no_function(target, said, capsys):
    assert main(["audit", target]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_numbers_that_make_no_sense(path, capsys):
    assert main(["audit", f"{path}:last", "--dim", "0"]) == 2
    assert "--dim 0" in capsys.readouterr().err
