"""Classes are the means of their sentences, as open_clip makes them."""

import pytest
import torch
from open_clip import build_zero_shot_classifier

from negah.errors import InputError
from negah.language import CLIP, Tokenizer
from negah.language.zeroshot import AERIAL, PHOTO, prototypes
from negah.nn.text import TextTransformer
from negah.nn.vit import ViT

CLASSES = ["airport", "tennis court", "forest"]


@pytest.fixture(scope="module")
def parts() -> tuple[CLIP, Tokenizer]:
    tokens = Tokenizer.train(
        [t.replace("{}", c) for t in (*AERIAL, *PHOTO) for c in CLASSES], vocabulary=700, length=24
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = TextTransformer(vocabulary=len(tokens), length=24, dim=32, depth=2, heads=2)
        clip = CLIP(ViT(patch=8, dim=32, depth=1, heads=2, grid=(2, 2)), text, dim=16, end=tokens.end).eval()
    return clip, tokens


def test_prototypes_are_open_clips(parts):
    clip, tokens = parts

    class Peer:
        def encode_text(self, ids: torch.Tensor, normalize: bool) -> torch.Tensor:
            assert normalize
            return clip.texts(ids)

    templates = [lambda name, t=t: t.replace("{}", name) for t in AERIAL]
    theirs = build_zero_shot_classifier(Peer(), tokens, CLASSES, templates, num_classes_per_batch=2)
    torch.testing.assert_close(prototypes(clip, tokens, CLASSES, AERIAL), theirs.T)


def test_what_cannot_be_asked_is_named(parts):
    with pytest.raises(InputError, match="at least one class"):
        prototypes(*parts, [])
    with pytest.raises(InputError, match="'a photo' has no {}"):
        prototypes(*parts, CLASSES, ["a photo"])
