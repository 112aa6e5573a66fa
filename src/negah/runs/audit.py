"""`negah audit`: an update function from a file, or from a line of text, is audited in a process of its own.

A file is executed: it is the user's own code. In another process, so that a function that never returns is ended, one
that brings Python down is told, and what it prints does not mix with the result.
"""

import importlib.util
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch import Tensor

from negah.errors import InputError, NegahError
from negah.graph.audit import Audit, audit
from negah.graph.grammar import parse

FILE = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)")
STARTING_S = 120.0  # for the process to import torch, on a busy machine


def audited(
    target: str, *, width: int | None = None, seed: int = 0, seconds: float = 20.0, limit_s: float = 60.0
) -> dict[str, Any]:
    """The verdict and its evidence, in plain values, as `evidence` describes them.

    Args:
        target: "FILE.py:function", or an expression of `negah.graph.grammar`.
        width: of the features.  seconds: for the search.  limit_s: after which the process is ended.

    Raises InputError where there is no such function, or it cannot be audited.
    """
    split(target)
    if width is not None and width < 1:
        raise InputError(f"--dim {width}: features have 1 number or more")
    if seconds <= 0 or limit_s <= 0:
        raise InputError("--seconds and --limit-s must be above 0")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    work = context.Process(target=_work, args=(theirs, target, width, seed, seconds), daemon=True)
    work.start()
    theirs.close()
    try:
        if not ours.poll(STARTING_S):
            raise InputError(f"no process could be started within {STARTING_S:g} s: the machine is too busy")
        ours.recv()
        if not ours.poll(limit_s):
            raise InputError(f"{target} did not return within {limit_s:g} s: it may loop forever (or give --limit-s)")
        found = ours.recv()
    except EOFError:
        work.join()
        raise InputError(f"{target} ended Python (exit status {work.exitcode}): it cannot be audited") from None
    finally:
        work.kill()
        work.join()
    if isinstance(found, str):
        raise InputError(found)
    return found


def split(target: str) -> tuple[Path, str] | None:
    """Path and name of a function in a file; None for an expression. InputError for what is neither."""
    match = FILE.fullmatch(target)
    if match is None:
        if target.endswith(".py") or ".py:" in target:
            raise InputError(f"{target}: name the function after a colon, as in layers.py:update")
        parse(target)
        return None
    path = Path(match["path"])
    if not path.is_file():
        raise InputError(f"{path} is not there: give FILE.py:function")
    return path, match["name"]


def function_in(path: Path, name: str) -> Callable[..., Any]:
    """Execute a file and take a function out of it."""
    spec = importlib.util.spec_from_file_location("audited", path.resolve())
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["audited"] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        mine = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == "audited"]
        raise InputError(f"{path} has no {name}; it has {', '.join(mine) or 'no function'}")
    function = getattr(module, name)
    if not callable(function) or isinstance(function, type):
        raise InputError(f"{name} in {path} is no function: give one that is called as f(h, messages)")
    return function


def evidence(found: Audit) -> dict[str, Any]:
    """An audit in plain values, for JSON."""
    tried, shown = found.tried, found.counterexample
    return {
        "verdict": found.verdict,
        "function": found.name,
        "width": found.width,
        "derivation": [
            {"file": s.file, "line": s.line, "expression": s.expression, "kind": s.kind, "axes": s.axes}
            for s in found.derivation
        ],
        "no_certificate": found.unproved,
        "counterexample": None if shown is None else {
            "kind": shown.kind,
            **{name: value.tolist() for name, value in shown.inputs.items()},
            "permutation": list(shown.permutation),
            "output": plain(shown.output),
            "permuted_output": plain(shown.permuted),
            "difference": shown.difference,
            "rounding": shown.rounding,
            "note": shown.note,
        },
        "tried": {
            "evaluations": tried.evaluations, "widths": tried.widths, "sizes": tried.sizes,
            "refused": {str(n): said for n, said in tried.refused.items()},
            "seconds": round(tried.seconds, 2), "complete": tried.complete,
        },
    }  # fmt: skip


def plain(output: Tensor | str) -> Any:
    """A tensor as lists; an error as its text."""
    return output.tolist() if isinstance(output, Tensor) else {"raised": output}


def _work(pipe: Connection, target: str, width: int | None, seed: int, seconds: float) -> None:
    pipe.send("begun")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the function prints is not the result
    try:
        place = split(target)
        function = parse(target) if place is None else function_in(*place)
        name = target if place is None else place[1]
        pipe.send(evidence(audit(function, width=width, seed=seed, seconds=seconds, name=name)))
    except NegahError as problem:
        pipe.send(str(problem))
    except BaseException as problem:  # SystemExit or KeyboardInterrupt out of the function: one line as well
        pipe.send(f"{target} cannot be audited: {type(problem).__name__}: {problem}")
