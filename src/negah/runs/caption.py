"""`negah caption`: what pictures show, in words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from negah.errors import InputError, WeightsError
from negah.images.pool import Pool
from negah.language.clip import CLIP
from negah.language.load import load_both
from negah.language.score import captions
from negah.progress import Progress, silent
from negah.runs.record import compute_device

BEAMS = 100  # at most: each is a row more for every picture of a batch, and must fit into memory


@dataclass(frozen=True)
class Result:
    """captions: (picture, text).  failures: (name, reason)."""

    captions: list[tuple[str, str]]
    failures: list[tuple[str, str]] = field(default_factory=list)


def caption(
    images: Sequence[str | Path], *, model: str, vocabulary: Path | None = None, beams: int = 1,
    share: float | None = None, seed: int = 0, progress: Progress = silent,
) -> Result:  # fmt: skip
    """A caption of each picture: the likeliest words one by one, the best of `beams`, or drawn from the likeliest words
    that hold `share` of the probability.

    Args:
        images: pictures, folders and archives of them; of each the middle square is seen.
        model: a CoCa or SimVLM, see `negah.language.load`.  vocabulary: folder of its tokens, where it has none itself.

    Raises InputError for what cannot be captioned, WeightsError for what writes no captions.
    """
    writer, tokens = load_both(model, vocabulary=vocabulary)
    if isinstance(writer, CLIP):
        raise WeightsError(f"{model} is a CLIP, which writes nothing: give a CoCa or a SimVLM")
    if beams > BEAMS:
        raise InputError(f"--beams {beams}: give {BEAMS} or less")
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: give a number from 0 to 2^63 - 1")
    if beams < 1 or (share is not None and not 0 < share <= 1):
        raise InputError("--beams is 1 or more, and --share above 0 and at most 1")
    if beams > 1 and share is not None:
        raise InputError("drawn captions have no beams: give --share or --beams")
    writer = writer.to(compute_device())
    pool = Pool(images, writer.size, cut="none", progress=progress)
    generator = torch.Generator(next(writer.parameters()).device).manual_seed(seed)
    written = []
    for done, text in enumerate(captions(writer, tokens, pool, beams=beams, share=share, generator=generator), 1):
        written.append((pool.names[done - 1], text))
        progress("captions", done, len(pool))
    return Result(written, pool.failures)
