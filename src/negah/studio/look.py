"""Look: where the heads of a backbone look in a picture, and which places it takes for the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from numpy import ndarray
from PIL import Image
from torch import Tensor

from negah.images.scenes import render
from negah.images.sources import PICTURES
from negah.progress import Progress
from negah.runs.look import LARGEST, SIDE, Looked, look
from negah.studio import parts
from negah.studio.work import Work, gathered

SHOWN = 224  # side of a map on the page, in pixels
TAILS = 0.02  # of an attention map that are shown as its brightest


def room(work: Work) -> None:
    """Lay out the room."""
    import gradio as gr

    parts.lead("Drop a picture: where does each head of a model look, and which places are alike to it?")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = gr.File(label="Picture", file_types=list(PICTURES), height=150)
            example = gr.Button("Draw a house as an example", size="sm")
            model = gr.Textbox(
                value=parts.DETECTOR, label="Backbone",
                info="A bundled name, a .safetensors file, or a name of the Hugging Face hub (fetched there).",
            )  # fmt: skip
            side = gr.Slider(64, LARGEST, step=16, value=SIDE, label="Side in pixels that the model sees")
            buttons = parts.controls("Look")
        with gr.Column(scale=2, min_width=320):
            layer = gr.Slider(1, 2, step=1, value=1, label="Layer", visible=False)
            over = gr.Checkbox(value=True, label="Lay the attention over the picture", visible=False)
            maps = gr.HTML(parts.empty("The maps will be here, a tile for each head."))
    found = gr.State(None)

    def shown(looked: Looked) -> list[Any]:
        last = len(looked.colours)
        several = last > 1
        return [
            looked, gr.update(maximum=max(2, last), value=last, visible=several),
            gr.update(visible=looked.attention is not None), drawn(looked, last, True),
        ]  # fmt: skip

    outputs = [found, layer, over, maps]
    parts.wire(work, "look", buttons, [file, model, side], outputs, prepare, shown)
    parts.wire(work, "house", buttons._replace(go=example), [], [file], house, lambda path: [str(path)])
    gr.on(
        [layer.change, over.change], drawn, [found, layer, over], maps, show_progress="hidden", queue=False,
        api_visibility="private",
    )  # fmt: skip


def prepare(folder: Path, file: str | None, model: str, side: float) -> Callable[[Progress], Looked]:
    """The look that the page asks for."""
    path = gathered([file] if file else None, folder)[0]
    return lambda progress: look(path, model.strip() or parts.DETECTOR, side=int(side), progress=progress)


def drawn(looked: Looked | None, layer: float, over: bool) -> str:
    """The maps of one layer (from 1) as HTML."""
    if looked is None:
        return parts.empty("The maps will be here, a tile for each head.")
    number = min(int(layer), len(looked.colours)) - 1
    name = f"after layer {number + 1}" if len(looked.colours) > 1 else "of the last map"
    pictures = [
        (looked.picture, "the picture", f"{looked.picture.shape[1]} px, as the model saw it"),
        (enlarged(looked.colours[number].numpy()), "alike places", f"principal components {name}"),
    ]
    if looked.attention is not None:
        for head, weights in enumerate(looked.attention[number], 1):
            on_patches = f"{float(weights.sum()):.0%} of it on patches"
            pictures.append((heated(weights, looked.picture if over else None), f"head {head}", on_patches))
    return parts.sheet(pictures)


def heated(
    weights: Float[Tensor, "rows columns"], picture: UInt8[ndarray, "side side 3"] | None
) -> UInt8[ndarray, "h w 3"]:
    """Attention from dark to bright; over the picture, it is lit where the head looks and dark elsewhere."""
    brightest = float(torch.quantile(weights.flatten(), 1 - TAILS)) or 1.0
    share = (weights / brightest).clamp(0, 1).numpy()
    if picture is None:
        return enlarged((colormaps["magma"](share)[..., :3] * 255).round().astype(np.uint8))
    ground = np.asarray(Image.fromarray(picture).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)).astype(float)
    light = enlarged((share * 255).round().astype(np.uint8)).astype(float)[..., None] / 255
    glow = np.array([255.0, 196.0, 60.0])
    grey = ground.mean(2, keepdims=True) * 0.4
    return ((1 - light) * grey + light * (0.65 * ground + 0.35 * glow)).round().astype(np.uint8)


def enlarged(cells: UInt8[ndarray, "rows columns *channel"]) -> UInt8[ndarray, "h w *channel"]:
    """Cells as squares."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(cells)).resize((SHOWN, SHOWN), Image.Resampling.NEAREST))


def house(folder: Path) -> Callable[[Progress], Path]:
    """An example to look at: a generated house."""

    def job(progress: Progress) -> Path:
        path = folder / "house.png"
        Image.fromarray(render(SHOWN, 0.15, seed=3).image).save(path)
        return path

    return job
