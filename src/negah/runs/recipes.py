"""How each method of `negah pretrain` is trained: objective, views, optimiser and learning rate of its paper."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from negah.errors import InputError
from negah.images.views import (
    View,
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
from negah.ssl import BYOL, DINO, DINOv2, MoCo, MoCoV3, SimCLR
from negah.train import Objective, checkpoint
from negah.train.optim import LARS
from negah.train.schedules import Schedule, cosine
from negah.weights import backbone

Method = Literal["simclr", "moco", "mocov3", "byol", "dino", "dinov2"]
SMALL_PX = 64  # up to which pictures take the recipes for CIFAR: no blur, weaker colours
CROPS = ("dino", "dinov2")  # methods with local crops and prototypes


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to pretrain.  None stands for what the method's paper does.

    size, local, locals: side of the global and local crops in pixels, and how many local ones.  side: of the tiles they
    are cut from, by default the global crop's.  epochs: passes over the pictures.  batch: pictures in a step, over all
    processes.  lr: highest learning rate.  prototypes: K of DINO and DINOv2.  long: DINOv2's long preset.  distil:
    folder of a dinov2 run that is done, whose teacher is to be learnt from.  queue: K of MoCo.  overhead: the pictures
    are seen from above (quarter turns, milder crops).  score: labelled pictures, a folder for each class.  score_every:
    epochs between scores and maps.  stop_on_collapse: end a run that the doctor gives up.
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
    distil: str | None = None
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

    def check(self) -> None:
        """Raises InputError that names the first option which no method can be trained with."""
        least = {
            "epochs": 1, "size": 1, "side": 1, "local": 1, "locals": 0, "prototypes": 1, "queue": 1, "accumulate": 1,
            "workers": 0, "score_every": 1, "checkpoint_every": 1, "seed": 0,
        }  # fmt: skip
        check_numbers(self.batch, self.lr, {name: (getattr(self, name), lowest) for name, lowest in least.items()})


def check_numbers(batch: int, lr: float | None, others: Mapping[str, tuple[int | None, int]]) -> None:
    """Raises InputError that names the first option that is too low; `others` hold a value and the lowest allowed."""
    if batch < 2:
        raise InputError("a batch of one picture has nothing to be told apart from: give --batch 2 or more")
    for name, (value, lowest) in others.items():
        if value is not None and value < lowest:
            raise InputError(f"--{name.replace('_', '-')} {value}: give {lowest} or more")
    if lr is not None and not 0 < lr < math.inf:
        raise InputError(f"--lr {lr}: give a number above 0")


@dataclass(frozen=True)
class Recipe:
    """What a method trains with.  lr: for this batch.  warmup: epochs.  clip: largest norm of gradients."""

    objective: Objective
    views: Sequence[View]
    optimizer: Callable[..., Optimizer]
    lr: float
    weight_decay: float | Schedule
    warmup: int = 10
    clip: float | None = None


def recipe_of(method: Method, net: Backbone, size: int, local: int, tiles: int, options: Options) -> Recipe:
    """Objective, views and optimiser as in the method's paper.

    Departures: transformers take AdamW also where a paper for ResNets takes LARS; queue and prototypes are fewer where
    pictures are few.
    """
    small, batch = size <= SMALL_PX, options.batch * options.accumulate
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
                 parts=_parts(options.batch), symmetric=small),
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
        assert isinstance(net, ViTBackbone)  # `fitted` refuses others
        if options.distil is not None:
            objective = DINOv2.distil(net, _guide(Path(options.distil)))
        else:
            build = DINOv2.long if options.long else DINOv2.short
            objective = build(
                net, **({} if options.long and options.prototypes is None else {"prototypes": prototypes})
            )
        found = Recipe(
            objective, dinov2(size, **crops), adamw, 4e-3 * math.sqrt(batch / 1024), cosine(0.04, 0.4),
            clip=3,
        )  # fmt: skip
    if isinstance(net, ViTBackbone) and found.optimizer is lars:
        found = Recipe(found.objective, found.views, adamw, 5e-4 * batch / 256, 0.05, clip=3)
    views = unblurred(found.views) if small else list(found.views)
    return Recipe(**{**vars(found), "views": aerial(views) if options.overhead else views})


def fitted(net: Backbone, method: Method, options: Options) -> tuple[int, int]:
    """Set the backbone's stochastic depth; the sides of global and local crops, multiples of a transformer's patch.

    Raises InputError where backbone, method and options do not go together.
    """
    if method == "dinov2" and not isinstance(net, ViTBackbone):
        raise InputError("dinov2 hides patches from a vision transformer: give a --backbone such as vit-small/14")
    if options.distil is not None:
        if method != "dinov2":
            raise InputError(f"--distil is for dinov2, not for {method}")
        if options.long or options.prototypes is not None:
            raise InputError("--distil takes heads and prototypes from that run: leave out --long and --prototypes")
    _drop_paths(net, "distil" if options.distil is not None else method, options.drop_path)
    patch = net.vit.patch if isinstance(net, ViTBackbone) else 1
    own = net.vit.grid[0] * patch if isinstance(net, ViTBackbone) else 224
    size = options.size or own
    local = options.local or max(patch, round(size * 3 / 7 / patch) * patch)
    for name, value in (("--size", size), ("--local", local)):
        if value % patch and (name == "--size" or method in CROPS):
            raise InputError(f"{name} {value} is not a multiple of the backbone's patch of {patch} px")
    return size, local


def seen_by(objective: nn.Module) -> nn.Module:
    """The backbone that a method is judged by: the teacher's for DINO and DINOv2, else the student's."""
    return objective.get_submodule("teacher.model.0" if isinstance(objective, DINO | DINOv2) else "backbone")


def _guide(run: Path) -> DINOv2:
    """The objective of a dinov2 run that is done, as it was at its end."""
    files = [run / name for name in ("run.json", "backbone.safetensors", "checkpoint.pt")]
    if not all(file.is_file() for file in files):
        raise InputError(f"--distil {run}: there is no finished run, {', '.join(file.name for file in files)}")
    try:
        arguments = json.loads(files[0].read_text(encoding="utf-8"))["arguments"]
        method, long = arguments["method"], arguments["long"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--distil: {files[0]} is not that of a pretraining ({error})") from error
    if method != "dinov2":
        raise InputError(f"--distil {run}: that is a run of {method}, and only dinov2 can be distilled")
    state = checkpoint.load(files[2])["objective"]
    net = backbone(files[1])
    assert isinstance(net, ViTBackbone)
    made = (DINOv2.long if long else DINOv2.short)(net, prototypes=len(state["head.last.weight"]))
    made.load_state_dict({name: value for name, value in state.items() if not name.startswith("guide.")})
    return made


def _drop_paths(net: Backbone, method: str, rate: float | None) -> None:
    """Set stochastic depth: DINOv2's is the same in all blocks, that of the others rises from 0 in the first."""
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
