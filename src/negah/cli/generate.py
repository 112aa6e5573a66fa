"""`negah generate`: words to pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from negah.cli import show
from negah.runs import DESCRIBER, IMAGINER


@dataclass(kw_only=True)
class Generate(show.Verb):
    """Draw pictures from words, from a picture, or into a part of one.

    The picture of a prompt and a seed is the same whatever is drawn beside it. The bundled model draws aerial scenes,
    64 pixels wide: houses ("two houses with red roofs, one solar array, a few trees") and 21 kinds of American land use
    ("There is a piece of farmland ."). Other models are folders as diffusers writes them, single files of Stable
    Diffusion 1.x, and names of the Hugging Face hub. Each PNG holds what it was made with.

    Example:
        negah generate "two houses with red roofs, one solar array, a few trees" --count 8 --grid
        negah generate "a beach" "a forest" --model stable-diffusion/ --sampler ddim --steps 30 --guidance 7.5
        negah generate "one house with a blue roof" --start tile.png --mask hole.png
        negah generate "a house" --label "house with solar panels" --label-scale 2
    """

    prompts: Positional[Annotated[tuple[str, ...], arg(metavar="PROMPT...")]]
    """Words, in quotes; each prompt has pictures of its own."""
    out: Path = Path("imagined")
    """Folder for the PNG files and run.json; files of the same name are replaced."""
    model: Annotated[str, arg(metavar="MODEL")] = IMAGINER
    """A folder as diffusers writes it, a file of Stable Diffusion 1.x, a name of the Hugging Face hub, or bundled."""
    lora: Annotated[Path | None, arg(metavar="FILE")] = None
    """LoRA to merge in; a learned_embeds.safetensors beside it adds its words."""
    vocabulary: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """CLIP's vocab.json and merges.txt, for single files."""
    sampler: Literal["ddim", "euler", "euler-ancestral", "heun", "dpmpp-2m", "dpmpp-2m-sde"] = "dpmpp-2m"
    """How to get from noise to a picture."""
    steps: Annotated[int, arg(metavar="N")] = 20
    """Of the sampler."""
    spacing: Literal["leading", "linspace", "trailing", "karras"] | None = None
    """Where it stops (default: the model's, else the sampler's)."""
    guidance: Annotated[float, arg(metavar="S")] = 6.0
    """Scale of classifier-free guidance: 1 follows the words as they are, more follows them further."""
    negative: str = ""
    """Words to be guided away from."""
    interval: Annotated[tuple[float, float] | None, arg(metavar="LO HI")] = None
    """Guide only while the noise level sigma is above LO and at most HI: faster, and more varied."""
    rescale: Annotated[float, arg(metavar="P")] = 0.0
    """Share by which the contrast that guidance adds is taken back."""
    plus_plus: bool = False
    """CFG++: --guidance from 0 to 1, and the noise of the picture without words."""
    apg: Annotated[float | None, arg(metavar="P")] = None
    """Projected guidance, which saturates less; share of the parallel part that is left, usually 0."""
    label: Annotated[str | None, arg(metavar="CLASS")] = None
    """Class that the model's own noise-aware classifier pulls to."""
    label_scale: Annotated[float, arg(metavar="S")] = 1.0
    """How much the classifier pulls to --label."""
    towards: Annotated[str | None, arg(metavar="WORDS")] = None
    """Words that --describer is to find in the picture: universal guidance, much slower."""
    towards_scale: Annotated[float, arg(metavar="S")] = 20.0
    """How much the describer pulls to --towards."""
    describer: Annotated[str, arg(metavar="MODEL")] = DESCRIBER
    """A CLIP or CoCa for --towards."""
    panels: Annotated[float, arg(metavar="S")] = 0.0
    """How much the bundled detector pulls to solar panels (negative: away from them), as --towards does."""
    size: Annotated[tuple[int, int] | None, arg(metavar="H W")] = None
    """In pixels (default: the model's)."""
    start: Annotated[str | None, arg(metavar="IMAGE")] = None
    """Picture to begin with; its middle square is taken."""
    strength: Annotated[float, arg(metavar="P")] = 0.75
    """Share of the steps that change it."""
    mask: Annotated[str | None, arg(metavar="IMAGE")] = None
    """White where --start may change; the rest of it stays."""
    count: Annotated[int, arg(metavar="N")] = 1
    """Pictures of each prompt, of consecutive seeds."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """The first seed."""
    batch: Annotated[int, arg(metavar="N")] = 4
    """Pictures at a time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16: faster, and pictures differ a little."""
    grid: bool = False
    """Also write all pictures as one, grid.png, a row for each prompt."""
    preview: Annotated[int, arg(metavar="K")] = 0
    """Write preview.png every K steps."""

    def run(self) -> int:
        """Draw, and print where the pictures are."""
        import warnings
        from dataclasses import fields

        from negah.runs.generate import Options, imagine

        options = Options(**{field.name: getattr(self, field.name) for field in fields(Options)})
        with warnings.catch_warnings(), show.Bars(quiet=self.json) as bars:
            warnings.simplefilter("once")  # each batch of pictures warns of the same prompts
            warnings.showwarning = lambda message, *_, **__: show.warning(str(message))
            result = imagine(
                self.prompts, self.out, model=self.model, lora=self.lora, vocabulary=self.vocabulary, options=options,
                progress=bars,
            )  # fmt: skip
        if self.json:
            show.as_json(result)
            return 0
        show.table([(seed, prompt, path) for path, prompt, seed in result.pictures], header=("seed", "prompt", "file"))
        if result.grid:
            show.table([("all of them", result.grid)])
        return 0
