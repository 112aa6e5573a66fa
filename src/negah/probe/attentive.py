"""The attentive head: one transformer layer over a backbone's tokens, whose attention says where it looked.

The mission's detector: backbone tokens [CLS, patches] go through one transformer encoder layer, and one linear layer
reads the CLS output as the logit of "there is a panel here".

    y      = block([cls, patches])                      x + attention(norm(x)), then + ffn(norm(x))
    logit  = w . norm(y_cls) + b
    a_h    = softmax_j(q_cls,h . k_j,h / sqrt(d))       attention of the CLS query, per head, over CLS and patches
    e_j    = w . norm(y_j) + b                          the same linear layer on each patch: its evidence

Attention alone is a share (it sums to one however large the panel is); evidence is additive.  Both are returned from
the first day: detection, area, attacks and the report all read this one contract.  So is norm(y_j), for evidence that
somebody with masks may want to read from it anew (`negah.solar.area`), and the backbone's own summary of the image, for
whoever compares images (`negah.graph.refine`).
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
    patch_logits: Float[Tensor, "batch patch"]  # evidence of panel in each patch; -inf where it was not asked for
    outputs: Float[Tensor, "batch patch dim"] | None = None  # norm(y_j); None where patches were not all read
    feature: Float[Tensor, "batch dim"] | None = None  # the backbone's patches, their mean


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

    def forward(self, tokens: Float[Tensor, "batch token dim"], *, above: float | None = None) -> Reading:
        """Tokens as [CLS, patches], after the backbone's final norm.

        above: probability below which an image's patches are not read: their logits are -inf, no panel.  Most windows
        of a survey hold none, and nearly all of the layer's cost is its patches.
        """
        feature = tokens[:, 1:].mean(1)
        q, k, v = self.block.attn.heads_of(self.block.norm1(tokens))
        attention = cls_attention(q, k)
        if above is None:
            outputs = self.outputs(tokens, q, k, v)
            said = self.classifier(outputs).squeeze(-1)
            return Reading(said[:, 0], attention, said[:, 1:], outputs[:, 1:], feature)
        logit = self.classifier(self.outputs(tokens[:, :1], q[:, :, :1], k, v)).flatten()
        patch_logits = logit.new_full((tokens.shape[0], tokens.shape[1] - 1), -torch.inf)
        found = logit.float().sigmoid() >= above
        if found.any():
            outputs = self.outputs(tokens[found, 1:], q[found, :, 1:], k[found], v[found])
            patch_logits[found] = self.classifier(outputs).squeeze(-1)
        return Reading(logit, attention, patch_logits, feature=feature)

    def outputs(
        self,
        tokens: Float[Tensor, "batch query dim"],
        q: Float[Tensor, "batch head query width"],
        k: Float[Tensor, "batch head key width"],
        v: Float[Tensor, "batch head key width"],
    ) -> Float[Tensor, "batch query dim"]:
        """What the classifier reads of these tokens, whose queries are q."""
        y = tokens + self.block.attn.mixed(q, k, v)
        y = y + self.block.mlp(self.block.norm2(y))
        return self.norm(y)


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
