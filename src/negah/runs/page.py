"""What pages of results are made of: plots as SVG, tables, and a document that needs nothing but itself."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from numpy import ndarray
from PIL import Image

COLUMNS = 8  # of a table, after which a page gets too wide; all are in results.json

STYLE = """
html { background: #fff }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { line-height: 1.2 } h2 { margin-top: 3rem } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 14px } td, th { padding: .15rem .7rem; border-bottom: 1px solid #ddd }
td, th { text-align: right } .text, td:first-child, th:first-child { text-align: left }
.small { color: #666; font-size: 14px }
"""


def document(title: str, body: Sequence[str], *, style: str = "") -> str:
    """A page of parts that are HTML already.  style: rules beside STYLE."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}{style}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def figure(columns: int = 1, *, width: float = 5.0, height: float = 3.4) -> tuple[Figure, list[Any]]:
    """A matplotlib figure of so many plots side by side, and their axes; no window is opened."""
    made = Figure(figsize=(width * columns, height), layout="constrained")
    axes = made.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return made, list(axes)


def svg(figure: Figure) -> str:
    """Text stays text, which is small and can be searched; the same figure gives the same file."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "negah"}):
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def picture_uri(pixels: UInt8[ndarray, "h w 3"]) -> str:
    """A picture as an address that holds it, so that a page needs no other file."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Dictionaries as rows, texts flush left; lists in them are left out, and `NAME ±` goes beside `NAME`."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, list)))
    names = [name for name in names if name.removesuffix(" ±") not in names or not name.endswith(" ±")][:COLUMNS]
    kinds = {name: ' class="text"' if all(isinstance(row.get(name, ""), str) for row in rows) else "" for name in names}
    head = "".join(f"<th{kinds[name]}>{html.escape(name)}</th>" for name in names)
    lines = ["".join(f"<td{kinds[name]}>{html.escape(_cell(row, name))}</td>" for name in names) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(row: dict[str, Any], name: str) -> str:
    """A value, with its deviation where the row has `NAME ±`."""
    shown = [
        f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in (name, f"{name} ±") if key in row
    ]
    return " ± ".join(shown)
