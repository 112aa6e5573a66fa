"""Which updates of a node may be called functions of its neighbours, what do the others cost, and how deep can one go?

Neighbours have no order.  An update f(h, messages) is valid where no permutation of the messages changes it; then a
layer made of it is equivariant: f(P H, P A P^T) = P f(H, A).  Averaging over neighbours again and again makes all nodes
alike (Li et al. 2018, arXiv:1801.07606), and averaging once helps only where neighbours are alike.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from negah.errors import InputError
from negah.graph.audit import Audit, Verdict, audit
from negah.graph.layers import GAT, GCN, GIN, SAGE, Update
from negah.graph.nodes import NodeData
from negah.graph.planetoid import read_planetoid
from negah.lab.graph_nets import (
    LAYERS,
    NUMBERINGS,
    OverLSTM,
    Positions,
    dense,
    drawn,
    largest_change,
    made,
    renumbered,
    updates,
)
from negah.lab.graph_trained import HOMOPHILY, Graphs, depth, dots, neighbours, price
from negah.lab.page import Page, Panel, figure
from negah.lab.training import Effort, legend

Row = dict[str, Any]

NODES, FULL_NODES, FULL_STEPS = 1000, 10_000, 400
VERDICTS: tuple[Verdict, ...] = ("certified", "refuted", "not refuted")
WIDTH = 4  # of the features that update functions are tried on
SECONDS = 10.0  # that the auditor searches for a counterexample, at most
INVALID = 1e-3  # relative change from which it is no rounding


def run(out: Path, effort: Effort) -> Page:
    """All panels into the folder `out`.  Raises InputError for data that are no graph."""
    if len(effort.data) > 1:
        raise InputError(f"graph reads one graph, a folder or npz of Planetoid's: {len(effort.data)} were given")
    given = read_planetoid(effort.data[0]) if effort.data else None
    steps, nodes = (FULL_STEPS, FULL_NODES) if effort.full else (effort.steps, NODES)
    graphs = Graphs(given, nodes, steps, effort.seeds, effort.full, effort.say)
    title = "Neighbours without order: what is valid, what does the rest cost, how deep can one go?"
    data = ", ".join(effort.data) or f"generated graphs of {nodes} nodes"
    page = Page("graph", title, out, {"data": data, "steps": steps, "seeds": effort.seeds})
    page.add(valid())
    page.add(equivariance())
    page.add(price(graphs))
    page.add(depth(graphs))
    page.add(neighbours(graphs))
    return page


def valid() -> Panel:
    """Update functions under all orders of five neighbours, and before the auditor."""
    audits = {name: audit(update, width=WIDTH, seconds=SECONDS) for name, update in updates(WIDTH).items()}
    rows: list[Row] = [
        {"setting": name, "change": max(largest_change(update, WIDTH, seed=seed) for seed in range(3))}
        | {"verdict": audits[name].verdict}
        for name, update in updates(WIDTH).items()
    ]
    plot, (axis,) = figure(1, width=6.5, height=0.4 * len(rows) + 1)
    dots(axis, rows, {"change": ""}, "largest change over all orders, relative")
    moved = [row["setting"] for row in rows if row["change"] > INVALID]
    rest = [row for row in rows if row["change"] <= INVALID]
    verdicts = {verdict: [name for name in audits if audits[name].verdict == verdict] for verdict in VERDICTS}
    told = [
        f"{verdict}: {', '.join(map(partial(evidence, audits), names))}" for verdict, names in verdicts.items() if names
    ]
    return Panel(
        name="valid", title="Which update functions are valid?",
        asks="An update makes a node's new features of its own, h, and of its neighbours' messages, m1, m2, .... "
        "Weights and features are drawn at random, and five messages are put into every order there is. What moves "
        "the output is no function of a set; what moves it by no more than rounding may be one. The auditor goes "
        "further: it certifies by a derivation, for any number of neighbours, or refutes by the smallest example that "
        "it finds.",
        found=f"Moved by another order: {', '.join(moved) or 'none'}. Not moved: "
        f"{', '.join(row['setting'] for row in rest)}, by {max(row['change'] for row in rest):.0e} at most. The "
        f"auditor's verdicts: {'; '.join(told)}.",
        rows=rows, figure=plot, code=[updates, largest_change, audit],
    )  # fmt: skip


def evidence(audits: Mapping[str, Audit], name: str) -> str:
    """The name of what was audited, with the size of the counterexample if there is one."""
    found = audits[name].counterexample
    return name if found is None else f"{name} ({len(found.permutation)} messages)"


def equivariance() -> Panel:
    """Layers on a graph and on the same graph with its nodes numbered in another way."""
    data, kinds = drawn(200, homophily=HOMOPHILY, seed=0), {"float64": torch.float64, "float32": torch.float32}
    rows: list[Row] = []
    for name, layer in LAYERS.items():
        one = made(layer, data.width, 8, seed=0)
        rows.append({"setting": name} | {label: violation(one.to(kind), data, kind) for label, kind in kinds.items()})
    plot, (axis,) = figure(1, width=6.5, height=0.4 * len(rows) + 1)
    dots(axis, rows, {label: label for label in kinds}, "largest |f(P H, P A P') - P f(H, A)|, relative")
    legend(axis)
    broken = [f"{row['setting']} ({row['float64']:.1g})" for row in rows if row["float64"] > INVALID]
    rest = [row for row in rows if row["float64"] <= INVALID]
    return Panel(
        name="equivariance", title="Which layers do not care how the nodes are numbered?",
        asks="The nodes of a graph are numbered in five other ways. A layer of valid updates gives each node what it "
        "gave it before; one that hears of the neighbours in the order of their numbers does not.",
        found=f"Not equivariant: {', '.join(broken) or 'none'}. Equivariant: "
        f"{', '.join(row['setting'] for row in rest)}, up to {max(row['float64'] for row in rest):.0e} in float64 and "
        f"{max(row['float32'] for row in rest):.0e} in float32.",
        rows=rows, figure=plot, code=[Update, GCN, SAGE, GIN, GAT, Positions, OverLSTM],
    )  # fmt: skip


@torch.no_grad()
def violation(layer: nn.Module, data: NodeData, kind: torch.dtype) -> float:
    """How far a layer is from equivariant, over some numberings, relative to its largest output."""
    features, generator = dense(data).to(kind), torch.Generator().manual_seed(0)
    before, worst = layer(features, data.edges), 0.0
    for _ in range(NUMBERINGS):
        moved, edges, order = renumbered(features, data.edges, generator)
        worst = max(worst, float((layer(moved, edges) - before[order]).abs().max()))
    return worst / float(before.abs().max())
