"""Describe: pictures found by words, captioned, and sorted into classes that are words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from negah.errors import InputError, NegahError
from negah.images.pool import Picture
from negah.images.scenes.words import described
from negah.images.sources import PICTURES, Source, find_sources
from negah.progress import Progress
from negah.runs import DESCRIBER
from negah.runs.caption import caption
from negah.runs.search import classify, search
from negah.studio import parts
from negah.studio.work import Work, gathered

SHOWN = 128  # side of a picture on the page
MOST = 48  # pictures that are shown
EXAMPLES = 16  # pictures of the example
CLASSES = "a house with solar panels\na swimming pool\na forest\na parking lot\na farmland"


@dataclass(frozen=True)
class Found:
    """Pictures under headings, each with a caption and a smaller line; what could not be read."""

    groups: list[tuple[str, list[tuple[UInt8[ndarray, "h w 3"], str, str]]]]
    failures: list[tuple[str, str]]


def room(work: Work) -> None:
    """Lay out the room."""
    import gradio as gr

    parts.lead("Drop pictures or an archive of them: find them by words, let a model say what they show, or sort them.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            files = gr.File(label="Pictures", file_count="multiple", file_types=parts.TYPES, height=150)
            example = gr.Button("Draw some houses as an example", size="sm")
            with gr.Tabs():
                with gr.Tab("Search"):
                    words = gr.Textbox(label="Words", info="One query a line.", value="a swimming pool", lines=2)
                    best = gr.Slider(1, MOST, step=1, value=6, label="Best of each")
                    find = parts.controls("Search")
                with gr.Tab("Caption"):
                    beams = gr.Slider(1, 10, step=1, value=1, label="Beams", info="More look further, and take longer.")
                    write = parts.controls("Caption")
                with gr.Tab("Classify"):
                    classes = gr.Textbox(label="Classes", info="In words, one a line.", value=CLASSES, lines=5)
                    sort = parts.controls("Classify")
        with gr.Column(scale=2, min_width=320):
            result = gr.HTML(parts.empty("The pictures will be here."), elem_classes="results")
    parts.wire(work, "search", find, [files, words, best], [result], searching, shown)
    parts.wire(work, "caption", write, [files, beams], [result], captioning, shown)
    parts.wire(work, "classify", sort, [files, classes], [result], classifying, shown)
    parts.wire(work, "houses", find._replace(go=example), [], [files], houses, lambda paths: [paths])


def searching(folder: Path, files: Sequence[str] | None, words: str, best: float) -> Callable[[Progress], Found]:
    """The pictures that words describe best."""
    paths, queries = gathered(files, folder), lines(words)

    def job(progress: Progress) -> Found:
        result = search(queries, paths, model=DESCRIBER, best=int(best), progress=progress)
        sources = by_name(paths)
        groups = [
            (
                found.query,
                [(thumbnail(sources[name]), short(name), f"cosine {score:.3f}") for name, score in found.hits],
            )
            for found in result.found
        ]
        return Found(groups, result.failures)

    return job


def captioning(folder: Path, files: Sequence[str] | None, beams: float) -> Callable[[Progress], Found]:
    """What pictures show, in words."""
    paths = gathered(files, folder)

    def job(progress: Progress) -> Found:
        result = caption(paths, model=DESCRIBER, beams=int(beams), progress=progress)
        sources = by_name(paths)
        some = [(thumbnail(sources[name]), text, short(name)) for name, text in result.captions[:MOST]]
        return Found([(_count(len(some), len(result.captions)), some)], result.failures)

    return job


def classifying(folder: Path, files: Sequence[str] | None, classes: str) -> Callable[[Progress], Found]:
    """Pictures under the class that each fits best."""
    paths, names = gathered(files, folder), lines(classes)

    def job(progress: Progress) -> Found:
        result = classify(names, paths, model=DESCRIBER, progress=progress)
        sources, groups = by_name(paths), []
        for number, name in enumerate(result.classes):
            its = [(chances[number], path) for path, chances in result.chances if max(chances) == chances[number]]
            its = sorted(its, reverse=True)[:MOST]
            some = [(thumbnail(sources[path]), short(path), f"{chance:.0%}") for chance, path in its]
            groups.append((name, some))
        return Found(groups, result.failures)

    return job


def lines(text: str) -> list[str]:
    """What was typed, a line each.  Raises InputError for nothing, and for what names a file of this machine."""
    found = [line.strip() for line in (text or "").splitlines() if line.strip()]
    if not found:
        raise InputError("type some words, one thing a line")
    if paths := [line for line in found if line.lower().endswith(PICTURES) or Path(line).exists()]:
        raise InputError(f"{paths[0]!r} is the name of a file: type words, and drop files above")
    return found


def by_name(paths: Sequence[str]) -> Mapping[str, Source]:
    """All pictures by the names that runs give them."""
    return {source.name: source for source in find_sources(paths)}


def short(name: str) -> str:
    """A picture's own name."""
    return name.rpartition("/")[2]


def thumbnail(source: Source) -> UInt8[ndarray, "h w 3"]:
    """The middle square of a picture, small; grey where it cannot be read any more."""
    try:
        return Picture(source).pixels(SHOWN).rgb
    except NegahError:
        return np.full((SHOWN, SHOWN, 3), 128, np.uint8)


def shown(found: Found) -> list[Any]:
    """The groups, and what could not be read."""
    text = "".join(
        f"{parts.heading(title)}{parts.sheet(some, cell=128) if some else parts.empty('none')}"
        for title, some in found.groups
    )
    return [text + parts.failed(found.failures)]


def _count(shown: int, all_of_them: int) -> str:
    return "In words" if shown == all_of_them else f"In words: {shown} of {all_of_them:,}"


def houses(folder: Path) -> Callable[[Progress], list[str]]:
    """An example: generated pictures."""

    def job(progress: Progress) -> list[str]:
        made = []
        for number in range(EXAMPLES):
            progress("drawing", number, EXAMPLES)
            path = folder / f"house-{number:02d}.png"
            Image.fromarray(described(104, 0.4, seed=number).image).save(path)
            made.append(str(path))
        return made

    return job
