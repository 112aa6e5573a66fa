"""Attention pooling: a few learned questions to a set of vectors of any number."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from negah.nn.vit import attend


class AttentionPooler(nn.Module):
    """Each of `queries` learned vectors collects what it asks for.

    Lee et al. 2019, "Set Transformer", arXiv:1810.00825, as CoCa (Yu et al. 2022, arXiv:2205.01917, section 3.2) uses
    it: norms of queries and of the set first, no residual, no MLP.

    Args:
        width: of the vectors.  dim: of the answers.  queries: how many.
    """

    def __init__(self, width: int, dim: int, *, queries: int, heads: int, eps: float = 1e-5):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(queries, dim))
        self.norm_query, self.norm = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(width, eps=eps)
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(width, dim), nn.Linear(width, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch place width"]) -> Float[Tensor, "batch query dim"]:
        x = self.norm(x)
        asked = self.q(self.norm_query(self.query)).expand(len(x), -1, -1)
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (asked, self.k(x), self.v(x)))
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
