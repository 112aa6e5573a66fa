"""Reads back the scores.json of a `negah dreambooth`, which may come from anywhere: nothing in it is trusted."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from negah.errors import InputError
from negah.runs.dreambooth_options import Result

LARGEST = 5 * 10**6  # bytes; four hundred steps with four looks are 10,000
ROW = (
    "step",
    "held out loss",
    "fidelity",
    "fidelity CLIP-I",
    "prompt CLIP-T",
    "diversity",
    "class kept",
    "class drift",
)
REAL = ("fidelity", "fidelity CLIP-I")
TEXTS = ("model", "token", "why", "reason", "held_out")


def read_scores(path: Path) -> tuple[Result, list[dict[str, float]]]:
    """What came of a run, without its ranking of tokens and what it left out, and the losses of its steps.

    Raises InputError for a file that is no such thing, names what is wrong in it, and says so where the run has not
    ended.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(
                f"{path} is larger than {LARGEST // 10**6} MB: that is no scores.json of `negah dreambooth`"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from error

    def refuse(what: str) -> NoReturn:
        raise InputError(f"{path} does not hold the figures of a `negah dreambooth`: {what}")

    if not isinstance(content, dict) or not isinstance(content.get("scores"), list):
        refuse("it has no list of scores")
    if content.keys() == {"scores", "history"}:
        raise InputError(f"{path} is of a run that has not ended: give the same command again to continue it")
    scores = [_numbers(row, ROW) or refuse(f"a row of its scores lacks one of {', '.join(ROW)}")
              for row in content["scores"]]  # fmt: skip
    history = [_numbers(row, ("step",)) or refuse("a row of its history is no row of numbers")
               for row in _listed(content.get("history"))]  # fmt: skip
    if any(row.keys() != history[0].keys() for row in history):
        refuse("the rows of its history are not alike")
    for name in TEXTS:
        if not isinstance(content.get(name), str):
            refuse(f"{name} is not a text")
    step = _number(content.get("step"))
    if len(scores) < 2 or not any(row["step"] == step for row in scores):
        refuse("the step that it keeps is none of those that it looked at")
    real = content.get("real")
    result = Result(
        model=Path(content["model"]), report=Path("report.html"), token=content["token"],
        why=content["why"], step=int(step), reason=content["reason"], held_out=content["held_out"], images={},
        scores=scores, notes=[note for note in _listed(content.get("notes")) if isinstance(note, str)],
        real={name: _number(real.get(name)) if isinstance(real, dict) else math.nan for name in REAL},
    )  # fmt: skip
    return result, history


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _numbers(row: Any, needed: Sequence[str]) -> dict[str, float] | None:
    """A row of finite numbers by name, None for what is none."""
    if not isinstance(row, dict):
        return None
    found = {str(name): _number(value) for name, value in row.items()}
    return found if all(name in found for name in needed) and all(map(math.isfinite, found.values())) else None


def _number(value: Any) -> float:
    """A number of a sensible size, nan for anything else; a subject of one picture is like no other: null."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    return float(value) if good else math.nan
