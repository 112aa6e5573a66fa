"""What `negah lab describe` compares: pictures with words, the three models, and how each says what fits what.

CLIP and CoCa give pictures and texts a vector each; CoCa and SimVLM give each token a probability, so the likelihood of
a text in view of a picture says how well they fit, at the price of a pass of the writer for each pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from negah.errors import InputError
from negah.images.scenes.words import PHRASES, compositions, held_out, told
from negah.images.views import View
from negah.lab.training import Effort
from negah.language import CLIP, SimVLM, Tokenizer
from negah.language.captions import Captions, Images, Told, drawn, joined
from negah.language.layouts import Model
from negah.language.likelihood import likelihoods, seen, surprise
from negah.language.score import texts_of, vectors
from negah.nn.backbone import ConvBackbone, ViTBackbone
from negah.nn.resnet import ResNet
from negah.nn.vit import ViT
from negah.runs.pairs import Method, Options, model_of
from negah.solar.survey import fast_bf16
from negah.train import Batches, fit

SIDE, PATCH, WIDTH, LAYERS = 48, 8, 128, 4
TRAIN, TEST, UNSEEN = 900, 200, 100  # scenes
ASKED = 100  # pictures of the user's data that are asked about: each is compared with a text of each
LONGEST = 40  # tokens of a text
LR = 1e-3
NAMED = ("roofs", "pool", "trees", "street")  # of `ATTRIBUTES`: what a short run learns to see in pictures this small
METHODS: dict[Method, str] = {"clip": "CLIP", "coca": "CoCa", "simvlm": "SimVLM"}


@dataclass(frozen=True)
class Pairs:
    """Captions to train on and to ask about.

    unseen: of generated scenes alone, compositions with a pair of values that no training picture has.
    choices: the texts that a model which cannot write has to choose from.
    """

    train: Captions
    test: Captions
    unseen: Captions | None
    choices: Sequence[str]

    @classmethod
    def of(cls, effort: Effort) -> "Pairs":
        """Scenes in short captions; or a random part of the data, as many pictures at most.

        Raises InputError for data that cannot be read, are too few for a batch, or have no words in an order.
        """
        found = cls._of_data(effort.data) if effort.data else cls._of_scenes()
        if len(found.train) < effort.batch:
            raise InputError(
                f"{len(found.train)} pictures to train on do not fill a batch of {effort.batch}: give --batch"
            )
        if all(len(text.split()) < 3 for text in first_texts(found.test)):
            raise InputError("no caption has three words: what their order is to a model cannot be asked")
        return found

    @classmethod
    def _of_scenes(cls) -> "Pairs":
        seen, others = ([what for what in compositions() if held_out(what) == held] for held in (False, True))
        known = {short(what._asdict()) for what in seen}  # the other pairs that are held out are not in short captions
        others = [what for what in others if short(what._asdict()) not in known]
        train, test, unseen = (
            shortened(drawn(count, seed, SIDE, of))
            for count, seed, of in ((TRAIN, 0, seen), (TEST, 1, seen), (UNSEEN, 2, others))
        )
        return cls(train, test, unseen, list(dict.fromkeys(short(what._asdict()) for what in compositions())))

    @classmethod
    def _of_data(cls, data: Sequence[str]) -> "Pairs":
        every = joined([Captions.read(path, SIDE) for path in data])
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[: TRAIN + ASKED].tolist()
        asked = max(2, len(order) * ASKED // (TRAIN + ASKED))
        test = part(every, order[:asked])
        return cls(part(every, order[asked:]), test, None, list(dict.fromkeys(first_texts(test))))

    def view(self) -> View:
        """What is seen of a training picture: all of it; scenes, which have no up and down, in any of eight turns."""
        scenes = self.unseen is not None
        return View(SIDE, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.5 if scenes else 0.0, turns=scenes)

    def tokens(self) -> Tokenizer:
        """A vocabulary of the training captions."""
        found = Tokenizer.train(self.train.texts, vocabulary=2048, length=LONGEST)
        found.length = min(LONGEST, 2 + max(found.count(text) for text in [*self.train.texts, *self.choices]))
        return found


def short(what: dict[str, str]) -> str:
    """A caption that names the attributes NAMED."""
    return ", ".join(PHRASES[name][what[name]] for name in NAMED)


def shortened(scenes: Captions) -> Captions:
    """The same pictures, each with the one caption that names the attributes NAMED."""
    said = [told(text) for text in first_texts(scenes)]
    texts = [[short({name: value or "" for name, value in values.items()})] for values in said]
    return Captions.of(scenes.images, scenes.names, texts)


def part(captions: Captions, numbers: Sequence[int]) -> Captions:
    """Some of the pictures, with their texts."""
    images = torch.stack([captions.images[i] for i in numbers]) if numbers else torch.empty(0, 3, SIDE, SIDE)
    texts = [[captions.texts[int(n)] for n in captions.said[i]] for i in numbers]
    return Captions.of(images, [captions.names[i] for i in numbers], texts)


@dataclass(frozen=True)
class Trio:
    """The three models of one seed, trained alike, and the seconds that each took."""

    models: dict[Method, Model]
    tokens: Tokenizer
    seconds: dict[Method, float]


def trained(pairs: Pairs, effort: Effort, seed: int) -> Trio:
    """All three on the same pictures in the same order, by one recipe and in equally many steps."""
    tokens, options = pairs.tokens(), Options(width=WIDTH, layers=LAYERS)
    found = Trio({}, tokens, {})
    for method, name in METHODS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = model_of(method, network(method), tokens, SIDE, options)
        told = Told(pairs.train, tokens, pairs.view(), numbered=method != "simvlm")
        start = perf_counter()
        done = fit(
            model, Batches(pairs.train, effort.batch, seed=seed, collate=told), steps=effort.steps, lr=LR,
            warmup=effort.steps // 10, weight_decay=0.05, clip=1.0, seed=seed,
            precision="bf16" if fast_bf16("cpu") else "fp32",
        )  # fmt: skip
        found.models[method] = model.eval()
        found.seconds[method] = perf_counter() - start
        effort.say(f"{name}, seed {seed}: loss {done.history[-1]['loss']:.3f}, {found.seconds[method]:.0f} s")
    return found


def network(method: Method) -> ViTBackbone | ConvBackbone:
    """What sees the pictures: SimVLM's patches are those of a small residual network."""
    if method == "simvlm":
        return ConvBackbone(ResNet(widths=(32, 64, WIDTH), depths=(1, 1, 1), stem="fine"))
    grid = SIDE // PATCH, SIDE // PATCH
    return ViTBackbone(ViT(patch=PATCH, dim=WIDTH, depth=LAYERS, heads=WIDTH // 64, grid=grid, layer_scale=None))


WAYS: dict[str, tuple[Method, bool]] = {  # whose, and whether by the likelihood of the words
    "CLIP, vectors": ("clip", False),
    "CoCa, vectors": ("coca", False),
    "CoCa, likelihood": ("coca", True),
    "SimVLM, likelihood": ("simvlm", True),
}


def fits(
    trio: Trio, way: str, images: Images, texts: Sequence[str], *, end: bool = True
) -> Float[Tensor, "image text"]:
    """How well each text fits each picture, by one of WAYS: cosines, or log probabilities."""
    method, by_likelihood = WAYS[way]
    model = trio.models[method]
    if by_likelihood:
        assert not isinstance(model, CLIP)
        return likelihoods(model, images, trio.tokens(texts), end=end)
    assert not isinstance(model, SimVLM)
    with torch.no_grad():
        return vectors(model, images) @ texts_of(model, trio.tokens, texts).T


@torch.no_grad()
def fit_of(trio: Trio, way: str, images: Images, texts: Sequence[str]) -> Float[Tensor, " image"]:
    """How well each picture's one text fits it, by one of WAYS."""
    method, by_likelihood = WAYS[way]
    model = trio.models[method]
    if by_likelihood:
        assert not isinstance(model, CLIP)
        return -surprise(model, seen(model, images), trio.tokens(texts))[0].sum(1)
    assert not isinstance(model, SimVLM)
    return (vectors(model, images) * texts_of(model, trio.tokens, texts)).sum(1)


def own_texts(captions: Captions) -> list[set[str]]:
    """What is said of each picture."""
    return [{captions.texts[int(n)] for n in its} for its in captions.said]


def first_texts(captions: Captions) -> list[str]:
    """The first text of each picture."""
    return [captions.texts[int(its[0])] for its in captions.said]


def right(captions: Captions, texts: Sequence[str]) -> Bool[Tensor, "image text"]:
    """Which texts are said of which pictures."""
    return torch.tensor([[text in its for text in texts] for its in own_texts(captions)])
