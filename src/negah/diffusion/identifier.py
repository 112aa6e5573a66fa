"""The word by which a model knows an instance: one that it never saw, or one that means next to nothing to it.

Ruiz et al. 2022, arXiv:2208.12242, section 3.2: a common word ("unique") brings its own meaning, which has to be
unlearned first; letters at random ("xxy5syt00") are cut into tokens that each bring theirs.  Hence a single rare token
of at most three characters.  The paper takes one by its rank in the vocabulary; here it is measured how little it says:

    text change    1 - cosine of the text vectors of "a [token] house" and "a house"
    noise change   |e(z, "a [token] house") - e(z, "a house")| / |e(z, "a house")|, e the predicted noise, root mean
                   square over fixed z and levels of noise

The first, which costs little, leaves a few; the second ranks them.  A genuinely new word starts as the class word's
embedding, so that it says nothing beyond it, and is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from negah.diffusion.model import TextToImage
from negah.errors import InputError

LONGEST = 3  # characters of an existing token
RAREST = 1024  # tokens that are looked at: byte pairs are merged in the order of their frequency, so the last are rare
FINALISTS = 16  # of which the predicted noise is looked at
LEVELS = 4
# Short words that say little alone and much in a sentence: each stands in prompts, where it would then mean the thing.
FUNCTION_WORDS = frozenset(
    "a an and are as at be but by can did do for had has he her him his how i if in is it its me my no nor not of off "
    "on or our out own she so the to too up us was we who why you".split()
)


@dataclass(frozen=True)
class Identifier:
    """A token, its number in the vocabulary, the class word, whether it was added, and why it was taken."""

    token: str
    number: int
    class_word: str
    new: bool
    why: str

    @property
    def prompt(self) -> str:
        return f"a {self.token} {self.class_word}"

    @property
    def class_prompt(self) -> str:
        return f"a {self.class_word}"


@dataclass(frozen=True)
class Weakness:
    """How little a token says; the smaller, the weaker its prior."""

    token: str
    number: int
    text_change: float
    noise_change: float


def check_class_word(model: TextToImage, class_word: str) -> str:
    """The class word as prompts have it.  Raises InputError for one that is empty, or that the model cannot read."""
    word = " ".join(class_word.split())
    ids = model.tokenizer(word, add_special_tokens=False).input_ids
    if not word or not ids:
        raise InputError(f"the class word {class_word!r} is empty: give what the pictures show, such as house")
    if len(ids) > 8:
        raise InputError(f"the class word {word!r} is {len(ids)} tokens long: give one or two words, such as house")
    return word


def table_of(model: TextToImage) -> nn.Embedding:
    """The text encoder's embeddings of tokens."""
    table = model.text.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    return table


@torch.no_grad()
def add_token(model: TextToImage, token: str, class_word: str) -> Identifier:
    """Give the model a word that it never saw: tokenizer and table grow by one, a row that is the class word's (the
    mean of its tokens).

    Raises InputError for a token that is empty, has white space or is in the vocabulary already.
    """
    class_word = check_class_word(model, class_word)
    tokens = model.tokenizer
    if not token or token.split() != [token]:
        raise InputError(f"the token {token!r} is not one word: give letters without white space, such as <new>")
    known = tokens.get_vocab()
    if token in known or f"{token.lower()}</w>" in known:
        raise InputError(
            f"the token {token!r} is a word of this model already, with a meaning of its own: give one that is not, "
            "such as <new>, or none, and a rare one is chosen by measuring"
        )
    start = tokens(class_word, add_special_tokens=False).input_ids
    tokens.add_tokens([token])
    number, row = tokens.get_vocab()[token], table_of(model).weight[start].mean(0)
    if number >= table_of(model).num_embeddings:
        with torch.random.fork_rng(devices=[]):  # a new row is drawn before it is set
            model.text.resize_token_embeddings(number + 1, mean_resizing=False)
    table_of(model).weight[number] = row
    why = f"new to the model: added, starts as the embedding of {class_word!r}, and is learned"
    return Identifier(token, number, class_word, True, why)


def weakest(model: TextToImage, class_word: str, *, seed: int = 0) -> tuple[Identifier, list[Weakness]]:
    """An existing rare token, and the finalists that it was chosen from, weakest first.

    Raises InputError where the vocabulary has no such token.
    """
    class_word = check_class_word(model, class_word)
    found = candidates(model, class_word)
    if not found:
        raise InputError(f"this model's vocabulary has no token of {LONGEST} characters or less: give --token '<new>'")
    plain = f"a {class_word}"
    vectors = _vectors(model, [plain, *(f"a {token} {class_word}" for token, _ in found)])
    change = (1 - F.cosine_similarity(vectors[1:], vectors[:1])).tolist()
    best = sorted(zip(change, found), key=lambda one: (one[0], one[1][1]))[:FINALISTS]
    noise = _noise_change(model, plain, [f"a {token} {class_word}" for _, (token, _) in best], seed)
    ranked = [Weakness(token, number, text, moved) for (text, (token, number)), moved in zip(best, noise)]
    ranked.sort(key=lambda one: (one.noise_change, one.number))
    first = ranked[0]
    why = (
        f"the weakest of {len(found)} rare tokens of at most {LONGEST} characters: it moves the predicted noise of "
        f"'{plain}' by {first.noise_change:.2%} (the last of {len(ranked)} finalists: {ranked[-1].noise_change:.2%})"
    )
    return Identifier(first.token, first.number, class_word, False, why), ranked


def candidates(model: TextToImage, class_word: str) -> list[tuple[str, int]]:
    """Whole words of the vocabulary of at most LONGEST letters and digits, the rarest first: (token, number)."""
    tokens = model.tokenizer
    taken = FUNCTION_WORDS | set(class_word.lower().split())
    found = []
    for entry, number in sorted(tokens.get_vocab().items(), key=lambda item: -item[1]):
        word = entry.removesuffix("</w>")
        short = word != entry and 1 <= len(word) <= LONGEST and word.isascii() and word.isalnum()
        if not short or word.isdigit() or word in taken:
            continue
        if tokens(f"a {word}", add_special_tokens=False).input_ids[-1:] == [number]:  # it comes out as it goes in
            found.append((word, number))
        if len(found) == RAREST:
            break
    return found


@torch.no_grad()
def _vectors(model: TextToImage, prompts: Sequence[str], *, batch: int = 64) -> Float[Tensor, "prompt dim"]:
    """Of each text the state of its end token, the only one that has seen all of it."""
    where, found = next(model.text.parameters()).device, []
    end: Any = model.tokenizer.eos_token_id
    for first in range(0, len(prompts), batch):
        ids = model.ids(prompts[first : first + batch])
        ends = torch.eq(ids, end).int().argmax(1)
        found.append(model.text(ids.to(where)).last_hidden_state[torch.arange(len(ids)), ends].float().cpu())
    return torch.cat(found)


@torch.no_grad()
def _noise_change(model: TextToImage, plain: str, prompts: Sequence[str], seed: int) -> list[float]:
    """How much the predicted noise moves, as a share of itself, between a prompt and the plain one."""
    where = next(model.unet.parameters()).device
    steps = ((torch.arange(LEVELS) + 0.5) / LEVELS * len(model.schedule)).long()
    sigma = model.schedule.sigmas[steps].float().to(where)
    noise = torch.randn((LEVELS, *model.latent_shape(model.size, model.size)), generator=_generator(seed)).to(where)
    x = noise * (1 + sigma.view(-1, 1, 1, 1).square()).sqrt()  # as far out as data of unit variance at that level

    def said(prompt: str) -> Tensor:
        context = model.encode_prompts([prompt]).expand(LEVELS, -1, -1)
        return (x - model.denoise(x, sigma, context)) / sigma.view(-1, 1, 1, 1)

    base = said(plain)
    return [float((said(prompt) - base).square().mean().sqrt() / base.square().mean().sqrt()) for prompt in prompts]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
