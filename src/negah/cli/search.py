"""`negah search`: pictures by words."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from negah.cli import show
from negah.runs import DESCRIBER


@dataclass(kw_only=True)
class Search(show.Verb):
    """Find the pictures that words, or another picture, describe best.

    A CLIP turns pictures and words into vectors; the nearest are listed with their cosine, which ranks pictures for one
    query and says little by itself: something is always nearest.

    Exit status 3: done, but some pictures could not be read.

    Example:
        negah search "a harbor with boats" "a swimming pool" --images tiles/
        negah search "houses with solar panels" --images tiles/
        negah search like-this.jpg --images tiles/ --model openai-clip/ --index tiles.index.safetensors
    """

    queries: Positional[Annotated[tuple[str, ...], arg(metavar="QUERY...")]]
    """Sentences, or paths of pictures."""
    images: Annotated[tuple[Path, ...], arg(metavar="PATH...")]
    """Pictures, folders and archives of them."""
    model: Annotated[str, arg(metavar="MODEL")] = DESCRIBER
    """A CLIP or CoCa: a file of `negah pretrain`, of open_clip's or OpenAI's, a folder as transformers writes it, a
    name of the Hugging Face hub, a bundled one."""
    vocabulary: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """With tokenizer.json, or vocab.json and merges.txt, for models that come without."""
    best: Annotated[int, arg(metavar="N")] = 10
    """So many pictures for each query."""
    index: Annotated[Path | None, arg(metavar="FILE")] = None
    """Keep the vectors there (.safetensors), and use them again: only new and changed pictures are looked at."""

    def run(self) -> int:
        """Search, and print a table for each query."""
        from negah.runs.search import search

        with show.Bars(quiet=self.json) as bars:
            result = search(
                self.queries, self.images, model=self.model, vocabulary=self.vocabulary, best=self.best,
                index=self.index, progress=bars,
            )  # fmt: skip
        status = 3 if result.failures else 0
        if self.json:
            show.as_json({"status": "some inputs failed" if status else "complete", **vars(result)})
            return status
        for found in result.found:
            show.table([(f"{score:.3f}", name) for name, score in found.hits], title=found.query)
        print(f"{result.images:,} pictures, {result.read:,} of them looked at now")
        show.failures([(f"left out {name}", why) for name, why in result.failures], more="more pictures were left out")
        return status
