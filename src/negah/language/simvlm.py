"""SimVLM: a prefix, the picture and perhaps some words, is read in both directions; the rest of the text is written.

Wang et al. 2021, "SimVLM: Simple Visual Language Model Pretraining with Weak Supervision", arXiv:2108.10904, eq. 3:

    loss = - mean over the tokens behind the prefix of  log p(token | tokens before it, prefix)

a mean over the tokens of all processes that train together.

The encoder reads the picture's patches and the first p words, each seeing all others; the decoder writes the words
p + 1, p + 2, ..., end, each seeing those before it and all of the encoder.  p is drawn for each text anew, from no
words to all of them; the picture is always in the prefix.  Patches come out of the first stages of a residual network
instead of one linear layer (section 3.2).

How such a model goes wrong unnoticed: a word that sees itself or a later one has a loss near zero and writes nonsense;
a loss that is not taken of the logits leaves the output layer as it was born; one prefix length for a whole batch.  The
tests look for each.

Departures from the paper: basic residual blocks, not bottlenecks; learned positions, not relative ones; the output
layer is the embedding of the tokens, transposed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from negah import ranks
from negah.language.generate import generate
from negah.losses.caption import IGNORED, caption_loss
from negah.nn.backbone import normalised, own_statistics
from negah.nn.norm import globalise
from negah.nn.resnet import ResNet
from negah.nn.text import Decoder, Past, TextBlock, text_blocks
from negah.nn.vit import IMAGENET_MEAN, IMAGENET_STD
from negah.train import Objective


class SimVLM(Objective):
    """Objective on batches of (images, token numbers), or with the lengths of prefixes, in words, as a third.

    Args:
        stem: a residual network, of which the map's places are the patches.
        places: of that map, for pictures of the one size that is read.
        vocabulary, length: as of a `TextTransformer`.
        start, end: numbers of a text's first and last token; what is behind the first end is padding.
        dim, depth, heads: of encoder and decoder, `depth` blocks each.
        mean, std: per-channel normalisation of pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, stem: ResNet, *, places: int, vocabulary: int, length: int, start: int, end: int, dim: int = 512,
        depth: int = 6, heads: int = 8, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD,
    ):  # fmt: skip
        super().__init__()
        self.start, self.end, self.length, self.dim = start, end, length, dim
        self.config = {
            "places": places, "vocabulary": vocabulary, "length": length, "start": start, "end": end, "dim": dim,
            "depth": depth, "heads": heads, "mean": list(mean), "std": list(std),
        }  # fmt: skip
        own_statistics(self, mean, std)
        self.stem, self.into = stem, nn.Linear(stem.dim, dim)
        globalise(stem)  # as one process would train on the whole batch
        self.tokens = nn.Embedding(vocabulary, dim)
        self.places = nn.Parameter(torch.randn(places, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(length, dim) * 0.02)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.encoder = text_blocks(dim, depth, heads, mlp_ratio=4.0, eps=1e-5, activation="gelu")
        self.norm = nn.LayerNorm(dim)
        self.decoder = Decoder(dim=dim, memory=dim, depth=depth, heads=heads)

    @property
    def size(self) -> int:
        """Side of the pictures that it was made for, in pixels."""
        return round(len(self.places) ** 0.5) * self.stem.stride

    def units(self) -> Sequence[nn.Module]:
        return [self.decoder]

    def read(
        self, images: Num[Tensor, "batch 3 h w"], words: Int[Tensor, "batch word"], count: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch token dim"], Bool[Tensor, "batch token"]]:
        """The encoder's memory of picture and prefix, and which of its places are there.

        words: those behind the start token.  count: how many of them are in each prefix.
        Raises ValueError for pictures that give another number of places.
        """
        patches = self.into(self.stem(normalised(images, self.mean, self.std)).flatten(2).transpose(1, 2))
        if patches.shape[1] != len(self.places):
            raise ValueError(f"pictures with {patches.shape[1]} places: this model reads {len(self.places)}")
        prefix = self.tokens(words) + self.positions[1 : 1 + words.shape[1]]
        x = torch.cat([patches + self.places, prefix], 1)
        there = torch.arange(words.shape[1], device=words.device) < count[:, None]
        seen = torch.cat([there.new_ones(len(patches), patches.shape[1]), there], 1)
        mask = seen[:, None].expand(-1, x.shape[1], -1)
        for block in self.encoder:
            assert isinstance(block, TextBlock)
            x = block(x, mask)
        return self.norm(x), seen

    def write(
        self, ids: Int[Tensor, "batch new"], at: Int[Tensor, " batch"], memory: Float[Tensor, "batch token dim"],
        seen: Bool[Tensor, "batch token"], past: Past | None = None,
    ) -> Float[Tensor, "batch new vocabulary"]:  # fmt: skip
        """Logits of the token behind each; `at` is the place of the first one in its text."""
        where = at[:, None] + torch.arange(ids.shape[1], device=ids.device)
        x = self.tokens(ids) + self.positions[where.clamp(max=self.length - 1)]
        return self.decoder(x, memory, seen, past) @ self.tokens.weight.T

    def caption(
        self, images: Num[Tensor, "batch 3 h w"], words: Int[Tensor, "batch word"] | None = None,
        count: Int[Tensor, " batch"] | None = None, *, most: int, beams: int = 1, share: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch token"]:  # fmt: skip
        """Token numbers that go on from pictures, and from words where some are given; see `generate`.

        words, count: as in `read`.
        """
        words = torch.zeros(len(images), 0, dtype=torch.long, device=images.device) if words is None else words
        count = torch.full((len(images),), words.shape[1], device=images.device) if count is None else count
        with torch.no_grad():
            memory, seen = self.read(images, words, count)

        def next_of(ids: Tensor, past: Past) -> Tensor:
            times = len(ids) // len(memory)
            at, places, there = (x.repeat_interleave(times, 0) for x in (count + past.length, memory, seen))
            return self.write(ids, at, places, there, past)[:, -1]

        start = torch.full((len(images), 1), self.start, device=images.device)
        most = min(most, self.length - int(count.max()))
        return generate(next_of, start, most=most, end=self.end, beams=beams, share=share, generator=generator)

    def forward(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        images, ids, *given = batch
        words, ends = ids[:, 1:], (ids == self.end).int().argmax(1)  # ends: words of each text, plus one
        drawn = torch.rand(len(ids), device=ids.device) * ends  # global generator, which `fit` seeds
        count = given[0] if given else drawn.long()
        memory, seen = self.read(images, words, count)
        # Of each text what is behind its prefix, moved to the front: start, then words; wanted: words, then end.
        place = count[:, None] + torch.arange(words.shape[1], device=ids.device)
        shifted = ids.gather(1, place.clamp(max=ids.shape[1] - 1))
        shifted[:, 0] = self.start
        wanted = ids.gather(1, (place + 1).clamp(max=ids.shape[1] - 1))
        wanted = wanted.masked_fill(place + 1 > ends[:, None], IGNORED)
        logits = self.write(shifted, count, memory, seen)
        loss = caption_loss(logits, wanted)
        return {"loss": loss, "perplexity": ranks.mean(loss.detach()).exp()}
