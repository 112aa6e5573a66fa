"""`negah pretrain`: a backbone from pictures without labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from negah.cli import show


@dataclass(kw_only=True)
class Pretrain(show.Verb):
    """Train a backbone on pictures without labels.

    METHOD is one of simclr, moco, mocov3, byol, dino, dinov2, each with the recipe of its paper. Reads folders,
    archives, GeoTIFFs (cut into windows) and "scenes:N" (N generated aerial tiles); no GPU is needed to try it. A run
    that was stopped (Ctrl-C, SIGTERM, a crash) goes on where it was when the same command is given again. Under
    torchrun it trains on all processes.

    Exit status 3: done, but some pictures could not be read.

    Example:
        negah pretrain byol --data scenes:200 --backbone resnet10-cifar --size 32 --epochs 2 --batch 32 --out byol
        negah pretrain dinov2 --data tiles/ --backbone vit-small/14 --overhead --out dinov2
        torchrun --nproc-per-node 8 -m negah pretrain dino --data images/ --backbone vit-small/16 --out dino
    """

    IF_INTERRUPTED: ClassVar[str] = (
        "stopped; the run is kept in the output folder: give the same command again to continue"
    )

    method: Positional[Literal["simclr", "moco", "mocov3", "byol", "dino", "dinov2"]]
    """How to learn."""
    data: Annotated[tuple[str, ...], arg(metavar="PATH...")]
    """Pictures, folders, archives, GeoTIFFs, or scenes:N."""
    backbone: Annotated[str, arg(metavar="NAME")]
    """What to train: vit-micro/8, vit-small/14, resnet18, resnet18-cifar, timm/NAME, ..., or a file to go on with."""
    out: Path
    """Folder for backbone.safetensors, checkpoint.pt, maps, scores.json and run.json."""
    epochs: Annotated[int, arg(metavar="N")] = 100
    """Passes over the pictures."""
    batch: Annotated[int, arg(metavar="N")] = 256
    """Pictures in a step, over all processes."""
    size: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the (global) crops (default: the backbone's)."""
    side: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the tiles that crops are cut from (default: that of the crops)."""
    local: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the local crops of dino and dinov2 (default: 3/7 of the global ones)."""
    locals: Annotated[int, arg(metavar="N")] = 8
    """Local crops of each picture."""
    lr: Annotated[float | None, arg(metavar="LR")] = None
    """Highest learning rate (default: the paper's, for this batch)."""
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
    """Labelled pictures, a folder for each class: kNN and a linear probe on a fifth of each, at fixed epochs."""
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
        from negah.runs.pretrain import Options, pretrain

        options = Options(
            epochs=self.epochs, batch=self.batch, size=self.size, side=self.side, local=self.local, locals=self.locals,
            lr=self.lr, drop_path=self.drop_path, prototypes=self.prototypes, long=self.long, distil=self.distil,
            queue=self.queue, overhead=self.overhead, accumulate=self.accumulate, precision=self.precision,
            shard=self.shard, workers=self.workers, score=self.score, score_every=self.score_every,
            checkpoint_every=self.checkpoint_every, stop_on_collapse=self.stop_on_collapse, seed=self.seed,
        )  # fmt: skip
        ranks.join()
        quiet = self.json or ranks.rank() > 0
        with warnings.catch_warnings(), show.Bars(quiet=quiet) as bars:
            warnings.showwarning = lambda message, *_, **__: show.warning(str(message))
            result = pretrain(
                self.method, self.data, self.backbone, self.out, options, progress=bars,
                say=lambda line: None if quiet else show.stderr().print(line),
            )  # fmt: skip
        status = 3 if result.failures else 0
        if ranks.rank() > 0:
            return status
        if self.json:
            show.as_json(result)
        else:
            rows: list[tuple[str, object]] = [
                ("tiles", result.tiles), ("steps", result.steps), ("loss", f"{result.loss:.4g}"),
            ]  # fmt: skip
            names = {"knn20": "kNN accuracy, k 20", "knn200": "kNN accuracy, k 200", "linear": "linear accuracy"}
            last = result.scores[-1] if result.scores else {}
            rows += [(label, f"{last[name]:.3f}") for name, label in names.items() if name in last]
            show.table([*rows, ("features", result.diagnosis), ("backbone", str(result.backbone))], title=self.method)
        if result.stopped:
            show.warning(result.stopped)
        if result.duplicates:
            show.warning(f"pictures that are there twice: {result.duplicates}")
        show.failures([(f"left out {name}", why) for name, why in result.failures], more="more pictures were left out")
        return status
