"""Audit a whole layer or network: does F(PH, PAP^T) = P F(H, A) hold?

A layer is any callable of (features [n, d], edges [2, e]) to one row for each node.  Edges are columns (from, to) of
node numbers; an undirected graph holds both directions.  Two things are tried: the nodes are numbered anew, upon which
the rows must follow them; and the edges are listed in another order, upon which nothing may change.

Graphs: all of two and three nodes, then random ones from 4 to 41, with isolated nodes, without edges, with self-loops
and with an edge listed twice.  A layer is not certified here: its aggregation can be, by `negah.graph.audit.audit`.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from negah.errors import InputError
from negah.graph.audit import Audit
from negah.graph.precision import Gap, OutOfTime, Subject, Unsteady, changed
from negah.graph.refute import Counterexample, Tried, orders, simpler, transpositions

SIZES = (2, 3, 4, 5, 6, 7, 8, 10, 13, 17, 25, 41)
Graph = tuple[Tensor, Tensor]


def audit_layer(
    layer: Callable[..., Any], *, width: int, seed: int = 0, seconds: float = 20.0, name: str = ""
) -> Audit:
    """Search for a graph and a numbering of its nodes by which `layer(features, edges)` changes.

    Args:
        width: of the features.  seconds: the search ends after these.

    Raises InputError where the layer raises at every graph, writes into its inputs, or has not one row for each node.
    """
    subject = Subject(layer, name or getattr(layer, "__name__", type(layer).__name__))
    generator = torch.Generator().manual_seed(seed)
    tried, begun = Tried(widths=[width]), time.monotonic()
    found = None
    with torch.random.fork_rng(devices=[]):
        accept(subject, width, generator)
        subject.deadline = time.monotonic() + seconds
        try:
            found = search(subject, width, generator, tried)
        except Unsteady as shown:
            gap = Gap(shown.first, shown.again, float("inf"), 0.0)
            found = report("repeat", (shown.inputs[0], shown.inputs[1]), tuple(range(len(shown.inputs[0]))), gap)
        except OutOfTime:
            tried.complete = False
    tried.evaluations, tried.seconds = subject.evaluations, time.monotonic() - begun
    why = "a layer is searched only: certify its aggregation"
    return Audit("not refuted" if found is None else "refuted", subject.name, width, [], why, found, tried)


def accept(subject: Subject, width: int, generator: torch.Generator) -> None:
    """Find the type of number that the layer takes; InputError where it takes none."""
    said = ""
    for dtype in (torch.float64, torch.float32):
        subject.dtype = dtype
        for graph in itertools.islice(graphs(4, width, generator), 6):
            out = subject(graph)
            if isinstance(out, Tensor):
                if not out.dim() or len(out) != 4:
                    raise InputError(
                        f"{subject.name} returns {list(out.shape)} for a graph of 4 nodes: one row a node is needed"
                    )
                return
            said = said or out
    raise InputError(f"{subject.name} raises: {said}; it is called with features [n, {width}] and edges [2, e]")


def search(subject: Subject, width: int, generator: torch.Generator, tried: Tried) -> Counterexample | None:
    """The first counterexample, made simpler."""
    for n in SIZES:
        for x in graphs(n, width, generator):
            out = subject(x)
            if isinstance(out, str):
                tried.refused.setdefault(n, out)
            elif changed(out, again := subject(x), x, subject.dtype):
                raise Unsteady(x, out, again)
            for p in orders(n, generator):
                found = renumbered(subject, x, p)
                if found is not None:
                    return simplified(subject, x, p, found, renumbered, "nodes")
            for p in orders(x[1].shape[1], generator) if x[1].shape[1] > 1 else ():
                found = relisted(subject, x, p)
                if found is not None:
                    return simplified(subject, x, p, found, relisted, "order")
        tried.sizes.append(n)
    return None


def renumbered(subject: Subject, x: Graph, p: tuple[int, ...]) -> Gap | None:
    """Node p[i] gets the number i."""
    order = torch.tensor(p)
    place = order.argsort()
    return subject.differs(x, (x[0][order], place[x[1]]), lambda out: out[place] if len(out) == len(p) else out)


def relisted(subject: Subject, x: Graph, p: tuple[int, ...]) -> Gap | None:
    """The edges in another order."""
    return subject.differs(x, (x[0], x[1][:, list(p)]))


def simplified(
    subject: Subject, x: Graph, p: tuple[int, ...], gap: Gap,
    breaks: Callable[[Subject, Graph, tuple[int, ...]], Gap | None], kind: str,
) -> Counterexample:  # fmt: skip
    """Fewer edges, two nodes or edges that change places, simple features, as far as it stays a counterexample."""

    def still(x: Any, p: tuple[int, ...]) -> Gap | None:
        try:
            return breaks(subject, x, p)
        except (OutOfTime, Unsteady):
            return None

    for swap in transpositions(len(p)):
        found = still(x, swap)
        if found is not None:
            p, gap = swap, found
            break
    at = 0
    while kind == "nodes" and at < x[1].shape[1]:
        less = (x[0], torch.cat([x[1][:, :at], x[1][:, at + 1 :]], 1))
        found = still(less, p)
        x, gap, at = (less, found, at) if found is not None else (x, gap, at + 1)
    (features, edges), gap = simpler(x, gap, lambda x: still(x, p))
    return report(kind, (features, edges), p, gap)


def report(kind: str, x: Graph, p: tuple[int, ...], gap: Gap) -> Counterexample:
    """As it is handed out."""
    inputs = {"features": x[0], "edges": x[1]}
    return Counterexample(kind, inputs, p, gap.output, gap.permuted, gap.difference, gap.rounding)


def graphs(n: int, width: int, generator: torch.Generator) -> Iterator[Graph]:
    """Undirected graphs of n nodes, both directions listed, with features."""
    pairs = list(itertools.combinations(range(n), 2))
    subsets = range(2 ** len(pairs) if n < 4 else 0)
    chosen = [[pair for i, pair in enumerate(pairs) if bits >> i & 1] for bits in subsets]
    path = [(i, i + 1) for i in range(n - 1)]
    chosen += [path, [(0, i) for i in range(1, n)], path[1:], []]  # a path, a star, an isolated node, no edges
    for share in (0.5, 0.5, 0.2) if n >= 4 else ():
        drawn = torch.rand(len(pairs), generator=generator) < share
        chosen.append([pair for pair, keep in zip(pairs, drawn.tolist()) if keep])
    chosen += [[*path, (0, 1)], [*path, (n - 1, n - 1)]]  # an edge twice, a self-loop
    counting = torch.arange(1, n + 1).double()[:, None].expand(n, width).clone()
    for i, links in enumerate(chosen):
        edges = [edge for a, b in links for edge in ([(a, b), (b, a)] if a != b else [(a, b)])]
        listed = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
        if i % 2:
            yield torch.randint(-2, 3, (n, width), generator=generator).double(), listed
        else:
            yield counting, listed
        yield torch.randn(n, width, generator=generator, dtype=torch.float64), listed
