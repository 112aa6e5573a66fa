"""The page of `negah attack`: how accuracy falls with the radius, by which attacks, whether that can be trusted."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from negah.adversarial import Robustness
from negah.adversarial.target import Model, logits_of, still
from negah.runs.page import document, figure, picture_uri, svg, table

PICTURES = 6
MARKS = {"ok": "ok", "note": "note", "alarm": "ALARM"}
STYLE = """
.three { display: flex; gap: .5rem; margin: .3rem 0 1.5rem } .three figure { margin: 0; flex: 0 1 14rem }
.three img { width: 100%; image-rendering: pixelated } figcaption { font-size: 14px; color: #444 }
.alarm { color: #a00 } pre { overflow-x: auto; font-size: 12px }
"""


@dataclass(frozen=True)
class Shown:
    """What was attacked: model, images in [0, 1], their classes, and names of these by number."""

    model: Model
    images: Float[Tensor, "n 3 h w"]
    labels: Int[Tensor, " n"]
    names: Mapping[int, str]


def page(
    found: Robustness, shown: Shown, run: Mapping[str, Any], failures: Sequence[tuple[str, str]]
) -> str:  # fmt: skip
    """The page as HTML.  run: with which arguments, releases and hardware, as run.json has it."""
    e = html.escape
    model = str(run["arguments"]["model"])
    body = [f"<h1>How robust is {e(model)}?</h1>", f'<p class="small">{e(_circumstances(found, run))}</p>']
    body += [f"<p><strong>{e(_summary(found))}</strong></p>", _trust(found)]
    if failures:
        body.append(f"<p>{len(failures)} images could not be read, and are not among them.</p>")
    body += ["<h2>Accuracy by radius</h2>", svg(_curve(found)), table(_points(found))]
    body.append(
        '<p class="small">The share of all images that are rightly classified whatever was tried, with the interval of '
        "95 % that their number gives. Gradients: what it cost for each rightly classified image, up to that radius. "
        "It is an upper bound: a stronger attack may lower it.</p>"
    )
    body += ["<h2>Attacks</h2>", table(_rungs(found))]
    body.append(
        '<p class="small">Each attack is given what none before it has fooled, at this radius or a smaller one. '
        "Forwards and gradients are for each image that it was given. Outside: images that it returned outside the "
        "ball, which never count.</p>"
    )
    body.append("<h2>Verdicts: can these figures be trusted?</h2>")
    body.append(f"<p>On {found.sample} rightly classified images, at {_radius(found, found.verdicts_eps)}.</p>")
    body.append(table([
        {"": str(v.number), "verdict": v.name, "state": MARKS[v.state], "found": v.text, "an alarm says": v.means}
        for v in found.verdicts
    ]))  # fmt: skip
    body += ["<h2>Images that fool it</h2>", *_pictures(found, shown)]
    text = e(json.dumps(run, indent=2, ensure_ascii=False))
    body.append(f"<h2>Settings and releases</h2><pre>{text}</pre>")
    return document(f"How robust is {model}?", body, style=STYLE)


def radius(norm: str, eps: float) -> str:
    """A radius as people say it: in grey levels for Linf."""
    return f"{eps * 255:.3g}/255" if norm == "Linf" else f"{eps:.3g}"


def _radius(found: Robustness, eps: float) -> str:
    return f"{found.norm} {radius(found.norm, eps)}"


def _circumstances(found: Robustness, run: Mapping[str, Any]) -> str:
    arguments, on = run["arguments"], run["hardware"]
    return (
        f"negah {run['negah']}: {len(found.images)} images of {arguments['data']}, {found.norm}, {arguments['steps']} "
        f"steps, seed {arguments['seed']}; torch {run['versions']['torch']}, {on['device']}, {run['started']} to "
        f"{run['finished']}"
    )


def _summary(found: Robustness) -> str:
    points = [
        f"at {_radius(found, p.eps)}, {p.robust:.1%} ({p.low:.1%} to {p.high:.1%}) withstand every attack"
        for p in found.curve if p.eps == found.verdicts_eps
    ]  # fmt: skip
    return f"{found.clean:.1%} of the images are rightly classified as they are; {points[0]}."


def _trust(found: Robustness) -> str:
    if not found.alarms:
        return "<p>None of the 15 verdicts raises an alarm.</p>"
    named = "; ".join(f"{v.number} {v.name}: {v.text}" for v in found.alarms)
    return f'<p class="alarm">The figures may be too high. {html.escape(named)}.</p>'


def _curve(found: Robustness):
    scale, unit = (255, "grey levels") if found.norm == "Linf" else (1, "of the range of a pixel")
    made, (axis,) = figure(width=6.5)
    x = [0.0, *(p.eps * scale for p in found.curve)]
    y = [found.clean, *(p.robust for p in found.curve)]
    below = [0.0, *(p.robust - p.low for p in found.curve)]
    above = [0.0, *(p.high - p.robust for p in found.curve)]
    axis.errorbar(x, y, yerr=(below, above), marker="o", markersize=4, capsize=3)
    axis.axvline(found.verdicts_eps * scale, linestyle=":", color="grey", label="radius of the verdicts")
    axis.set(xlabel=f"{found.norm} radius, {unit}", ylabel="share that withstands all attacks", ylim=(-0.02, 1.02))
    axis.legend(frameon=False)
    return made


def _points(found: Robustness) -> list[dict[str, Any]]:
    return [{"radius": "0", "accuracy": found.clean, "95 %": "", "gradients": 0}] + [
        {
            "radius": radius(found.norm, p.eps), "accuracy": p.robust, "95 %": f"{p.low:.3f} to {p.high:.3f}",
            "gradients": round(p.gradients),
        }
        for p in found.curve
    ]  # fmt: skip


def _rungs(found: Robustness) -> list[dict[str, Any]]:
    return [
        {
            "radius": radius(found.norm, p.eps), "attack": rung.name, "tried": rung.tried, "fooled": rung.fooled,
            "gradients": rung.backwards / max(1, rung.tried), "forwards": rung.forwards / max(1, rung.tried),
            "outside": rung.outside, "seconds": round(rung.seconds, 1),
        }
        for p in found.curve for rung in p.rungs
    ]  # fmt: skip


def _pictures(found: Robustness, shown: Shown) -> list[str]:
    """Some images, the perturbation scaled up around grey, and what the model says before and after."""
    at = ((found.fooled_at > 0) & found.fooled_at.isfinite()).nonzero().squeeze(1)[:PICTURES]
    if not len(at):
        return ["<p>None of the attacks found one.</p>"]
    parts = []
    for i in at.tolist():
        before, after = shown.images[i], found.images[i]
        delta = after - before
        largest = float(delta.abs().max())
        times = max(1, int(0.5 / max(largest, 1e-6)))
        with still(shown.model), torch.no_grad():
            chances = logits_of(shown.model, torch.stack([before, after])).softmax(1)
        truth = int(shown.labels[i])
        parts.append(_three(
            (before, f"{_name(shown, truth)}. {_said(shown, chances[0], truth)}"),
            (0.5 + times * delta,
             f"perturbation, {times} times as large: up to {largest * 255:.2g} grey levels; fooled at "
             f"{_radius(found, float(found.fooled_at[i]))}"),
            (after, _said(shown, chances[1], truth)),
        ))  # fmt: skip
    return parts


def _said(shown: Shown, chances: Float[Tensor, " classes"], truth: int) -> str:
    """The class that a model names, and the probability of the true one where it is another."""
    named = int(chances.argmax())
    text = f"The model says {_name(shown, named)} ({float(chances[named]):.2f})"
    return text + ("." if named == truth else f", {_name(shown, truth)} {float(chances[truth]):.2f}.")


def _name(shown: Shown, number: int) -> str:
    return shown.names.get(number, f"class {number}")


def _three(*parts: tuple[Float[Tensor, "3 h w"], str]) -> str:
    figures = [
        f'<figure><img src="{_png(picture)}" alt=""><figcaption>{html.escape(text)}</figcaption></figure>'
        for picture, text in parts
    ]
    return f'<div class="three">{"".join(figures)}</div>'


def _png(picture: Float[Tensor, "3 h w"]) -> str:
    return picture_uri((picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
