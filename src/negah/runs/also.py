"""`negah survey --also WORDS`: a model of pictures and words handed to the survey, and what its answers mean.

A cosine is no probability: what a match is differs from question to question.  So beside it stands how a window ranks
among reference pictures that the model's file carries, ordinary ones of many kinds, for the same words.  For a window
like these every rank is as likely as another, and that gives the number to compare a count with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from negah.errors import InputError, WeightsError
from negah.images.sources import Source
from negah.language.clip import CLIP
from negah.language.coca import CoCa
from negah.language.load import gsd_of, reference_of
from negah.progress import Progress
from negah.runs.record import digest
from negah.runs.search import check_words, described_by, quoted
from negah.solar.also import (
    BATCH,
    UNUSUAL,
    Cosines,
    Question,
    best,
    best_places,
    cosines,
    frames,
    look_around,
    pixels,
    write_also,
)  # fmt: skip
from negah.solar.ledger import Ledger
from negah.solar.outputs import Assembly, window_name, write_layer
from negah.solar.plan import Failure, Plan
from negah.solar.regions import Region
from negah.solar.report import Asked, Shown
from negah.weights.files import read

LAYER = 10_000  # windows of each question in also.parquet and its like, the best; also.csv holds all
SHOWN = 8  # windows of each question in the report
PICTURE = 256  # pixels along such a picture, at most

CAUTION = (
    "Something always ranks first, whether it is there or not. How often these words are right was not checked; for "
    "words that the model was never taught both figures may be wrong: look at the pictures."
)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Questions, the model that sees, and what is said of it.  gsd_m: see `negah.solar.also.around`."""

    name: str
    clip: CLIP | CoCa
    mark: str  # tells the model from another one
    gsd_m: float | None
    reference: int | None  # number of reference pictures
    questions: Sequence[Question]
    in_pieces: Sequence[Sequence[str]]  # words of each question that the model's vocabulary does not hold whole

    @property
    def about(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "model": f"{self.name} {self.mark}", "size_px": self.clip.size, "gsd_m": self.gsd_m,
            "reference": self.reference,
        }  # fmt: skip

    @property
    def words(self) -> str:
        """The same for people."""
        size = "as large as windows" if self.gsd_m is None else f"of {self.clip.size * self.gsd_m:.3g} m or a window"
        judged = f"{self.reference:,} reference pictures" if self.reference else "no reference pictures"
        return f"{self.name} {self.mark}, pictures {size}, {judged}"


@dataclass(frozen=True)
class Answer:
    """What was found for one question.  standing and unusual are None where the model has no reference pictures."""

    query: str
    windows: int  # that were looked at
    unusual: int | None  # of these, scoring higher than 99 % of the reference pictures
    by_chance: float | None  # so many would be, if these windows were like the reference pictures
    best: list[dict[str, Any]] = field(default_factory=list)  # source, window, cosine, standing
    in_pieces: list[str] = field(default_factory=list)  # words that the model may never have been taught

    @property
    def told(self) -> str:
        """In a sentence or two."""
        text = f"{self.windows:,} windows were looked at"
        if self.unusual is not None:
            text = (
                f"{self.unusual:,} of {self.windows:,} windows score higher than {100 * UNUSUAL:g} % of the reference "
                f"pictures; about {self.by_chance:,.3g} would if this place were like them"
            )
        if self.in_pieces:
            words = ", ".join(self.in_pieces)
            text += f". The model's vocabulary holds only pieces of {words}: it may not know what is meant"
        return f"{text}."


def asking(queries: Sequence[str], model: str, device: torch.device) -> Asking:
    """The model, and the questions as it reads them.

    Raises InputError for words that cannot be asked, WeightsError for what is no CLIP or CoCa: before anything is done.
    """
    _check(queries)
    clip, tokens = described_by(model, None)
    checkpoint = read(model)  # once more, for what stands beside the model
    reference = reference_of(checkpoint)
    if reference is not None and reference.shape[1] != clip.dim:
        raise WeightsError(f"{model} has reference vectors of {reference.shape[1]} numbers, and its own are {clip.dim}")
    for query in queries:
        check_words(query, tokens, called="--also")
    clip = clip.to(device)
    questions = []
    with torch.inference_mode():
        for query in queries:  # each alone: its vector does not depend on what else is asked
            vector = clip.texts(tokens([query]).to(device))[0].float().cpu()
            scores = None if reference is None else np.sort((reference @ vector).numpy())
            questions.append(Question(query, vector.numpy(), scores))
    return Asking(
        name=model, clip=clip, mark=digest(clip)[:12], gsd_m=gsd_of(checkpoint),
        reference=None if reference is None else len(reference), questions=questions,
        in_pieces=[tokens.in_pieces(query) for query in queries],
    )  # fmt: skip


def look(
    asked: Asking, plan: Plan, sources: Sequence[Source], ledger: Ledger, *, region: Region | None, threads: int,
    device: torch.device, progress: Progress,
) -> list[Failure]:  # fmt: skip
    """Look at the windows that were not looked at yet; what could not be."""
    ledger.look_with(f"{asked.mark} {asked.clip.size} {asked.gsd_m} {BATCH}")
    failures = look_around(
        plan, sources, asked.clip.images, ledger, size=asked.clip.size, gsd_m=asked.gsd_m, region=region,
        threads=threads, device=device, progress=progress,
    )  # fmt: skip
    return [Failure(f.position, f.source, f.windows, f"--also: {f.reason}") for f in failures]


def answer(
    asked: Asking, plan: Plan, sources: Sequence[Source], ledger: Ledger, assembly: Assembly
) -> tuple[list[Answer], list[Asked]]:
    """Write also.csv and the layers; what was found, for machines and for the report."""
    found = cosines(plan, ledger, asked.questions)
    with assembly.file("also.csv") as path:
        write_also(found, asked.questions, path)
    write_layer(assembly, "also", *frames(found, asked.questions, most=LAYER))
    answers, sections = [], []
    for k in range(len(asked.questions)):
        one = _answer(asked, found, k)
        answers.append(one)
        sections.append(Asked(one.query, one.told, _shown(asked, found, k, sources)))
    return answers, sections


def lead(asked: Asking) -> str:
    """What the figures mean, for the report."""
    text = (
        f"Each window was compared with your words by {asked.name}. The cosine ranks windows for one question, and is "
        "no probability. "
    )
    if asked.reference:
        text += (
            f"Standing is the share of {asked.reference:,} reference pictures, ordinary ones that come with the model, "
            "that score lower for the same words. "
        )
    else:
        text += "This model comes without reference pictures, so it cannot be said how high a cosine is. "
    return text + CAUTION


def joined(failures: Sequence[Failure], also: Sequence[Failure]) -> list[Failure]:
    """What failed, an entry per source: for the words only where the survey itself had no trouble."""
    known = {failure.position for failure in failures}
    every = [*failures, *(failure for failure in also if failure.position not in known)]
    return sorted(every, key=lambda failure: failure.position)


def _answer(asked: Asking, found: Cosines, k: int) -> Answer:
    question, cosine = asked.questions[k], found.cosine[:, k]
    standing = question.standing(cosine)
    looked_at = int((~np.isnan(cosine)).sum())
    top = []
    for window in best(cosine)[:SHOWN].tolist():
        source, index = found.sources[int(found.source[window])], int(found.index[window])
        top.append({
            "source": source.name, "window": window_name(source, index), "cosine": round(float(cosine[window]), 4),
            "standing": round(float(standing[window]), 4) if asked.reference else None,
        })  # fmt: skip
    unusual = int((standing >= UNUSUAL).sum()) if asked.reference else None
    by_chance = round(looked_at * question.by_chance, 1) if asked.reference else None
    return Answer(question.words, looked_at, unusual, by_chance, top, list(asked.in_pieces[k]))


def _shown(asked: Asking, found: Cosines, k: int, sources: Sequence[Source]) -> list[Shown]:
    standing, shown = asked.questions[k].standing(found.cosine[:, k]), []
    for window, source, box in best_places(found, k, size=asked.clip.size, gsd_m=asked.gsd_m, count=SHOWN):
        image = pixels(sources, source, box, PICTURE)
        if image is None:
            continue  # a courtesy, like the gallery: the figures are in also.csv
        index = int(found.index[window])
        place = "" if len(source.layout) == 1 else f", window {window_name(source, index)}"
        ranked = float(standing[window]) if asked.reference else None
        shown.append(Shown(image, f"{source.name}{place}", float(found.cosine[window, k]), ranked))
    return shown


def _check(queries: Sequence[str]) -> None:
    said: set[str] = set()
    for query in queries:
        words = " ".join(query.lower().split())
        if not words:
            raise InputError("--also with nothing in it asks nothing: give some words")
        if words in said:
            raise InputError(f"--also {quoted(query)} is asked twice: ask it once")
        said.add(words)
