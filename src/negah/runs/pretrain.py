"""`negah pretrain`: a backbone from pictures without labels.

Each method with the recipe of its paper: objective, views, optimiser, learning rate.  The collapse doctor watches every
run; with labelled pictures kNN and linear probes are taken on the way and at the end, and it is the last figure that
counts.  A run that was stopped goes on when the same call is made again.
"""

import copy
import datetime
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from negah import __version__, ranks
from negah.errors import InputError, OutputError
from negah.images.pool import Pool, folder_labels
from negah.images.views import (
    View,
    Views,
    aerial,
    byol,
    dino,
    dinov2,
    moco_v1,
    moco_v2,
    simclr,
    simclr_cifar,
    unblurred,
)  # fmt: skip
from negah.nn.backbone import Backbone, ViTBackbone
from negah.nn.vit import Block
from negah.probe.evaluate import embed, knn_accuracy, linear_accuracy
from negah.runs.record import compute_device, hardware, versions
from negah.ssl import BYOL, DINO, DINOv2, MoCo, MoCoV3, SimCLR
from negah.ssl.collapse import CollapseDoctor
from negah.train import Batches, Objective, checkpoint, fit
from negah.train.optim import LARS
from negah.train.schedules import Schedule, cosine
from negah.weights import backbone as backbone_named
from negah.weights import save_backbone

Method = Literal["simclr", "moco", "mocov3", "byol", "dino", "dinov2"]
SMALL_PX = 64  # up to which pictures take the recipes for CIFAR: no blur, weaker colours
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to pretrain.  None stands for what the method's paper does.

    size, local, locals: side of the global and local crops in pixels, and how many local ones.  side: of the tiles they
    are cut from, by default the global crop's.  epochs: passes over the pictures.  batch: pictures in a step, over all
    processes.  lr: highest learning rate.  prototypes: K of DINO and DINOv2.  long: DINOv2's long preset.  queue: K of
    MoCo.  overhead: the pictures are seen from above (quarter turns, milder crops).  score: labelled pictures, a folder
    for each class.  score_every: epochs between scores.  stop_on_collapse: end a run that the doctor gives up.
    """

    epochs: int = 100
    batch: int = 256
    size: int | None = None
    side: int | None = None
    local: int | None = None
    locals: int = 8
    lr: float | None = None
    drop_path: float | None = None
    prototypes: int | None = None
    long: bool = False
    queue: int | None = None
    overhead: bool = False
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    shard: bool = False
    workers: int = 0
    score: tuple[str, ...] = ()
    score_every: int = 10
    checkpoint_every: int = 1
    stop_on_collapse: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """What a method trains with.  lr: for a batch of 256, or as `of_batch` says.  warmup: epochs."""

    objective: Objective
    views: Sequence[View]
    optimizer: Callable[..., Optimizer]
    lr: float
    weight_decay: float | Schedule
    warmup: int = 10
    clip: float | None = None


@dataclass(frozen=True)
class Result:
    """What came of it.  backbone: the file.  scores: step, knn20, knn200; the last row also `linear`."""

    backbone: Path
    steps: int
    tiles: int
    loss: float
    scores: list[dict[str, float]]
    diagnosis: str
    stopped: str
    failures: list[tuple[str, str]] = field(default_factory=list)
    duplicates: int = 0


def pretrain(
    method: Method, data: Sequence[str], backbone: str, out: Path, options: Options = Options(), *,
    progress: Progress = lambda stage, done, total: None,
) -> Result:  # fmt: skip
    """Train `backbone` on the pictures under `data` by `method`; `out` gets backbone.safetensors, scores and run.json.

    Raises InputError for what cannot be trained on, OutputError where `out` holds another run, TrainingError where the
    loss is no longer finite.
    """
    started = datetime.datetime.now(datetime.UTC)
    if method not in get_args(Method):
        raise InputError(f"no method {method}: there are {', '.join(get_args(Method))}")
    if options.batch < 2:
        raise InputError("a batch of one picture has nothing to be told apart from: give --batch 2 or more")
    ranks.join()
    net = backbone_named(backbone, size=options.size, seed=options.seed)
    drop_paths(net, method, options.drop_path)
    size, local = _sizes(net, options)
    pool = Pool(list(data), options.side or size, progress=progress)
    steps_an_epoch = max(1, round(len(pool) / (options.batch * options.accumulate)))
    if len(pool) < 2:
        raise InputError(f"one picture is not enough to learn from: {data[0]} holds no other")
    learner = copy.deepcopy(net)  # the plain one takes up what was learnt: with `shard` the learner's is in parts
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)
        recipe = recipe_of(method, learner, size, local, len(pool), options)
    arguments = {"method": method, "data": list(data), "backbone": backbone, **asdict(options)}
    _claim(out, arguments)

    doctor = CollapseDoctor(stop=options.stop_on_collapse)
    scores, labelled = {}, None
    if options.score:
        labelled = Labelled.load(options.score, options.side or size, seed=options.seed, progress=progress)
        scores = {"knn20": lambda: labelled.knn(seen_by(recipe.objective), 20)}
        scores |= {"knn200": lambda: labelled.knn(seen_by(recipe.objective), 200)}
    device = compute_device()
    found = fit(
        recipe.objective,
        Batches(
            pool, options.batch, seed=options.seed, collate=Views(tuple(recipe.views)), workers=options.workers
        ),
        steps=options.epochs * steps_an_epoch, lr=options.lr or recipe.lr, optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay, warmup=min(recipe.warmup, options.epochs // 5) * steps_an_epoch,
        clip=recipe.clip, accumulate=options.accumulate, precision=options.precision,
        shard=options.shard, device=device, seed=options.seed, out=out,
        checkpoint_every=options.checkpoint_every * steps_an_epoch, callbacks=[doctor], scores=scores,
        score_every=options.score_every * steps_an_epoch,
    )  # fmt: skip
    assert found.checkpoint is not None
    state, at = checkpoint.load(found.checkpoint)["objective"], _place(recipe.objective)
    net.load_state_dict({name.removeprefix(at): value for name, value in state.items() if name.startswith(at)})
    rows = [dict(row) for row in found.scores]
    if labelled is not None and rows:
        rows[-1]["linear"] = labelled.linear(net.to(device).eval())
    result = Result(
        backbone=out / "backbone.safetensors", steps=found.step, tiles=len(pool), loss=found.history[-1]["loss"],
        scores=rows, diagnosis=doctor.warning or _said(doctor.readings[-1]), stopped=found.stopped,
        failures=list(pool.failures), duplicates=len(pool.duplicates),
    )  # fmt: skip
    if ranks.rank() == 0:
        save_backbone(net.cpu(), result.backbone)
        _write(out, arguments, result, found.history, started, device)
    return result


def recipe_of(method: Method, net: Backbone, size: int, local: int, tiles: int, options: Options) -> Recipe:
    """Objective, views and optimiser as in the method's paper.

    Departures: transformers take AdamW also where a paper for ResNets takes LARS; queue and prototypes are fewer where
    pictures are few.
    """
    small, batch = size <= SMALL_PX, options.batch * options.accumulate
    transformer = isinstance(net, ViTBackbone)
    adamw = partial(AdamW, betas=(0.9, 0.999))
    lars = partial(LARS, momentum=0.9)
    prototypes = options.prototypes or (65_536 if tiles > 200_000 else 8192 if tiles > 20_000 else 2048)
    crops = {"local_size": local, "locals": options.locals}
    if method == "simclr":
        found = Recipe(
            SimCLR(net, temperature=0.5 if small else 0.1), simclr_cifar(size) if small else simclr(size), lars,
            0.3 * batch / 256, 1e-4 if small else 1e-6,
        )  # fmt: skip
    elif method == "moco":
        most = options.queue or min(65_536, 4096 if small else 65_536, max(batch, tiles // 2))
        queue = max(1, most // options.batch) * options.batch
        found = Recipe(
            MoCo(net, queue=queue, temperature=0.1 if small else 0.2, momentum=0.99 if small else 0.999,
                 parts=_parts(options.batch)),
            moco_v2(size) if not small else moco_v1(size), partial(SGD, momentum=0.9),
            0.03 * batch / 256, 1e-4, warmup=0,
        )  # fmt: skip
    elif method == "mocov3":
        found = Recipe(MoCoV3(net), byol(size), adamw, 1.5e-4 * batch / 256, 0.1, warmup=40)
    elif method == "byol":
        found = Recipe(BYOL(net, momentum=cosine(0.99, 1.0)), byol(size), lars, 0.3 * batch / 256, 1e-6)
    elif method == "dino":
        found = Recipe(
            DINO(net, prototypes=prototypes), dino(size, **crops), adamw, 5e-4 * batch / 256, cosine(0.04, 0.4), clip=3
        )
    else:
        if not isinstance(net, ViTBackbone):
            raise InputError("dinov2 hides patches from a vision transformer: give a --backbone such as vit-small/14")
        build = DINOv2.long if options.long else DINOv2.short
        changes = {} if options.long and options.prototypes is None else {"prototypes": prototypes}
        found = Recipe(
            build(net, **changes), dinov2(size, **crops), adamw, 4e-3 * math.sqrt(batch / 1024), cosine(0.04, 0.4),
            clip=3,
        )  # fmt: skip
    if transformer and found.optimizer is lars:
        found = Recipe(found.objective, found.views, adamw, 5e-4 * batch / 256, 0.05, clip=3)
    views = unblurred(found.views) if small else list(found.views)
    return Recipe(**{**vars(found), "views": aerial(views) if options.overhead else views})


def seen_by(objective: nn.Module) -> nn.Module:
    """The backbone that a method is judged by: the teacher's for DINO and DINOv2, else the student's."""
    return objective.get_submodule(_place(objective).rstrip("."))


@dataclass(frozen=True)
class Labelled:
    """Labelled pictures, of which a fifth is held out."""

    images: Tensor  # uint8 [n, 3, side, side]
    labels: Tensor
    held: Tensor  # bool

    @classmethod
    def load(cls, paths: Sequence[str], side: int, *, seed: int, progress: Progress) -> "Labelled":
        pool = Pool(list(paths), side, progress=progress)
        labels, classes = folder_labels(pool.names)
        if len(classes) < 2:
            raise InputError(f"--score {paths[0]} holds pictures of one class only: a folder for each class is needed")
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
        held = torch.zeros(len(pool), dtype=torch.bool)
        held[order[: max(1, len(pool) // 5)]] = True
        return cls(torch.stack([pool[i] for i in range(len(pool))]), labels, held)

    def knn(self, net: nn.Module, k: int) -> float:
        """Share of the held out whose class the k nearest of the others say."""
        x = embed(net, self.images)
        return knn_accuracy(x[~self.held], self.labels[~self.held], x[self.held], self.labels[self.held], k=k)

    def linear(self, net: nn.Module) -> float:
        """The same by a linear layer."""
        x = embed(net, self.images)
        return linear_accuracy(x[~self.held], self.labels[~self.held], x[self.held], self.labels[self.held])


def _place(objective: nn.Module) -> str:
    return "teacher.model.0." if isinstance(objective, DINO | DINOv2) else "backbone."


def drop_paths(net: Backbone, method: Method, rate: float | None) -> None:
    """Set stochastic depth: DINOv2's is the same in all blocks, that of the others rises from 0 in the first.

    Raises InputError for a rate outside [0, 1), or where it is asked of a network without transformer blocks.
    """
    if rate is not None and not 0 <= rate < 1:
        raise InputError(f"--drop-path {rate}: give a share from 0 to below 1")
    if not isinstance(net, ViTBackbone):
        if rate:
            raise InputError("--drop-path is for transformers: leave it out")
        return
    highest = rate if rate is not None else {"dino": 0.1, "dinov2": 0.3}.get(method, 0.0)
    for i, block in enumerate(net.vit.blocks):
        assert isinstance(block, Block)
        block.drop_path = highest if method == "dinov2" else highest * i / max(1, net.vit.depth - 1)


def _parts(batch: int) -> int:
    """Parts of the batch with statistics of their own: at most 8, of the same size."""
    return next(parts for parts in (8, 4, 2, 1) if batch % parts == 0 and (batch // parts >= 2 or parts == 1))


def _sizes(net: Backbone, options: Options) -> tuple[int, int]:
    """Sides of global and local crops, multiples of a transformer's patch."""
    patch = net.vit.patch if isinstance(net, ViTBackbone) else 1
    own = net.vit.grid[0] * patch if isinstance(net, ViTBackbone) else 224
    size = options.size or own
    local = options.local or max(patch, round(size * 3 / 7 / patch) * patch)
    for name, value in (("--size", size), ("--local", local)):
        if value % patch:
            raise InputError(f"{name} {value} is not a multiple of the backbone's patch of {patch} px")
    return size, local


def _said(reading: dict[str, float | str]) -> str:
    """What the doctor read last, in a line."""
    names = {"embedding_std": "spread", "effective_rank": "effective rank", "teacher_entropy": "teacher entropy"}
    figures = [f"{label} {reading[name]:.3g}" for name, label in names.items() if name in reading]
    kind = "no collapse" if reading["kind"] == "none" else f"collapsed ({reading['kind']})"
    return ": ".join(part for part in (kind, ", ".join(figures)) if part)


def _claim(out: Path, arguments: dict[str, Any]) -> None:
    """Make the folder. Raises OutputError when it holds a run of other arguments, or cannot be made."""
    path = out / "run.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        before = json.loads(path.read_text(encoding="utf-8"))["arguments"] if path.exists() else None
        now = json.loads(json.dumps(arguments))
        if before not in (None, now):
            raise OutputError(f"{out} holds another run: give another --out, or remove it")
        if ranks.rank() == 0:
            path.write_text(json.dumps({"arguments": now}, indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{out} cannot be used as the output folder ({error}): give another --out") from error


def _write(
    out: Path, arguments: dict[str, Any], result: Result, history: list, started: datetime.datetime,
    device: torch.device,
) -> None:  # fmt: skip
    run = {
        "negah": __version__, "verb": "pretrain", "started": started.isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "arguments": arguments,
        "versions": versions(), "hardware": hardware(device), "processes": ranks.world(),
    }  # fmt: skip
    scores = {**asdict(result), "backbone": str(result.backbone), "history": history}
    for name, content in (("scores.json", scores), ("run.json", run)):
        try:
            (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{out / name} cannot be written ({error.strerror}): free some space") from error
