"""`negah pretrain`: a backbone from pictures without labels, a model of words from pictures with captions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from tyro.conf import Positional, arg

from negah.cli import show

ALWAYS = ("method", "data", "backbone", "out", "json")  # what is no option of training
Rows = list[tuple[str, object]]
T = TypeVar("T")


@dataclass(kw_only=True)
class Pretrain(show.Verb):
    """Train a backbone on pictures without labels, or a model of words on pictures with captions.

    METHOD is one of simclr, moco, mocov3, byol, dino, dinov2, each with the recipe of its paper, which read folders,
    archives, GeoTIFFs (cut into windows) and "scenes:N" (N generated aerial tiles); or of clip, coca, simvlm, which
    read caption files: a csv with the columns file,caption or file,caption1,caption2,..., its pictures beside it or in
    zips beside it. "captions.csv:split=train" takes the rows with that value in that column. No GPU is needed to try
    it. A run that was stopped (Ctrl-C, SIGTERM, a crash) goes on where it was when the same command is given again.
    Under torchrun it trains on all processes.

    Exit status 3: done, but some pictures could not be read.

    Example:
        negah pretrain byol --data scenes:200 --backbone resnet10-cifar --size 32 --epochs 2 --batch 32 --out byol
        negah pretrain dinov2 --data tiles/ --backbone vit-small/14 --overhead --out dinov2
        negah pretrain coca --data captions.csv --backbone vit-micro/8 --size 64 --out coca
        torchrun --nproc-per-node 8 -m negah pretrain dino --data images/ --backbone vit-small/16 --out dino
    """

    IF_INTERRUPTED: ClassVar[str] = (
        "stopped; the run is kept in the output folder: give the same command again to continue"
    )

    method: Positional[Literal["simclr", "moco", "mocov3", "byol", "dino", "dinov2", "clip", "coca", "simvlm"]]
    """How to learn."""
    data: Annotated[tuple[str, ...], arg(metavar="PATH...")]
    """Pictures, folders, archives, GeoTIFFs, or scenes:N; of clip, coca, simvlm: caption files."""
    backbone: Annotated[str, arg(metavar="NAME")]
    """What to train: vit-micro/8, vit-small/14, resnet18, resnet18-cifar, timm/NAME, ..., or a file to go on with."""
    out: Path
    """Folder for backbone.safetensors (or model.safetensors), checkpoint.pt, maps, scores.json and run.json."""
    epochs: Annotated[int | None, arg(metavar="N")] = None
    """Passes over the pictures (default: 100; clip, coca, simvlm: 30)."""
    batch: Annotated[int | None, arg(metavar="N")] = None
    """Pictures in a step, over all processes (default: 256; clip, coca, simvlm: 128)."""
    size: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the (global) crops (default: the backbone's)."""
    side: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the tiles that crops are cut from (default: that of the crops; clip, coca, simvlm: an eighth more)."""
    local: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the local crops of dino and dinov2 (default: 3/7 of the global ones)."""
    locals: Annotated[int | None, arg(metavar="N")] = None
    """Local crops of each picture, of dino and dinov2 (default: 8)."""
    lr: Annotated[float | None, arg(metavar="LR")] = None
    """Highest learning rate (default: the paper's, for this batch; clip, coca, simvlm: 5e-4)."""
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
    """Of clip, coca, simvlm: most different tokens (default: 4096)."""
    length: Annotated[int | None, arg(metavar="N")] = None
    """Of clip, coca, simvlm: most tokens of a text (default: 40)."""
    width: Annotated[int | None, arg(metavar="N")] = None
    """Of clip, coca, simvlm: width of the text transformer (default: 256)."""
    layers: Annotated[int | None, arg(metavar="N")] = None
    """Of clip, coca, simvlm: its layers; coca and simvlm have half of them in each half (default: 6)."""
    extent: Annotated[float | None, arg(metavar="M")] = None
    """Of clip, coca, simvlm: metres on the ground of a picture's side, by which a survey shows them as much."""
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
    """Epochs between scores, and between maps of what a few pictures look like to the backbone."""
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
            say = (lambda line: None) if quiet else show.stderr().print
            result, rows = (
                self.pairs(bars, say) if self.method in ("clip", "coca", "simvlm") else self.pictures(bars, say)
            )
        status = 3 if result.failures else 0
        if ranks.rank() > 0:
            return status
        if self.json:
            show.as_json(result)
        else:
            show.table(rows, title=self.method)
        if result.stopped:
            show.warning(result.stopped)
        if duplicates := getattr(result, "duplicates", 0):
            show.warning(f"pictures that are there twice: {duplicates}")
        show.failures([(f"left out {name}", why) for name, why in result.failures], more="more pictures were left out")
        return status

    def pictures(self, bars: show.Bars, say: Callable[[str], None]) -> tuple[Any, Rows]:
        """Without words."""
        from negah.runs.pretrain import Method, Options, pretrain

        found = pretrain(
            cast(Method, self.method), self.data, self.backbone, self.out, self.options(Options), progress=bars, say=say
        )
        names = {"knn20": "kNN accuracy, k 20", "knn200": "kNN accuracy, k 200", "linear": "linear accuracy"}
        rows: Rows = [("tiles", found.tiles), ("steps", found.steps), ("loss", f"{found.loss:.4g}")]
        rows += scored(found.scores, names)
        return found, [*rows, ("features", found.diagnosis), ("backbone", str(found.backbone))]

    def pairs(self, bars: show.Bars, say: Callable[[str], None]) -> tuple[Any, Rows]:
        """With words."""
        from negah.runs.pairs import NAMES, Method, Options, pretrain

        found = pretrain(
            cast(Method, self.method), self.data, self.backbone, self.out, self.options(Options), progress=bars, say=say
        )
        rows: Rows = [("pictures", found.pictures), ("different texts", found.texts), ("steps", found.steps)]
        rows += [("loss", f"{found.loss:.4g}"), *scored(found.scores, NAMES)]
        return found, [*rows, ("model", str(found.model))]

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
