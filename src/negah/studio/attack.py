"""Attack: a few grey levels, what they do to a detector's answer, and how far they move the square metres."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from negah.errors import InputError
from negah.images.scenes import render
from negah.images.sources import PICTURES
from negah.progress import Progress
from negah.runs.attack import NORMS
from negah.runs.attack import Options as Evaluation
from negah.runs.attack import attack as evaluate
from negah.runs.attack_area import AreaResult, attack_areas
from negah.runs.attack_picture import METHODS, Attacked, attack_picture
from negah.runs.page import figure, svg
from negah.studio import parts
from negah.studio.work import Work, gathered

LARGEST = {"Linf": 16.0, "L2": 4.0, "L1": 60.0}  # radius that the slider goes to: grey levels, else of pixels in [0, 1]
FIRST = {"Linf": 3.0, "L2": 0.5, "L1": 8.0}
STRONG = 0.3  # what the largest change is drawn as, above and below a middle grey
SHOWN = 224  # side of a picture on the page
WINDOWS = 8  # of a large picture, whose areas are moved
GSD_M = 0.3  # of a picture that does not say
EXAMPLE = 19  # seed of the example, in which the bundled detector sees the panels
QUERIES = 40  # of Square for each step of a gradient method: a query costs less and tells less


@dataclass(frozen=True)
class Both:
    """The attack on what is seen, and on how large it is."""

    seen: Attacked
    moved: AreaResult | None
    norm: str


def room(work: Work) -> None:
    """Lay out the room."""
    import gradio as gr

    parts.lead("Drop a picture: how small a change makes the detector say something else, or measure another area?")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = gr.File(label="Picture", file_types=list(PICTURES), height=150)
            example = gr.Button("Draw a house as an example", size="sm")
            method = gr.Dropdown(list(METHODS), value="PGD", label="Attack")
            norm = gr.Radio(list(NORMS), value="Linf", label="Norm")
            eps = gr.Slider(
                0.5, LARGEST["Linf"], value=FIRST["Linf"], step=0.5, label="Radius",
                info="Grey levels of 255 in Linf; in L2 and L1 of pixels from 0 to 1.",
            )  # fmt: skip
            with gr.Accordion("More", open=False):
                steps = gr.Slider(1, 100, step=1, value=20, label="Steps")
                gsd = gr.Textbox(
                    label="Metres per pixel", info="Of pictures that do not say.", placeholder=f"such as {GSD_M}"
                )
                model = gr.File(
                    label="Detector of your own, instead of the bundled one", file_types=[".safetensors"], height=132
                )
            buttons = parts.controls("Attack")
        with gr.Column(scale=2, min_width=320):
            result = gr.HTML(
                parts.empty("The picture, what was changed, and what the detector says, will be here."),
                elem_classes="results",
            )  # fmt: skip
    with gr.Accordion("How robust is it on many labelled pictures, and can that figure be trusted?", open=False):
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                labelled = gr.File(label="Zip of folders named panels and no panels", file_types=[".zip"], height=130)
                some = gr.Slider(10, 500, step=10, value=50, label="Pictures, drawn at random")
                ladder = parts.controls("Evaluate")
            with gr.Column(scale=2, min_width=320):
                report = gr.HTML(parts.empty("The report with its fifteen verdicts will be here."))
                downloads = parts.downloads()

    parts.wire(work, "attack", buttons, [file, method, norm, eps, steps, gsd, model], [result], prepare, shown)
    parts.wire(work, "roof", buttons._replace(go=example), [], [file], house, lambda path: [str(path)])
    parts.wire(
        work, "ladder", ladder, [labelled, norm, eps, steps, some, model], [report, downloads], climb,
        lambda out: [parts.framed(out / "report.html", "Report of the attack"), parts.files(sorted(out.iterdir()))],
    )  # fmt: skip

    def scaled(norm: str) -> Any:
        return gr.update(maximum=LARGEST[norm], value=FIRST[norm], step=0.5 if norm == "Linf" else 0.05)

    norm.change(scaled, norm, eps, queue=False, show_progress="hidden", api_visibility="private")


def radius(norm: str, eps: float) -> float:
    """A radius of the slider in units of pixels in [0, 1]."""
    return eps / 255 if norm == "Linf" else eps


def prepare(
    folder: Path, file: str | None, method: str, norm: str, eps: float, steps: float, gsd: str, model: str | None
) -> Callable[[Progress], Both]:
    """The attacks that the page asks for."""
    path = gathered([file] if file else None, folder)[0]
    metres = parts.number(gsd, "metres per pixel") or GSD_M

    def job(progress: Progress) -> Both:
        progress("attacking", 0, 0)
        count = int(steps) * (QUERIES if method == "Square" else 1)
        seen = attack_picture(
            path, model=model or parts.DETECTOR, method=method, norm=norm, eps=radius(norm, eps), steps=count
        )
        moved = None
        if norm == "Linf":
            levels = sorted({max(0.5, eps / 4), max(0.5, eps / 2), eps})
            moved = attack_areas(
                [path], model=model or parts.DETECTOR, gsd_m=metres, eps=[level / 255 for level in levels],
                images=WINDOWS, steps=int(steps),
                progress=lambda stage, done, total: progress("moving the area", done, total),
            )  # fmt: skip
        return Both(seen, moved, norm)

    return job


def climb(
    folder: Path, labelled: str | None, norm: str, eps: float, steps: float, some: float, model: str | None
) -> Callable[[Progress], Path]:
    """The evaluation that the page asks for; gives its folder."""
    if not labelled:
        raise InputError("give a zip whose folders are named panels and no panels")
    data = Path(gathered([labelled], folder)[0])
    levels = (eps / 4, eps / 2, eps)
    options = Evaluation(
        norm="L2" if norm == "L2" else "L1" if norm == "L1" else "Linf",
        eps=tuple(radius(norm, level) for level in levels), images=int(some), steps=int(steps),
    )  # fmt: skip

    def job(progress: Progress) -> Path:
        evaluate(data, folder / "attack", model or parts.DETECTOR, options, progress=progress)
        return folder / "attack"

    return job


def shown(both: Both) -> list[Any]:
    """Three pictures, what the detector says, and the curve of the area."""
    seen = both.seen
    delta = seen.after - seen.before
    times = max(1, int(STRONG / max(seen.largest, 1e-6)))
    unit = f"{seen.length * 255:.3g} grey levels" if both.norm == "Linf" else f"{seen.length:.3g}"
    pictures = [
        (pixels(seen.before), f"before: {seen.named[0]}", _chance(seen, 0)),
        (
            pixels(0.5 + times * delta),
            "what was changed",
            f"{times} times as strong; {both.norm} {unit}, a pixel at most {seen.largest * 255:.3g} grey levels",
        ),
        (pixels(seen.after), f"after: {seen.named[1]}", _chance(seen, 1)),
    ]
    verdict = "The detector is fooled." if seen.fooled else "The detector withstands this attack."
    text = f"<h3>{verdict}</h3>{parts.sheet(pictures, cell=190)}"
    return [text + ("" if both.moved is None else _moved(both.moved))]


def _chance(seen: Attacked, row: int) -> str:
    """The probability of the class that was named before, of the picture before (0) or after (1)."""
    first = int(seen.chances[0].argmax())
    return f"{seen.classes[first]}: {seen.chances[row, first]:.3f}"


def _moved(found: AreaResult) -> str:
    """How far the area moves, as a curve and a table."""
    x = [0.0, *(row["eps"] * 255 for row in found.rows)]
    made, (axis,) = figure(width=6.4, height=2.8)

    def with_start(name: str) -> list[float]:
        return [found.before, *(row[name] for row in found.rows)]

    axis.fill_between(
        x, with_start("noise_lowest"), with_start("noise_highest"), alpha=0.3, color="#7f8890", label="random noise"
    )
    axis.plot(x, with_start("highest"), color="#c77f12", marker="o", markersize=4, label="pushed up")
    axis.plot(x, with_start("lowest"), color="#3b76c4", marker="o", markersize=4, label="pushed down")
    axis.set(xlabel="Linf radius, grey levels", ylabel="panel area, m²")
    axis.legend(frameon=False)
    parts.on_any_ground(axis)
    rows = [
        (
            f"{row['eps'] * 255:g}", f"{row['lowest']:,.1f}", f"{found.before:,.1f}", f"{row['highest']:,.1f}",
            f"{row['noise_lowest']:,.1f} to {row['noise_highest']:,.1f}",
        )
        for row in found.rows
    ]  # fmt: skip
    header = ("radius, grey levels", "lowest m²", "as it is", "highest m²", "random noise of that size")
    return f"<h3>The area</h3><div class='plot'>{svg(made)}</div>{parts.table(header, rows)}"


def pixels(image: Float[Tensor, "3 h w"]) -> UInt8[ndarray, "side side 3"]:
    """A picture in [0, 1] as the page shows it."""
    cells = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.asarray(Image.fromarray(cells).resize((SHOWN, SHOWN), Image.Resampling.NEAREST))


def house(folder: Path) -> Callable[[Progress], Path]:
    """An example to attack: a generated house with panels."""

    def job(progress: Progress) -> Path:
        path = folder / "roof.png"
        Image.fromarray(render(104, GSD_M, seed=EXAMPLE, panels="some").image).save(path)
        return path

    return job
