"""`negah caption`: pictures to words."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from negah.cli import show
from negah.runs import DESCRIBER


@dataclass(kw_only=True)
class Caption(show.Verb):
    """Say in words what pictures show.

    The words are those that the model was taught, and what it was not taught it cannot say: the bundled one has read
    captions of 21 kinds of American land use. It has no doubt of its own: check what matters.

    Exit status 3: done, but some pictures could not be read.

    Example:
        negah caption tiles/
        negah caption a.jpg b.jpg --model coca/model.safetensors --beams 4
        negah caption tiles.zip --share 0.9 --seed 1 --json
    """

    images: Positional[Annotated[tuple[Path, ...], arg(metavar="IMAGE...")]]
    """Pictures, folders and archives of them; of each the middle square is seen."""
    model: Annotated[str, arg(metavar="MODEL")] = DESCRIBER
    """A CoCa or SimVLM: a file of `negah pretrain`, open_clip's CoCa, a name of the Hugging Face hub, a bundled one."""
    vocabulary: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """With tokenizer.json, or vocab.json and merges.txt, for models that come without."""
    beams: Annotated[int, arg(metavar="N")] = 1
    """Texts that are followed at a time, 100 at most: the best, by the mean log probability of its words, is given."""
    share: Annotated[float | None, arg(metavar="P")] = None
    """Draw the words instead, each from the likeliest ones that hold this share of the probability."""
    seed: int = 0
    """Of the drawing."""

    def run(self) -> int:
        """Write, and print a line for each picture."""
        from negah.runs.caption import caption

        with show.Bars(quiet=self.json) as bars:
            result = caption(
                self.images, model=self.model, vocabulary=self.vocabulary, beams=self.beams, share=self.share,
                seed=self.seed, progress=bars,
            )  # fmt: skip
        status = 3 if result.failures else 0
        if self.json:
            show.as_json({"status": "some inputs failed" if status else "complete", **vars(result)})
            return status
        show.table(result.captions, title="captions")
        show.failures([(f"left out {name}", why) for name, why in result.failures], more="more pictures were left out")
        return status
