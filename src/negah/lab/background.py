"""Does a teacher look at the object or at the ground behind it, and what do local crops do to that?

DINO asks of a small crop what its teacher says of the whole picture (Caron et al. 2021, arXiv:2104.14294).  In
generated pictures the object's pixels are known, so where the teacher attends can be counted.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from negah.errors import InputError
from negah.images.views import View, Views
from negah.lab.page import Page, Panel, figure
from negah.lab.shapes import Shapes, shapes
from negah.lab.training import TEST, TRAIN, Effort, Pictures, small_views
from negah.nn.backbone import ViTBackbone
from negah.nn.vit import ViT
from negah.ssl import DINO
from negah.train import Batches, fit
from negah.train.schedules import constant

SIDE, PATCH = 24, 4
LOCALS, LOCAL_SIDE = 4, 12
CHOSEN_ON = 500  # training pictures on which the best head is chosen
TEACHER_TEMPERATURE = 0.03  # sharper than usual: at .05 one of two such short runs kept to the uniform answer
TEST_SEED = 2  # the temperature was chosen on pictures of seed 1
CHECKS = 6
SHOWN = 8  # test pictures


@dataclass(frozen=True)
class Watched:
    """One run.  scores: rows of `steps` and the figures of `watch`, before it and on the way; maps: CLS attention of
    the head that is best on training pictures, on the first SHOWN test pictures; lit: how far that head is turned to
    objects that are brighter than their ground, and to darker ones."""

    label: str
    seed: int
    scores: list[dict[str, Any]]
    knn: float
    maps: Float[Tensor, "shown rows columns"]
    lit: tuple[float, float]
    seconds: float


def run(out: Path, effort: Effort) -> Page:
    """Both panels into the folder `out`.  Raises InputError where pictures are given: their objects are not known."""
    if effort.data:
        raise InputError("background has to know the pixels of the object: leave out --data")
    train, test = shapes(TRAIN, SIDE, seed=0), shapes(TEST, SIDE, seed=TEST_SEED)
    crops = {
        "with local crops": [small_views(SIDE)] * 2 + [small_views(LOCAL_SIDE, low=0.1, high=0.4)] * LOCALS,
        "global crops alone": [small_views(SIDE)] * 2,
    }
    runs = [
        watch(label, seed, train, test, views, effort)
        for label, views in crops.items() for seed in range(effort.seeds)
    ]  # fmt: skip
    page = Page("background", "What turns the teacher to the object?", out, effort.settings())
    page.add(_share(runs))
    page.add(_pictures(runs, test))
    return page


def watch(label: str, seed: int, train: Shapes, test: Shapes, views: list[View], effort: Effort) -> Watched:
    """Train DINO for as much compute as `effort.steps` steps with local crops take, and look at its teacher."""
    steps = round(effort.steps * tokens(LOCALS) / tokens(len(views) - 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = ViT(
            patch=PATCH, dim=48, depth=2, heads=3, grid=(SIDE // PATCH, SIDE // PATCH), layer_scale=None,
            interpolation="size",
        )  # fmt: skip
        objective = DINO(
            ViTBackbone(vit), prototypes=64, hidden=128, bottleneck=16, head_norm=True, momentum=0.95,
            teacher_temperature=constant(TEACHER_TEMPERATURE), freeze_last=0.0,
        )  # fmt: skip
    teacher: Any = objective.teacher.model.get_submodule("0")
    known = train.images[:CHOSEN_ON], train.masks[:CHOSEN_ON]

    def best() -> int:
        return int(turned(teacher.vit, *known).argmax())

    scores = {
        "all heads": lambda: turned(teacher.vit, test.images, test.masks).mean().item(),
        "best head": lambda: turned(teacher.vit, test.images, test.masks)[best()].item(),
    }
    first = {"step": 0, **{name: score() for name, score in scores.items()}}
    started = time.perf_counter()
    done = fit(
        objective, Batches(train.images, max(4, effort.batch // 2), seed=seed, collate=Views(tuple(views))),
        steps=steps, lr=2e-3, warmup=steps // 10, weight_decay=0.04, clip=3.0, seed=seed, scores=scores,
        score_every=-(-steps // CHECKS), log_every=max(1, steps // 60),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    knn = Pictures(train.images, train.labels, test.images, test.labels).knn(teacher)
    head = best()
    maps = cls_attention(teacher.vit, test.images[:SHOWN])[:, head].unflatten(1, (SIDE // PATCH, SIDE // PATCH))
    bright = brighter(test.images, test.masks)
    light, dark = (turned(teacher.vit, test.images[some], test.masks[some])[head].item() for some in (bright, ~bright))
    rows = [first, *done.scores]
    effort.say(
        f"{label}, seed {seed}: {steps} steps, best head {rows[-1]['best head']:.2f} (bright objects {light:.2f}, dark"
        f" ones {dark:.2f}), kNN {knn:.3f}, {seconds:.0f} s"
    )
    return Watched(label, seed, [dict(row) for row in rows], knn, maps, (light, dark), seconds)


def tokens(locals: int) -> int:
    """Passes of tokens through the network for a picture: one forward in the teacher, forward and backward (as two)
    in the student."""
    of_global, of_local = (1 + (side // PATCH) ** 2 for side in (SIDE, LOCAL_SIDE))
    return 2 * of_global + 3 * (2 * of_global + locals * of_local)


@torch.no_grad()
def cls_attention(vit: ViT, images: UInt8[Tensor, "n 3 side side"]) -> Float[Tensor, "n head patch"]:
    """How the attention of CLS in the last block is shared out over the patches; CLS itself is left out."""
    weights = vit.attention(images)[:, :, 0, 1:]
    return weights / weights.sum(-1, keepdim=True)


def turned(
    vit: ViT, images: UInt8[Tensor, "n 3 side side"], masks: Float[Tensor, "n side side"]
) -> Float[Tensor, " head"]:
    """Of each head, the share of `cls_attention` on the object over the object's share of the area: 1 is blind."""
    of_object = F.avg_pool2d(masks.unsqueeze(1), vit.patch).flatten(1)  # share of each patch
    mass = (cls_attention(vit, images) * of_object.unsqueeze(1)).sum(-1)
    return mass.mean(0) / masks.mean()


def brighter(images: UInt8[Tensor, "n 3 side side"], masks: Float[Tensor, "n side side"]) -> Bool[Tensor, " n"]:
    """Whether the object is brighter than the ground, on average."""
    grey = images.float().mean(1)
    inside, outside = ((grey * part).sum((1, 2)) / part.sum((1, 2)) for part in (masks, 1 - masks))
    return inside > outside


def _share(runs: list[Watched]) -> Panel:
    plot, (*axes, last) = figure(3, width=4.2)
    rows: list[dict[str, Any]] = []
    for label in dict.fromkeys(run.label for run in runs):
        mine = [run for run in runs if run.label == label]
        row: dict[str, Any] = {"setting": label, "seeds": len(mine), "steps": mine[0].scores[-1]["step"]}
        for axis, name in zip(axes, ("all heads", "best head")):
            lines = [[row[name] for row in run.scores] for run in mine]
            share = [row["step"] / mine[0].scores[-1]["step"] for row in mine[0].scores]
            axis.plot(share, [mean(values) for values in zip(*lines)], label=label)
            row |= {name: mean(line[-1] for line in lines), f"{name} by seed": [line[-1] for line in lines]}
            row[f"{name} before"] = mean(line[0] for line in lines)
        row |= {
            f"{of} by seed": [run.lit[i] for run in mine] for i, of in enumerate(("bright objects", "dark objects"))
        }
        for run in mine:
            last.plot((len(rows) - 0.2, len(rows) + 0.2), run.lit, marker="o", color=f"C{len(rows)}")
        row |= {"knn": mean(run.knn for run in mine), "seconds": mean(run.seconds for run in mine)}
        rows.append(row)
    for axis, name in zip(axes, ("mean of all heads", "best head")):
        axis.axhline(1, color="#999", linewidth=0.8, linestyle="--")
        axis.set(title=name, xlabel="share of the compute", ylabel="attention on object / its area")
    axes[0].legend(fontsize=8, frameon=False)
    last.axhline(1, color="#999", linewidth=0.8, linestyle="--")
    last.set_xticks(range(len(rows)), [row["setting"] for row in rows], fontsize=8)
    last.set(title="best head: bright, then dark objects")
    ahead = [row["setting"] for row in rows if row["all heads"] > row["all heads before"]]
    told = "; ".join(
        f"{row['setting']} {row['all heads']:.2f} (all heads) and {row['best head']:.2f} (best head),"
        f" kNN {100 * row['knn']:.1f} %"
        for row in rows
    )
    local, alone = rows
    more = [local["best head"] > alone["best head"], local["all heads"] > alone["all heads"]]
    pairs = list(zip(local["best head by seed"], alone["best head by seed"]))
    verdict = {2: "more", 1: "more in one of the two figures, less in the other", 0: "no more"}[sum(more)]
    return Panel(
        name="share", title="Attention on the object",
        asks=f"DINO trains a small vision transformer with two global crops and {LOCALS} local ones, or with the "
        "global ones alone and more steps: as many tokens pass through the networks. Measured on test pictures: the "
        "share of the teacher's CLS attention, in its last block, that falls on the object, over the share of the "
        "picture that the object covers; 1 is attention that does not see it. The best head is chosen on training "
        "pictures. The last plot has it for objects that are brighter than their ground and, to the right, for darker "
        "ones, a line for each seed: a head that looks for what is bright is turned away from dark objects, and has a "
        "mean above 1 all the same. One would expect local crops to turn it to the object more, since what a part "
        "tells of the whole is the object.",
        found=f"With local crops the attention turned to the object {verdict} than without: {told}."
        f" By the best head it did so in {sum(a > b for a, b in pairs)} of {len(pairs)} seeds."
        f" Before training: {rows[0]['all heads before']:.2f} and {rows[0]['best head before']:.2f}."
        f" Settings that training turned to the object at all: {', '.join(ahead) or 'none'}. {_lit(rows)}",
        rows=rows, figure=plot, code=[DINO, turned],
    )  # fmt: skip


def _lit(rows: list[dict[str, Any]]) -> str:
    """Whether it is the object that the heads are turned to, or what is bright or dark."""
    told = []
    for row in rows:
        seeds = list(zip(row["bright objects by seed"], row["dark objects by seed"]))
        both = sum(min(pair) > 1 for pair in seeds)
        told.append(
            f"{row['setting']} {both} of {len(seeds)} ("
            + "; ".join(f"{bright:.2f} and {dark:.2f}" for bright, dark in seeds)
            + ")"
        )
    return f"Seeds whose best head is turned to bright and to dark objects alike: {', '.join(told)}."


def _pictures(runs: list[Watched], test: Shapes) -> Panel:
    """The first run of each setting."""
    first = [next(run for run in runs if run.label == label) for label in dict.fromkeys(run.label for run in runs)]
    lines = [
        ("picture", test.images[:SHOWN].permute(0, 2, 3, 1)), ("object", test.masks[:SHOWN]),
        *((run.label, run.maps) for run in first),
    ]  # fmt: skip
    plot = Figure(figsize=(10, 1.25 * len(lines) + 0.2), layout="constrained")
    for axes, (name, pictures) in zip(plot.subplots(len(lines), SHOWN), lines):
        for axis, picture in zip(axes, pictures):
            axis.imshow(picture.numpy(), cmap="viridis", vmin=0)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name, fontsize=9)
    of_object = F.avg_pool2d(test.masks[:SHOWN].unsqueeze(1), PATCH).squeeze(1)
    rows = [
        {
            "setting": run.label, "best head": run.scores[-1]["best head"],
            "shown, turned to": int(((run.maps * of_object).sum((1, 2)) > of_object.mean((1, 2))).sum()),
        }
        for run in first
    ]  # fmt: skip
    told = " and ".join(
        f"{row['best head']:.2f} over all test pictures, and more attention on the object than its area in"
        f" {row['shown, turned to']} of those shown ({row['setting']})"
        for row in rows
    )
    return Panel(
        name="maps", title="What the teacher attends to",
        asks=f"The first {SHOWN} test pictures, their objects, and the CLS attention of each teacher's best head "
        "(brighter is more, each map by itself): a square for each patch. A ratio far above 1 is a mean over pictures: "
        "one head may stand on the object of one picture and beside that of the next.",
        found=f"Best heads of seed {first[0].seed}: {told}.", rows=rows, figure=plot, code=[cls_attention],
    )  # fmt: skip
