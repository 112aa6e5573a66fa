"""What a node learns from its neighbours: sum, mean, maximum, and averages by attention, whatever their order.

Every function takes features h [node, width] and gives, for each node, an aggregate over the edges that lead to it.
An isolated node gets 0.  Reorder the nodes by a permutation P, features and edges alike, and the result is reordered
in the same way: f(P h, P A P^T) = P f(h, A), up to rounding.

Sums and means are products with a sparse matrix (`negah.graph.csr`), so no message is ever held for each edge.  A
maximum goes through the neighbours the same way on a CPU.  Where a linear map W follows, (A h) W^T and A (h W^T) are
the same, and `mapped` takes the narrower of the two.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from negah.graph.csr import CSR, Pattern
from negah.graph.edges import Edges
from negah.nn.linear import product

Features = Float[Tensor, "node width"] | CSR


def neighbour_sum(h: Float[Tensor, "node width"], edges: Edges) -> Float[Tensor, "node width"]:
    """Sum over the neighbours, each by the weight of its edge."""
    return edges.typed(h.dtype).sum @ h


def neighbour_mean(h: Float[Tensor, "node width"], edges: Edges) -> Float[Tensor, "node width"]:
    """Mean over the neighbours, by the weights of the edges.  Raises InputError for negative weights."""
    return edges.typed(h.dtype).mean @ h


def neighbour_max(h: Float[Tensor, "node width"], edges: Edges) -> Float[Tensor, "node width"]:
    """Largest value of each feature among the neighbours; weights play no part.

    The gradient goes to the neighbour that has the largest value; of several that have it, to one of them, which is a
    subgradient.
    """
    return _largest(edges.pattern, h)


def _largest(p: Pattern, h: Float[Tensor, "column width"]) -> Float[Tensor, "row width"]:
    """Maximum over the columns in which each row has an entry, 0 where there is none."""
    if h.device.type == "cpu":
        wide = h if h.dtype in (torch.float32, torch.float64) else h.float()
        ones = torch.ones(len(p.columns), dtype=wide.dtype)
        matrix = torch.sparse_csr_tensor(p.offsets, p.columns, ones, p.shape, check_invariants=False)
        with torch.autocast("cpu", enabled=False):
            return torch.sparse.mm(matrix, wide, "amax").to(h.dtype)
    messages = h.index_select(0, p.columns)
    rows = p.rows.long()[:, None].expand_as(messages)
    return h.new_zeros(p.shape[0], h.shape[1]).scatter_reduce(0, rows, messages, "amax", include_self=False)


def neighbour_softmax(scores: Float[Tensor, "edge head"], edges: Edges) -> Float[Tensor, "edge head"]:
    """exp(score) of each edge over the sum of those that lead to the same node, by weight: w exp(s) / sum w exp(s).

    scores are in the order of `edges.index`.  An edge of weight 0 counts as none.
    """
    edges = edges.typed(scores.dtype)
    with torch.no_grad():  # any shift leaves the result alone; the largest keeps exp from overflowing
        top = edges.into.T @ _largest(edges.into.pattern, scores)
    grown = (scores - top).exp()
    if edges.weights is not None:
        edges.check_not_negative("attention")
        grown = grown * edges.weights.to(grown.dtype)[:, None]
    total = edges.into @ grown
    return grown / (edges.into.T @ total.where(total > 0, 1))


def neighbour_average(
    h: Float[Tensor, "node head width"], shares: Float[Tensor, "edge head"], edges: Edges
) -> Float[Tensor, "node head width"]:
    """Sum over the neighbours by shares of each edge and head, in the order of `edges.index`; both get gradients."""
    heads = [CSR(edges.pattern, share) @ part for share, part in zip(shares.unbind(1), h.unbind(1))]
    return torch.stack(heads, 1)


def mapped(matrix: CSR, h: Features, weight: Float[Tensor, "outer inner"]) -> Float[Tensor, "node outer"]:
    """matrix h W^T, aggregated at the smaller of the two widths."""
    if isinstance(h, CSR) or weight.shape[0] < weight.shape[1]:
        return matrix @ linear(h, weight)
    return product(matrix @ h, weight)


def linear(h: Features, weight: Float[Tensor, "outer inner"]) -> Float[Tensor, "node outer"]:
    """h W^T, of dense features or of sparse ones."""
    return h @ weight.T if isinstance(h, CSR) else product(h, weight)
