"""What do DINOv2's tricks save: packed crops, stochastic depth, fused attention, distillation?

Each is run with and without; `costs` says how time and memory are measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from negah.images.views import views
from negah.lab.costs import Step, costs, device
from negah.lab.page import Page, Panel, figure
from negah.lab.training import SIDE, Effort, Learned, Pictures, learn, plot_curves, small_views, summary
from negah.nn import crops as packing
from negah.nn.backbone import Backbone, ViTBackbone
from negah.nn.vit import Block, SelfAttention, Tokens, ViT, attend
from negah.ssl import DINOv2
from negah.train.schedules import constant

IMAGES, GLOBAL, LOCAL, LOCALS = 4, 96, 40, 8  # crops of about DINOv2's 224 and 98 px, in proportion
RATES = (0.1, 0.3, 0.5)
SIDES = (64, 128, 256)
RECIPE = [small_views()] * 2 + [small_views(SIDE // 2, low=0.1, high=0.4)] * 4  # of distillation


class Multiplied(Block):
    """Stochastic depth as it is mostly written: the branch of every row is computed, and that of some taken times 0."""

    def residual(self, x: Tensor, branch) -> Tensor:
        if not self.training or self.drop_path == 0:
            return super().residual(x, branch)
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x + branch(x) * kept / (1 - self.drop_path)


class WrittenOut(SelfAttention):
    """Attention that keeps the weights of all pairs."""

    def collect(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


def run(out: Path, effort: Effort) -> Page:
    """All panels into the folder `out`."""
    pictures = Pictures.of(effort)
    page = Page("dinov2-tricks", "What do DINOv2's tricks save?", out, effort.settings())
    page.add(packed(effort))
    page.add(depth(effort))
    page.add(attention(effort))
    page.add(distillation(pictures, effort))
    return page


def packed(effort: Effort) -> Panel:
    """Crops of two sizes through a transformer in training: one after the other, by size, packed."""
    where, vit = device(), _vit(patch=8, side=GLOBAL, dim=128, depth=4, drop_path=0.0)
    pictures = (255 * torch.rand(IMAGES, 3, GLOBAL, GLOBAL)).byte()
    recipe = [small_views(GLOBAL)] * 2 + [small_views(LOCAL, low=0.1, high=0.4)] * LOCALS
    crops = [crop.to(where) for crop in views(pictures, recipe, generator=torch.Generator().manual_seed(0))]

    def by_size() -> list[Tokens]:
        return [vit(torch.cat(crops[:2])), vit(torch.cat(crops[2:]))]

    ways: dict[str, Callable[[], list[Tokens]]] = {
        "crop by crop": lambda: [vit(crop) for crop in crops],
        "size by size": by_size,
        "packed": lambda: vit.many(crops),
    }
    found = costs({name: partial(_step, vit, way) for name, way in ways.items()}, effort)
    rows = [{"setting": name} | cost.row(found["crop by crop"]) for name, cost in found.items()]
    told = [_told(row, "crop by crop") for row in rows[1:]]
    return Panel(
        name="packing", title="Packed crops",
        asks=f"Forward and backward of 2 crops of {GLOBAL} px and {LOCALS} of {LOCAL} px of each of {IMAGES} pictures "
        "through a transformer of 4 blocks: every crop of the list by itself, the crops of one size together, or all "
        "in one list of tokens (ViT.many, which also computes cheap things again instead of keeping them). One would "
        "expect fewer, larger products to be faster, and the last to hold least.",
        found=" ".join(told), rows=rows, figure=_bars(rows), code=[ViT.many, packing.through],
    )  # fmt: skip


def depth(effort: Effort) -> Panel:
    """Stochastic depth, its rows left out or multiplied by zero."""
    images = torch.rand(8, 3, GLOBAL, GLOBAL, device=device())
    steps: dict[str, Step] = {}
    for rate in (0.0, *RATES):
        for name, kind in (("left out", Block), ("times zero", Multiplied)):
            vit = _vit(patch=8, side=GLOBAL, dim=128, depth=2, drop_path=rate)
            for block in vit.blocks:
                block.__class__ = kind
            if rate or kind is Block:
                steps[f"{name} {rate:g}" if rate else "off"] = partial(_step, vit, partial(_alone, vit, images))
    found = costs(steps, effort)
    rows = [{"setting": name} | cost.row(found["off"]) for name, cost in found.items()]
    plot, axes = figure(2)
    for axis, name, title in zip(axes, ("ms", "MB"), ("a step, ms", "peak memory, MB")):
        for way in ("left out", "times zero"):
            mine = [row for row in rows if row["setting"] == "off" or row["setting"].startswith(way)]
            axis.plot((0.0, *RATES), [row[name] for row in mine], marker="o", label=way)
        axis.set(title=title, xlabel="rate", ylim=(0, None))
    axes[0].legend(fontsize=8, frameon=False)
    at = [row for row in rows if row["setting"].endswith(f" {RATES[1]:g}")]
    return Panel(
        name="depth", title="Stochastic depth",
        asks="Forward and backward of 8 pictures through 2 blocks, each of whose branches is dropped for a picture at "
        "the rate given: computed for the pictures that keep it alone, or for all and multiplied by zero. One would "
        "expect the first to save its rate in time and memory, the second nothing.",
        found=" ".join(_told(row, "stochastic depth off") for row in at), rows=rows, figure=plot,
        code=[Block.residual, Multiplied],
    )  # fmt: skip


def attention(effort: Effort) -> Panel:
    """Fused attention against attention that writes out the weights of all pairs, for more and more tokens."""
    rows: list[dict[str, Any]] = []
    for side in SIDES:
        images = torch.rand(4, 3, side, side, device=device())
        fused, written = (_vit(patch=8, side=side, dim=96, depth=2, drop_path=0.0) for _ in range(2))
        for block in written.blocks:
            block.set_submodule("attn", WrittenOut(written.dim, written.heads).to(device()))
        steps = {
            "written out": partial(_step, written, partial(_alone, written, images)),
            "fused": partial(_step, fused, partial(_alone, fused, images)),
        }
        found = costs(steps, effort)
        tokens = 1 + (side // 8) ** 2
        rows += [
            {"setting": f"{name}, {tokens} tokens"} | cost.row(found["written out"]) | {"tokens": tokens, "way": name}
            for name, cost in found.items()
        ]
    plot, axes = figure(2)
    for axis, name, title in zip(axes, ("ms", "MB"), ("a step, ms", "peak memory, MB")):
        for way in ("written out", "fused"):
            mine = [row for row in rows if row["way"] == way]
            axis.plot([row["tokens"] for row in mine], [row[name] for row in mine], marker="o", label=way)
        axis.set(title=title, xlabel="tokens", xscale="log", yscale="log")
        axis.set_xticks([row["tokens"] for row in mine], [str(row["tokens"]) for row in mine])
        axis.minorticks_off()
    axes[0].legend(fontsize=8, frameon=False)
    told = [_told(row, "written out") for row in rows if row["way"] == "fused"]
    return Panel(
        name="attention", title="Fused attention",
        asks="Forward and backward of 4 pictures through 2 blocks of width 96, at several sizes of the picture: "
        "attention that keeps the weights of all pairs of tokens, or PyTorch's fused one, which does not. One would "
        "expect the first one's memory to grow with the square of the tokens.",
        found=" ".join(told), rows=rows, figure=plot, code=[attend, WrittenOut],
    )  # fmt: skip


def distillation(pictures: Pictures, effort: Effort) -> Panel:
    """A small student that learns from a frozen larger teacher, and the same one by itself."""
    effort = replace(effort, batch=max(4, effort.batch // 2))
    runs: list[Learned] = []
    trained: dict[str, DINOv2] = {}
    for seed in range(effort.seeds):
        guide: DINOv2 | None = None
        for label, dim, blocks in (("large", 96, 3), ("small", 32, 2), ("small, distilled", 32, 2)):
            wanted = guide if label == "small, distilled" else None
            run, trained[label] = _train(pictures, effort, label, seed, dim=dim, blocks=blocks, guide=wanted)
            runs.append(run)
            guide = guide or trained[label]
    where, pixels = device(), pictures.train[: effort.batch]
    crops = [crop.to(where) for crop in views(pixels, RECIPE, generator=torch.Generator().manual_seed(0))]
    steps = {label: partial(_train_step, it.to(where).train(), crops) for label, it in trained.items()}
    found = costs(steps, effort)
    rows = summary(runs, ["knn", "loss"])
    for row in rows:
        row |= found[row["setting"]].row(found["small"])
    plot, (axis,) = figure()
    plot_curves(axis, runs, "knn", title="kNN accuracy")
    axis.legend(fontsize=8, frameon=False)
    large, alone, distilled = rows
    gain = distilled["knn"] - alone["knn"]
    before = mean(run.scores[0]["knn"] for run in runs if run.label == "small")
    chance = math.sqrt(sum(row["knn"] * (1 - row["knn"]) for row in rows[1:]) / len(pictures.test))
    return Panel(
        name="distillation", title="Distillation",
        asks="DINOv2 on a transformer of 3 blocks of width 96, on one of 2 blocks of width 32, and the same small one "
        "guided by the large one, which is done and stays as it is; all for the same number of steps. Measured: kNN "
        "accuracy of the moving averages on test pictures, time and memory of a step. One would expect a good guide to "
        "help the small one, and to cost its forward pass.",
        found=f"After equal steps the distilled student is {100 * abs(gain):.1f} points of kNN accuracy "
        f"{'above' if gain > 0 else 'below'} the one by itself ({100 * distilled['knn']:.1f} % and "
        f"{100 * alone['knn']:.1f} %; the guide: {100 * large['knn']:.1f} %; the small one untrained: "
        f"{100 * before:.1f} %); {len(pictures.test)} test pictures make the difference of two such figures uncertain "
        f"by {100 * chance:.1f} points (standard error). A step with the guide runs at "
        f"{distilled['speed']:.2f} of the speed of one without (middle half of the rounds "
        f"{distilled['speed, lower quarter']:.2f} to {distilled['speed, upper quarter']:.2f}), in "
        f"{distilled['memory']:.2f} of its memory.",
        rows=rows, figure=plot, code=[DINOv2.distil],
    )  # fmt: skip


def _train(
    pictures: Pictures, effort: Effort, label: str, seed: int, *, dim: int, blocks: int, guide: DINOv2 | None
) -> tuple[Learned, DINOv2]:
    """One run, and what came of it."""
    made: list[DINOv2] = []

    def network(seed: int) -> ViTBackbone:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vit = ViT(
                patch=8, dim=dim, depth=blocks, heads=dim // 32, grid=(SIDE // 8, SIDE // 8), layer_scale=None,
                interpolation="size",
            )  # fmt: skip
        return ViTBackbone(vit)

    def make(backbone: Backbone) -> DINOv2:
        made.append(_dinov2(backbone, guide))
        return made[0]

    run = learn(
        make, pictures, RECIPE, effort, label=label, seed=seed, lr=2e-3, weight_decay=0.04, network=network,
        scored={"knn": lambda objective: objective.teacher.model.get_submodule("0")},
    )  # fmt: skip
    return run, made[0]


def _dinov2(backbone: Backbone, guide: DINOv2 | None = None) -> DINOv2:
    assert isinstance(backbone, ViTBackbone)
    recipe: dict[str, Any] = {
        "hidden": 128, "bottleneck": 16, "momentum": 0.95, "teacher_temperature": constant(0.05), "freeze_last": 0.0,
        "layer_decay": 1.0, "patch_lr": 1.0,
    }  # fmt: skip
    if guide is not None:
        return DINOv2.distil(backbone, guide, **recipe)
    return DINOv2(backbone, prototypes=64, balanced=True, **recipe)


def _train_step(objective: DINOv2, crops: list[Tensor]) -> None:
    """Forward and backward; nothing stays."""
    objective(crops)["loss"].backward()
    objective.zero_grad()
    objective.seen = {}


def _vit(*, patch: int, side: int, dim: int, depth: int, drop_path: float) -> ViT:
    """In training, with the same rate in every block."""
    vit = ViT(
        patch=patch, dim=dim, depth=depth, heads=dim // 32, grid=(side // patch, side // patch), layer_scale=None,
        drop_path=[drop_path] * depth, interpolation="size",
    )  # fmt: skip
    return vit.to(device()).train()


def _alone(vit: ViT, images: Tensor) -> list[Tokens]:
    return [vit(images)]


def _step(vit: ViT, forward: Callable[[], Sequence[Tokens]]) -> None:
    """Forward and backward, of a loss that all tokens have a part in; no gradient stays."""
    sum((part.cls.square().mean() + part.patches.square().mean() for part in forward()), torch.zeros(())).backward()
    vit.zero_grad()


def _told(row: dict[str, Any], base: str) -> str:
    return (
        f"{row['setting'][0].upper()}{row['setting'][1:]}: {row['speed']:.2f} times as fast as {base}"
        f" (middle half of the rounds {row['speed, lower quarter']:.2f} to {row['speed, upper quarter']:.2f}),"
        f" {row['memory']:.2f} of its memory."
    )


def _bars(rows: Sequence[dict[str, Any]]) -> Any:
    """Time and memory of each setting."""
    plot, axes = figure(2)
    for axis, name, title in zip(axes, ("ms", "MB"), ("a step, ms", "peak memory, MB")):
        axis.barh([row["setting"] for row in rows], [row[name] for row in rows], color="C0")
        axis.set(title=title)
        axis.invert_yaxis()
    return plot
