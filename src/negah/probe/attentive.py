"""The attentive head: one transformer layer over a backbone's tokens, whose attention says where it looked.

The mission's detector: backbone tokens [CLS, patches] go through one transformer encoder layer, and one linear layer
reads the CLS output as the logit of "there is a panel here".

    y      = block([cls, patches])                      x + attention(norm(x)), then + ffn(norm(x))
    logit  = w . norm(y_cls) + b
    a_h    = softmax_j(q_cls,h . k_j,h / sqrt(d))       attention of the CLS query, per head, over CLS and patches
    e_j    = w . norm(y_j) + b                          the same linear layer on each patch: its evidence

Attention alone is a share (it sums to one however large the panel is); evidence is additive.  Both are returned from
the first day: detection, area, attacks and the report all read this one contract.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from negah.nn.vit import Block


class Reading(NamedTuple):
    """What the head says of a batch of images."""

    logit: Float[Tensor, " batch"]  # presence of a panel; sigmoid gives the probability
    attention: Float[Tensor, "batch head patch"]  # CLS query over patches; the rest up to 1 is CLS on itself
    patch_logits: Float[Tensor, "batch patch"]  # evidence of panel in each patch


class AttentiveHead(nn.Module):
    """One transformer encoder layer and one linear layer over [CLS, patches].

    Args:
        dim: width of the tokens.
        heads: attention heads of the layer.
    """

    def __init__(self, dim: int, *, heads: int = 4, mlp_ratio: float = 4.0):
        super().__init__()
        self.dim, self.heads, self.mlp_ratio = dim, heads, mlp_ratio
        self.block = Block(dim, heads, mlp_ratio=mlp_ratio, layer_scale=None)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.classifier = nn.Linear(dim, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Float[Tensor, "batch token dim"]) -> Reading:
        """Tokens as [CLS, patches], after the backbone's final norm."""
        block = self.block
        q, k, v = block.attn.heads_of(block.norm1(tokens))
        y = tokens + block.attn.mixed(q, k, v)
        y = y + block.mlp(block.norm2(y))
        out = self.classifier(self.norm(y)).squeeze(-1)
        return Reading(out[:, 0], cls_attention(q, k), out[:, 1:])


def cls_attention(
    q: Float[Tensor, "batch head token width"], k: Float[Tensor, "batch head token width"]
) -> Float[Tensor, "batch head patch"]:
    """Only the CLS query's row of the attention matrix: O(tokens) where the whole is O(tokens^2)."""
    scores = (q[:, :, :1] @ k.transpose(-2, -1)).squeeze(2) * q.shape[-1] ** -0.5
    return scores.float().softmax(-1)[..., 1:]


def pooled_evidence(patch_logits: Float[Tensor, "batch patch"], *, share: float = 0.05) -> Float[Tensor, " batch"]:
    """Mean of the strongest patches: multiple-instance pooling, by which image labels teach the patches.

    One panel of a few patches is enough for a positive image, hence the top `share` (at least one patch), not the mean.
    """
    k = max(1, round(patch_logits.shape[1] * share))
    return torch.topk(patch_logits, k, dim=1).values.mean(1)
