"""How is a network fooled, and does training on what fools it help?  A well-known exercise from end to end.

Train a network on pictures; change them by FGSM (Goodfellow et al. 2014, arXiv:1412.6572) and PGD (Madry et al. 2017,
arXiv:1706.06083); train on pictures that are so changed; and say what became of clean accuracy, what FGSM shows of the
hardened networks, what PGD shows, and what follows.  All that is said is made of the run's own figures, and the
verdicts on the evaluation stand beside them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from negah.adversarial import Linf, fgsm, pgd
from negah.adversarial.evaluate import Outcome, attacked, ladder
from negah.adversarial.harden import Craft, Hardening, fgsm_start, held_out, pgd_start
from negah.adversarial.library import of_torchattacks
from negah.adversarial.losses import cross_entropy
from negah.adversarial.target import Model, gradient, still
from negah.adversarial.verdicts import Verdict, verdicts
from negah.lab.adversarial_answers import (
    COUNTS,
    DROP,
    MANY_STEPS,
    RADII,
    SEVERAL,
    SINGLE,
    concluded,
    path,
    told_clean,
    told_fgsm,
    told_pgd,
    told_plain,
    told_training,
)
from negah.lab.page import Page, Panel, figure
from negah.lab.supervised import Bench, Network, right, said, show, untouched
from negah.lab.training import Effort

EPS, STEP = 8 / 255, 2 / 255
WATCHED = 200  # test pictures, while a network trains
ROUNDING = 1e-5  # of an image's largest gradient
JUDGED = 200  # test pictures that face the whole ladder, when reduced
SAMPLE = 64  # of them, for the verdicts
SHOWN = 5  # pictures
PART = 1000  # pictures that are attacked at a time

ATTACKS: dict[str, Callable[[Model, Tensor, Tensor], Tensor]] = {
    "clean": lambda model, images, labels: images,
    **{name: partial(fgsm, eps=radius / 255) for name, radius in zip(SINGLE, RADII)},
    **{
        name: partial(pgd, eps=EPS, step_size=STEP, steps=count, random=False, keep="last")
        for name, count in zip(SEVERAL, COUNTS)
    },
}

# What two public runs of the exercise got with the whole protocol, in percent: lowest and highest.  For the hardened
# network FGSM is that of its training.
PUBLIC = {
    "plain": {
        "clean": (74.9, 75.2), "FGSM 1/255": (53.1, 53.3), "FGSM 4/255": (23.6, 23.8), "FGSM 8/255": (11.3, 11.9),
        "PGD 2 steps": (16.5, 16.6), "PGD 4 steps": (2.8, 3.4), "PGD 8 steps": (1.0, 1.0),
    },
    "by FGSM": {"clean": (60.7, 60.8), "FGSM 8/255": (22.9, 24.0), "PGD 4 steps": (18.6, 18.6)},
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One network.  scores: rows of `step`, clean and robust accuracy on the way.  figures: accuracy by ATTACKS."""

    label: str
    seed: int
    network: Network
    scores: list[dict[str, Any]]
    figures: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Judged:
    """A network before the whole ladder at EPS, and what is to be said against that, at `eps`/255."""

    label: str
    outcome: Outcome
    eps: int
    verdicts: list[Verdict]


def run(out: Path, effort: Effort) -> Page:
    """All panels into the folder `out`."""
    bench = Bench.of(effort)
    crafts: dict[str, tuple[Craft, float]] = {
        "plain": (untouched, 0.0),
        "by FGSM": (fgsm_start, EPS),
        "by PGD": (partial(pgd_start, steps=_training_steps(bench)), EPS),
    }
    page = Page("adversarial", "How is a network fooled, and does training on that help?", out, bench.settings())
    runs: list[Trained] = []
    for label, (craft, eps) in crafts.items():
        runs += [train(bench, label, craft, eps, seed) for seed in range(effort.seeds)]
        if label == "plain":
            page.add(_plain(bench, runs))
    page.add(_pictures(bench, runs))
    page.add(_on_the_way(bench, runs))
    for panel in _answers(bench, runs):
        page.add(panel)
    page.add(_verdicts(bench, runs))
    return page


def train(bench: Bench, label: str, craft: Craft, eps: float, seed: int) -> Trained:
    """A network, and its accuracy under each of ATTACKS on the test pictures."""
    network, started = bench.network(seed), time.perf_counter()
    scores = held_out(network, bench.images[:WATCHED], bench.labels[:WATCHED], eps=EPS)
    first = {"step": 0, **{name: score() for name, score in scores.items()}}
    done = bench.train(network, craft=craft, eps=eps, seed=seed, scores=scores)
    seconds = time.perf_counter() - started
    figures = {
        name: right(network, _in_parts(partial(attack, network), bench), bench.labels)
        for name, attack in ATTACKS.items()
    }
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    bench.effort.say(f"{label}, seed {seed}: {told}, {seconds:.0f} s")
    return Trained(label, seed, network, [first, *map(dict, done.scores)], figures, seconds)


def table(runs: Sequence[Trained], names: Sequence[str] = tuple(ATTACKS)) -> list[dict[str, Any]]:
    """A row for each label: means over its seeds, and their deviation where there are several."""
    rows: list[dict[str, Any]] = []
    for label in dict.fromkeys(run.label for run in runs):
        mine = [run for run in runs if run.label == label]
        row: dict[str, Any] = {"setting": label}
        for name in names:
            values = [run.figures[name] for run in mine]
            row[name] = mean(values)
            if len(values) > 1:
                row[f"{name} ±"] = stdev(values)
        rows.append(row | {"seeds": len(mine), "seconds": round(mean(run.seconds for run in mine), 1)})
    return rows


def public(bench: Bench, label: str) -> list[dict[str, Any]]:
    """The row of the public runs, where the whole protocol was run: anything else cannot stand beside them."""
    if not bench.protocol:
        return []
    figures = {name: f"{low / 100:.3f} to {high / 100:.3f}" for name, (low, high) in PUBLIC[label].items()}
    return [{"setting": f"{label}, two public runs", **figures}]


def beside_torchattacks(bench: Bench, network: Network) -> dict[str, Any]:
    """FGSM from that library through our adapter, beside ours: the accuracy it leaves, how many values of the images
    are apart, and of how many of these the gradient is more than rounding.

    The library climbs the mean of a batch's losses, which rounds otherwise than each by itself: where a gradient is 0
    but for rounding, its sign is chance.  Without figures where torchattacks is not installed.
    """
    row: dict[str, Any] = {"setting": "plain, FGSM of torchattacks"}
    try:
        library: Any = import_module("torchattacks")
    except ImportError:
        return row
    # A GPU's shorter products (TF32) are off for a while: in them far more than a gradient of 0 is chance.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        with still(network):
            slope = _in_parts(lambda images, labels: gradient(network, images, labels, cross_entropy)[2].abs(), bench)
        steep = slope > ROUNDING * slope.amax((1, 2, 3), keepdim=True)
        theirs = of_torchattacks(lambda model, eps: library.FGSM(model, eps=eps))
        counts = {"values": 0, "values apart": 0, "of these steep": 0}
        for radius in RADII:
            points, ours = (_in_parts(partial(attack, network, eps=radius / 255), bench) for attack in (theirs, fgsm))
            apart = (points - ours).abs() > 1e-6
            row[f"FGSM {radius}/255"] = right(network, points, bench.labels)
            found = {
                "values": apart.numel(),
                "values apart": int(apart.sum()),
                "of these steep": int((apart & steep).sum()),
            }
            counts = {name: count + found[name] for name, count in counts.items()}
    return row | counts


def _plain(bench: Bench, runs: Sequence[Trained]) -> Panel:
    library = beside_torchattacks(bench, runs[0].network)
    rows = table(runs)
    if bench.protocol:
        note = "The row below is what two public runs of the exercise got."
    else:
        note = (
            "What public runs of the exercise got is for the whole protocol (--full, with CIFAR-10), and does not "
            "stand beside these figures."
        )
    return Panel(
        name="plain", title="FGSM and PGD against a plain network",
        asks=f"{bench.size}. {note} The network sees pixels in [0, 1] without augmentation, and is trained by SGD "
        "of rate 0.01 and momentum 0.9. FGSM moves every value by eps, in the direction in which the loss rises; PGD "
        "takes steps of 2/255 from the picture, and stays within 8/255 of it "
        f"({_training_steps(bench)} steps from a random point where it is trained on). FGSM is run twice: ours, and "
        "that of the library torchattacks. Measured: share of test pictures that are still rightly classified.",
        found=told_plain(rows[0], library), rows=[*rows, *public(bench, "plain"), library], figure=_bars(rows),
        code=[fgsm, pgd, of_torchattacks, Network],
    )  # fmt: skip


def _pictures(bench: Bench, runs: Sequence[Trained]) -> Panel:
    """The first pictures that the plain network is right about, whatever the attacks do to them."""
    plain, hard = (next(run.network for run in runs if run.label == label) for label in ("plain", "by PGD"))
    at = (said(plain, bench.images) == bench.labels).nonzero().squeeze(1)[:SHOWN]
    images, labels = bench.images[at], bench.labels[at]
    several = ATTACKS[MANY_STEPS]
    cases = [
        ("FGSM, plain", plain, fgsm(plain, images, labels, eps=EPS)),
        ("PGD, plain", plain, several(plain, images, labels)),
        ("PGD, hardened by PGD", hard, several(hard, images, labels)),
    ]
    plot = Figure(figsize=(11, 1.75 * max(1, len(at))), layout="constrained")
    axes = plot.subplots(max(1, len(at)), 7, squeeze=False)
    rows: list[dict[str, Any]] = []
    for i, line in enumerate(axes[: len(at)]):
        truth = bench.pictures.classes[int(labels[i])]
        show(line[0], images[i], truth if i else f"picture\n{truth}")
        row: dict[str, Any] = {"picture": int(at[i]), "class": truth}
        for k, (name, network, points) in enumerate(cases):
            before, after = (_chance(bench, network, x[i : i + 1]) for x in (images, points))
            shown = 0.5 + 0.5 * (points[i] - images[i]) / EPS
            title = f"{before[0]} {before[1]:.0%}\nchanged to"
            show(line[1 + 2 * k], shown, title if i else f"{name}\n{title}")
            show(line[2 + 2 * k], points[i], f"{after[0]} {after[1]:.0%}")
            row[name] = f"{before[0]} {before[1]:.2f} to {after[0]} {after[1]:.2f}"
        rows.append(row)
    changed = [
        f"{sum(_class_after(row[name]) != row['class'] for row in rows)} of {len(rows)} ({name})" for name, *_ in cases
    ]
    return Panel(
        name="pictures", title="What the changes look like",
        asks="The first test pictures that the plain network is right about; for each attack the change (grey is none, "
        f"full colour is {RADII[-1]}/255) under what the network said before, and the changed picture under what it "
        "says of it, with its probability.",
        found=f"Wrong about the changed picture: {', '.join(changed)}.", rows=rows, figure=plot, code=[fgsm, pgd],
    )  # fmt: skip


def _class_after(told: str) -> str:
    return told.split(" to ")[1].rsplit(" ", 1)[0]


@torch.no_grad()
def _chance(bench: Bench, network: Network, image: Float[Tensor, "1 3 h w"]) -> tuple[str, float]:
    """The class that the network names, and its probability."""
    value, place = network(image).softmax(1).max(1)
    return bench.pictures.classes[int(place)], float(value)


def _on_the_way(bench: Bench, runs: Sequence[Trained]) -> Panel:
    plot, axes = figure(2)
    labels = list(dict.fromkeys(run.label for run in runs))
    for axis, name in zip(axes, ("clean", "robust")):
        for run in runs:
            steps, values = zip(*((row["step"], row[name]) for row in run.scores))
            axis.plot(steps, values, color=f"C{labels.index(run.label)}", label=run.label if run.seed == 0 else None)
        axis.set(title={"clean": "clean", "robust": "under PGD, 5 steps"}[name], xlabel="step", ylim=(0, 1))
    axes[0].legend(fontsize=8, frameon=False)
    rows = [
        {
            "setting": run.label, "seed": run.seed, "clean": run.scores[-1]["clean"],
            "robust": run.scores[-1]["robust"], "best robust": max(row["robust"] for row in run.scores),
            "what": path(run.scores, runs[0].scores[-1]["robust"], min(WATCHED, len(bench.images))),
            "robust by step": [row["robust"] for row in run.scores], "seconds": round(run.seconds, 1),
        }
        for run in runs
    ]  # fmt: skip
    return Panel(
        name="training", title="On the way: does robustness come to stay?",
        asks=f"Accuracy of each network on {min(WATCHED, len(bench.images))} test pictures as it is trained: on "
        "pictures as they are (plain), on those that FGSM has moved by 8/255 (by FGSM), and on those of PGD (by PGD). "
        "Nothing is chosen by it. One would look for two failures: robustness against several steps that breaks down "
        f"from one check to the next, by more than {DROP:g} (catastrophic overfitting, which training on a single step "
        "is known for), and robustness that is best on the way and worse at the end (robust overfitting).",
        found=told_training(rows), rows=rows, figure=plot, code=[Hardening, fgsm_start, pgd_start],
    )  # fmt: skip


def _answers(bench: Bench, runs: Sequence[Trained]) -> list[Panel]:
    """The exercise's questions."""
    n, whole = len(bench.images), table(runs)
    beside = public(bench, "by FGSM")
    single, several = ["clean", *SINGLE], ["clean", *SEVERAL]
    return [
        Panel(
            name="clean", title="What happened to clean accuracy?",
            asks="Training on FGSM's or PGD's pictures within 8/255, in place of those as they are; measured on test "
            "pictures as they are. One would expect a price: what is sacrificed is features that predict, but that a "
            "change of a few grey levels turns.",
            found=told_clean(whole, n), rows=[*table(runs, ["clean"]), *_only(beside, ["clean"])],
            figure=_bars(whole, ["clean"]), code=[Hardening],
        ),
        Panel(
            name="fgsm", title="What does FGSM on the hardened networks show?",
            asks="FGSM at three radii. Of the network that was trained on FGSM at 8/255 this asks what it was taught.",
            found=told_fgsm(whole, n), rows=[*table(runs, single), *_only(beside, single)], figure=_bars(whole, single),
            code=[fgsm],
        ),
        Panel(
            name="pgd", title="What does PGD show?",
            asks="Steps of 2/255 within 8/255, which is FGSM's ball at its largest radius: what withstands the single "
            "step for the right reason withstands several. An attack by FGSM alone would not have asked.",
            found=told_pgd(whole, n), rows=[*whole, *beside], figure=_bars(whole, several), code=[pgd],
        ),
    ]  # fmt: skip


def _only(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("setting", *names) if name in row} for row in rows]


def judge(bench: Bench, run: Trained) -> Judged:
    """The whole ladder at EPS, and verdicts at the radius of which FGSM leaves about half."""
    images, labels = bench.images, bench.labels
    attacks = ladder(len(bench.pictures.classes), steps=50 if bench.effort.full else 20)
    if not bench.effort.full:
        images, labels = images[:JUDGED], labels[:JUDGED]
        attacks = {name: attack for name, attack in attacks.items() if name not in ("APGD-T", "Square")}  # the longest
    outcome = attacked(run.network, images, labels, eps=EPS, attacks=attacks)
    half = min(RADII, key=lambda radius: abs(run.figures[f"FGSM {radius}/255"] - run.figures["clean"] / 2))
    sample = outcome.right.nonzero().squeeze(1)[:SAMPLE]
    found = verdicts(run.network, images[sample], labels[sample], eps=half / 255, norm=Linf(), attacks=attacks)
    bench.effort.say(f"{run.label}: {outcome.robust:.3f} withstand all; alarms: {_alarms(found) or 'none'}")
    return Judged(run.label, outcome, half, found)


def _verdicts(bench: Bench, runs: Sequence[Trained]) -> Panel:
    judged = [judge(bench, run) for run in runs if run.seed == 0]
    plot, (left, right_) = figure(2)
    for place, one in enumerate(judged):
        low, high = one.outcome.interval
        left.bar(place, one.outcome.robust, color=f"C{place}")
        left.plot([place, place], [low, high], color="#333")
        for verdict in one.verdicts:
            colour = {"ok": "#3a7", "note": "#fc6", "alarm": "#c33"}[verdict.state]
            right_.plot(verdict.number, place, "s", color=colour, markersize=9)
    left.set_xticks(range(len(judged)), [one.label for one in judged])
    left.set(title="withstand all attacks, 8/255", ylim=(0, 1))
    right_.set_yticks(range(len(judged)), [one.label for one in judged])
    right_.set_xticks(range(1, 16))
    right_.set(title="verdicts (green ok, yellow note, red alarm)", ylim=(-0.5, len(judged) - 0.5))
    rows: list[dict[str, Any]] = [
        {
            "setting": one.label, "clean": one.outcome.clean, "withstand all": one.outcome.robust,
            "95 %": "{:.3f} to {:.3f}".format(*one.outcome.interval),
            "withstand FGSM": one.outcome.clean - one.outcome.rungs[0].fooled / len(one.outcome.fooled),
            "gradients": round(one.outcome.gradients), "verdicts at": f"{one.eps}/255",
            "alarms": _alarms(one.verdicts) or "none",
            "verdicts": [f"{v.number} {v.name}: {v.state}, {v.text}" for v in one.verdicts],
            "images": len(one.outcome.fooled),
        }
        for one in judged
    ]  # fmt: skip
    listed = "; ".join(f"{v.number} {v.name}" for v in judged[0].verdicts)
    return Panel(
        name="verdicts", title="What is to be concluded, and can these figures be trusted?",
        asks="Each network of seed 0 before a whole ladder of attacks within 8/255, on "
        f"{len(judged[0].outcome.fooled)} pictures ({', '.join(rung.name for rung in judged[0].outcome.rungs)}); an "
        "image that any of them fools is fooled. Lines are intervals of 95 %. And fifteen verdicts on the evaluation, "
        f"at the radius of which FGSM leaves about half: {listed}.",
        found=concluded(rows), rows=rows, figure=plot, code=[attacked, verdicts],
    )  # fmt: skip


def _alarms(found: Sequence[Verdict]) -> str:
    return "; ".join(f"{v.number} {v.name}: {v.text}" for v in found if v.alarm)


def _bars(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = tuple(ATTACKS)) -> Figure:
    """A group of bars for each attack, a bar for each network."""
    plot, (axis,) = figure(width=max(4.0, 1.1 * len(names) + 2))
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        places = [k + (i - (len(rows) - 1) / 2) * width for k in range(len(names))]
        bars = axis.bar(places, [row[name] for name in names], width=width, label=row["setting"])
        axis.bar_label(bars, [f"{100 * row[name]:.0f}" for name in names], fontsize=7)
    axis.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names], fontsize=8)
    axis.set(ylim=(0, 1.05), title="rightly classified")
    if len(rows) > 1:
        axis.legend(fontsize=8, frameon=False)
    return plot


def _in_parts(make: Callable[[Tensor, Tensor], Tensor], bench: Bench) -> Tensor:
    """What `make` makes of the test pictures and their labels, in parts that any memory holds."""
    parts = zip(bench.images.split(PART), bench.labels.split(PART))
    return torch.cat([make(images, labels) for images, labels in parts])


def _training_steps(bench: Bench) -> int:
    return 10 if bench.effort.full else 4
