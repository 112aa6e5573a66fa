"""Is there one change that fools a network on most pictures, and another network as well?

Moosavi-Dezfooli et al. 2017, "Universal adversarial perturbations", arXiv:1610.08401, found such changes, by going
through pictures one by one; Shafahi et al. 2018, arXiv:1811.11304, climb the mean loss of batches.  Both are here, on
pictures that they were not made of, beside random signs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from negah.adversarial import fooling_rate, random_signs, universal, universal_deepfool
from negah.errors import InputError
from negah.lab.conclusions import against
from negah.lab.page import Page, Panel, figure
from negah.lab.supervised import Bench, Network, right, said, show, untouched
from negah.lab.training import Effort, legend

RADII = (2, 4, 6, 8, 10)  # in 255ths
COUNTS, FULL_COUNTS = (16, 64, 256), (64, 256, 1024, 4096)  # pictures that it is made of; the middle one for all radii
CLIMBS = 100  # steps of the optimisation, however few the pictures are
BATCH = 64
DRAWS = 5  # of random signs
SHOWN = 5  # pictures
OPTIMISED, ALGORITHM, SIGNS = "optimisation", "2017 algorithm", "random signs"


@dataclass(frozen=True)
class Made:
    """One perturbation.  rate, transfer: share of test pictures of which the network that it was made for, and the
    second one, say something else."""

    form: str
    eps: int
    count: int
    seed: int
    delta: Float[Tensor, "1 3 h w"]
    rate: float
    transfer: float
    seconds: float


def optimised(network: Network, images: Tensor, *, eps: float, generator: torch.Generator) -> Tensor:
    """CLIMBS steps, on however many pictures."""
    epochs = -(-CLIMBS // -(-len(images) // BATCH))
    return universal(network, images, eps=eps, epochs=epochs, batch=BATCH, generator=generator)


FORMS: dict[str, Callable[..., Tensor]] = {OPTIMISED: optimised, ALGORITHM: partial(universal_deepfool, epochs=3)}


def run(out: Path, effort: Effort) -> Page:
    """All panels into the folder `out`."""
    bench = Bench.of(effort)
    counts = FULL_COUNTS if effort.full else COUNTS
    if len(bench.pictures.train) < counts[-1]:
        few = len(bench.pictures.train)
        raise InputError(f"{few} pictures to train on are too few: a change is made of up to {counts[-1]} of them")
    middle = counts[len(counts) // 2]
    page = Page("universal", "One change for all pictures?", out, bench.settings())
    pairs = [networks(bench, seed) for seed in range(effort.seeds)]
    by_radius = [
        made for seed, pair in enumerate(pairs) for eps in RADII for made in make_all(bench, pair, eps, middle, seed)
    ]
    page.add(_rates(bench, pairs, by_radius, middle))
    largest = [one for one in by_radius if one.eps == RADII[-1]]
    page.add(_pictures(bench, pairs[0][0], [one for one in largest if one.seed == 0]))
    by_count = [
        made for seed, pair in enumerate(pairs) for count in counts if count != middle
        for made in make_all(bench, pair, RADII[-1], count, seed) if made.form != SIGNS
    ]  # fmt: skip
    page.add(_counts(bench, by_count + [one for one in largest if one.form != SIGNS], pairs))
    return page


def networks(bench: Bench, seed: int) -> tuple[Network, Network]:
    """The network to be fooled, and one of another build that has never met it."""
    first, second = bench.network(seed), bench.network(1000 + seed, widths=(16, 32, 64), depths=(1, 1, 1), stem="fine")
    for name, network in (("network", first), ("second network", second)):
        bench.train(network, craft=untouched, seed=seed)
        bench.effort.say(f"{name}, seed {seed}: {right(network, bench.images, bench.labels):.3f} rightly classified")
    return first, second


def make_all(bench: Bench, pair: tuple[Network, Network], eps: int, count: int, seed: int) -> list[Made]:
    """By each form from the first `count` training pictures, and random signs; measured on the test pictures."""
    images = bench.pictures.train[:count].to(bench.images.device).float() / 255

    def measured(form: str, deltas: Sequence[Tensor], seconds: float) -> Made:
        rate, transfer = (mean(fooling_rate(network, bench.images, delta) for delta in deltas) for network in pair)
        bench.effort.say(
            f"{form}, {eps}/255, {count} pictures, seed {seed}: {rate:.3f}, {transfer:.3f}, {seconds:.0f} s"
        )
        return Made(form, eps, count, seed, deltas[0], rate, transfer, seconds)

    found = []
    for form, make in FORMS.items():
        started = time.perf_counter()
        delta = make(pair[0], images, eps=eps / 255, generator=torch.Generator().manual_seed(seed))
        found.append(measured(form, [delta], time.perf_counter() - started))
    generator = torch.Generator().manual_seed(seed)
    signs = [random_signs(bench.images[:1], eps / 255, generator) for _ in range(DRAWS)]
    return [*found, measured(SIGNS, signs, 0.0)]


def table(made: Sequence[Made]) -> list[dict[str, Any]]:
    """A row for each form, radius and number of pictures: means over seeds, and their deviation where there are
    several."""
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys((one.form, one.eps, one.count) for one in made):
        mine = [one for one in made if (one.form, one.eps, one.count) == key]
        row: dict[str, Any] = {"setting": key[0], "eps": f"{key[1]}/255", "pictures": key[2]}
        for name, values in (("fooled", [m.rate for m in mine]), ("second network", [m.transfer for m in mine])):
            row[name] = mean(values)
            if len(values) > 1:
                row[f"{name} ±"] = stdev(values)
        rows.append(row | {"seconds": round(mean(m.seconds for m in mine), 1), "seeds": len(mine)})
    return rows


def _rates(bench: Bench, pairs: Sequence[tuple[Network, Network]], made: Sequence[Made], count: int) -> Panel:
    rows = table(made)
    plot, axes = figure(2)
    for axis, name in zip(axes, ("fooled", "second network")):
        for form in (*FORMS, SIGNS):
            mine = [row for row in rows if row["setting"] == form]
            axis.plot(RADII, [row[name] for row in mine], marker="o", label=form, ls="--" if form == SIGNS else "-")
        axis.set(title="fooled" if name == "fooled" else "fooled, second network", xlabel="eps, of 255", ylim=(0, 1))
    axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    accuracies = [f"{100 * mean(right(pair[i], bench.images, bench.labels) for pair in pairs):.1f} %" for i in range(2)]
    return Panel(
        name="rates", title="One change for all pictures, by its size",
        asks=f"{bench.size}. A universal perturbation is one and the same change, of at most eps at any value, that is "
        "added to every picture and turns what a network says of most of them, whatever was true. It matters because "
        "whoever uses it need not know the picture, nor compute anything when it is taken: it is made once, from some "
        "pictures, and can be printed, sent on, and tried on networks that its maker has never seen. It also says that "
        "directions which fool belong to the network and not to the picture alone. Two ways to make one, from "
        f"{count} training pictures: to climb the mean loss of batches over the change (optimisation, {CLIMBS} steps), "
        "and to go through the pictures, and add the shortest step that fools each (2017 algorithm, up to 3 rounds). "
        "Measured on test pictures: the share of which the network says something else than before; beside it the "
        f"share that {DRAWS} draws of random signs of that size change, which is what noise does. The network is right "
        f"about {accuracies[0]} of them, the second, of another build, about {accuracies[1]}. One would expect far "
        "more than noise, and less on the second.",
        found=told_rates(rows, len(bench.images)), rows=rows, figure=plot,
        code=[universal, universal_deepfool, fooling_rate, random_signs],
    )  # fmt: skip


def told_rates(rows: Sequence[Mapping[str, Any]], n: int) -> str:
    """The forms against each other, against noise, and on the second network, at the largest radius."""
    at_largest = {row["setting"]: row for row in rows if row["eps"] == rows[-1]["eps"]}
    noise = at_largest[SIGNS]
    listed = ", ".join(f"{100 * row['fooled']:.1f} % ({form})" for form, row in at_largest.items())
    ours, theirs = at_largest[OPTIMISED]["fooled"], at_largest[ALGORITHM]["fooled"]
    told = [
        f"At {noise['eps']} are fooled: {listed}. The optimisation is {against(ours, theirs, n)} the 2017 algorithm"
    ]
    for form in FORMS:
        row = at_largest[form]
        more = against(row["fooled"], noise["fooled"], n) == "above"
        half = [r["eps"] for r in rows if r["setting"] == form and r["fooled"] >= 0.5]
        carried = against(row["second network"], noise["second network"], n) == "above"
        told.append(
            f"the {form} fools {'more than noise does' if more else 'NO more than noise does'}, half or more of the"
            f" pictures {f'from {half[0]} on' if half else 'at no radius tried'}; the second network it fools on"
            f" {100 * row['second network']:.1f} %, {'more' if carried else 'no more'} than random signs do"
            f" ({100 * noise['second network']:.1f} %)"
        )
    return ". ".join(line[0].upper() + line[1:] for line in told) + "."


def _counts(bench: Bench, made: Sequence[Made], pairs: Sequence[tuple[Network, Network]]) -> Panel:
    rows = sorted(table(made), key=lambda row: (row["setting"], row["pictures"]))
    plot, (axis,) = figure()
    for colour, form in enumerate(FORMS):
        mine = [row for row in rows if row["setting"] == form]
        counts = [row["pictures"] for row in mine]
        axis.plot(counts, [row["fooled"] for row in mine], "o-", color=f"C{colour}", label=form)
        axis.plot(counts, [row["second network"] for row in mine], "o:", color=f"C{colour}", label=f"{form}, second")
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set(title=f"fooled, {RADII[-1]}/255", xlabel="pictures it is made of", ylim=(0, 1))
    legend(axis)
    return Panel(
        name="images", title="How many pictures does it take?",
        asks=f"Both forms at {RADII[-1]}/255, made of more and more training pictures; the optimisation takes "
        f"{CLIMBS} steps or a round, whatever the number. Measured on the same test pictures, on the network (solid) "
        "and the second one (dotted). What is made of few pictures may fool these alone.",
        found=told_counts(rows, len(bench.images)), rows=rows, figure=plot, code=[universal, universal_deepfool],
    )  # fmt: skip


def told_counts(rows: Sequence[Mapping[str, Any]], n: int) -> str:
    """Each form: with most pictures against with fewest."""
    told = []
    for form in FORMS:
        mine = [row for row in rows if row["setting"] == form]
        listed = ", ".join(f"{row['pictures']}: {100 * row['fooled']:.1f} %" for row in mine)
        few, many = mine[0], mine[-1]
        word = against(many["fooled"], few["fooled"], n)
        told.append(f"{form}: with {many['pictures']} pictures {word} with {few['pictures']} ({listed})")
    return f"Fooled by the {'; by the '.join(told)}."


def _pictures(bench: Bench, network: Network, made: Sequence[Made]) -> Panel:
    """The perturbations, and what the network says of the first test pictures with each."""
    names, before = bench.pictures.classes, said(network, bench.images)
    plot = Figure(figsize=(1.7 * (SHOWN + 1), 1.8 * (len(made) + 1)), layout="constrained")
    axes = plot.subplots(len(made) + 1, SHOWN + 1, squeeze=False)
    axes[0, 0].axis("off")
    for axis, image, says in zip(axes[0, 1:], bench.images, before):
        show(axis, image, names[int(says)])
    rows: list[dict[str, Any]] = []
    for line, one in zip(axes[1:], made):
        show(line[0], 0.5 + 0.5 * one.delta[0] / (one.eps / 255), one.form)
        changed = (bench.images + one.delta).clamp(0, 1)
        after = said(network, changed)
        for axis, image, says in zip(line[1:], changed, after):
            show(axis, image, names[int(says)])
        fooled = after[after != before]
        count = torch.bincount(fooled, minlength=len(names))
        rows.append({
            "setting": one.form, "fooled": len(fooled) / len(after),
            "commonest answer": names[int(count.argmax())] if len(fooled) else "none",
            "its share of the fooled": int(count.max()) / max(1, len(fooled)),
        })  # fmt: skip
    return Panel(
        name="pictures", title="What it looks like, and where it leads",
        asks=f"The perturbations of seed 0 at {RADII[-1]}/255 (grey is none, full colour is eps), and the first test "
        "pictures without and with them, each under what the network says of it. Measured on all test pictures: how "
        "many of those that are fooled get one and the same answer.",
        found=told_pictures(rows), rows=rows, figure=plot, code=[universal, random_signs],
    )  # fmt: skip


def told_pictures(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether fooled pictures go to one class."""
    told = [
        f"{row['setting']}: {100 * row['its share of the fooled']:.0f} % of the fooled become {row['commonest answer']}"
        for row in rows
    ]
    one = [row["setting"] for row in rows if row["its share of the fooled"] > 0.5]
    return f"{'; '.join(told)}. One class draws more than half of them: {', '.join(one) or 'nowhere'}."
