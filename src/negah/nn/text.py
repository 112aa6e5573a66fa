"""The one text transformer: token numbers to vectors, each of which knows what came before it.

Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, in the form of GPT-2 and CLIP: learned positions,
norms before attention and MLP, a norm at the end.  Blocks are those of `negah.nn.vit`, with a causal mask.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah.nn.vit import Activation, Block


class TextTransformer(nn.Module):
    """Causal transformer over tokens.

    Args:
        vocabulary: number of different tokens.
        length: most tokens of a text.
        dim, depth, heads, mlp_ratio: as of a `ViT`.
        eps, activation: of its norms and MLPs.
    """

    def __init__(
        self, *, vocabulary: int, length: int = 77, dim: int = 512, depth: int = 12, heads: int = 8,
        mlp_ratio: float = 4.0, eps: float = 1e-5, activation: Activation = "gelu",
    ):  # fmt: skip
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.vocabulary, self.length, self.dim, self.depth = vocabulary, length, dim, depth
        self.config = {
            "vocabulary": vocabulary, "length": length, "dim": dim, "depth": depth, "heads": heads,
            "mlp_ratio": mlp_ratio, "eps": eps, "activation": activation,
        }  # fmt: skip
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.empty(length, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio=mlp_ratio, layer_scale=None, eps=eps, activation=activation, causal=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.initialise()

    def initialise(self) -> None:
        """As CLIP: what adds to the residual stream starts smaller the deeper the network is."""
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        width = self.dim**-0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            into, out = block.mlp.layers()
            added = width * (2 * self.depth) ** -0.5
            for layer, std in ((block.attn.qkv, width), (block.attn.proj, added), (into, width / 2**0.5), (out, added)):
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def forward(self, ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token dim"]:
        """Raises ValueError for texts that are longer than `length`."""
        if ids.shape[1] > self.length:
            raise ValueError(f"texts of {ids.shape[1]} tokens are longer than the {self.length} this model reads")
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
