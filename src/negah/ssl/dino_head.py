"""The head of DINO and DINOv2: features to logits over prototypes.

Caron et al. 2021, arXiv:2104.14294, appendix C.  With a 3-layer MLP f and a direction v_k for each prototype,

    logit_k = cos(f(x), v_k)

which is a last layer with weight norm and its gain frozen at 1.  Bounded logits are what makes a temperature mean
something.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from negah.nn.linear import Linear, product
from negah.nn.norm import GlobalBatchNorm1d


class DINOHead(nn.Module):
    """MLP with GELU, length 1, last layer.

    Args:
        width: of the features.
        prototypes: K.
        hidden, bottleneck: width inside the MLP and after it.
        norm: batch norm before each GELU, over all processes, for convolutional backbones.

    Set `frozen` to keep the last layer as it is: it then gets no gradient at all (None, not 0), so the optimiser passes
    it by, and neither weight decay nor momentum moves it.
    """

    def __init__(
        self, width: int, prototypes: int = 65_536, *, hidden: int = 2048, bottleneck: int = 256, norm: bool = False
    ):  # fmt: skip
        super().__init__()
        self.prototypes, self.frozen = prototypes, False
        norms = [GlobalBatchNorm1d(hidden) if norm else nn.Identity() for _ in range(2)]
        self.mlp = nn.Sequential(
            Linear(width, hidden), norms[0], nn.GELU(),
            Linear(hidden, hidden), norms[1], nn.GELU(),
            Linear(hidden, bottleneck),
        )  # fmt: skip
        self.last = nn.Linear(bottleneck, prototypes, bias=False)  # only its rows' directions matter
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "row width"]) -> Float[Tensor, "row prototype"]:
        """Logits in [-1, 1]."""
        return product(self.project(x), self.directions())

    def project(self, x: Float[Tensor, "row width"]) -> Float[Tensor, "row bottleneck"]:
        """f(x), of length 1."""
        return F.normalize(self.mlp(x), dim=-1)

    def directions(self) -> Float[Tensor, "prototype bottleneck"]:
        """v_k, of length 1."""
        weight = self.last.weight.detach() if self.frozen else self.last.weight
        return F.normalize(weight, dim=-1)
