"""One vocabulary: a word means the same in every room, and stands at the same place (CONTRIBUTING.md has the table)."""

import importlib
import inspect
import pkgutil
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import negah
from negah.progress import Progress, Say, silent

ANOTHER_WORD = {"gsd": "gsd_m", "batch_size": "batch", "advance": "progress", "random_state": "seed", "out_dir": "out"}
HOOKS = {"before_step", "after_step", "update"}  # of training: their `progress` is the share of the steps that is done
RUNS = [
    "survey.survey", "calibrate.calibrate", "attack.attack", "harden.harden", "harden.harden_classifier",
    "pretrain.pretrain", "pairs.pretrain", "imagine.pretrain.pretrain", "probe.train_probe", "dreambooth.dreambooth",
    "generate.imagine",
]  # fmt: skip


def public() -> Iterator[tuple[str, inspect.Signature]]:
    """Functions, classes and methods of the library, with the fields of dataclasses, which are parameters as well.

    Without cli and studio: what a user types there has the names of flags, and texts where the library has numbers.
    """
    for module in pkgutil.walk_packages(negah.__path__, "negah."):
        if module.name.startswith(("negah.cli", "negah.studio")) or module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.startswith("_") or getattr(value, "__module__", "") != module.name:
                continue
            where = f"{module.name}.{name}"
            if inspect.isfunction(value):
                yield where, inspect.signature(value)
            elif inspect.isclass(value):
                yield from ((f"{where}.{method}", found) for method, found in of_class(value))


def of_class(kind: type) -> Iterator[tuple[str, inspect.Signature]]:
    """What it is made of, and its own public methods."""
    for name, value in vars(kind).items():
        function = getattr(value, "__func__", value)  # of class methods
        if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_")):
            signature = inspect.signature(function)
            kept = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
            yield name, signature.replace(parameters=kept)


EVERYTHING = dict(public())


def positional(signature: inspect.Signature) -> list[str]:
    """Names of the parameters that may be given by their place."""
    return [each.name for each in signature.parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD]


def wrong(told: Iterator[str]) -> None:
    """Fail with all that is wrong, a line each."""
    lines = sorted(told)
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def named(*names: str) -> Iterator[tuple[str, inspect.Parameter]]:
    """All parameters of one of these names."""
    for where, signature in EVERYTHING.items():
        yield from ((where, each) for each in signature.parameters.values() if each.name in names)


def test_the_whole_library_is_looked_at():
    assert len(EVERYTHING) > 1200
    assert {"negah.runs.telling.Options.__init__", "negah.language.captions.Captions.read"} <= EVERYTHING.keys()


def test_one_thing_has_one_word():
    wrong(f"{where} says {each.name}: it is {ANOTHER_WORD[each.name]}" for where, each in named(*ANOTHER_WORD))


def test_progress_is_told_in_one_form():
    for word, kind in (("progress", Progress), ("say", Say)):
        wrong(
            f"{where}: {word} is a negah.progress.{word.title()}, not {each.annotation}"
            for where, each in named(word)
            if each.annotation != kind and not (where.rpartition(".")[2] in HOOKS and each.annotation is float)
        )
    wrong(
        f"{where}: {each.name} is silent by default, not {each.default}"
        for where, each in named("progress", "say")
        if each.default not in (inspect.Parameter.empty, silent, print) and each.annotation is not float
    )
    wrong(
        f"{where}: {each.name} is given by its name"
        for where, each in named("progress")
        if each.annotation == Progress and each.kind is not each.KEYWORD_ONLY and each.default is silent
    )


def test_randomness_has_three_words():
    kinds = {torch.Generator: "generator", np.random.Generator: "rng", random.Random: "rng"}
    for where, signature in EVERYTHING.items():
        for each in signature.parameters.values():
            of = [word for kind, word in kinds.items() if each.annotation in (kind, kind | None)]
            assert of in ([], [each.name]), f"{where} calls a generator {each.name}: it is {of[0]}"
    wrong(
        f"{where}: a seed is an int, not {each.annotation}"
        for where, each in named("seed")
        if each.annotation is not int
    )


def test_lengths_say_their_unit():
    wrong(
        f"{where}: a side is counted in pixels, else it is side_m"
        for where, each in named("side")
        if each.annotation is float
    )
    wrong(
        f"{where}: size_px is a side or (height, width), not {each.annotation}"
        for where, each in named("size_px")
        if each.annotation not in (int, int | tuple[int, int])
    )


def test_the_model_comes_first_then_the_pictures_then_their_labels():
    for where, signature in EVERYTHING.items():
        names = positional(signature)
        order = [names.index(name) for name in ("model", "images", "labels") if name in names]
        if "model" in names and "images" in names:
            assert order == sorted(order) and order[0] == 0, f"{where}({', '.join(names)})"


@pytest.mark.parametrize("run", RUNS)
def test_a_run_takes_what_is_read_then_where_it_writes_then_by_what(run):
    assert positional(EVERYTHING[f"negah.runs.{run}"])[1] == "out"


def test_what_is_written_comes_before_where():
    for where, signature in EVERYTHING.items():
        name, names = where.rpartition(".")[2], positional(signature)
        if name == "save" or name.startswith("write_"):
            assert len(names) == 1 or names[0] not in ("path", "out", "folder"), f"{where}({', '.join(names)})"
        if name == "save":
            assert signature.return_annotation is Path, f"{where} returns the path that it wrote"
