"""The page of `negah dreambooth`: where to stop and why, the curves behind it, and what was drawn at each look."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from negah.runs.dreambooth_options import Result
from negah.runs.page import document, figure, picture_uri, svg, table

STYLE = """
.sheets { display: flex; flex-wrap: wrap; gap: 1rem } .sheets figure { margin: 0; max-width: 100% }
.sheets img { max-width: 100% } figcaption { font-size: 14px } .kept { outline: 3px solid #c3007a }
pre { overflow-x: auto; font-size: 12px }
"""
MEANINGS = {
    "instance": "loss on the instance's pictures, mean since the look before",
    "prior": "loss on the class's pictures, likewise",
    "held out loss": "at noise and timesteps that never change, on",
    "fidelity": "mean cosine of drawn and real pictures of the subject, by the backbone",
    "fidelity CLIP-I": "the same, by the describer",
    "prompt CLIP-T": "mean cosine of drawn pictures and their words, by the describer",
    "diversity": "1 - mean cosine of the pictures of one prompt with each other, by the backbone",
    "class kept": "mean cosine of pictures of the plain class with those of the model before, seed by seed",
    "class drift": "mean cosine of pictures of the plain class and of the subject (PRES): rises as all become it",
}


def page(
    result: Result, history: Sequence[Mapping[str, float]], sheets: Mapping[int, Path], record: Mapping[str, Any]
) -> str:  # fmt: skip
    """The page as HTML.  sheets: the pictures of each look."""
    e = html.escape
    given = record["arguments"]
    title = f"{result.token} {given['class_word']}: at which step to stop"
    n = result.images
    body = [f"<h1>{e(title)}</h1>", f"<p><strong>Step {result.step}: {e(result.reason)}.</strong></p>"]
    body += [f"<p>{e(note[0].upper() + note[1:])}.</p>" for note in result.notes]
    body.append(
        f'<p class="small">{e(given["method"])} on {e(given["model"])}, {n["instance"]} pictures of the subject, '
        f"{n['class']} of the class; weights: {e(str(result.model))}. Token <code>{e(result.token)}</code>: "
        f"{e(result.why)}. Likeness by {e(given['backbone'])}, words by {e(given['describer'])}.</p>"
    )
    if result.failures:
        body.append(f"<p>Left out, as they cannot be read: {e('; '.join(name for name, _ in result.failures))}.</p>")
    body += ["<h2>Losses</h2>", svg(losses(result, history)), "<h2>What is drawn</h2>"]
    body += [svg(likenesses(result)), "<h2>Each look</h2>"]
    rows = [{name: int(v) if name == "step" else v for name, v in row.items()} for row in result.scores]
    lossy, likes = ("step", "instance", "prior", "held out loss"), ("step", *list(MEANINGS)[3:], "balance")
    body += [f"<p>{table([{k: row[k] for k in names if k in row} for row in rows])}</p>" for names in (lossy, likes)]
    said = MEANINGS | {"held out loss": f"{MEANINGS['held out loss']} {result.held_out}"}
    meant = "; ".join(f"{name}: {text}" for name, text in said.items())
    real = result.real
    reach = f"The real pictures reach {real['fidelity']:.3f} and {real['fidelity CLIP-I']:.3f} among themselves"
    body.append(f'<p class="small">{e(meant)}. {reach} (backbone, describer).</p>')
    if result.ranking:
        body += ["<h2>Existing tokens, weakest first</h2>", table([vars(weak) for weak in result.ranking])]
    body += ["<h2>Pictures</h2>", '<div class="sheets">']
    for step, path in sheets.items():
        kept = ' class="kept"' if step == result.step else ""
        with Image.open(path) as sheet:
            address = picture_uri(np.asarray(sheet.convert("RGB")))
        words = f"step {step}" + (", kept" if kept else ", before training" if step == 0 else "")
        body.append(f'<figure{kept}><img src="{address}" alt=""><figcaption>{words}</figcaption></figure>')
    text = e(json.dumps(record, indent=2, ensure_ascii=False))
    body += ["</div>", f"<h2>Settings</h2><pre>{text}</pre>"]
    return document(title, body, style=STYLE)


def losses(result: Result, history: Sequence[Mapping[str, float]]) -> Figure:
    """Of the training, and at noise that never changes."""
    made, (left, right) = figure(2)
    for name in ("instance", "prior"):
        if history and name in history[0]:
            left.plot([row["step"] for row in history], [row[name] for row in history], label=name, lw=1)
    left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    left.legend()
    right.plot(*_series(result, "held out loss"), "o-", color="C2")
    right.set(xlabel="step", ylabel="held-out loss, fixed noise")
    for axis in (left, right):
        axis.axvline(result.step, color="#c3007a", lw=1)
    return made


def likenesses(result: Result) -> Figure:
    """What `diffusion.likeness` says at each look."""
    made, (left, right) = figure(2)
    left.plot(*_series(result, "fidelity"), "o-", label="subject fidelity")
    left.plot(*_series(result, "class kept"), "s-", label="class kept")
    left.plot(*_series(result, "class drift"), "^--", label="class like subject (PRES)")
    left.axhline(result.real["fidelity"], color="grey", lw=1, ls=":", label="real among themselves")
    right.plot(*_series(result, "fidelity CLIP-I"), "o-", label="subject fidelity, CLIP-I")
    right.plot(*_series(result, "prompt CLIP-T"), "s-", label="prompt fidelity, CLIP-T")
    right.plot(*_series(result, "diversity"), "^-", label="diversity (DIV)")
    for axis, name in ((left, "cosine, backbone"), (right, "cosine; DIV: 1 - cosine")):
        axis.axvline(result.step, color="#c3007a", lw=1)
        axis.set(xlabel="step", ylabel=name)
        axis.legend(fontsize=8)
    return made


def _series(result: Result, name: str) -> tuple[list[float], list[float]]:
    return [row["step"] for row in result.scores], [row[name] for row in result.scores]
