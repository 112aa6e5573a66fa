"""The one text transformer: token numbers to vectors, each of which knows what came before it.

Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, in the form of GPT-2 and CLIP: learned positions,
norms before attention and MLP, a norm at the end.  `TextTransformer` reads a text alone; `Decoder` continues one while
looking at a memory, of a picture say, after each block.  With a `Past` neither computes again what it has computed for
earlier tokens.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from negah.nn.vit import Activation, Block, Mlp

Heads = Float[Tensor, "_ head _ width"]  # batch, head, token, width
Mask = Bool[Tensor, "batch query key"] | None  # True: the query sees the key


class Past:
    """Keys and values of the tokens that were read, for each attention."""

    def __init__(self) -> None:
        self.kept: dict[object, tuple[Tensor, Tensor]] = {}
        self.length = 0  # tokens read

    def extend(self, attention: object, k: Heads, v: Heads) -> tuple[Heads, Heads]:
        """Those of all tokens, the new ones at the end."""
        if attention in self.kept:
            k, v = (torch.cat([old, new], 2) for old, new in zip(self.kept[attention], (k, v)))
        self.kept[attention] = k, v
        return k, v

    def pick(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these texts of the batch, some of them several times."""
        self.kept = {attention: (k[rows], v[rows]) for attention, (k, v) in self.kept.items()}


class TextBlock(Block):
    """A block of which each token sees itself and those before it, or what a mask lets it see."""

    def forward(self, x: Float[Tensor, "batch token dim"], mask: Mask = None, past: Past | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        def attended(y: Tensor) -> Tensor:
            q, k, v = self.attn.heads_of(self.norm1(y))
            if past is not None:
                k, v = past.extend(self.attn, k, v)
            return self.attn.proj(_attend(q, k, v, mask).transpose(1, 2).flatten(2))

        x = self.residual(x, attended)
        return self.residual(x, lambda y: self.mlp(self.norm2(y)))


class CrossBlock(nn.Module):
    """Each token asks the memory, then an MLP."""

    def __init__(
        self, dim: int, memory: int, heads: int, *, mlp_ratio: float = 4.0, eps: float = 1e-5,
        activation: Activation = "gelu",
    ):  # fmt: skip
        super().__init__()
        self.heads = heads
        self.norm1, self.norm_memory = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(memory, eps=eps)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(memory, 2 * dim), nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), activation)

    def forward(
        self, x: Float[Tensor, "batch token dim"], memory: Float[Tensor, "batch place memory"],
        seen: Bool[Tensor, "batch place"] | None = None, past: Past | None = None,
    ) -> Float[Tensor, "batch token dim"]:  # fmt: skip
        """seen: places of the memory that are there."""
        q = self.q(self.norm1(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if past is not None and self in past.kept:
            k, v = past.kept[self]
        else:
            k, v = self.kv(self.norm_memory(memory)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            if past is not None:
                past.kept[self] = k, v
        mask = None if seen is None else seen[:, None, None]
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


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
        self.blocks = text_blocks(dim, depth, heads, mlp_ratio=mlp_ratio, eps=eps, activation=activation)
        self.norm = nn.LayerNorm(dim, eps=eps)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token dim"]:
        """Raises ValueError for texts that are longer than `length`."""
        if ids.shape[1] > self.length:
            raise ValueError(f"texts of {ids.shape[1]} tokens are longer than the {self.length} this model reads")
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Decoder(nn.Module):
    """Vectors of a text to vectors that know what came before, and the memory.

    Args:
        memory: width of the memory.
        dim, depth, heads, mlp_ratio, eps, activation: as of a `TextTransformer`; `depth` blocks of each kind.
    """

    def __init__(
        self, *, dim: int, memory: int, depth: int, heads: int, mlp_ratio: float = 4.0, eps: float = 1e-5,
        activation: Activation = "gelu",
    ):  # fmt: skip
        super().__init__()
        self.blocks = text_blocks(dim, depth, heads, mlp_ratio=mlp_ratio, eps=eps, activation=activation)
        self.cross = nn.ModuleList(
            CrossBlock(dim, memory, heads, mlp_ratio=mlp_ratio, eps=eps, activation=activation) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(
        self, x: Float[Tensor, "batch token dim"], memory: Float[Tensor, "batch place memory"],
        seen: Bool[Tensor, "batch place"] | None = None, past: Past | None = None,
    ) -> Float[Tensor, "batch token dim"]:  # fmt: skip
        """seen: places of the memory that are there.  past: of the tokens before x, which x is added to."""
        for block, cross in zip(self.blocks, self.cross):
            x = cross(block(x, past=past), memory, seen, past)
        if past is not None:
            past.length += x.shape[1]
        return self.norm(x)


def text_blocks(
    dim: int, depth: int, heads: int, *, mlp_ratio: float, eps: float, activation: Activation
) -> nn.ModuleList:
    """Blocks as CLIP initialises them: what adds to the residual stream starts smaller the deeper the network is."""
    blocks = [
        TextBlock(dim, heads, mlp_ratio=mlp_ratio, layer_scale=None, eps=eps, activation=activation, causal=True)
        for _ in range(depth)
    ]
    width, added = dim**-0.5, dim**-0.5 * (2 * max(1, depth)) ** -0.5
    for block in blocks:
        into, out = block.mlp.layers()
        for layer, std in ((block.attn.qkv, width), (block.attn.proj, added), (into, width / 2**0.5), (out, added)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    return nn.ModuleList(blocks)


def _attend(q: Heads, k: Heads, v: Heads, mask: Mask) -> Heads:
    """Causal where no mask is given: the queries are the last of the keys' tokens."""
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1))
    new, every = q.shape[2], k.shape[2]
    if new == every:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    seen = torch.ones(new, every, dtype=torch.bool, device=q.device).tril(every - new)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
