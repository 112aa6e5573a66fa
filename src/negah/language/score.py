"""What a model of pictures and words has learnt, asked on pairs that it has not met.

Scored by what is said, not by which pair a text came from: a caption that several pictures have is right for each of
them, and a written caption is right when one of the picture's people wrote the same words.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from negah.language.captions import Captions, Images
from negah.language.clip import CLIP
from negah.language.coca import CoCa
from negah.language.layouts import Model
from negah.language.retrieval import Index, recall
from negah.language.simvlm import SimVLM
from negah.language.tokens import Tokenizer

BATCH = 128
BEST = (1, 5, 10)


@torch.no_grad()
def scores(model: Model, tokens: Tokenizer, pairs: Captions) -> dict[str, float]:
    """Of a CLIP or CoCa "text_to_image_K" and "image_to_text_K", the share with a right answer among the first K; of a
    CoCa or SimVLM "exact", the share of greedy captions that are one of the picture's own."""
    found: dict[str, float] = {}
    if not isinstance(model, SimVLM):
        images, texts, right = vectors(model, pairs.images), texts_of(model, tokens, pairs.texts), pairs.right()
        both = {"text_to_image": (texts, images, right), "image_to_text": (images, texts, right.T)}
        for name, (queries, keys, answers) in both.items():
            index = Index.of([str(i) for i in range(len(keys))], keys)
            best = recall(queries, index, answers, best=BEST)
            found |= {f"{name}_{k}": share for k, share in best.items()}
    if not isinstance(model, CLIP):
        written = list(captions(model, tokens, pairs.images))
        plainly = [plain(tokens, text) for text in pairs.texts]
        own = [{plainly[int(n)] for n in said} for said in pairs.said]
        found["exact"] = sum(text in its for text, its in zip(written, own)) / len(written)
    return found


def vectors(model: CLIP | CoCa, images: Images) -> Float[Tensor, "image dim"]:
    """Unit vectors of the pictures, a batch at a time, on the CPU."""
    return torch.cat([model.images(part).cpu() for part in _batches(model, images)])


def texts_of(model: CLIP | CoCa, tokens: Tokenizer, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
    """Unit vectors of texts, a batch at a time, on the CPU."""
    return torch.cat([model.texts(part.to(_device(model))).cpu() for part in tokens(texts).split(BATCH)])


def captions(
    model: CoCa | SimVLM, tokens: Tokenizer, images: Images, *, beams: int = 1, share: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[str]:  # fmt: skip
    """A written caption of each picture, in order; see `generate`."""
    for part in _batches(model, images):
        for ids in model.caption(part, most=tokens.length - 1, beams=beams, share=share, generator=generator).cpu():
            yield tokens.text(ids)


def plain(tokens: Tokenizer, text: str) -> str:
    """A text as the model would write it: in lower case, spaced as its tokens are."""
    return tokens.text(tokens([text])[0, 1:])


def _batches(model: Model, images: Images) -> Iterator[UInt8[Tensor, "batch 3 side side"]]:
    for first in range(0, len(images), BATCH):
        numbers = range(first, min(first + BATCH, len(images)))
        yield torch.stack([images[i] for i in numbers]).to(_device(model))


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device
