"""A graph on plain tensors: its edges sorted by target, checked once, with the matrices that layers multiply by.

    edges = Edges.of(torch.tensor([[0, 1], [1, 2]]), nodes=4, undirected=True)   # 0 - 1 - 2, and 3 alone

An edge carries what its source knows to its target.  With A_ij the weight of the edge from j to i (1 if there are no
weights), D the diagonal matrix of A's row sums, and B = A + I with row sums E:

    edges.sum = A        edges.mean = D^-1 A        edges.gcn = E^-1/2 B E^-1/2

Each is made when first asked for and kept.  Rows of isolated nodes are empty: their sum and their mean are 0.  B leaves
a self-loop that is there at its weight, as torch-geometric does.
"""

from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from negah.errors import InputError
from negah.graph.csr import CSR, Pattern

Loops = Literal["refuse", "keep", "drop"]
Duplicates = Literal["refuse", "keep", "merge"]


class Edges:
    """Edges of a graph, by target; `Edges.of` makes them from a list.

    Args:
        pattern: rows are targets, columns are sources.
        weights: of each entry of the pattern; None counts as 1 everywhere.  Where they require a gradient, make the
            edges anew for each step: what is kept belongs to one backward pass.
        dtype: of the matrices; layers take those of their input's type, see `typed`.
    """

    def __init__(
        self, pattern: Pattern, weights: Float[Tensor, " edge"] | None = None, *, dtype: torch.dtype = torch.float32
    ):
        self.pattern, self.dtype = pattern, dtype
        self.weights = None if weights is None else weights.to(dtype)
        self._typed: dict[torch.dtype, Edges] = {}

    @classmethod
    def of(
        cls,
        index: Int[Tensor, "2 edge"],
        nodes: int,
        weights: Float[Tensor, " weight"] | None = None,
        *,
        undirected: bool = False,
        loops: Loops = "refuse",
        duplicates: Duplicates = "refuse",
    ) -> "Edges":
        """Edges from `index[0]` to `index[1]`, in any order; nodes are numbered from 0, and weights keep their type.

        Args:
            undirected: each edge is given once, and goes both ways.
            loops: what to do with edges from a node to itself.
            duplicates: what to do with edges given more than once; "keep" counts each, "merge" makes one of them, with
                the sum of their weights, or without weights where there are none.

        Raises InputError for a node that is not there, for weights that are not finite, and for self-loops and
        duplicates unless told what to do with them: each changes what every layer computes.
        """
        _check_index(index, nodes)
        if weights is not None:
            _check_weights(weights, index)
        index = index.long()
        looped = index[0] == index[1]
        if loops == "refuse" and looped.any():
            at = int(looped.nonzero()[0])
            raise InputError(
                f"{int(looped.sum())} edges lead from a node to itself, the first is edge {at} (node"
                f" {int(index[0, at])}): leave them out, or pass loops='drop' or loops='keep'"
            )
        if loops == "drop":
            index, weights, looped = index[:, ~looped], None if weights is None else weights[~looped], looped[~looped]
        if undirected:
            there = ~looped  # a self-loop is its own way back
            index = torch.cat([index, index.flip(0)[:, there]], 1)
            weights = None if weights is None else torch.cat([weights, weights[there]])
        pattern, order = Pattern.of(index[1], index[0], (nodes, nodes))
        edges = cls(pattern) if weights is None else cls(pattern, weights[order], dtype=weights.dtype)
        if duplicates == "keep":
            return edges
        rows, columns = pattern.rows, pattern.columns
        again = (rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1])
        if not again.any():
            return edges
        if duplicates == "refuse":
            at = int(again.nonzero()[0]) + 1
            raise InputError(
                f"{int(again.sum())} edges are there more than once, the first from node {int(columns[at])} to node"
                f" {int(rows[at])}{' (undirected: either way counts)' if undirected else ''}:"
                " leave them out, or pass duplicates='merge' or duplicates='keep'"
            )
        return edges._merged(again)

    def _merged(self, again: Tensor) -> "Edges":
        first = torch.cat([again.new_ones(1), ~again])
        rows, columns = self.pattern.rows[first], self.pattern.columns[first]
        pattern, _ = Pattern.of(rows, columns, self.pattern.shape)
        if self.weights is None:
            return Edges(pattern)
        place = first.cumsum(0) - 1
        merged = self.weights.new_zeros(len(rows)).index_add(0, place, self.weights)
        return Edges(pattern, merged, dtype=self.dtype)

    @property
    def nodes(self) -> int:
        """How many nodes there are, isolated ones included."""
        return self.pattern.shape[0]

    def __len__(self) -> int:
        """How many edges there are, by direction: an undirected edge counts twice."""
        return len(self.pattern.columns)

    def __repr__(self) -> str:
        return f"Edges({self.nodes} nodes, {len(self)} edges{'' if self.weights is None else ', weighted'})"

    @property
    def index(self) -> Int[Tensor, "2 edge"]:
        """Sources and targets, sorted by target; weights are in this order."""
        return torch.stack([self.pattern.columns, self.pattern.rows]).long()

    @cached_property
    def values(self) -> Float[Tensor, " edge"]:
        """The weights, or ones."""
        if self.weights is not None:
            return self.weights
        return torch.ones(len(self), dtype=self.dtype, device=self.pattern.columns.device)

    @cached_property
    def degree(self) -> Float[Tensor, " node"]:
        """Sum of the weights of the edges that lead to each node; without weights, how many do."""
        return self.values.new_zeros(self.nodes).index_add(0, self.pattern.rows, self.values)

    @cached_property
    def isolated(self) -> Tensor:
        """Nodes that no edge leads to, true or false for each [node]."""
        return self.pattern.offsets.diff() == 0

    @cached_property
    def sum(self) -> CSR:
        """A: row i adds up what the neighbours of i know."""
        return CSR(self.pattern, self.values)

    @cached_property
    def mean(self) -> CSR:
        """D^-1 A: weighted means; 0 where no neighbour has any weight."""
        self.check_not_negative("a mean")
        return CSR(self.pattern, self.values * _inverse(self.degree).index_select(0, self.pattern.rows))

    @cached_property
    def gcn(self) -> CSR:
        """E^-1/2 (A + I) E^-1/2, of Kipf and Welling 2017."""
        self.check_not_negative("the normalisation of a GCN")
        looped = self.with_loops
        scale = _inverse(looped.degree.sqrt())
        pattern = looped.pattern
        values = scale.index_select(0, pattern.rows) * looped.values * scale.index_select(0, pattern.columns)
        return CSR(pattern, values)

    @cached_property
    def into(self) -> CSR:
        """[node, edge], a 1 where an edge leads to a node: sums over the edges of `index` at their targets.

        Its T gives each edge what its target has.
        """
        pattern, count = self.pattern, len(self)
        steps, ones = self._each_edge
        sums = CSR(Pattern(pattern.offsets, steps[:-1], (self.nodes, count)), ones)
        return sums.paired(CSR(Pattern(steps, pattern.rows, (count, self.nodes)), ones))

    @cached_property
    def out_of(self) -> CSR:
        """[node, edge], a 1 where an edge comes from a node: sums at sources; its T gives what the source has."""
        pattern, order = self.pattern.transposed
        count, (steps, ones) = len(self), self._each_edge
        sums = CSR(Pattern(pattern.offsets, order, (self.nodes, count)), ones)
        return sums.paired(CSR(Pattern(steps, self.pattern.columns, (count, self.nodes)), ones))

    @cached_property
    def _each_edge(self) -> tuple[Tensor, Tensor]:
        """0 to the number of edges, and a 1 for each edge."""
        device = self.pattern.columns.device
        steps = torch.arange(len(self) + 1, dtype=torch.int32, device=device)
        return steps, torch.ones(len(self), dtype=self.dtype, device=device)

    @cached_property
    def with_loops(self) -> "Edges":
        """The same with a self-loop of weight 1 at every node that has none."""
        rows, columns = self.pattern.rows, self.pattern.columns
        missing = torch.ones(self.nodes, dtype=torch.bool, device=rows.device)
        missing[rows[rows == columns].long()] = False
        own = missing.nonzero()[:, 0].int()
        pattern, order = Pattern.of(torch.cat([rows, own]), torch.cat([columns, own]), self.pattern.shape)
        if self.weights is None:
            return Edges(pattern, dtype=self.dtype)
        return Edges(pattern, torch.cat([self.weights, self.weights.new_ones(len(own))])[order], dtype=self.dtype)

    def unweighted(self) -> "Edges":
        """The same edges, all of weight 1."""
        return Edges(self.pattern, dtype=self.dtype)

    def typed(self, dtype: torch.dtype) -> "Edges":
        """The same with matrices for features of that type, kept; half precision is multiplied in fp32."""
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        if dtype == self.dtype:
            return self
        if dtype not in self._typed:
            self._typed[dtype] = Edges(self.pattern, self.weights, dtype=dtype)
        return self._typed[dtype]

    def to(self, device: torch.device | str) -> "Edges":
        """On another device; itself if it is there."""
        if torch.device(device) == self.pattern.columns.device:
            return self
        weights = None if self.weights is None else self.weights.to(device)
        return Edges(self.pattern.to(device), weights, dtype=self.dtype)

    def check_not_negative(self, what: str) -> None:
        """Raise InputError if an edge has a negative weight, of which `what` makes no sense."""
        if self.weights is not None and (self.weights < 0).any():
            at = int((self.weights < 0).nonzero()[0])
            source, target = self.index[:, at].tolist()
            raise InputError(
                f"the edge from node {source} to node {target} has weight {float(self.weights[at]):.4g}:"
                f" {what} needs weights that are not negative"
            )


def _check_index(index: Int[Tensor, "2 edge"], nodes: int) -> None:
    if nodes < 1:
        raise InputError(f"a graph needs at least 1 node, got {nodes}")
    wrong = ((index < 0) | (index >= nodes)).any(0)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        source, target = index[:, at].tolist()
        raise InputError(
            f"{int(wrong.sum())} edges name a node that is not there, the first is edge {at} (from {source} to"
            f" {target}): the {nodes} nodes are numbered 0 to {nodes - 1}"
        )


def _check_weights(weights: Float[Tensor, " weight"], index: Int[Tensor, "2 edge"]) -> None:
    if len(weights) != index.shape[1]:
        raise InputError(f"{index.shape[1]} edges have {len(weights)} weights: give one for each")
    if not weights.isfinite().all():
        at = int((~weights.isfinite()).nonzero()[0])
        source, target = index[:, at].tolist()
        raise InputError(f"the weight of edge {at} (from {source} to {target}) is {float(weights[at])}: correct it")


def _inverse(x: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """1 / x, and 0 where x is 0, also in the gradient."""
    return x.where(x > 0, 1).reciprocal().where(x > 0, 0)
