"""What do large batches ask for: another optimiser, and batch norms that see the whole batch?

SimCLR (Chen et al. 2020, arXiv:2002.05709) trains on thousands of pictures a step, spread over many devices, with LARS
(You et al. 2017, arXiv:1708.03888) and with the batch statistics of all devices; MoCo (He et al. 2020,
arXiv:1911.05722, section 3.3) shuffles its keys over the devices instead.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from negah.images.views import views
from negah.lab.conclusions import against
from negah.lab.page import Page, Panel, figure
from negah.lab.training import Effort, Learned, Pictures, learn, small_resnet, small_views, summary
from negah.nn.backbone import Backbone
from negah.nn.norm import SplitBatchNorm2d
from negah.ssl import MoCo, SimCLR
from negah.train.optim import LARS

GROWTH = (0.25, 1, 4)  # batches, as parts of the set one
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"LARS": LARS, "SGD": SGD}
RATES = {"LARS": (3.0, 9.0, 27.0), "SGD": (0.3, 0.9, 2.7)}  # for 256 pictures in a step; others follow, see `tried`
STEP, FURTHER = 3.0, 2  # from one rate to the next, and how many at most follow
GROUP, LONGER = 2, 2  # of the second panel: pictures of a device, and steps for one of the first's
QUEUE = 4  # batches
ASKED = 200  # pictures among which a view has to find its partner
NETWORK = partial(small_resnet, stem="imagenet")  # on maps a quarter as large: many runs are to be compared


class Unshuffled(MoCo):
    """MoCo whose keys are normalised beside views of the same pictures as their queries."""

    def keys(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        with torch.no_grad():
            return self.teacher(images)


def run(out: Path, effort: Effort) -> Page:
    """Both panels into the folder `out`."""
    pictures = Pictures.of(effort)
    page = Page("large-batch", "What do large batches ask for?", out, effort.settings())
    page.add(lars(pictures, effort))
    page.add(leak(pictures, effort))
    return page


def lars(pictures: Pictures, effort: Effort) -> Panel:
    """LARS and SGD with momentum, at batches that grow while the pictures seen stay as many.

    Rates are tried with seed 0; the other seeds run what was chosen.  There are many runs, so each sees only half of
    the pictures that `effort` asks for.
    """
    batches = [max(4, round(effort.batch * growth)) for growth in GROWTH]
    runs: dict[tuple[str, int, float], list[Learned]] = {}

    def trained(name: str, batch: int, rate: float, seeds: int = 1) -> list[Learned]:
        """So many runs of a setting; those that there are already are not run again."""
        mine = runs.setdefault((name, batch, rate), [])
        for seed in range(len(mine), seeds):
            steps = max(2, round(effort.steps * effort.batch / 2 / batch))
            mine.append(
                learn(
                    partial(SimCLR, hidden=256, dim=64, temperature=0.2),
                    pictures,
                    [small_views()] * 2,
                    replace(effort, batch=batch, steps=steps),
                    label=f"{name}, batch {batch}, rate {rate:g}",
                    seed=seed,
                    network=NETWORK,
                    optimizer=partial(OPTIMIZERS[name], momentum=0.9),
                    lr=rate * batch / 256,
                    checks=1,
                )
            )
        return mine

    losses = {
        (name, batch): tried(RATES[name], lambda rate, of=(name, batch): final_loss(trained(*of, rate)[0]))
        for name in OPTIMIZERS for batch in batches
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name in OPTIMIZERS:
        for batch in batches:
            for how, judged_at in (("scaled", batches[0]), ("chosen anew", batch)):
                rate = best(losses[name, judged_at])
                mine = trained(name, batch, rate, effort.seeds)
                (figures,) = summary(mine, ["knn", "loss"])
                ends = min(losses[name, judged_at]), max(losses[name, judged_at])
                rows.append(
                    figures
                    | {"setting": f"{name}, batch {batch}, rate {how}", "rate for 256": rate}
                    | {"optimizer": name, "batch": batch, "how": how, "steps": mine[0].last("step")}
                    | {"at the end": rate in ends}
                    | {"tried": [{"rate": r, "loss": loss} for r, loss in sorted(losses[name, judged_at].items())]}
                )
    return Panel(
        name="lars", title="LARS against SGD as the batch grows",
        asks=f"SimCLR with LARS and with SGD, both of momentum 0.9, at batches of {_listed(batches)} and equally many "
        "pictures seen, so at fewer and fewer steps. The learning rate grows with the batch, after a warm-up of a "
        "tenth of the steps: the rate whose training loss is the lowest at the smallest batch, scaled (solid), or "
        "chosen anew at each batch in the same way (dashed); beside the lowest and the highest rate that is tried "
        "others are tried while these are better. Measured: kNN accuracy on test pictures. One would expect SGD to "
        "lose more than LARS as the rate is scaled up.",
        found=_told_lars(rows, batches, len(pictures.test)), rows=rows, figure=_plot_lars(rows, batches),
        code=[LARS, SimCLR],
    )  # fmt: skip


def tried(rates: Sequence[float], loss: Callable[[float], float]) -> dict[float, float]:
    """Rates and their losses: those given, and up to FURTHER beyond the lowest or highest while that is the best."""
    found = {rate: loss(rate) for rate in rates}
    for _ in range(FURTHER):
        if best(found) == max(found):
            further = max(found) * STEP
        elif best(found) == min(found):
            further = min(found) / STEP
        else:
            break
        found[further] = loss(further)
    return found


def best(losses: Mapping[float, float]) -> float:
    """The rate of the lowest loss."""
    return min(losses, key=lambda rate: losses[rate])


def final_loss(run: Learned) -> float:
    """Mean training loss of the last fifth of a run, of which one step says little."""
    losses = [row["loss"] for row in run.history]
    return mean(losses[-max(1, len(losses) // 5) :])


def _told_lars(rows: Sequence[dict[str, Any]], batches: Sequence[int], n: int) -> str:
    """Of accuracies on n pictures."""

    def knn(name: str, batch: int, how: str) -> float:
        (row,) = (r for r in rows if (r["optimizer"], r["batch"], r["how"]) == (name, batch, how))
        return row["knn"]

    small, large = batches[0], batches[-1]
    told = [
        f"{name}, its rate scaled from batch {small} to {large}, went from {100 * knn(name, small, 'scaled'):.1f} to "
        f"{100 * knn(name, large, 'scaled'):.1f} % ({100 * knn(name, large, 'chosen anew'):.1f} % with the rate chosen "
        "anew)"
        for name in OPTIMIZERS
    ]
    ends = sorted({(row["optimizer"], row["batch"]) for row in rows if row["at the end"] and row["how"] != "scaled"})
    beyond = (
        f" A better rate may lie beyond those tried for {', '.join(f'{name} at {batch}' for name, batch in ends)}."
        if ends
        else ""
    )
    first, second = OPTIMIZERS
    compared = [
        f"{first} is {against(knn(first, large, how), knn(second, large, how), n)} {second} with {of}"
        for how, of in (("scaled", "rates that were scaled"), ("chosen anew", "rates chosen anew"))
    ]
    return f"{'; '.join(told)}. At batch {large} {', and '.join(compared)}.{beyond}"


def _plot_lars(rows: Sequence[dict[str, Any]], batches: Sequence[int]) -> Any:
    plot, (axis,) = figure(width=6)
    for colour, name in enumerate(OPTIMIZERS):
        for how, line in (("scaled", "-"), ("chosen anew", "--")):
            mine = [row for row in rows if row["optimizer"] == name and row["how"] == how]
            axis.plot(
                batches, [row["knn"] for row in mine], line, color=f"C{colour}", marker="o", label=f"{name}, rate {how}"
            )
    axis.set(title="kNN accuracy", xlabel="pictures in a step", xscale="log")
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False)
    return plot


def leak(pictures: Pictures, effort: Effort) -> Panel:
    """MoCo with batch norms of each device, in whose statistics a key can be told by its company.

    A network has to learn to read these, so it gets LONGER times the steps.
    """
    parts = max(1, effort.batch // GROUP)
    effort = replace(effort, batch=parts * GROUP, steps=LONGER * effort.steps)
    recipe: dict[str, Any] = {"dim": 64, "queue": QUEUE * effort.batch, "momentum": 0.98}
    settings: dict[str, Callable[[Backbone], MoCo]] = {
        "by device, same company": partial(Unshuffled, parts=parts, **recipe),
        "by device, shuffled": partial(MoCo, parts=parts, **recipe),
        "whole batch": partial(MoCo, parts=1, **recipe),
    }
    rows: list[dict[str, Any]] = []
    for label, make in settings.items():
        runs: list[Learned] = []
        ranks: list[dict[str, float]] = []
        for seed in range(effort.seeds):
            made: list[MoCo] = []

            def kept(backbone: Backbone, make=make, made=made) -> MoCo:
                made.append(make(backbone))
                return made[0]

            runs.append(
                learn(kept, pictures, [small_views()] * 2, effort, label=label, seed=seed, network=NETWORK, lr=4e-3)
            )
            ranks.append({how: ranked_first(made[0], pictures, how) for how in ("together", "apart")})
        (row,) = summary(runs, ["knn", "loss"])
        rows.append(row | {f"first, {how}": mean(rank[how] for rank in ranks) for how in ("together", "apart")})
    plot, (left, right) = figure(2)
    names = [row["setting"].replace(", ", ",\n") for row in rows]
    for shift, how in ((-0.2, "together"), (0.2, "apart")):
        heights = [row[f"first, {how}"] for row in rows]
        left.bar([i + shift for i in range(len(rows))], heights, width=0.4, label=f"views {how}")
    left.legend(fontsize=8, frameon=False)
    right.bar(range(len(rows)), [row["knn"] for row in rows], color="C2")
    for axis, title in ((left, "other view ranked first"), (right, "kNN accuracy")):
        axis.set(title=title)
        axis.set_xticks(range(len(rows)), names, fontsize=8)
    return Panel(
        name="leak", title="What batch norms betray",
        asks=f"MoCo as on {parts} devices of {GROUP} pictures each, whose batch norms see no others: with keys that "
        "are normalised beside views of the same pictures as their queries, with keys shuffled over the devices, and "
        "with norms that see the whole batch. Measured on test pictures: how often the other view of a picture is the "
        f"nearest among those of {ASKED}, with norms of {GROUP} pictures that are the same for both views (together) "
        "or others (apart), in the last setting of all pictures; and kNN accuracy. Norms of few pictures leave a mark "
        "of these on each, whatever was learned, so the first is the easier everywhere but in the last setting. A "
        "network that has learned to read the mark gains more by it: one would expect that of the first setting, a "
        "lower loss than that of the second, and worse features than those of the others.",
        found=_told_leak(rows, len(pictures.test)), rows=rows, figure=plot,
        code=[MoCo.keys, Unshuffled, SplitBatchNorm2d],
    )  # fmt: skip


def ranked_first(moco: MoCo, pictures: Pictures, how: str) -> float:
    """Share of test pictures whose other view is the nearest of ASKED pictures', with norms as in training.

    how: "together": both views of a picture are normalised beside views of the same pictures; "apart": of others.
    """
    network = copy.deepcopy(nn.Sequential(moco.backbone, moco.projector)).train()
    asked = min(ASKED, len(pictures.test) // GROUP * GROUP)
    n = len(pictures.test) // asked * asked
    for norm in network.modules():
        if isinstance(norm, SplitBatchNorm2d):
            norm.parts = n // GROUP
    generator = torch.Generator().manual_seed(0)
    first, second = views(pictures.test[:n], [small_views()] * 2, generator=generator)
    order = torch.arange(n) if how == "together" else torch.randperm(n, generator=generator)
    with torch.no_grad():
        queries = F.normalize(network(first), dim=1)
        keys = F.normalize(network(second[order])[order.argsort()], dim=1)
    cosines = queries.unflatten(0, (-1, asked)) @ keys.unflatten(0, (-1, asked)).mT
    return (cosines.argmax(2) == torch.arange(asked)).float().mean().item()


def _told_leak(rows: Sequence[dict[str, Any]], n: int) -> str:
    """Of accuracies on n pictures."""
    same, shuffled, whole = rows
    told = "; ".join(
        f"{row['setting']}: loss {row['loss']:.2f}, first in {100 * row['first, together']:.1f} % together and "
        f"{100 * row['first, apart']:.1f} % apart, kNN {100 * row['knn']:.1f} %"
        for row in rows
    )
    return (
        f"{told}. In the same company the loss is {'lower' if same['loss'] < shuffled['loss'] else 'no lower'} than "
        f"shuffled, company helps {'more' if gain(same) > gain(shuffled) else 'no more'} ({gain(same):.1f} and "
        f"{gain(shuffled):.1f} times as often first), and kNN accuracy is "
        f"{against(same['knn'], shuffled['knn'], n)} shuffled and {against(same['knn'], whole['knn'], n)} the whole "
        f"batch; shuffled, it is {against(shuffled['knn'], whole['knn'], n)} the whole batch."
    )


def gain(row: Mapping[str, Any]) -> float:
    """How many times as often a view is found in the company that it was trained with; without any to be found, 1."""
    together, apart = row["first, together"], row["first, apart"]
    return together / apart if apart else math.inf if together else 1.0


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
