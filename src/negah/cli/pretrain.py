"""`negah pretrain`: a backbone from pictures without labels, a model of words from pictures with captions."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from tyro.conf import Positional, arg

from negah.cli import show
from negah.progress import Say, silent

ALWAYS = ("method", "data", "backbone", "out", "json", "debug")  # what is no option of training
Rows = list[tuple[str, object]]
T = TypeVar("T")


@dataclass(kw_only=True)
class Pretrain(show.Verb):
    """Train a backbone on pictures without labels, or what describes or draws on pictures with captions.

    METHOD is one of simclr, moco, mocov3, byol, dino, dinov2, each with the recipe of its paper, which read folders,
    archives, GeoTIFFs (cut into windows) and "scenes:N" (N generated aerial tiles); or of clip, coca, simvlm and
    diffusion, which read caption files: a csv with the columns file,caption or file,caption1,caption2,..., its pictures
    beside it or in zips beside it. "captions.csv:split=train" takes the rows with that value in that column. No GPU is
    needed to try it. A run that was stopped (Ctrl-C, SIGTERM, a crash) goes on where it was when the same command is
    given again. Under torchrun it trains on all processes.

    Exit status 3: done, but some pictures could not be read.

    Example:
        negah pretrain byol --data scenes:200 --backbone resnet10-cifar --size 32 --epochs 2 --batch 32 --out byol
        negah pretrain dinov2 --data tiles/ --backbone vit-small/14 --overhead --out dinov2
        negah pretrain coca --data captions.csv --backbone vit-micro/8 --size 64 --out coca
        negah pretrain diffusion --data captions.csv --labels class --precision bf16 --out drawer
        torchrun --nproc-per-node 8 -m negah pretrain dino --data images/ --backbone vit-small/16 --out dino
    """

    IF_INTERRUPTED: ClassVar[str] = (
        "stopped; the run is kept in the output folder: give the same command again to continue"
    )

    method: Positional[
        Literal["simclr", "moco", "mocov3", "byol", "dino", "dinov2", "clip", "coca", "simvlm", "diffusion"]
    ]
    """How to learn."""
    data: Annotated[tuple[str, ...], arg(metavar="PATH...")]
    """Pictures, folders, archives, GeoTIFFs, or scenes:N; of clip, coca, simvlm: caption files."""
    backbone: Annotated[str | None, arg(metavar="NAME")] = None
    """What to train: vit-micro/8, vit-small/14, resnet18, resnet18-cifar, timm/NAME, ..., or a file to go on with. Not
    of diffusion."""
    out: Path
    """Folder for backbone.safetensors (or model.safetensors, or model/), checkpoints, sheets, scores and run.json."""
    epochs: Annotated[int | None, arg(metavar="N")] = None
    """Passes over the pictures (default: 100; clip, coca, simvlm: 30; diffusion: 60)."""
    batch: Annotated[int | None, arg(metavar="N")] = None
    """Pictures in a step, over all processes (default: 256; clip, coca, simvlm: 128; diffusion: 64)."""
    size: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the (global) crops (default: the backbone's; diffusion: 64)."""
    side: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the tiles that crops are cut from (default: that of the crops; clip, coca, simvlm: an eighth more)."""
    local: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the local crops of dino and dinov2 (default: 3/7 of the global ones)."""
    locals: Annotated[int | None, arg(metavar="N")] = None
    """Local crops of each picture, of dino and dinov2 (default: 8)."""
    lr: Annotated[float | None, arg(metavar="LR")] = None
    """Highest learning rate (default: the paper's, for this batch; clip, coca, simvlm: 5e-4; diffusion: 1e-3)."""
    drop_path: Annotated[float | None, arg(metavar="P")] = None
    """Stochastic depth of a transformer (default: 0.1 for dino, 0.3 for dinov2, else 0)."""
    prototypes: Annotated[int | None, arg(metavar="K")] = None
    """Of dino and dinov2 (default: 2048 to 65536, by the number of pictures)."""
    long: bool = False
    """The long preset of dinov2: Sinkhorn-Knopp, two heads, K 131072."""
    distil: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Teach --backbone, a smaller one, what the run of dinov2 in this folder has learnt."""
    queue: Annotated[int | None, arg(metavar="K")] = None
    """Keys that moco remembers (default: up to 65536, half the pictures)."""
    vocabulary: Annotated[int | None, arg(metavar="N")] = None
    """Of clip, coca, simvlm, diffusion: most different tokens (default: 4096; diffusion: 2048)."""
    length: Annotated[int | None, arg(metavar="N")] = None
    """Of clip, coca, simvlm, diffusion: most tokens of a text (default: 40; diffusion: 48)."""
    width: Annotated[int | None, arg(metavar="N")] = None
    """Of clip, coca, simvlm: width of the text transformer (default: 256)."""
    layers: Annotated[int | None, arg(metavar="N")] = None
    """Of clip, coca, simvlm: its layers; coca and simvlm have half of them in each half (default: 6)."""
    extent: Annotated[float | None, arg(metavar="M")] = None
    """Of clip, coca, simvlm: metres on the ground of a picture's side, by which a survey shows them as much."""
    space: Literal["latent", "pixel"] | None = None
    """Of diffusion: denoise the latents of an autoencoder, or pixels (default: latent)."""
    autoencoder: Annotated[str | None, arg(metavar="MODEL")] = None
    """Of diffusion: model whose autoencoder is used (default: one is trained first)."""
    autoencoder_steps: Annotated[int | None, arg(metavar="N")] = None
    """Of diffusion: steps of its training, 16 pictures each (default: 2500)."""
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """Of diffusion: what the network tells (default: v_prediction)."""
    drop: Annotated[float | None, arg(metavar="P")] = None
    """Of diffusion: share of the pictures whose words are dropped, for guidance (default: 0.1)."""
    labels: Annotated[str | None, arg(metavar="COLUMN")] = None
    """Of diffusion: column of the caption files by which a noise-aware classifier learns to guide."""
    overhead: bool = False
    """The pictures are seen from above: quarter turns, and crops that leave small things in sight."""
    accumulate: Annotated[int, arg(metavar="N")] = 1
    """Batches whose gradients make one step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16; weights stay fp32."""
    shard: bool = False
    """Under torchrun: spread weights and optimiser over the processes (FSDP2)."""
    workers: Annotated[int, arg(metavar="N")] = 0
    """Processes that prepare crops ahead."""
    score: Annotated[tuple[str, ...], arg(metavar="PATH...")] = ()
    """Labelled pictures, a folder for each class: kNN and a linear probe on a fifth of each, at fixed epochs. Of clip,
    coca, simvlm: caption files that nothing is learnt from: who finds whom, and captions as people wrote them."""
    score_every: Annotated[int, arg(metavar="N")] = 10
    """Epochs between scores, between maps of what a few pictures look like to the backbone, between drawn sheets."""
    checkpoint_every: Annotated[int, arg(metavar="N")] = 1
    """Epochs between checkpoints."""
    stop_on_collapse: bool = False
    """End the run when its features have collapsed, instead of warning only."""
    seed: int = 0
    """Of weights, order and views."""

    def run(self) -> int:
        """Train, and print what came of it."""
        import warnings

        from negah import ranks

        ranks.join()
        quiet = self.json or ranks.rank() > 0
        with warnings.catch_warnings(), show.Bars(quiet=quiet) as bars:
            warnings.showwarning = lambda message, *_, **__: show.warning(str(message))
            say = silent if quiet else show.stderr().print
            result, rows = {
                "clip": self.pairs, "coca": self.pairs, "simvlm": self.pairs, "diffusion": self.drawn,
            }.get(self.method, self.pictures)(bars, say)  # fmt: skip
        status = 3 if result.failures else 0
        if ranks.rank() > 0:
            return status
        if self.json:
            show.as_json(result)
        else:
            show.table(rows, title=self.method)
        if stopped := getattr(result, "stopped", ""):
            show.warning(stopped)
        if duplicates := getattr(result, "duplicates", 0):
            show.warning(f"pictures that are there twice: {duplicates}")
        show.failures([(f"left out {name}", why) for name, why in result.failures], more="more pictures were left out")
        return status

    def pictures(self, bars: show.Bars, say: Say) -> tuple[Any, Rows]:
        """Without words."""
        from negah.runs.pretrain import Method, Options, pretrain

        found = pretrain(
            self.data, self.out, cast(Method, self.method), self.named(), self.options(Options), progress=bars, say=say
        )
        names = {"knn20": "kNN accuracy, k 20", "knn200": "kNN accuracy, k 200", "linear": "linear accuracy"}
        rows: Rows = [("tiles", found.tiles), ("steps", found.steps), ("loss", f"{found.loss:.4g}")]
        rows += scored(found.scores, names)
        return found, [*rows, ("features", found.diagnosis), ("backbone", str(found.backbone))]

    def pairs(self, bars: show.Bars, say: Say) -> tuple[Any, Rows]:
        """With words."""
        from negah.runs.pairs import NAMES, Method, Options, pretrain

        found = pretrain(
            self.data, self.out, cast(Method, self.method), self.named(), self.options(Options), progress=bars, say=say
        )
        rows: Rows = [("pictures", found.pictures), ("different texts", found.texts), ("steps", found.steps)]
        rows += [("loss", f"{found.loss:.4g}"), *scored(found.scores, NAMES)]
        return found, [*rows, ("model", str(found.model))]

    def drawn(self, bars: show.Bars, say: Say) -> tuple[Any, Rows]:
        """From words to pictures."""
        from negah.errors import InputError
        from negah.runs.imagine.pretrain import Options, pretrain

        if self.backbone is not None:
            raise InputError("--backbone is not for diffusion: leave it out")
        found = pretrain(self.data, self.out, self.options(Options), progress=bars, say=say)
        rows: Rows = [("pictures", found.pictures), ("different texts", found.texts), ("steps", found.steps)]
        rows += [("parameters", f"{found.parameters:,}"), ("loss", f"{found.loss:.4g}")]
        if found.latent_error is not None:
            rows.append(("error of the autoencoder", f"{found.latent_error:.4f}"))
        if found.accuracy is not None:
            rows.append(("accuracy of the classifier, over all noise", f"{found.accuracy:.3f}"))
        return found, [*rows, ("model", str(found.model))]

    def named(self) -> str:
        """The backbone.  Raises InputError without one."""
        from negah.errors import InputError

        if self.backbone is None:
            raise InputError(f"--backbone is missing: {self.method} trains one, such as vit-micro/8")
        return self.backbone

    def options(self, kind: type[T]) -> T:
        """Those that were given, for a method that has them.  Raises InputError for the others."""
        from negah.errors import InputError

        known = {field.name for field in fields(kind)}  # pyright: ignore[reportArgumentType]
        given = {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default and field.name not in ALWAYS
        }
        for name in given:
            if name not in known:
                raise InputError(f"--{name.replace('_', '-')} is not for {self.method}: leave it out")
        return kind(**given)


def scored(scores: list[dict[str, float]], names: Mapping[str, str]) -> Rows:
    """The last scores, as they are called."""
    last = scores[-1] if scores else {}
    return [(label, f"{last[name]:.3f}") for name, label in names.items() if name in last]
