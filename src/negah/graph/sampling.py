"""Neighbour sampling: the part of a large graph that some nodes need, with some of their neighbours instead of all.

Hamilton et al. 2017, "Inductive Representation Learning on Large Graphs" (GraphSAGE), arXiv:1706.02216, algorithm 2.
From the nodes asked for, hop by hop, at most `fanout[hop]` of the edges that lead to each newly met node are drawn,
uniformly and without replacement; what their sources need is drawn at the next hop.

Means and maxima take a sample as it is.  A sum over a sample is smaller than that over all; GCN normalises by the
degrees in the sample, as torch-geometric's loader has it.  The nodes of the last hop keep no edges.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from negah.errors import InputError
from negah.graph.csr import Pattern
from negah.graph.edges import Edges


def sample(
    edges: Edges, seeds: Int[Tensor, " seed"], fanout: Sequence[int], generator: torch.Generator
) -> tuple[Int[Tensor, " near"], Edges]:
    """Nodes of the whole graph, the seeds first and in their order, and the edges drawn between them, numbered anew.

    Args:
        edges: of the whole graph, on the CPU.
        seeds: the nodes asked for, each once.
        fanout: edges drawn to each node at each hop; -1 takes all.

    Raises InputError for a seed that is there twice or not at all, and for a fanout that draws nothing.
    """
    if not fanout or any(count < 1 and count != -1 for count in fanout):
        raise InputError(f"fanout {list(fanout)}: each hop draws at least 1 neighbour, or all with -1")
    if len(seeds) and (seeds.min() < 0 or seeds.max() >= edges.nodes):
        raise InputError(f"a seed is not a node of the graph: nodes are numbered 0 to {edges.nodes - 1}")
    number = torch.full((edges.nodes,), -1)  # of each node of the whole graph in the sample
    number[seeds] = torch.arange(len(seeds))
    if not number[seeds].equal(torch.arange(len(seeds))):
        raise InputError("a node is among the seeds more than once: name each once")
    met, drawn, frontier = [seeds], [], seeds
    count = len(seeds)
    for most in fanout:
        entries = _draw(edges.pattern, frontier, most, generator)
        drawn.append(entries)
        sources = edges.pattern.columns[entries].long()
        frontier = torch.unique(sources[number[sources] < 0])
        number[frontier] = torch.arange(count, count + len(frontier))
        count += len(frontier)
        met.append(frontier)
    entries = torch.cat(drawn)
    targets, sources = (number[side[entries].long()] for side in (edges.pattern.rows, edges.pattern.columns))
    pattern, order = Pattern.of(targets, sources, (count, count))
    weights = None if edges.weights is None else edges.weights[entries[order]]
    return torch.cat(met), Edges(pattern, weights, dtype=edges.dtype)


def _draw(
    pattern: Pattern, nodes: Int[Tensor, " node"], most: int, generator: torch.Generator
) -> Int[Tensor, " entry"]:
    """Entries of the rows of some nodes, at most so many of each row."""
    starts = pattern.offsets[nodes].long()
    counts = pattern.offsets[nodes + 1].long() - starts
    row = torch.repeat_interleave(torch.arange(len(nodes)), counts)
    first = counts.cumsum(0) - counts  # of each row among all entries
    entries = torch.arange(len(row)) - first[row] + starts[row]
    if most == -1 or not len(row) or counts.max() <= most:
        return entries
    # Entries in random order, then by row: the first so many of each row are a sample of it.
    shuffled = torch.randperm(len(row), generator=generator)
    order = shuffled[torch.argsort(row[shuffled], stable=True)]
    place = torch.arange(len(row)) - first[row]  # within its row; `row` is the same in this order
    return entries[order[place < most]]
