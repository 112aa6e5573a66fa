"""Imagine, its part DreamBooth: a few pictures teach the model one thing; runs of the command line side by side.

What was taught is kept as the bytes of its files, so that the rest of the room can draw with it whatever becomes of
this part's folder.  Of runs made elsewhere only the figures in scores.json are read.  Their pages are never shown: the
policy of the studio, which a framed page inherits, forbids requests to others, but neither connections of WebRTC nor
look-ups of names.
"""

import html
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from negah.diffusion.dreambooth import LORA
from negah.diffusion.lora import EMBEDDINGS
from negah.errors import InputError
from negah.images.scenes import render
from negah.progress import Progress
from negah.runs import IMAGINER
from negah.runs.dreambooth import Options, Result, dreambooth
from negah.runs.dreambooth_page import likenesses, losses
from negah.runs.dreambooth_read import read_scores
from negah.runs.page import svg
from negah.studio import parts
from negah.studio.work import Work, gathered

LEARNED = (LORA, EMBEDDINGS)  # the files that a model draws with; the second of a new word only
FILES = (*LEARNED, "scores.json", "run.json", "report.html")
EXAMPLE, TURNS, GSD_M = 19, 4, 0.3  # a house of this seed, seen from four sides
MOST = 12  # runs side by side
HEADER = ("run", "token", "steps", "kept step", "fidelity", "prompt CLIP-T", "diversity", "class kept")


@dataclass(frozen=True)
class Taught:
    """A thing that can be drawn.  words: for it in a prompt.  files: those of LEARNED, as (name, content).

    It can be hashed, by which Gradio notices that a state has changed.
    """

    words: str
    files: tuple[tuple[str, bytes], ...]

    def write(self, folder: Path) -> Path:
        """Its files in a new folder, as `imagine` takes a LoRA."""
        folder.mkdir()
        for name, content in self.files:
            (folder / name).write_bytes(content)
        return folder / LORA


@dataclass(frozen=True)
class Read:
    """Runs that were made elsewhere, by name: what came of them and the losses of their steps; what cannot be read."""

    runs: dict[str, tuple[Result, list[dict[str, float]]]]
    failures: list[tuple[str, str]]


def teaching(work: Work, taught: Any) -> Any:
    """Lay out where a thing is taught; gives the button to draw it with.  taught: state that will hold a `Taught`."""
    import gradio as gr

    parts.lead(
        "Drop some pictures of one thing: the bundled model learns to draw it, under a word of its own. As set "
        "below that takes about two minutes on a laptop with two cores."
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            files = gr.File(
                label="Pictures of one thing", file_count="multiple", file_types=parts.TYPES, height=150
            )  # fmt: skip
            example = gr.Button("Draw a house in false colours as an example", size="sm")
            with gr.Row():
                word = gr.Textbox(value="house", label="What it is", info="A word that the model knows.", min_width=120)
                token = gr.Textbox(
                    value="<new>", label="Its own word", info="Empty: a rare one is measured.", min_width=120
                )
            steps = gr.Slider(1, 1000, step=1, value=400, label="Steps of learning")
            with gr.Accordion("More", open=False):
                lr = gr.Textbox(label="Learning rate", placeholder="such as 0.0001")
                rank = gr.Slider(1, 32, step=1, value=4, label="Rank of the LoRA")
                every = gr.Slider(1, 500, step=1, value=100, label="Steps between two looks")
                prior = gr.Slider(
                    0, 200, step=1, value=32, label="Pictures of the class",
                    info="Drawn first, so that it is not forgotten; 0 leaves that out.",
                )  # fmt: skip
                drawing = gr.Slider(2, 50, step=1, value=20, label="Steps of drawing a picture")
            buttons = parts.controls("Teach")
        with gr.Column(scale=2, min_width=320):
            figures = gr.HTML(parts.empty("The step to stop at, the report, and the files will be here."))
            draw = gr.Button("Draw it", visible=False, size="sm")
            report = gr.HTML()
            downloads = parts.downloads()
    parts.wire(
        work, "dreambooth", buttons, [files, word, token, steps, lr, rank, every, prior, drawing],
        [taught, figures, draw, report, downloads], prepare, shown,
    )  # fmt: skip
    parts.wire(work, "views", buttons._replace(go=example), [], [files], house, lambda paths: [paths])
    return draw


def prepare(
    folder: Path, files: Sequence[str] | None, word: str, token: str, steps: float, lr: str, rank: float, every: float,
    prior: float, drawing: float,
) -> Callable[[Progress], tuple[Result, str]]:  # fmt: skip
    """The run that the page asks for, and the class word."""
    paths, word = gathered(files, folder), " ".join((word or "").split())
    if not word:
        raise InputError("say what the pictures show, in a word such as house")
    options = Options(
        class_word=word, token=(token or "").strip() or None, steps=int(steps), rank=int(rank), every=int(every),
        lr=parts.number(lr, "learning rate"), prior_weight=float(prior > 0), class_images=max(1, int(prior)),
        sampler_steps=int(drawing),
    )  # fmt: skip

    # Under this name the run stands among others, once its scores.json is compared.
    name = "-".join(re.findall(r"\w+", f"{options.token or ''} {word} {options.steps}"))

    def job(progress: Progress) -> tuple[Result, str]:
        progress("reading the models", 0, 0)
        result = dreambooth(
            paths, folder / name, IMAGINER, options, progress=progress,
            each=lambda done, total: progress("steps", done, total),
        )  # fmt: skip
        return result, word

    return job


def shown(found: tuple[Result, str]) -> list[Any]:
    """What was taught, the figures that matter most, a button to draw it, the report and the files."""
    import gradio as gr

    result, word = found
    out = result.model.parent
    files = tuple((name, (out / name).read_bytes()) for name in LEARNED if (out / name).exists())
    taught = Taught(f"{result.token} {word}", files)
    kept, before = row_of(result, result.step), result.scores[0]
    reach = result.real["fidelity"]  # of one picture there is none
    reach = f"; its pictures among themselves {reach:.2f}" if math.isfinite(reach) else ""
    text = parts.facts({
        "Kept step": f"{result.step} of {last(result)}\nits weights are the ones below",
        "Its own word": f"{result.token}\n{result.why}",
        "Like the thing": f"{kept['fidelity']:.2f}\nbefore {before['fidelity']:.2f}{reach}",
        "Class kept": f"{kept['class kept']:.2f}\nof 1.00 before",
    })  # fmt: skip
    text += f"<p>{html.escape(result.reason[:1].upper() + result.reason[1:])}.</p>{parts.failed(result.failures)}"
    button = gr.update(value=f"Draw a {taught.words}", visible=True)
    report = parts.framed(result.report, "Report of DreamBooth")
    return [taught, text, button, report, parts.files(out / name for name in FILES)]


def comparing(work: Work) -> None:
    """Lay out where runs that were made elsewhere stand side by side."""
    import gradio as gr

    parts.lead("Drop the scores.json of one or more runs of negah dreambooth, to see them side by side.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            files = gr.File(label="scores.json of each run", file_count="multiple", file_types=[".json"], height=150)
            buttons = parts.controls("Compare")
        with gr.Column(scale=2, min_width=320):
            result = gr.HTML(
                parts.empty("A table of the runs, and the curves of each, will be here."), elem_classes="results"
            )
    parts.wire(work, "runs", buttons, [files], [result], reading, compared)


def reading(folder: Path, files: Sequence[str] | None) -> Callable[[Progress], Read]:
    """The runs whose figures were dropped, each under a name of its own, and files that hold none."""
    paths = [Path(file) for file in files or ()]
    if not paths:
        raise InputError("nothing to compare yet: drop the scores.json of a run of negah dreambooth")
    if len(paths) > MOST:
        raise InputError(f"these are {len(paths)} files: compare at most {MOST} runs at once")

    def job(progress: Progress) -> Read:
        read = Read({}, [])
        for done, path in enumerate(paths):
            progress("reading", done, len(paths))
            try:
                run = read_scores(path)
            except InputError as error:
                if len(paths) == 1:
                    raise
                read.failures.append((path.name, str(error).removeprefix(f"{path} ")))
                continue
            name = run[0].model.parent.name or path.stem  # weights lie in the folder of their run
            numbered = (f"{name} ({number})" for number in itertools.count(2))
            read.runs[next(each for each in itertools.chain([name], numbered) if each not in read.runs)] = run
        return read

    return job


def compared(read: Read) -> list[Any]:
    """A row for each run at the step that it keeps, and its curves to unfold."""
    rows, curves = [], []
    for name, (result, history) in read.runs.items():
        kept = row_of(result, result.step)
        figures = (f"{kept[figure]:.3f}" for figure in HEADER[4:])
        rows.append((name, result.token, last(result), result.step, *figures))
        plots = ""
        for made in (losses(result, history), likenesses(result)):
            for axis in made.axes:
                parts.on_any_ground(axis)
            plots += f"<div class='plot wide'>{svg(made)}</div>"
        curves.append(
            f"<details{' open' if len(read.runs) == 1 else ''}><summary>{html.escape(name)}</summary>"
            f"<p>Step {result.step}: {html.escape(result.reason)}.</p>{listed(result.notes)}"
            f"{parts.scrolled(plots, f'Curves of {name}')}</details>"
        )
    table = ""
    if rows:
        table = parts.scrolled(parts.table(HEADER, rows), "Runs side by side") + (
            "<p class='lead'>Figures are those of the kept step. The pictures are in each run's report.html, which any "
            "browser opens; pages from outside are not shown here.</p>"
        )
    return [table + "".join(curves) + parts.failed(read.failures)]


def row_of(result: Result, step: int) -> dict[str, float]:
    """The scores of a look."""
    return next(row for row in result.scores if row["step"] == step)


def last(result: Result) -> int:
    """The step of the last look."""
    return int(result.scores[-1]["step"])


def listed(notes: Sequence[str]) -> str:
    """What else should be known, a paragraph each."""
    return "".join(f"<p>{html.escape(note[:1].upper() + note[1:])}.</p>" for note in notes)


def house(folder: Path) -> Callable[[Progress], list[str]]:
    """An example to learn: one house from four sides, in colours that no house of the model's has."""

    def job(progress: Progress) -> list[str]:
        pixels, made = render(104, GSD_M, seed=EXAMPLE, panels="some").image[..., [2, 0, 1]], []
        for turn in range(TURNS):
            path = folder / f"house-{turn}.png"
            Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turn))).save(path)
            made.append(str(path))
        return made

    return job
