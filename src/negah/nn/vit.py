"""Vision transformer, compatible with DINOv2: the one backbone of the project.

Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv:2010.11929; Oquab et al. 2023, "DINOv2",
arXiv:2304.07193; registers: Darcet et al. 2023, arXiv:2309.16588.

An image of h x w pixels becomes (h/p)(w/p) patch tokens behind one CLS token and r registers.  Each block computes

    x = x + g1 * attention(norm(x))
    x = x + g2 * ffn(norm(x))          with learned gains g1, g2 (layer scale)

Parameter names are those of the torch-hub DINOv2 files, so that layout loads without renaming.  With `pre_norm`, an
`eps` of 1e-5 and "quick-gelu" it is the vision transformer of CLIP (Radford et al. 2021, arXiv:2103.00020).

Departures: the model owns its normalisation (it eats uint8 or [0, 1]), and stochastic depth leaves dropped rows out of
the computation instead of multiplying them by zero.  How crops of several sizes train together is in `negah.nn.crops`.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from negah.nn import crops as packing

Interpolation = Literal["hub", "size", "size-antialias"]
FeedForward = Literal["mlp", "swiglu"]
Activation = Literal["gelu", "quick-gelu"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
WRITTEN_OUT = 2**23  # most attention weights that `attend` writes out: 16 MB


class Tokens(NamedTuple):
    """What a ViT says of a batch, after its last norm."""

    # Sizes are left open: `ViT.many` returns several of these, of crops of several sizes.
    cls: Float[Tensor, "_ dim"]
    registers: Float[Tensor, "_ _ dim"]  # batch, register
    patches: Float[Tensor, "_ _ dim"]  # batch, patch: row-major over the (h/p) x (w/p) grid


class ViT(nn.Module):
    """DINOv2-compatible vision transformer for images of any size that is a multiple of the patch.

    Args:
        patch: side of a patch in pixels.
        dim, depth, heads, mlp_ratio: width, number of blocks, attention heads, hidden width of the MLP over `dim`.
        ffn: "mlp" (GELU) or "swiglu" (hidden width 2/3 of the MLP's, rounded up to a multiple of 8, as in ViT-g).
        registers: number of register tokens.
        grid: patches (rows, columns) that the position embedding was made for; other sizes are interpolated.
        layer_scale: initial gain of each residual branch, or None for no gain.
        drop_path: stochastic-depth rates of the blocks, or the highest: block i of d gets drop_path * i / (d - 1).
        interpolation: how position embeddings are resized, always bicubic: "hub" (torch-hub without registers: scale
            factor (n + 0.1) / grid), "size" (exact target size: transformers), "size-antialias" (exact target size
            with antialiasing: torch-hub with registers, timm).
        mean, std: per-channel normalisation of pixels in [0, 1].
        pre_norm: another norm before the first block.
        eps: of all norms.
        activation: of the MLPs: "gelu" or "quick-gelu", x sigmoid(1.702 x), which OpenAI's CLIP has.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, patch: int = 14, dim: int = 384, depth: int = 12, heads: int = 6, mlp_ratio: float = 4.0,
        ffn: FeedForward = "mlp", registers: int = 0, grid: tuple[int, int] = (37, 37),
        layer_scale: float | None = 1e-5, drop_path: float | Sequence[float] = 0.0,
        interpolation: Interpolation = "hub",
        mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD,
        pre_norm: bool = False, eps: float = 1e-6, activation: Activation = "gelu",
    ):  # fmt: skip
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        choices = ((interpolation, Interpolation), (ffn, FeedForward), (activation, Activation))
        for value, allowed in ((value, get_args(choice)) for value, choice in choices):
            if value not in allowed:
                raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
        self.config = {
            "patch": patch, "dim": dim, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio, "ffn": ffn,
            "registers": registers, "grid": list(grid), "layer_scale": layer_scale, "interpolation": interpolation,
            "mean": list(mean), "std": list(std), "pre_norm": pre_norm, "eps": eps, "activation": activation,
        }  # fmt: skip
        self.patch, self.dim, self.depth, self.heads = patch, dim, depth, heads
        self.grid = (grid[0], grid[1])
        self.interpolation: Interpolation = interpolation
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

        self.patch_embed = PatchEmbed(patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], dim))
        if not isinstance(drop_path, Sequence):
            drop_path = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        if len(drop_path) != depth or not all(0 <= rate < 1 for rate in drop_path):
            raise ValueError(f"drop_path needs {depth} rates in [0, 1), one for each block, got {list(drop_path)}")
        self.pre_norm = nn.LayerNorm(dim, eps=eps) if pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio=mlp_ratio, ffn=ffn, layer_scale=layer_scale, drop_path=r, eps=eps,
                  activation=activation)
            for r in drop_path
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.initialise()

    def initialise(self) -> None:
        """Truncated normal of deviation 0.02 everywhere, zero biases; registers and CLS near zero, as in DINOv2."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Num[Tensor, "batch 3 h w"], masks: Bool[Tensor, "batch patch"] | None = None) -> Tokens:
        """Images as uint8, or float in [0, 1]; h and w multiples of the patch (ValueError otherwise).

        A patch whose `masks` is True is hidden: `mask_token` takes its place, at its position.
        """
        x = self.embed(images, masks)
        for block in self.blocks:
            x = block(x)
        return self.split(self.norm(x))

    def many(
        self,
        crops: Sequence[Num[Tensor, "_ 3 _ _"]],
        masks: Sequence[Bool[Tensor, "_ _"] | None] | None = None,
    ) -> list[Tokens]:
        """`forward` of each of several batches, of any sizes, in less time and memory, see `negah.nn.crops`."""
        masks = [None] * len(crops) if masks is None else masks
        sizes: dict[torch.Size, list[int]] = {}
        for i, images in enumerate(crops):
            sizes.setdefault(images.shape[-2:], []).append(i)
        embedded = [torch.cat([self.embed(crops[i], masks[i]) for i in same]) for same in sizes.values()]
        x, shapes = packing.pack(embedded)
        for block in self.blocks:
            x = block(x, shapes)
        found: dict[int, Tokens] = {}
        for part, same in zip(packing.unpack(self.norm(x), shapes), sizes.values()):
            found |= zip(same, map(self.split, part.split([len(crops[i]) for i in same])))
        return [found[i] for i in range(len(crops))]

    def tokens(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch token dim"]:
        """[CLS, patches] after the final norm, without the registers: what a head reads."""
        out = self(images)
        return torch.cat([out.cls.unsqueeze(1), out.patches], dim=1)

    def intermediate(
        self, images: Num[Tensor, "batch 3 h w"], layers: Sequence[int], *, norm: bool = True
    ) -> list[Tokens]:
        """Tokens after each named block (negative counts from the end), with the final norm unless `norm` is False."""
        wanted = [self.layer_index(i) for i in layers]
        x, found = self.embed(images), {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in wanted:
                found[i] = self.split(self.norm(x) if norm else x)
        return [found[i] for i in wanted]

    def attention(self, images: Num[Tensor, "batch 3 h w"], layer: int = -1) -> Float[Tensor, "batch head query key"]:
        """Attention weights of one block (rows sum to 1), over [CLS, registers, patches]."""
        wanted = self.layer_index(layer)
        x = self.embed(images)
        for block in self.blocks[:wanted]:
            x = block(x)
        block = self.blocks[wanted]
        assert isinstance(block, Block)
        return block.attn.weights(block.norm1(x))

    def layer_index(self, layer: int) -> int:
        if not -self.depth <= layer < self.depth:
            raise ValueError(f"layer {layer} does not exist: the model has {self.depth} blocks")
        return layer % self.depth

    def embed(
        self, images: Num[Tensor, "batch 3 h w"], masks: Bool[Tensor, "batch patch"] | None = None
    ) -> Float[Tensor, "batch token dim"]:
        """Normalised patches with positions, behind CLS and registers."""
        h, w = images.shape[-2:]
        if h % self.patch or w % self.patch or not h or not w:
            raise ValueError(f"image of {h} x {w} px does not divide into patches of {self.patch} px: pad or resize it")
        x = self.patch_embed(self.normalise(images))
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        positions = self.positions(h // self.patch, w // self.patch).to(x.dtype)
        # x.shape[0], not len(x): the latter is a plain number, which would freeze the batch size of an exported graph.
        cls = (self.cls_token + positions[:, :1]).expand(x.shape[0], -1, -1)
        x = x + positions[:, 1:]
        registers = [] if self.register_tokens is None else [self.register_tokens.expand(x.shape[0], -1, -1)]
        return self.pre_norm(torch.cat([cls, *registers, x], dim=1))

    def normalise(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        mean, std = self.mean.float(), self.std.float()
        # One pass over the pixels, which are the largest tensor of a small model.
        return torch.addcmul(-mean / std, pixels, 1 / std).to(self.patch_embed.proj.weight.dtype)

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 token dim"]:
        """Position embeddings for a grid of rows x columns patches, CLS first."""
        if (rows, columns) == self.grid:
            return self.pos_embed
        cls, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = grid.float().reshape(1, *self.grid, self.dim).permute(0, 3, 1, 2)
        if self.interpolation == "hub":
            # The reference divides by the side of its square training grid; the 0.1 steers rounding there.
            scale = ((rows + 0.1) / self.grid[0], (columns + 0.1) / self.grid[1])
            grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        else:
            grid = F.interpolate(
                grid, size=(rows, columns), mode="bicubic", antialias=self.interpolation == "size-antialias"
            )
        return torch.cat([cls, grid.flatten(2).transpose(1, 2).to(cls.dtype)], dim=1)

    def split(self, x: Float[Tensor, "batch token dim"]) -> Tokens:
        r = 0 if self.register_tokens is None else self.register_tokens.shape[1]
        return Tokens(x[:, 0], x[:, 1 : 1 + r], x[:, 1 + r :])


class PatchEmbed(nn.Module):
    """Each patch through one linear layer, written as a convolution so that checkpoints fit."""

    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        nn.init.trunc_normal_(self.proj.weight, std=1 / math.sqrt(3 * patch * patch))

    def forward(self, pixels: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch patch dim"]:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self, dim: int, heads: int, *, mlp_ratio: float = 4.0, ffn: FeedForward = "mlp",
        layer_scale: float | None = 1e-5, drop_path: float = 0.0, eps: float = 1e-6, activation: Activation = "gelu",
        causal: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = SelfAttention(dim, heads, causal=causal)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        hidden = int(dim * mlp_ratio)
        self.mlp = Mlp(dim, hidden, activation) if ffn == "mlp" else SwiGLU(dim, swiglu_width(hidden))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = drop_path

    def forward(self, x: Float[Tensor, "*batch token dim"], packed: Sequence[packing.Shape] | None = None) -> Tensor:
        """Tokens of crops of one size, or of several `packed` into one list, see `negah.nn.crops`."""
        if packed is not None:
            return packing.through(self, x, packed)
        x = self.residual(x, lambda y: self.ls1(self.attn(self.norm1(y))))
        return self.residual(x, lambda y: self.ls2(self.mlp(self.norm2(y))))

    def residual(self, x: Tensor, branch) -> Tensor:
        """x + branch(x); in training only for the rows that stochastic depth keeps, scaled so that the mean stays."""
        if not self.training or self.drop_path == 0:
            y = branch(x)
            # Outside of training in place, and in one type first: mixed sums of bfloat16 and float32 are slow on CPUs.
            return x + y if y.requires_grad else y.to(x.dtype).add_(x)
        batch = len(x)
        kept = max(1, round(batch * (1 - self.drop_path)))
        rows = torch.randperm(batch, device=x.device)[:kept]
        return torch.index_add(x, 0, rows, branch(x[rows]).to(x.dtype), alpha=batch / kept)


class SelfAttention(nn.Module):
    """Multi-head self-attention, fused.  causal: a token sees itself and those before it."""

    def __init__(self, dim: int, heads: int, *, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def heads_of(self, x: Float[Tensor, "batch token dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values, each [batch, head, token, dim / heads]."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x.to(self.qkv.weight.dtype)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        return self.mixed(*self.heads_of(x))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "batch token dim"]:
        """What each query collects, mixed over the heads."""
        return self.proj(self.collect(q, k, v))

    def collect(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "batch token dim"]:
        """What each query collects, the heads side by side."""
        return attend(q, k, v, causal=self.causal).transpose(1, 2).flatten(2)

    def weights(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch head query key"]:
        """softmax(q k^T / sqrt(d)), materialised."""
        q, k, _ = self.heads_of(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1)


def attend(
    q: Float[Tensor, "batch head query width"],
    k: Float[Tensor, "batch head key width"],
    v: Float[Tensor, "batch head key width"],
    *,
    causal: bool = False,
) -> Float[Tensor, "batch head query width"]:
    """softmax(q k^T / sqrt(d)) v, fused; `causal` with -inf where the key comes after the query.

    Written out, where it is not causal, for bfloat16 on a CPU, where PyTorch's fused kernel takes two to three times as
    long as plain matrix products, and its backward pass longer still.  These keep the weights of all pairs in memory,
    so without gradients only as many as WRITTEN_OUT; they round them to bfloat16, which moves probabilities about as
    far as the rest does.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not causal:
        if q.requires_grad:
            return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1).to(v.dtype) @ v
        batch, heads, queries, width = q.shape
        if batch * heads * queries * k.shape[2] <= WRITTEN_OUT:
            q, k, v = (x.reshape(batch * heads, -1, width) for x in (q, k, v))
            none = q.new_zeros(1, 1, 1)  # a product that is scaled as it is written
            scores = torch.baddbmm(none, q, k.transpose(1, 2), beta=0, alpha=width**-0.5)
            return torch.bmm(scores.softmax(-1), v).unflatten(0, (batch, heads))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int, activation: Activation = "gelu"):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.quick = activation == "quick-gelu"

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.fc2(self.activation(self.fc1(x.to(self.fc1.weight.dtype))))

    def activation(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return hidden * torch.sigmoid(1.702 * hidden) if self.quick else F.gelu(hidden)

    def layers(self) -> tuple[nn.Linear, nn.Linear]:
        """Before and after the activation."""
        return self.fc1, self.fc2


class SwiGLU(nn.Module):
    """silu(x W1) * (x W2), then W3; W1 and W2 are stored as one matrix."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.w3(self.activation(self.w12(x.to(self.w12.weight.dtype))))

    def activation(self, both: Float[Tensor, "*batch both"]) -> Float[Tensor, "*batch hidden"]:
        gate, value = both.chunk(2, dim=-1)
        return F.silu(gate) * value

    def layers(self) -> tuple[nn.Linear, nn.Linear]:
        """Before and after the activation."""
        return self.w12, self.w3


def swiglu_width(hidden: int) -> int:
    """Hidden width of a SwiGLU with about as many weights as an MLP of width `hidden`: 2/3, up to a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


class LayerScale(nn.Module):
    """A learned gain per channel."""

    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return x * self.gamma
