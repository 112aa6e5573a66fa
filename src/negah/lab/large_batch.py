"""What do large batches ask for: another optimiser, and batch norms that see the whole batch?

SimCLR (Chen et al. 2020, arXiv:2002.05709) trains on thousands of pictures a step, spread over many devices, with LARS
(You et al. 2017, arXiv:1708.03888) and with the batch statistics of all devices (its section 2.1).
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from negah.images.views import views
from negah.lab.page import Page, Panel, figure
from negah.lab.training import Effort, Learned, Pictures, learn, small_views, summary
from negah.nn.backbone import Backbone, ConvBackbone
from negah.nn.norm import SplitBatchNorm2d
from negah.nn.resnet import ResNet
from negah.ssl import MoCo, SimCLR
from negah.train.optim import LARS

GROWTH = (0.25, 1, 4)  # batches, as parts of the set one
RATES: dict[str, tuple[float, ...]] = {"LARS": (1.0, 3.0, 9.0), "SGD": (0.1, 0.3, 0.9)}  # for 256 pictures
MADE: dict[str, Callable[..., Optimizer]] = {"LARS": LARS, "SGD": SGD}
GROUP = 4  # pictures of a device, in the second panel
QUEUE = 4  # batches


class Unshuffled(MoCo):
    """MoCo whose keys are normalised beside the same pictures as their queries."""

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
    """LARS and SGD with momentum, at batches that grow while the pictures seen stay as many."""
    batches = [max(4, round(effort.batch * growth)) for growth in GROWTH]
    tried = {
        (name, batch, rate): _learn(pictures, effort, name, batch, rate, seed=0)
        for name, rates in RATES.items() for batch in batches for rate in rates
    }  # fmt: skip

    def best(name: str, batch: int) -> float:
        return min(RATES[name], key=lambda rate: final_loss(tried[name, batch, rate]))

    chosen = {
        (name, batch, how): rate
        for name in RATES for batch in batches
        for how, rate in (("scaled", best(name, batches[0])), ("chosen anew", best(name, batch)))
    }  # fmt: skip
    wanted = {(name, batch, rate) for (name, batch, _), rate in chosen.items()}
    again = {
        key: [tried[key], *(_learn(pictures, effort, *key, seed=seed) for seed in range(1, effort.seeds))]
        for key in sorted(wanted)
    }
    rows = [
        {
            "setting": f"{name}, batch {batch}, {how}", "optimizer": name, "batch": batch, "how": how,
            "rate for 256": rate, "steps": _steps(effort, batch),
        }
        | {key: value for key, value in summary(again[name, batch, rate], ["knn", "loss"])[0].items() if key != "setting"}
        | {"tried": [{"rate": tried_rate, "loss": final_loss(tried[name, batch, tried_rate])} for tried_rate in RATES[name]]}
        for (name, batch, how), rate in chosen.items()
    ]  # fmt: skip
    plot, (axis,) = figure()
    for name, colour in zip(RATES, ("C0", "C1")):
        for how, line in (("scaled", "-"), ("chosen anew", "--")):
            mine = [row for row in rows if row["optimizer"] == name and row["how"] == how]
            axis.plot(
                batches, [row["knn"] for row in mine], line, color=colour, marker="o", label=f"{name}, rate {how}"
            )
    axis.set(title="kNN accuracy", xlabel="pictures in a step", xscale="log", xticks=batches)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False)
    return Panel(
        name="lars", title="LARS against SGD as the batch grows", asks="", found="", rows=rows, figure=plot,
        code=[LARS, SimCLR],
    )  # fmt: skip


def final_loss(run: Learned) -> float:
    """Mean training loss of the last fifth of a run, of which one step says little."""
    losses = [row["loss"] for row in run.history if "loss" in row]
    return mean(losses[-max(1, len(losses) // 5) :])


def small_network(seed: int) -> ConvBackbone:
    """The lab's, on maps a quarter as large: many runs are to be compared."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvBackbone(ResNet(widths=(16, 32, 64), depths=(1, 1, 1), stem="imagenet"))


def _steps(effort: Effort, batch: int) -> int:
    return max(2, round(effort.steps * effort.batch / batch))


def _learn(pictures: Pictures, effort: Effort, name: str, batch: int, rate: float, *, seed: int) -> Learned:
    return learn(
        partial(SimCLR, hidden=256, dim=64, temperature=0.2), pictures, [small_views()] * 2,
        replace(effort, batch=batch, steps=_steps(effort, batch)), label=f"{name}, batch {batch}, rate {rate:g}",
        seed=seed, network=small_network, optimizer=partial(MADE[name], momentum=0.9), lr=rate * batch / 256, checks=1,
    )  # fmt: skip


def leak(pictures: Pictures, effort: Effort) -> Panel:
    """MoCo with batch norms of each device, in whose statistics a key can be told by its company."""
    parts = max(1, effort.batch // GROUP)
    effort = replace(effort, batch=parts * GROUP)
    moco = partial(MoCo, dim=64, queue=QUEUE * effort.batch, momentum=0.98)
    settings: dict[str, Callable[[Backbone], MoCo]] = {
        "per device, same company": partial(Unshuffled, dim=64, queue=QUEUE * effort.batch, momentum=0.98, parts=parts),
        "per device, shuffled": partial(moco, parts=parts),
        "whole batch": partial(moco, parts=1),
    }
    runs: list[Learned] = []
    found: dict[str, list[tuple[float, float]]] = {label: [] for label in settings}
    for label, make in settings.items():
        for seed in range(effort.seeds):
            made: list[MoCo] = []

            def kept(backbone: Backbone, make=make, made=made) -> MoCo:
                made.append(make(backbone))
                return made[0]

            run = learn(
                kept, pictures, [small_views()] * 2, effort, label=label, seed=seed, network=small_network, lr=4e-3
            )
            runs.append(run)
            found[label].append(tuple(ranked_first(made[0], pictures, together=how) for how in (True, False)))
    return runs, found


def ranked_first(moco: MoCo, pictures: Pictures, *, together: bool) -> float:
    """Share of test pictures whose other view is the nearest of all pictures' other views, with norms as in training.

    together: both views of a picture are normalised beside views of the same pictures; else beside those of others.
    """
    network = copy.deepcopy(nn.Sequential(moco.backbone, moco.projector)).train()
    n = len(pictures.test) // GROUP * GROUP
    for norm in network.modules():
        if isinstance(norm, SplitBatchNorm2d):
            norm.parts = n // GROUP
    generator = torch.Generator().manual_seed(0)
    first, second = views(pictures.test[:n], [small_views()] * 2, generator=generator)
    order = torch.arange(n) if together else torch.randperm(n, generator=generator)
    with torch.no_grad():
        queries = F.normalize(network(first), dim=1)
        keys = F.normalize(network(second[order])[order.argsort()], dim=1)
    return ((queries @ keys.T).argmax(1) == torch.arange(n)).float().mean().item()
