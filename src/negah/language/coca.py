"""CoCa: CLIP and a captioner in one pass, by a text transformer that looks at the picture only in its second half.

Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models", arXiv:2205.01917, eq. 4:

    loss = 1 * contrast(picture's vector, text's vector) + 2 * mean of -log p(token | tokens before it, picture)

a mean over the tokens of all processes that train together.

The first half of the text transformer does not see the picture.  A learned token at the end of the text, which sees all
of it, becomes the text's vector; no word sees that token, so the words' vectors go on into the second half, which asks
the picture after each block.  Attention poolers ask the picture: many queries for the captioner, one for the contrast.

How such a model goes wrong unnoticed: the token at the end sees the padding; padding, or the text's own first token, is
a target; the output layer stays as it was born; the scale runs away.  The tests look for each.

Departures: none from the paper with poolers="cascade"; "shared" is the form of open_clip's published weights, one
pooler whose first query is for the contrast.  `legacy` hides from the token at the end what those weights were trained
to hide: the padding moved by one.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from negah.language.clip import MOST, START
from negah.language.generate import generate
from negah.losses.caption import IGNORED, caption_loss
from negah.losses.contrast import contrast
from negah.nn.pooling import AttentionPooler
from negah.nn.text import Decoder, Past, TextBlock, text_blocks
from negah.nn.vit import Activation, ViT
from negah.train import Objective

Poolers = Literal["cascade", "parallel", "shared"]


class CoCa(Objective):
    """Objective on batches of (images, token numbers), or with numbers of texts that mean the same as a third.

    Args:
        image: a ViT; its last norm is not used.
        dim: of the common space, and of what the captioner sees of the picture.
        vocabulary, length: of the texts; the token at the end is not counted.
        start, end: numbers of a text's first and last token; what is behind the first end is padding.
        width, depth, heads: of the text transformer, `depth` blocks in each half.
        queries, pooler_heads: of the poolers.
        poolers: whether the contrast's pooler asks what the captioner's found ("cascade"), the picture ("parallel"),
            or is one of its queries ("shared").
    """

    def __init__(
        self, image: ViT, *, dim: int, vocabulary: int, length: int, start: int, end: int, width: int = 512,
        depth: int = 6, heads: int = 8, queries: int = 256, pooler_heads: int = 8, poolers: Poolers = "cascade",
        activation: Activation = "gelu", legacy: bool = False,
    ):  # fmt: skip
        super().__init__()
        if poolers not in get_args(Poolers):
            raise ValueError(f"{poolers!r} is none of {', '.join(get_args(Poolers))}")
        self.image, self.dim, self.start, self.end, self.legacy = image, dim, start, end, legacy
        image.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        self.config = {
            "dim": dim, "vocabulary": vocabulary, "length": length, "start": start, "end": end, "width": width,
            "depth": depth, "heads": heads, "queries": queries, "pooler_heads": pooler_heads, "poolers": poolers,
            "activation": activation, "legacy": legacy,
        }  # fmt: skip
        self.poolers: Poolers = poolers
        self.caption_pooler = AttentionPooler(image.dim, dim, queries=queries, heads=pooler_heads)
        asked = image.dim if poolers == "parallel" else dim
        self.contrast_pooler = (
            None if poolers == "shared" else AttentionPooler(asked, dim, queries=1, heads=pooler_heads)
        )
        self.image_norm = nn.LayerNorm(dim if poolers == "shared" else image.dim)
        self.image_projection = nn.Linear(dim, dim, bias=False)
        self.text = _Unimodal(vocabulary, length, width, depth, heads, activation)
        self.text_projection = nn.Linear(width, dim, bias=False)
        self.decoder = Decoder(dim=width, memory=dim, depth=depth, heads=heads, activation=activation)
        self.output = nn.Linear(width, vocabulary, bias=False)
        for layer in (self.image_projection, self.text_projection, self.output):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(START)))

    @property
    def size(self) -> int:
        """Side of the pictures that it was made for, in pixels."""
        return self.image.grid[0] * self.image.patch

    def look(
        self, images: Num[Tensor, "batch 3 h w"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch place dim"]]:
        """A unit vector of each picture, and what the captioner sees of it."""
        seen = self.image(images)
        x = torch.cat([seen.cls.unsqueeze(1), seen.registers, seen.patches], 1)
        if self.contrast_pooler is None:
            found = self.image_norm(self.caption_pooler(x))
            vector, places = found[:, 0], found[:, 1:]
        else:
            x = self.image_norm(x)
            places = self.caption_pooler(x)
            vector = self.contrast_pooler(x if self.poolers == "parallel" else places)[:, 0]
        return F.normalize(self.image_projection(vector), dim=-1), places

    def read(
        self, ids: Int[Tensor, "batch token"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch token width"]]:
        """A unit vector of each text, and its words' for the second half."""
        vector, words = self.text(ids, there(ids, self.end), legacy=self.legacy)
        return F.normalize(self.text_projection(vector), dim=-1), words

    def images(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of images as uint8, or float in [0, 1]."""
        return self.look(images)[0]

    def texts(self, ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of texts."""
        return self.read(ids)[0]

    def forward(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        images, ids, *same = batch
        vector, places = self.look(images)
        text, words = self.read(ids)
        logits = self.output(self.decoder(words[:, :-1], places))
        wanted = ids[:, 1:].masked_fill(~there(ids, self.end)[:, 1:], IGNORED)
        written = caption_loss(logits, wanted)
        scale, groups = self.log_scale.exp(), (same[0], same[0]) if same else None
        near = contrast(vector, text, temperature=1 / scale, groups=groups, symmetric=True)
        return {
            "loss": near + 2 * written, "contrast": near.detach(), "caption": written.detach(),
            "scale": scale.detach(),
        }  # fmt: skip

    def caption(
        self, images: Num[Tensor, "batch 3 h w"], *, most: int, beams: int = 1, share: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch token"]:  # fmt: skip
        """Token numbers of captions; see `generate`."""
        with torch.no_grad():
            _, places = self.look(images)

        def next_of(ids: Tensor, past: Past) -> Tensor:
            words = self.text.words(ids, past)
            found = self.decoder(words, places.repeat_interleave(len(ids) // len(places), 0), past=past)
            return self.output(found[:, -1])

        start = torch.full((len(images), 1), self.start, device=images.device)
        most = min(most, self.text.length - 1)
        return generate(next_of, start, most=most, end=self.end, beams=beams, share=share, generator=generator)

    def after_step(self, progress: float) -> None:
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MOST))

    def units(self) -> Sequence[nn.Module]:
        return [self.image, self.text, self.decoder]


def there(ids: Int[Tensor, "batch token"], end: int) -> Bool[Tensor, "batch token"]:
    """Tokens up to the first end; all where there is none."""
    ended = (ids == end).cumsum(1)
    return (ended == 0) | ((ended == 1) & (ids == end))


class _Unimodal(nn.Module):
    """The half that sees no picture; its norm is for the token at the end alone."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int, activation: Activation):
        super().__init__()
        self.vocabulary, self.length = vocabulary, length
        self.tokens = nn.Embedding(vocabulary, width)
        self.cls = nn.Parameter(torch.randn(width) * 0.01)
        self.positions = nn.Parameter(torch.randn(length + 1, width) * 0.01)
        self.blocks = text_blocks(width, depth, heads, mlp_ratio=4.0, eps=1e-5, activation=activation)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(
        self, ids: Int[Tensor, "batch token"], there: Bool[Tensor, "batch token"], *, legacy: bool
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch token width"]]:
        """Vector of the token at the end, and of each token.  Raises ValueError for texts that are too long."""
        count = ids.shape[1]
        if count > self.length:
            raise ValueError(f"texts of {count} tokens are longer than the {self.length} this model reads")
        x = torch.cat([self.tokens(ids), self.cls.expand(len(ids), 1, -1)], 1) + self.positions[: count + 1]
        always = there.new_ones(len(ids), 1)
        keys = torch.cat([always, there] if legacy else [there, always], 1)
        causal = torch.ones(count + 1, count + 1, dtype=torch.bool, device=ids.device).tril()
        for block in self.blocks:
            assert isinstance(block, TextBlock)
            x = block(x, keys[:, None] & causal)
        return self.norm(x[:, -1]), x[:, :-1]

    def words(self, ids: Int[Tensor, "batch new"], past: Past) -> Float[Tensor, "batch new width"]:
        """Of tokens that go on from those that were read."""
        x = self.tokens(ids) + self.positions[past.length : past.length + ids.shape[1]]
        for block in self.blocks:
            x = block(x, past=past)
        return x
