"""What a node learns from its neighbours: sum, mean, maximum, and averages by attention, whatever their order.

Every function takes features h [node, width] and gives, for each node, an aggregate over the edges that lead to it.
An isolated node gets 0.  Reorder the nodes by a permutation P, features and edges alike, and the result is reordered
in the same way: f(P h, P A P^T) = P f(h, A), up to rounding.

Sums and means are products with a sparse matrix (`negah.graph.csr`), so no message is ever held for each edge.  A
maximum goes through the neighbours the same way on a CPU.  Where a linear map W follows, (A h) W^T and A (h W^T) are
the same, and `mapped` takes the narrower of the two.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from negah.graph.csr import CSR, Pattern, entrywise, multiply
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


def neighbour_attention(
    h: Float[Tensor, "node head width"], own: Float[Tensor, "node head"], others: Float[Tensor, "node head"],
    edges: Edges, *, slope: float = 0.2, dropout: float = 0.0,
) -> Float[Tensor, "node head width"]:  # fmt: skip
    """Averages of h over the neighbours by shares alpha, for each head; 0 for nodes without any.

    For an edge of weight w from j to i, with a softmax over the edges that lead to i,

        s = LeakyReLU(own_i + others_j)        alpha = w exp(s) / sum w exp(s)

    Everything that is there for each edge has the width of the heads, not of h.  With t the gradient of a share less
    the mean of i's gradients by shares, those of s and w are alpha t and t exp(s) / sum; gradients of the first order.

    Args:
        slope: of LeakyReLU below 0.
        dropout: of the shares, which are not brought back to a sum of 1; drawn from torch's global generator.

    Raises InputError for negative weights.
    """
    edges.check_not_negative("attention")
    edges = edges.typed(h.dtype)
    h, own, others = (part.to(edges.dtype) for part in (h, own, others))
    kept = torch.rand(len(edges), h.shape[1], device=h.device) >= dropout if dropout else None
    return _Attention.apply(edges, h, own, others, edges.weights, kept, 1 / (1 - dropout), slope)  # pyright: ignore[reportReturnType]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, edges: Edges, h: Tensor, own: Tensor, others: Tensor, weights: Tensor | None, kept: Tensor | None,
        scale: float, slope: float,
    ) -> Tensor:  # fmt: skip
        p = edges.pattern
        raw = own.index_select(0, p.rows).add_(others.index_select(0, p.columns))
        s = F.leaky_relu(raw, slope)
        if weights is not None:  # an edge that counts for nothing must not be the largest either
            s.masked_fill_((weights == 0)[:, None], -torch.inf)
        # Any shift leaves the shares alone; the largest keeps exp from overflowing.
        top = _largest(edges.into.pattern, s).clamp_(min=torch.finfo(s.dtype).min)
        shares = s.sub_(top.index_select(0, p.rows)).exp_()
        grown = shares if weights is None else shares * weights[:, None]
        total = multiply(edges.into, grown)
        shares.div_(total.where(total > 0, 1).index_select(0, p.rows))
        ctx.edges, ctx.scale, ctx.slope = edges, scale, slope
        ctx.save_for_backward(h, raw < 0, shares, weights, kept)
        return _average(p, _used(shares, weights, kept, scale), h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (h, low, shares, weights, kept), edges = grads, ctx.saved_tensors, ctx.edges
        p, (flipped, order) = edges.pattern, edges.pattern.transposed
        used = _used(shares, weights, kept, ctx.scale)
        d_h = _average(flipped, used.index_select(0, order), g)
        t = entrywise(p, g, h)
        if kept is not None:
            t.mul_(kept).mul_(ctx.scale)
        alpha = shares if weights is None else shares * weights[:, None]
        t.sub_(multiply(edges.into, alpha * t).index_select(0, p.rows))
        d_weights = (shares * t).sum(1) if ctx.needs_input_grad[4] else None
        d_s = t.mul_(alpha)
        d_s.mul_(low.to(d_s.dtype).mul_(ctx.slope - 1).add_(1))
        d_own, d_others = multiply(edges.into, d_s), multiply(edges.out_of, d_s)
        return None, d_h, d_own, d_others, d_weights, None, None, None


def _used(shares: Tensor, weights: Tensor | None, kept: Tensor | None, scale: float) -> Tensor:
    """Shares after weights and dropout."""
    if weights is not None:
        shares = shares * weights[:, None]
    return shares if kept is None else (shares * scale).mul_(kept.view(torch.uint8))


def _average(
    pattern: Pattern, shares: Float[Tensor, "edge head"], h: Float[Tensor, "node head width"]
) -> Float[Tensor, "node head width"]:
    """A product for each head."""
    heads = zip(shares.T.contiguous(), h.transpose(0, 1).contiguous())
    return torch.stack([multiply(CSR(pattern, share), part) for share, part in heads], 1)


def mapped(
    matrix: CSR, h: Features, weight: Float[Tensor, "outer inner"], bias: Float[Tensor, " outer"] | None = None
) -> Float[Tensor, "node outer"]:
    """matrix h W^T + b, aggregated at the smaller of the two widths."""
    if not isinstance(h, CSR) and weight.shape[0] >= weight.shape[1]:
        return product(matrix @ h, weight, bias)
    out = matrix @ linear(h, weight)
    return out if bias is None else out.add_(bias)


def linear(
    h: Features, weight: Float[Tensor, "outer inner"], bias: Float[Tensor, " outer"] | None = None
) -> Float[Tensor, "node outer"]:
    """h W^T + b, of dense features or of sparse ones."""
    if not isinstance(h, CSR):
        return product(h, weight, bias)
    return h @ weight.T if bias is None else (h @ weight.T).add_(bias)
