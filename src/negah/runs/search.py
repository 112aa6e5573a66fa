"""`negah search`: the pictures of a folder that words, or a picture, describe best."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from negah.errors import InputError, WeightsError
from negah.images.listed import there
from negah.images.pool import Picture, channels_first, in_order
from negah.images.sources import PICTURES, Source, clean, find_sources
from negah.language.clip import CLIP
from negah.language.coca import CoCa
from negah.language.load import load_both
from negah.language.retrieval import Index
from negah.language.simvlm import SimVLM
from negah.language.tokens import Tokenizer
from negah.language.zeroshot import AERIAL, prototypes
from negah.progress import Progress, silent
from negah.runs.record import compute_device, digest

BATCH = 64
QUOTED = 40  # letters of a query in a message


@dataclass(frozen=True)
class Hits:
    """What was found for one query, best first: (name, cosine)."""

    query: str
    hits: list[tuple[str, float]]


@dataclass(frozen=True)
class Result:
    """images: in the index.  read: of these, how many were looked at now.  failures: (name, reason)."""

    images: int
    read: int
    found: list[Hits]
    failures: list[tuple[str, str]] = field(default_factory=list)


def search(
    queries: Sequence[str], images: Sequence[str | Path], *, model: str, vocabulary: Path | None = None,
    best: int = 10, index: Path | None = None, progress: Progress = silent,
) -> Result:  # fmt: skip
    """The `best` pictures for each query: a sentence, or the path of a picture.

    Args:
        model: a CLIP, see `negah.language.load`.  vocabulary: folder of its tokens, where the model has none itself.
        index: kept there, and used again for the same pictures and model; what changed is looked at anew.

    Raises InputError for what cannot be searched, WeightsError for what is no CLIP.
    """
    if not queries:
        raise InputError("give at least one query: some words, or the path of a picture")
    if best < 1:
        raise InputError(f"--best {best}: ask for 1 picture or more")
    clip, tokens = described_by(model, vocabulary)
    sources = find_sources(images)
    clip = clip.to(compute_device())
    known = Index.load(index) if index is not None and index.exists() else None
    whole, looked_at, failures = indexed(clip, sources, known, progress=progress)
    if index is not None and looked_at:
        whole.save(index)
    vectors = torch.cat([of_query(clip, tokens, query) for query in queries])
    found = whole.search(vectors, best=best)
    hits = [
        Hits(query, [(whole.names[n], round(s, 4)) for n, s in zip(numbers, scores)])
        for query, numbers, scores in zip(queries, found.numbers.tolist(), found.scores.tolist())
    ]
    return Result(len(whole), looked_at, hits, failures)


@dataclass(frozen=True)
class Classified:
    """chances: (name of a picture, probability of each class), which sum to 1.  failures: (name, reason)."""

    classes: tuple[str, ...]
    chances: list[tuple[str, list[float]]]
    failures: list[tuple[str, str]] = field(default_factory=list)


def classify(
    classes: Sequence[str], images: Sequence[str | Path], *, model: str, vocabulary: Path | None = None,
    templates: Sequence[str] = AERIAL, progress: Progress = silent,
) -> Classified:  # fmt: skip
    """To which of some classes, which are words, each picture belongs: zero-shot, see `negah.language.zeroshot`.

    A picture of none of them belongs to one nevertheless.  Raises as `search` does.
    """
    if len(classes) < 2:
        raise InputError("give at least two classes: a picture is compared with all of them")
    clip, tokens = described_by(model, vocabulary)
    for name in classes:
        check_words(name, tokens, called="the class")
    sources = find_sources(images)
    clip = clip.to(compute_device())
    whole, _, failures = indexed(clip, sources, None, progress=progress)
    words = prototypes(clip, tokens, classes, templates).cpu()
    chances = (clip.log_scale.detach().exp().cpu() * whole.vectors @ words.T).softmax(1)
    return Classified(tuple(classes), list(zip(whole.names, chances.tolist())), failures)


def described_by(model: str, vocabulary: Path | None) -> tuple[CLIP | CoCa, Tokenizer]:
    """A CLIP or CoCa and its tokens.  Raises WeightsError where there are none."""
    clip, tokens = load_both(model, vocabulary=vocabulary)
    if isinstance(clip, SimVLM):
        raise WeightsError(f"{model} is a SimVLM, which writes captions and compares nothing: give a CLIP or a CoCa")
    return clip, tokens


def indexed(
    clip: CLIP | CoCa, sources: Sequence[Source], known: Index | None, *, progress: Progress
) -> tuple[Index, int, list[tuple[str, str]]]:
    """An index of the sources; of how many a vector was made, the others being known; what could not be read.

    Raises InputError where none can be read.
    """
    model = digest(clip)
    vectors: dict[str, Tensor] = {}
    if known is not None and known.about.get("model") == model:
        vectors = dict(zip(json.loads(known.about["stamps"]), known.vectors))
    stamps = {stamp(source): source for source in sources}
    new = {mark: source for mark, source in stamps.items() if mark not in vectors}
    failures = []
    for mark, found in encoded(clip, new, progress=progress):
        if isinstance(found, str):
            failures.append((new[mark].name, found))
        else:
            vectors[mark] = found
    kept = [mark for mark in stamps if mark in vectors]
    if not kept:
        raise InputError(f"none of {len(sources)} pictures can be read (first: {failures[0][1]})")
    stacked = torch.stack([vectors[mark] for mark in kept])
    about = {"model": model, "stamps": json.dumps(kept)}
    return Index.of([stamps[mark].name for mark in kept], stacked, about), len(new) - len(failures), failures


@torch.inference_mode()
def encoded(
    clip: CLIP | CoCa, sources: Mapping[str, Source], *, progress: Progress
) -> Iterator[tuple[str, Float[Tensor, " dim"] | str]]:
    """A vector of each picture's middle square, or why it could not be read."""

    def look(item: tuple[str, Source]) -> Tensor | str:
        try:
            return channels_first(Picture(item[1]).pixels(clip.size))
        except InputError as error:
            return str(error)

    waiting: list[tuple[str, Tensor]] = []
    reading = in_order(look, sources.items(), min(8, os.cpu_count() or 1))
    for done, ((mark, _), pixels) in enumerate(reading, 1):
        if isinstance(pixels, str):
            yield mark, pixels
        else:
            waiting.append((mark, pixels))
        if len(waiting) == BATCH or (waiting and done == len(sources)):
            batch = torch.stack([pixels for _, pixels in waiting]).to(clip.log_scale.device)
            yield from zip((mark for mark, _ in waiting), clip.images(batch).float().cpu())
            waiting.clear()
        progress("pictures", done, len(sources))


@torch.inference_mode()
def of_query(clip: CLIP | CoCa, tokens: Tokenizer, query: str) -> Float[Tensor, "1 dim"]:
    """Of a picture where the query is the path of a file, else of its words."""
    where = clip.log_scale.device
    if query.strip() == "":
        raise InputError("an empty query describes nothing: give some words, or the path of a picture")
    if there(query, Path.is_dir) or (not there(query) and query.lower().endswith(PICTURES)):
        raise InputError(f"{clean(query)} is no picture that is there: give the path of one, or some words")
    if there(query):
        source = find_sources([query])[0]
        return clip.images(channels_first(Picture(source).pixels(clip.size))[None].to(where)).cpu()
    check_words(query, tokens, called="the query")
    return clip.texts(tokens([query]).to(where)).cpu()


def check_words(words: str, tokens: Tokenizer, *, called: str) -> None:
    """Raises InputError for words that the model does not read, or not to their end."""
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{called} {quoted(words)} is not text in UTF-8: type it anew") from error
    count, most = tokens.count(words), tokens.length - 2
    if not count:
        raise InputError(f"{called} {quoted(words)} holds no letter, number or sign: give some words")
    if count > most:
        raise InputError(
            f"{called} {quoted(words)} is {count:,} tokens long, and the model reads no more than {most}: say it in "
            "fewer words"
        )


def quoted(words: str) -> str:
    """As they are named in a message."""
    words = words.encode("utf-8", "backslashreplace").decode()
    return f'"{words}"' if len(words) <= QUOTED else f'"{words[:QUOTED]}..."'


def stamp(source: Source) -> str:
    """Tells a picture from another one, and from itself before it was changed."""
    member = source.member.name if source.member is not None else ""
    return f"{source.name} {member} {source.state()}"
