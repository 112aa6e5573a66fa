"""How likely a text is in view of a picture, by the models that write: a way to match both without vectors.

A pass of the writer for each pair of a picture and a text, where vectors take one for each picture and each text.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from negah.language.captions import Images
from negah.language.coca import CoCa, there
from negah.language.simvlm import SimVLM
from negah.losses.caption import IGNORED

PAIRS = 512  # of picture and text, that a writer goes through at a time


@torch.no_grad()
def seen(model: CoCa | SimVLM, images: Images) -> Float[Tensor, "image place dim"]:
    """What a writer sees of each picture, before any word."""
    every = torch.stack([images[i] for i in range(len(images))]).to(next(model.parameters()).device)
    if isinstance(model, CoCa):
        return torch.cat([model.look(some)[1] for some in every.split(PAIRS)])
    none = torch.zeros(len(every), 0, dtype=torch.long, device=every.device), every.new_zeros(len(every)).long()
    return torch.cat([model.read(some, *(x[: len(some)] for x in none))[0] for some in every.split(PAIRS)])


@torch.no_grad()
def logits(
    model: CoCa | SimVLM, memory: Float[Tensor, "pair place dim"], ids: Int[Tensor, "pair token"]
) -> Float[Tensor, "pair token-1 vocabulary"]:
    """Of the token behind each but the last, in view of a picture and the tokens before it."""
    if isinstance(model, CoCa):
        return model.output(model.decoder(model.read(ids)[1][:, :-1], memory))
    places = memory.new_ones(memory.shape[:2]).bool()
    return model.write(ids[:, :-1], torch.zeros_like(ids[:, 0]), memory, places)


def surprise(
    model: CoCa | SimVLM, memory: Float[Tensor, "pair place dim"], ids: Int[Tensor, "pair token"], *, end: bool = True
) -> tuple[Float[Tensor, "pair token-1"], Bool[Tensor, "pair token-1"]]:
    """-log p of each token behind the start, and which of them count: those up to the end, or, without `end`, before
    it; 0 elsewhere."""
    counts = there(ids, model.end)[:, 1:] & (end | (ids[:, 1:] != model.end))
    wanted = ids[:, 1:].masked_fill(~counts, IGNORED)
    said = logits(model, memory, ids).transpose(1, 2)
    return F.cross_entropy(said, wanted, ignore_index=IGNORED, reduction="none"), counts


def likelihoods(
    model: CoCa | SimVLM, images: Images, ids: Int[Tensor, "text token"], *, end: bool = True
) -> Float[Tensor, "image text"]:
    """log p of each text in view of each picture, without and with its end."""
    memory = seen(model, images)
    ids = ids.to(memory.device)
    image, text = torch.meshgrid(torch.arange(len(memory)), torch.arange(len(ids)), indexing="ij")
    found = [
        -surprise(model, memory[i], ids[t], end=end)[0].sum(1)
        for i, t in zip(image.flatten().split(PAIRS), text.flatten().split(PAIRS))
    ]
    return torch.cat(found).unflatten(0, image.shape)
