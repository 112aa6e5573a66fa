"""Neighbours: an update function as a line of text, on a graph that can be edited, before the auditor.

The line is read by `negah.graph.grammar`, which knows a short list of names and runs no code.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from negah.errors import InputError
from negah.graph.audit import audit
from negah.graph.grammar import FUNCTIONS, parse
from negah.progress import Progress
from negah.runs.audit import evidence
from negah.studio import parts
from negah.studio.work import Work

NODES = [["a", "1", "0"], ["b", "2", "1"], ["c", "4", "0"], ["d", "0", "3"], ["e", "1", "1"]]
EDGES = [["a", "b"], ["a", "c"], ["a", "d"], ["c", "d"], ["d", "e"]]
EXAMPLES = (
    "mean(messages)", "sum(softmax(dot(h, messages)) * messages) + h", "max(messages) - h",
    "sum(positions * messages) / n", "first(messages)",
)  # fmt: skip
SECONDS = 8.0  # for the search of counterexamples
MOST = 40  # nodes or edges of a graph on this page


@dataclass(frozen=True)
class Graph:
    """names: of the nodes.  features: of each.  edges: both ends, in the order of the table."""

    names: list[str]
    features: Float[Tensor, "node feature"]
    edges: list[tuple[int, int]]

    def neighbours(self, node: int) -> list[int]:
        """In the order of the table of edges."""
        return [a + b - node for a, b in self.edges if node in (a, b)]


@dataclass(frozen=True)
class Answer:
    """found: what the auditor says, as `runs.audit.evidence` has it.  updated: node to its new features, with the
    neighbours in the order of the table and in the reverse order; None without neighbours."""

    graph: Graph
    found: dict[str, Any]
    updated: list[tuple[Tensor, Tensor] | None]


def room(work: Work) -> None:
    """Lay out the room."""
    import gradio as gr

    parts.lead(
        "Neighbours have no order: type how a node takes up their messages, and the auditor proves that no order "
        "matters, or shows one that does."
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            text = gr.Textbox(
                value=EXAMPLES[3], label="Update function",
                info="Of h (the node's features) and messages (one row for each of its n neighbours).",
            )  # fmt: skip
            gr.Examples([[example] for example in EXAMPLES], [text], label="Try", api_visibility="private")
            buttons = parts.controls("Audit")
            with gr.Accordion("The graph", open=False):
                nodes = gr.Dataframe(
                    NODES, headers=["node", "feature 1", "feature 2"], type="array", label="Nodes", interactive=True,
                    column_count=3, buttons=[],
                )  # fmt: skip
                edges = gr.Dataframe(
                    EDGES, headers=["from", "to"], type="array", label="Edges", interactive=True, column_count=2,
                    buttons=[],
                )  # fmt: skip
            with gr.Accordion("What can be typed", open=False):
                gr.HTML(words())
        with gr.Column(scale=2, min_width=320):
            result = gr.HTML(parts.empty("The auditor's answer will be here."), elem_classes="results")
    parts.wire(
        work, "neighbours", buttons, [text, nodes, edges], [result], prepare, shown, triggers=[text.submit]
    )  # fmt: skip


def words() -> str:
    """The grammar, as a table."""
    rows = [
        ("h, messages", "features of the node; those of its neighbours, a row each"),
        ("n, positions", "how many neighbours there are; 1 to n, a column"),
        ("+ - * / **", "number by number"),
    ]
    for told in dict.fromkeys(FUNCTIONS.values()):
        rows.append((", ".join(name for name, its in FUNCTIONS.items() if its == told), told))
    return parts.table(("", ""), rows)


def prepare(
    folder: Any, text: str, nodes: Sequence[Sequence[Any]], edges: Sequence[Sequence[Any]]
) -> Callable[[Progress], Answer]:
    """The audit that the page asks for."""
    f, graph = parse(text or ""), graph_of(nodes, edges)

    def job(progress: Progress) -> Answer:
        progress("auditing", 0, 0)
        found = evidence(audit(f, seconds=SECONDS, name=f.text))
        updated: list[tuple[Tensor, Tensor] | None] = []
        for node in range(len(graph.names)):
            around = graph.neighbours(node)
            messages = graph.features[around]
            h = graph.features[node]
            updated.append((f(h, messages), f(h, messages.flip(0))) if around else None)
        return Answer(graph, found, updated)

    return job


def graph_of(nodes: Sequence[Sequence[Any]], edges: Sequence[Sequence[Any]]) -> Graph:
    """The graph of both tables; empty rows are left out.  Raises InputError for what is none."""
    rows = [[str(cell or "").strip() for cell in row] for row in nodes]
    rows = [row for row in rows if row[0]]
    pairs = [[str(cell or "").strip() for cell in row] for row in edges]
    pairs = [row for row in pairs if any(row)]
    names = [row[0] for row in rows]
    if not rows or max(len(rows), len(pairs)) > MOST:
        raise InputError(f"a graph on this page has 1 to {MOST} nodes, and at most {MOST} edges")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two nodes are called {twice[0]}: give each a name of its own")
    ends: list[tuple[int, int]] = []
    for pair in pairs:
        if strange := [name for name in pair if name not in names]:
            raise InputError(f"the edge {' - '.join(pair)} leads to {strange[0] or 'nothing'}: name two of the nodes")
        if pair[0] == pair[1]:
            raise InputError(f"the edge {' - '.join(pair)} leads from a node to itself: leave it out")
        ends.append((names.index(pair[0]), names.index(pair[1])))
    values = [[parts.number(cell, f"features of {row[0]}") or 0.0 for cell in row[1:]] for row in rows]
    return Graph(names, torch.tensor(values, dtype=torch.float64), ends)


def shown(answer: Answer) -> list[Any]:
    """The verdict with its evidence, and what the function does on the graph."""
    found = answer.found
    text = f"{parts.heading(said_of(found))}"
    if found["verdict"] == "certified":
        text += "<p>Permuting the messages permutes the axis n of every line, and what is returned has none.</p>"
        rows = [(step["expression"], step["axes"], step["kind"]) for step in found["derivation"]]
        text += parts.table(("expression", "axes", "what it is"), rows)
    elif found["counterexample"] is not None:
        text += drawn(found["counterexample"])
    else:
        tried = found["tried"]
        text += parts.table(("", ""), [
            ("no certificate, because", found["no_certificate"]),
            ("tried", f"{tried['evaluations']:,} evaluations, up to n = {max(tried['sizes'], default=0)}"),
        ])  # fmt: skip
    text += parts.heading("On the graph") + f'<div class="plot">{picture(answer)}</div>' + _table(answer)
    return [text]


def said_of(found: dict[str, Any]) -> str:
    """The verdict in a line."""
    return {
        "certified": "Certified: the order of the neighbours never matters, for every n.",
        "refuted": "Refuted: here is an order that changes the result.",
        "not refuted": "Not refuted: no counterexample was found, which proves nothing.",
    }[found["verdict"]]


def drawn(shown: dict[str, Any]) -> str:
    """A counterexample: the same neighbours in two orders, and what comes out of each."""
    order = list(range(len(shown["messages"])))
    both = (
        ("in this order", order, shown["output"]),
        ("in another order", shown["permutation"], shown["permuted_output"]),
    )
    pictures = "".join(_star(shown, order, title, output) for title, order, output in both)
    return f'<div class="stars">{pictures}</div>'


def _star(shown: dict[str, Any], order: Sequence[int], title: str, output: Any) -> str:
    """A node with its messages around it, numbered in their order."""
    side, middle, far, label = 300, 150, 88, 132
    marks = []
    for place, number in enumerate(order):
        angle = 2 * math.pi * place / max(1, len(order)) - math.pi / 2
        x, y = middle + far * math.cos(angle), middle + far * math.sin(angle)
        beyond = middle + label * math.cos(angle), middle + label * math.sin(angle) + 4
        marks.append(
            f'<line x1="{x:.0f}" y1="{y:.0f}" x2="{middle}" y2="{middle}"/>'
            f'<circle class="m{number % 6}" cx="{x:.0f}" cy="{y:.0f}" r="27"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}">{_values(shown["messages"][number])}</text>'
            f'<text class="small" x="{beyond[0]:.0f}" y="{beyond[1]:.0f}">{place + 1}.</text>'
        )
    lines = "".join(marks)
    value = output["raised"] if isinstance(output, dict) else _values(output)
    told = f"messages {title}: {value}"
    return (
        f'<figure><svg viewBox="0 0 {side} {side}" role="img" aria-label="{html.escape(told, quote=True)}">{lines}'
        f'<circle class="node" cx="{middle}" cy="{middle}" r="27"/>'
        f'<text x="{middle}" y="{middle + 4}">{_values(shown["h"])}</text></svg>'
        f"<figcaption>{title}: <b>{html.escape(str(value))}</b></figcaption></figure>"
    )


def picture(answer: Answer) -> str:
    """The graph; nodes whose new features depend on the order are marked."""
    graph, count = answer.graph, len(answer.graph.names)
    width, height = 420, 260
    at = [
        (
            width / 2 + 150 * math.cos(2 * math.pi * k / count - math.pi / 2),
            height / 2 + 92 * math.sin(2 * math.pi * k / count - math.pi / 2),
        )
        for k in range(count)
    ]  # fmt: skip
    lines = "".join(
        f'<line x1="{at[a][0]:.0f}" y1="{at[a][1]:.0f}" x2="{at[b][0]:.0f}" y2="{at[b][1]:.0f}"/>'
        for a, b in graph.edges
    )
    dots = []
    for k, (x, y) in enumerate(at):
        kind = "bad" if _differs(answer.updated[k]) else "node"
        name = html.escape(graph.names[k][:6])
        dots.append(
            f'<circle class="{kind}" cx="{x:.0f}" cy="{y:.0f}" r="22"/><text x="{x:.0f}" y="{y + 5:.0f}">{name}</text>'
        )
    drawing = lines + "".join(dots)
    return f'<svg class="graph" viewBox="0 0 {width} {height}" role="img" aria-label="the graph">{drawing}</svg>'


def _table(answer: Answer) -> str:
    rows = []
    for k, name in enumerate(answer.graph.names):
        both = answer.updated[k]
        around = ", ".join(answer.graph.names[m] for m in answer.graph.neighbours(k)) or "none"
        if both is None:
            rows.append((name, around, "stays as it is", "", ""))
        else:
            verdict = "differs" if _differs(both) else "the same"
            rows.append((name, around, _values(both[0].tolist()), _values(both[1].tolist()), verdict))
    return parts.table(("node", "neighbours", "updated", "neighbours reversed", ""), rows)


def _differs(both: tuple[Tensor, Tensor] | None) -> bool:
    return both is not None and not torch.allclose(both[0], both[1], rtol=1e-9, atol=1e-12, equal_nan=True)


def _values(numbers: Any) -> str:
    """Numbers as they fit into a circle."""
    flat = numbers if isinstance(numbers, list) else [numbers]
    while any(isinstance(value, list) for value in flat):
        flat = [inner for value in flat for inner in (value if isinstance(value, list) else [value])]
    return ", ".join(f"{value:.3g}" for value in flat[:4]) + (" ..." if len(flat) > 4 else "")
