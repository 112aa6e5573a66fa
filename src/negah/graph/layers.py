"""Layers of message passing: the plain update, GCN, GraphSAGE, GIN and GAT, on features and `Edges`.

With h_i the features of node i and N(i) the nodes from which an edge of weight w_ij leads to it:

    Update  sigma(W h_i + sum_j w_ij W' h_j + b)               the simplest, sum over neighbours
    GCN     sum_j B~_ij W h_j + b                              B~ = E^-1/2 (A + I) E^-1/2      arXiv:1609.02907
    SAGE    W h_i + W' mean_j h_j + b, or max_j                 without sampling                arXiv:1706.02216
    GIN     MLP((1 + eps) h_i + sum_j w_ij h_j)                                                 arXiv:1810.00826
    GAT     sum_j alpha_ij W h_j + b, for each head            alpha_ij = softmax_j s_ij       arXiv:1710.10903
            s_ij = LeakyReLU(a . W h_i + a' . W h_j)            j over N(i) and i itself

Why each is equivariant: all nodes share W, what stands in front of the sum acts on each row alone, and sum, mean, max
and softmax do not know an order.  In row form the update is H' = sigma(H W^T + A H W'^T), and for a permutation P

    sigma(P H W^T + (P A P^T) P H W'^T) = sigma(P (H W^T + A H W'^T)) = P H',     as P^T P = I and sigma acts entrywise.

Departures: none of GCN, GIN and GAT.  SAGE does not scale its output to length 1, and draws no neighbours: for that see
`negah.graph.sampling`.  A weight stands in front of exp in GAT's softmax, so that an edge of weight 0 is no edge; the
paper has none.  All layers but Update leave the non-linearity to the network.  Features may be a sparse `CSR`, as bags
of words are; every layer starts with a product, and that is then a sparse one.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from negah.errors import InputError
from negah.graph.aggregate import (
    Features,
    linear,
    mapped,
    neighbour_attention,
    neighbour_max,
    neighbour_sum,
)
from negah.graph.csr import CSR
from negah.graph.edges import Edges


class Update(nn.Module):
    """sigma(W h + sum W' h_u + b)."""

    def __init__(self, inner: int, outer: int, *, sigma: Callable[[Tensor], Tensor] = torch.relu):
        super().__init__()
        self.own, self.others = nn.Linear(inner, outer), nn.Linear(inner, outer, bias=False)
        self.sigma = sigma

    def forward(self, h: Features, edges: Edges) -> Float[Tensor, "node outer"]:
        """Features [node, inner] to [node, outer]."""
        check(h, edges, self.own.in_features)
        messages = mapped(edges.typed(kind(h)).sum, h, self.others.weight)
        return self.sigma(linear(h, self.own.weight, self.own.bias).add_(messages))


class GCN(nn.Module):
    """Graph convolution with the symmetric normalisation; a missing self-loop is added with weight 1.

    Raises InputError, when called, for negative weights.
    """

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.weight = glorot(outer, inner)
        self.bias = nn.Parameter(torch.zeros(outer))

    def forward(self, h: Features, edges: Edges) -> Float[Tensor, "node outer"]:
        """Features [node, inner] to [node, outer]."""
        check(h, edges, self.weight.shape[1])
        return mapped(edges.typed(kind(h)).gcn, h, self.weight, self.bias)


class SAGE(nn.Module):
    """GraphSAGE's mean or max over the neighbours, beside the node's own features.

    Raises InputError, when called, for negative weights (mean), for weights (max), and for sparse features (max).
    """

    def __init__(self, inner: int, outer: int, *, over: Literal["mean", "max"] = "mean"):
        super().__init__()
        self.own, self.others = nn.Linear(inner, outer, bias=False), nn.Linear(inner, outer)
        self.over = over

    def forward(self, h: Features, edges: Edges) -> Float[Tensor, "node outer"]:
        """Features [node, inner] to [node, outer]."""
        check(h, edges, self.own.in_features)
        if self.over == "mean":
            messages = mapped(edges.typed(kind(h)).mean, h, self.others.weight)
        else:
            if edges.weights is not None:
                raise InputError("a maximum over neighbours knows no weights: pass edges.unweighted(), or use mean")
            if isinstance(h, CSR):
                raise InputError("a maximum over neighbours needs dense features: pass features.dense(), or use mean")
            messages = linear(neighbour_max(h, edges), self.others.weight)
        return linear(h, self.own.weight, self.others.bias).add_(messages)  # in place: it is large


class GIN(nn.Module):
    """A network `mlp` on sums, which tells apart whatever multisets of neighbours can be told apart.

    Args:
        mlp: [node, inner] to [node, outer].
        eps: how much more a node counts than a neighbour.
        learn_eps: whether that is learnt.
    """

    def __init__(self, mlp: nn.Module, *, eps: float = 0.0, learn_eps: bool = False):
        super().__init__()
        self.mlp = mlp
        self.eps = nn.Parameter(torch.tensor(eps), requires_grad=learn_eps)

    def forward(self, h: Float[Tensor, "node inner"], edges: Edges) -> Float[Tensor, "node outer"]:
        """Features [node, inner] to [node, outer]."""
        check(h, edges)
        return self.mlp((1 + self.eps) * h + neighbour_sum(h, edges))


class GAT(nn.Module):
    """Graph attention: `heads` averages over the neighbours and the node itself, by learnt shares.

    Args:
        outer: width of each head.
        join: "concat" gives heads * outer features, "mean" gives outer.
        dropout: of the shares.
        slope: of LeakyReLU below 0.

    Raises InputError, when called, for negative weights.
    """

    def __init__(
        self, inner: int, outer: int, *, heads: int = 1, join: Literal["concat", "mean"] = "concat",
        dropout: float = 0.0, slope: float = 0.2,
    ):  # fmt: skip
        super().__init__()
        self.heads, self.join, self.dropout, self.slope = heads, join, dropout, slope
        self.weight = glorot(heads * outer, inner)
        self.from_own, self.from_others = glorot(heads, outer), glorot(heads, outer)
        self.bias = nn.Parameter(torch.zeros(heads * outer if join == "concat" else outer))

    def forward(self, h: Features, edges: Edges) -> Float[Tensor, "node outer"]:
        """Features [node, inner] to [node, heads * outer], or [node, outer] with join "mean"."""
        check(h, edges, self.weight.shape[1])
        edges = edges.typed(kind(h)).with_loops
        # a . W h is (a W) . h, so that all comes out of one product.
        each = self.weight.unflatten(0, (self.heads, -1))
        scorers = [(part[:, :, None] * each).sum(1) for part in (self.from_own, self.from_others)]
        sizes = [len(self.weight), self.heads, self.heads]
        z, own, others = linear(h, torch.cat([self.weight, *scorers])).split(sizes, 1)
        z = z.unflatten(1, (self.heads, -1))
        rate = self.dropout if self.training else 0.0
        out = neighbour_attention(z, own, others, edges, slope=self.slope, dropout=rate)
        return (out.flatten(1) if self.join == "concat" else out.mean(1)) + self.bias


def glorot(outer: int, inner: int) -> nn.Parameter:
    """A matrix of the uniform distribution of Glorot and Bengio 2010, as GCN and GAT start from."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(outer, inner)))


def kind(h: Features) -> torch.dtype:
    """Type of the features' numbers."""
    return h.values.dtype if isinstance(h, CSR) else h.dtype


def check(h: Features, edges: Edges, inner: int | None = None) -> None:
    """Raise InputError unless there is one row of features for each node, of the width that the layer takes."""
    if h.shape[0] != edges.nodes:
        raise InputError(f"{h.shape[0]} rows of features for the {edges.nodes} nodes of the graph: give one for each")
    if inner is not None and h.shape[1] != inner:
        raise InputError(f"features are {h.shape[1]} wide, the layer takes {inner}: make it with inner={h.shape[1]}")
