"""`python -m negah.runs.imagine`: train the text-to-image model that is bundled.

    python -m negah.runs.imagine --ucmerced captions.csv --out build/imagine

Half of the pictures are generated scenes, 30 m wide, of compositions that are not held out (`images.scenes.words`);
half are aerial pictures with captions.  The classifier knows the classes of the aerial pictures, and houses with and
without solar arrays.  Only rows with "train" in the column --split are learnt from.  It goes on where it was stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro

from negah import __version__
from negah.images.scenes.words import compositions, held_out, told
from negah.language.captions import Captions, drawn, joined
from negah.runs.imagine.pretrain import Labels, Options, labelled, train
from negah.runs.record import claim, now

METRES = 30.0  # side of a scene, where a house is a third of it and its array some pixels large
OPTIONS = Options(overhead=True, epochs=58, labels="class", precision="bf16")
PANELS, NO_PANELS = "house with solar panels", "house without solar panels"


@dataclass(frozen=True)
class Recipe:
    """ucmerced: caption file.  split: its column that says "train".  scenes: how many are drawn.  out: a folder."""

    ucmerced: Path
    out: Path
    split: str = "split_pe_rsitr"
    scenes: int = 4000


def main(recipe: Recipe) -> None:
    """Draw, read, train, write."""
    data = f"{recipe.ucmerced}:{recipe.split}=train"
    arguments: dict[str, Any] = {"ucmerced": str(recipe.ucmerced), "split": recipe.split, "scenes": recipe.scenes}
    record = {"negah": __version__, "verb": "imagine", "started": now(), "arguments": arguments}
    record = claim(recipe.out, record, holds=("autoencoder", "denoiser", "model"), say=print)
    side = round(OPTIONS.size * 5 / 4)
    seen = [what for what in compositions() if not held_out(what)]
    scenes = larger(drawn(recipe.scenes, 7, OPTIONS.size, seen, metres=METRES), side)
    real = Captions.read(data, side)
    known = labelled([data], real, "class")
    # The first of a scene's captions names everything.
    bare = [told(scenes.texts[int(its[0])])["panels"] == "none" for its in scenes.said]
    numbers = torch.tensor([len(known.names) + without for without in bare])
    labels = Labels(torch.cat([known.numbers, known.numbers, numbers]), [*known.names, PANELS, NO_PANELS])
    # Twice, each time with views of its own: about as many as there are scenes.
    every = joined([real, real, scenes])
    # The autoencoder learns from as many scenes as there are real pictures.
    first = joined([real, some_of(scenes, [7 * i % len(scenes) for i in range(len(real), 2 * len(real))])])
    found = train(every, recipe.out, OPTIONS, record, first=first, labels=labels, half=True, say=print)
    print(found.model)


def larger(captions: Captions, side: int) -> Captions:
    """With pictures of another size."""
    images = torch.stack([captions.images[i] for i in range(len(captions))]).float()
    images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 255).round().byte()
    return replace(captions, images=images)


def some_of(captions: Captions, numbers: Sequence[int]) -> Captions:
    """Only those, in that order."""
    images = torch.stack([captions.images[i] for i in numbers])
    return replace(captions, images=images, names=[captions.names[i] for i in numbers],
                   said=[captions.said[i] for i in numbers])  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Recipe))
