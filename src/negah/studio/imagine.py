"""Imagine: one prompt under several kinds of guidance, side by side, by the bundled model and with what it learnt."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from negah.diffusion.lora import EMBEDDINGS
from negah.diffusion.sample import SamplerName
from negah.errors import InputError
from negah.progress import Progress
from negah.runs import IMAGINER
from negah.runs.generate import Options, imagine
from negah.studio import dreambooth, parts
from negah.studio.dreambooth import Taught
from negah.studio.work import Work

PROMPT = "two houses with red roofs, one solar array, a few trees"
PLAIN, FREE, LATE, RESCALED, PROJECTED, PLUS = KINDS = (
    "none", "classifier-free", "in an interval", "rescaled", "projected", "CFG++",
)  # fmt: skip
LATE_FROM = (0.2, 2.0)  # of sigma: neither in the noise that decides the layout, nor in the last details
MOST = 8  # pictures of each kind
DRAW, TEACH, COMPARE = "Draw", "Teach it a thing", "Compare runs"
ALONE, MINE, TAUGHT = "alone", "mine", "taught"  # what to draw with: the model, with a LoRA, with what it learnt


def room(work: Work) -> None:
    """Lay out the room."""
    import gradio as gr

    taught = gr.State(None)
    with gr.Tabs() as tabs:
        with gr.Tab(DRAW, id=DRAW):
            prompt, way = drawing(work, taught)
        with gr.Tab(TEACH, id=TEACH):
            draw = dreambooth.teaching(work, taught)
        with gr.Tab(COMPARE, id=COMPARE):
            dreambooth.comparing(work)

    def offered(found: Taught | None) -> Any:
        return gr.update(choices=choices(found))

    def taken(found: Taught) -> list[Any]:
        return [gr.update(selected=DRAW), f"a {found.words}", TAUGHT]

    taught.change(offered, taught, way, queue=False, show_progress="hidden", api_visibility="private")
    draw.click(taken, taught, [tabs, prompt, way], queue=False, show_progress="hidden", api_visibility="private")


def drawing(work: Work, taught: Any) -> tuple[Any, Any]:
    """Lay out where pictures are drawn; gives the prompt, and what to draw with.  taught: state of a `Taught`."""
    import gradio as gr

    parts.lead("Say what to draw; each kind of guidance draws it from the same noise, so that they can be compared.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            prompt = gr.Textbox(value=PROMPT, label="Prompt", lines=2)
            way = gr.Radio(choices(None), value=ALONE, label="Draw with")
            lora = gr.File(
                label="LoRA, and the learned_embeds of a new word", file_count="multiple",
                file_types=[".safetensors"], height=130, visible=False,
            )  # fmt: skip
            kinds = gr.CheckboxGroup(list(KINDS), value=[PLAIN, FREE, LATE], label="Guidance")
            scale = gr.Slider(1, 15, step=0.5, value=6, label="Scale", info="1 follows the words as they are.")
            with gr.Row():
                seed = gr.Number(value=0, precision=0, label="Seed", min_width=90)
                count = gr.Number(value=2, precision=0, minimum=1, maximum=MOST, label="Pictures each", min_width=90)
            with gr.Accordion("More", open=False):
                sampler = gr.Dropdown(list(get_args(SamplerName)), value="dpmpp-2m", label="Sampler")
                steps = gr.Slider(2, 100, step=1, value=20, label="Steps")
                negative = gr.Textbox(label="Words to be guided away from")
            buttons = parts.controls("Imagine")
        with gr.Column(scale=2, min_width=320):
            pictures = gr.HTML(
                parts.empty("The pictures will be here, a row for each kind of guidance."), elem_classes="results"
            )
            downloads = parts.downloads()
    way.change(
        lambda way: gr.update(visible=way == MINE), way, lora, queue=False, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
    parts.wire(
        work, "imagine", buttons, [prompt, way, lora, taught, kinds, scale, seed, count, sampler, steps, negative],
        [pictures, downloads], prepare, shown, triggers=[prompt.submit],
    )  # fmt: skip
    return prompt, way


def choices(taught: Taught | None) -> list[tuple[str, str]]:
    """What can be drawn with, as it is told and as it is called."""
    found = [("the model as it is", ALONE), ("a LoRA of mine", MINE)]
    return found if taught is None else [*found, (f"what it was taught: {taught.words}", TAUGHT)]


def prepare(
    folder: Path, prompt: str, way: str, files: Sequence[str] | None, taught: Taught | None, kinds: Sequence[str],
    scale: float, seed: float | None, count: float | None, sampler: SamplerName, steps: float, negative: str,
) -> Callable[[Progress], list[tuple[str, Path, int]]]:  # fmt: skip
    """All the pictures that the page asks for, as (kind, file, seed)."""
    wanted = [kind for kind in KINDS if kind in kinds]
    if not wanted:
        raise InputError("choose at least one kind of guidance")
    if not 1 <= (count or 0) <= MOST:
        raise InputError(f"pictures of each kind: give 1 to {MOST}")
    lora = lora_of(folder / "lora", way, files, taught)
    base = Options(
        sampler=sampler, steps=int(steps), negative=negative or "", seed=int(seed or 0), count=int(count or 1),
        batch=MOST, guidance=scale,
    )  # fmt: skip

    def job(progress: Progress) -> list[tuple[str, Path, int]]:
        found = []
        for kind in wanted:
            result = imagine(
                [prompt.strip()], folder / slug(kind), options=options_of(kind, base), model=IMAGINER, lora=lora,
                progress=lambda stage, done, total, kind=kind: progress(f"{kind}: {stage}", done, total),
            )  # fmt: skip
            for path, _, seed in result.pictures:  # under a name that tells them apart when they are downloaded
                named = Path(path).rename(folder / f"{slug(kind)}-{seed:06d}.png")
                found.append((kind, named, seed))
        return found

    return job


def lora_of(folder: Path, way: str, files: Sequence[str] | None, taught: Taught | None) -> Path | None:
    """The LoRA to draw with, its words beside it, in a new folder; None for the model as it is."""
    if way == TAUGHT and taught is not None:
        return taught.write(folder)
    if way != MINE:
        return None
    given = [Path(file) for file in files or ()]
    words = [file for file in given if file.name.startswith(Path(EMBEDDINGS).stem)]  # a browser may number it
    weights = [file for file in given if file not in words]
    if len(weights) != 1 or len(words) > 1:
        raise InputError(f"give the .safetensors of one LoRA, and with it the {EMBEDDINGS} of its new word, if any")
    folder.mkdir()
    for file in words:
        shutil.copyfile(file, folder / EMBEDDINGS)
    return Path(shutil.copyfile(weights[0], folder / weights[0].name))


def options_of(kind: str, base: Options) -> Options:
    """How a kind of guidance is asked for."""
    return {
        PLAIN: replace(base, guidance=1.0, negative=""),
        FREE: base,
        LATE: replace(base, interval=LATE_FROM),
        RESCALED: replace(base, rescale=0.7),
        PROJECTED: replace(base, apg=0.0),
        PLUS: replace(base, plus_plus=True, guidance=min(1.0, base.guidance / 10)),
    }[kind]


def told_of(kind: str) -> str:
    """What a kind of guidance is, in a few words."""
    return {
        PLAIN: "the words as they are, scale 1",
        FREE: "away from the picture without words",
        LATE: f"only while sigma is above {LATE_FROM[0]:g} and at most {LATE_FROM[1]:g}",
        RESCALED: "classifier-free, its contrast taken back by 0.7",
        PROJECTED: "APG: only the part across the picture",
        PLUS: "a tenth of the scale, at most 1, and noise without words",
    }[kind]


def slug(kind: str) -> str:
    """A kind as the name of a folder."""
    return kind.lower().replace(" ", "-").replace("+", "p")


def shown(found: Sequence[tuple[str, Path, int]]) -> list[Any]:
    """A row of pictures for each kind, and their files."""
    import gradio as gr

    rows = []
    for kind in dict.fromkeys(kind for kind, *_ in found):
        some = [
            (np.asarray(Image.open(path).convert("RGB")), f"{kind}, seed {seed}", "")
            for name, path, seed in found if name == kind
        ]  # fmt: skip
        rows.append(f"<h3>{kind}</h3><p class='lead'>{told_of(kind)}</p>{parts.sheet(some, cell=128)}")
    return ["".join(rows), gr.update(value=[str(path) for _, path, _ in found], visible=True)]
