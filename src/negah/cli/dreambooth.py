"""`negah dreambooth`: a few pictures of one thing, and a word for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from negah.cli import show
from negah.progress import silent
from negah.runs import DESCRIBER, IMAGINER


@dataclass(kw_only=True)
class DreamBooth(show.Verb):
    """Teach a text-to-image model one thing from a few pictures, and say at which step to stop.

    The model first draws the class itself, so that it does not forget what else is a house; then it learns the thing
    under a word of its own: a new one (--token "<new>"), or, without --token, the existing one that is measured to say
    least. Every --every steps it is looked at: both losses, a loss at noise that never changes, likeness to the subject
    and to the words, diversity, and what was forgotten of the class; report.html has the curves and the pictures, and
    the weights of the best look are kept. A run that was stopped goes on when the same command is given again.

    A LoRA (the default) is a small file for `negah generate --lora` and diffusers' load_lora_weights, with a new word's
    embedding beside it for load_textual_inversion. --method full trains the whole UNet and saves a diffusers folder.

    Exit status 3: done, but some pictures could not be read.

    Example:
        negah dreambooth --instance photos/ --class-word house --token "<new>" --model negah/imagine-tiny --out mine
        negah dreambooth --instance photos/ --class-word dog --model sd15/ --method full --text-encoder --steps 800 \\
            --class-images 1000 --precision bf16 --out dog
    """

    IF_INTERRUPTED: ClassVar[str] = (
        "stopped; the run is kept in the output folder: give the same command again to continue"
    )

    instance: Annotated[tuple[Path, ...], arg(metavar="PATH...")]
    """Pictures of the thing, or folders of them; of each the middle square is seen. Three to five will do."""
    class_word: Annotated[str, arg(metavar="WORD")]
    """What the thing is, in a word that the model knows: house."""
    model: Annotated[str, arg(metavar="NAME")] = IMAGINER
    """A text-to-image model: a bundled name, a diffusers folder, a single-file checkpoint, a Hugging Face name."""
    out: Path
    """Folder for the weights, report.html, class/, samples/, checkpoint.pt, scores.json and run.json."""
    token: Annotated[str | None, arg(metavar="WORD")] = None
    """A word that is new to the model, such as "<new>"; without one an existing rare token is measured and taken."""
    method: Literal["lora", "full"] = "lora"
    """lora trains adapters of the attention, full all of the UNet."""
    rank: Annotated[int, arg(metavar="R")] = 4
    """Rank of a LoRA's adapters."""
    text_encoder: bool = False
    """Train the text encoder as well."""
    steps: Annotated[int, arg(metavar="N")] = 400
    """Steps in all; 400 to 1000 are usual."""
    batch: Annotated[int, arg(metavar="N")] = 1
    """Pictures of the thing in a step; as many of the class are added."""
    lr: Annotated[float | None, arg(metavar="LR")] = None
    """Learning rate (default: 1e-4 for a LoRA, 5e-6 for the UNet, 2e-6 with the text encoder)."""
    prior_weight: Annotated[float, arg(metavar="W")] = 1.0
    """Weight of the class's loss; 0 leaves prior preservation out."""
    class_images: Annotated[int, arg(metavar="N")] = 200
    """Pictures of the class that the model draws first."""
    min_snr: Annotated[float | None, arg(metavar="G")] = None
    """Min-SNR weights with this bound, such as 5; without it all noise levels weigh alike."""
    every: Annotated[int, arg(metavar="N")] = 100
    """Steps between two looks, which are also the checkpoints."""
    prompts: Annotated[tuple[str, ...], arg(metavar="TEXT...")] = ()
    """Prompts to look at, {} standing for the thing; the first is that of likeness and diversity
    (default: "a {}", "a {} with many trees", "a {} beside a street")."""
    samples: Annotated[int, arg(metavar="N")] = 4
    """Pictures of each prompt at each look."""
    sampler: Literal["ddim", "euler", "euler-ancestral", "heun", "dpmpp-2m", "dpmpp-2m-sde"] = "dpmpp-2m"
    """How pictures are drawn, as of `negah generate`."""
    sampler_steps: Annotated[int, arg(metavar="N")] = 20
    """Steps of drawing a picture."""
    guidance: Annotated[float, arg(metavar="S")] = 6.0
    """Scale of classifier-free guidance."""
    backbone: Annotated[str, arg(metavar="NAME")] = "negah/aerial-tiny"
    """Whose features say how alike pictures are: a backbone of any kind, such as facebook/dinov2-small."""
    describer: Annotated[str, arg(metavar="NAME")] = DESCRIBER
    """A CLIP or CoCa that says how like their words pictures are."""
    vocabulary: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Of the describer, where it has none itself."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16; weights stay fp32."""
    seed: int = 0
    """Of the class pictures, the training and the looks."""

    def run(self) -> int:
        """Train, and print what came of it."""
        from negah import ranks
        from negah.runs.dreambooth import PROMPTS, Options, dreambooth
        from negah.runs.probe import as_plain

        options = Options(
            class_word=self.class_word, token=self.token, method=self.method, rank=self.rank,
            train_text=self.text_encoder, steps=self.steps, batch=self.batch, lr=self.lr,
            prior_weight=self.prior_weight, class_images=self.class_images, min_snr=self.min_snr, every=self.every,
            prompts=self.prompts or PROMPTS, samples=self.samples, sampler=self.sampler,
            sampler_steps=self.sampler_steps, scale=self.guidance, precision=self.precision, seed=self.seed,
        )  # fmt: skip
        ranks.join()
        quiet = self.json or ranks.rank() > 0
        with show.Bars(quiet=quiet) as bars:
            result = dreambooth(
                self.instance, self.out, self.model, options, backbone=self.backbone, describer=self.describer,
                vocabulary=self.vocabulary, progress=bars,
                say=silent if quiet else show.stderr().print,
            )  # fmt: skip
        status = 3 if result.failures else 0
        if ranks.rank() > 0:
            return status
        if self.json:
            show.as_json({"status": "some inputs failed" if status else "complete", **as_plain(result)})
        else:
            names = ("step", "held out loss", "fidelity", "prompt CLIP-T", "diversity", "class kept")
            rows = [[int(row["step"]), *(f"{row[name]:.3f}" for name in names[1:])] for row in result.scores]
            n = result.images
            title = f"{n['instance']} pictures of {result.token} {self.class_word}, {n['class']} of the class"
            show.table(rows, header=names, title=title)
            show.table([
                ("stop at", f"step {result.step}: {result.reason}"), ("token", f"{result.token}: {result.why}"),
                ("held out", result.held_out), ("weights", str(result.model)), ("report", str(result.report)),
            ])  # fmt: skip
        for note in result.notes:
            show.warning(note)
        show.failures([(f"left out {name}", why) for name, why in result.failures], more="more pictures were left out")
        return status
