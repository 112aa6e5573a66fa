"""What `negah lab graph` trains: what an invalid update costs, how deep one can go, when neighbours help."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah.graph.edges import Edges
from negah.graph.layers import GCN, SAGE
from negah.graph.nodes import Network, NodeData, train
from negah.lab.conclusions import against
from negah.lab.graph_nets import (
    LAYERS,
    NUMBERINGS,
    Alone,
    Deep,
    Layer,
    OverLSTM,
    Positions,
    dense,
    drawn,
    energy,
    likeness,
    made,
    renumbered,
)
from negah.lab.page import Panel, figure
from negah.lab.training import legend, over_seeds
from negah.progress import Say

Row = dict[str, Any]

HIDDEN, HOMOPHILY = 32, 0.7
DEPTHS = (1, 2, 4, 8, 16)
HOMOPHILIES = (0.2, 0.4, 0.6, 0.8)  # the first is chance, with five classes
PRICED = ("SAGE (mean)", "max (shared weight)", "max (weight per position)", "LSTM")
NEIGHBOURS: dict[str, Layer] = {"own features only": Alone, "GCN": GCN, "SAGE (mean)": SAGE}


@dataclass(frozen=True)
class Graphs:
    """What is trained on.  given: the user's graph, or None for generated ones.  steps: of each run."""

    given: NodeData | None
    nodes: int
    steps: int
    seeds: int
    full: bool
    say: Say

    def of(self, seed: int, *, by_class: bool = False) -> NodeData:
        """The graph of one seed; the given one is that of all."""
        return self.given or drawn(self.nodes, homophily=HOMOPHILY, seed=seed, by_class=by_class)


# What an invalid update costs


def price(graphs: Graphs) -> Panel:
    """Trained networks whose nodes are numbered in another way at test time."""
    rows = []
    for numbering in ("as given",) if graphs.given else ("at random", "by class"):
        for name in PRICED:
            graphs.say(f"price: {name}, numbered {numbering}")
            runs = [
                priced(LAYERS[name], graphs.of(seed, by_class=numbering == "by class"), steps=graphs.steps, seed=seed)
                for seed in range(graphs.seeds)
            ]
            rows.append(over_seeds(f"{name}, numbered {numbering}", runs))
    plot, axes = figure(2, width=5.5, height=0.35 * len(rows) + 1)
    dots(axes[0], rows, {"accuracy": "as trained", "renumbered": "numbered anew"}, "accuracy on test nodes", log=False)
    dots(axes[1], rows, {"changed": ""}, "part of the predictions that change", log=False)
    axes[1].set_yticklabels([])
    axes[0].legend(fontsize=8, frameon=False, loc="lower left")
    told = [
        f"{row['setting']}: {row['changed']:.1%} of the predictions change, accuracy {row['accuracy']:.3f} before and "
        f"{row['renumbered']:.3f} after" for row in rows if row["changed"] > 0
    ]  # fmt: skip
    kept = [f"{row['setting']} ({row['accuracy']:.3f})" for row in rows if row["changed"] == 0]
    return Panel(
        name="price", title="What does an invalid update cost?",
        asks="Networks of two layers learn classes from a few nodes of each. Then the nodes get other numbers, five "
        "times, which is the same graph. Numbered by class, as many files list their nodes, the order of neighbours "
        "says something while the network learns, and no longer afterwards.",
        found=". ".join([*told, f"No prediction changes: {'; '.join(kept) or 'nowhere'}"]) + ".",
        rows=rows, figure=plot, code=[Positions, OverLSTM, renumbered],
    )  # fmt: skip


def priced(layer: Layer, data: NodeData, *, steps: int, seed: int) -> dict[str, float]:
    """Accuracy as trained and with the nodes numbered anew, and the part of the test nodes whose class changes."""
    network = trained(two_layers(layer, data, seed=seed), data, steps=steps, seed=seed)
    features, generator = dense(data), torch.Generator().manual_seed(seed)
    before, after, changed = answers(network, features, data.edges), [], []
    for _ in range(NUMBERINGS):
        moved, edges, order = renumbered(features, data.edges, generator)
        back = torch.empty_like(before)
        back[order] = answers(network, moved, edges)
        changed.append(float((back != before)[data.test].float().mean()))
        after.append(right(back, data))
    return {"accuracy": right(before, data), "renumbered": mean(after), "changed": mean(changed)}


# How deep one can go


def depth(graphs: Graphs) -> Panel:
    """Graph convolutions on top of each other, with residual connections and without."""
    depths = (*DEPTHS, 32) if graphs.full else DEPTHS
    by: dict[str, list[Row]] = {"plain": [], "residual": []}
    for kind, rows in by.items():
        for layers in depths:
            graphs.say(f"depth: {layers} layers, {kind}")
            runs = [
                stacked(graphs.of(seed), layers, residual=kind == "residual", steps=graphs.steps, seed=seed)
                for seed in range(graphs.seeds)
            ]
            rows.append(over_seeds(f"{kind}, {layers}", runs))
    plot, axes = figure(3, width=3.6)
    titles = {"accuracy": "accuracy", "energy": "Dirichlet energy before", "cosine": "mean cosine before"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for kind, rows in by.items():
            axis.plot(depths, [row[key] for row in rows], "o-", label=kind)
        axis.set_xscale("log", base=2)
        axis.set_xticks(depths, [str(layers) for layers in depths])
        axis.set(xlabel="layers", title=title)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=8, frameon=False)
    test = len(graphs.of(0).test) * graphs.seeds
    told = [told_depth(kind, depths, rows, test) for kind, rows in by.items()]
    return Panel(
        name="depth", title="What becomes of deep ones?",
        asks="Graph convolutions between two linear layers. The Dirichlet energy is what neighbours differ by, per "
        "squared length of the features: 0 where all are alike but for their degree. It is that of the last layer, "
        "before training, since training has to begin with it, and afterwards (in the table).",
        found=" ".join(told), rows=[*by["plain"], *by["residual"]], figure=plot, code=[Deep, energy, likeness],
    )  # fmt: skip


def told_depth(kind: str, depths: Sequence[int], rows: Sequence[Row], test: int) -> str:
    """The deepest against the best, and what becomes of the differences between nodes."""
    k = max(range(len(rows)), key=lambda k: rows[k]["accuracy"])
    best, first, last = rows[k], rows[0], rows[-1]
    ending = f"with {depths[-1]} it is {last['accuracy']:.3f}, {against(last['accuracy'], best['accuracy'], test)} that"
    return (
        f"{kind.capitalize()}: accuracy is best with {depths[k]} layers ({best['accuracy']:.3f}); {ending}. Before "
        f"training the energy is {first['energy']:.2g} with {depths[0]} and {last['energy']:.2g} with {depths[-1]}, "
        f"and the mean cosine of two nodes {first['cosine']:.2f} and {last['cosine']:.2f}."
    )


def stacked(data: NodeData, layers: int, *, residual: bool, steps: int, seed: int) -> dict[str, float]:
    """Accuracy of so many convolutions, and what becomes of the differences between nodes."""
    network = made(partial(Deep, depth=layers, residual=residual), data.width, data.classes, seed=seed)
    assert isinstance(network, Deep)
    features, found = dense(data), {}
    for when in ("", " after"):
        if when:
            trained(network, data, steps=steps, seed=seed)
        with torch.no_grad():
            h = network.hidden(features, data.edges)
        found |= {f"energy{when}": energy(h, data.edges), f"cosine{when}": likeness(h)}
    return {"accuracy": right(answers(network, features, data.edges), data)} | found


# When neighbours help


def neighbours(graphs: Graphs) -> Panel:
    """Own features against neighbours', as neighbours become more alike."""
    by: dict[str, list[Row]] = {name: [] for name in NEIGHBOURS}
    test = 0
    for homophily in HOMOPHILIES:
        graphs.say(f"neighbours: {homophily:.0%} of the edges within a class")
        generated = [drawn(graphs.nodes, homophily=homophily, seed=seed) for seed in range(graphs.seeds)]
        test = sum(len(data.test) for data in generated)
        for name, layer in NEIGHBOURS.items():
            runs = []
            for seed, data in enumerate(generated):
                network = trained(two_layers(layer, data, seed=seed), data, steps=graphs.steps, seed=seed)
                runs.append({"accuracy": right(answers(network, dense(data), data.edges), data)})
            by[name].append(over_seeds(f"{name}, {homophily:g}", runs))
    plot, (axis,) = figure(1, width=6)
    for name, rows in by.items():
        axis.plot(HOMOPHILIES, [row["accuracy"] for row in rows], "o-", label=name)
    axis.set(xlabel="part of the edges within a class", title="accuracy on test nodes")
    legend(axis)
    return Panel(
        name="neighbours", title="When do neighbours help?",
        asks="The same features, on generated graphs whose edges join nodes of one class more and more often (0.2 is "
        "chance). A GCN averages a node with its neighbours, GraphSAGE keeps the two apart.",
        found=told_neighbours(by, test), rows=[row for rows in by.values() for row in rows], figure=plot,
        code=[GCN, SAGE, drawn],
    )  # fmt: skip


def told_neighbours(by: Mapping[str, Sequence[Row]], test: int) -> str:
    """Each network against the one that hears of no neighbour."""
    own, told = by["own features only"], []
    for name, rows in by.items():
        if rows is own:
            continue
        words: dict[str, list[str]] = {"above": [], "no different": [], "below": []}
        for homophily, row, alone in zip(HOMOPHILIES, rows, own, strict=True):
            word = against(row["accuracy"], alone["accuracy"], test).removesuffix(" from")
            words[word].append(f"{homophily:g} ({row['accuracy']:.3f} and {alone['accuracy']:.3f})")
        said = [f"{word} at {', '.join(places)}" for word, places in words.items() if places]
        told.append(f"{name} against own features only: {'; '.join(said)}.")
    return " ".join(told)


# What they share


def two_layers(layer: Layer, data: NodeData, *, seed: int) -> nn.Module:
    """A network of two such layers."""
    return made(
        lambda inner, outer: Network([layer(inner, HIDDEN), layer(HIDDEN, outer)]), data.width, data.classes, seed=seed
    )


def trained(network: nn.Module, data: NodeData, *, steps: int, seed: int) -> nn.Module:
    """It, with the last weights: nothing is chosen by validation nodes."""
    plain = NodeData(dense(data), data.edges, data.labels, data.classes, data.train, data.val[:0], data.test)
    train(network, plain, steps=steps, seed=seed)
    return network.eval()


@torch.no_grad()
def answers(network: nn.Module, features: Float[Tensor, "node width"], edges: Edges) -> Int[Tensor, " node"]:
    """The class of each node."""
    return network(features, edges).argmax(1)


def right(found: Int[Tensor, " node"], data: NodeData) -> float:
    """Accuracy on the test nodes."""
    return float((found == data.labels)[data.test].float().mean())


def dots(axis: Any, rows: Sequence[Row], keys: Mapping[str, str], xlabel: str, *, log: bool = True) -> None:
    """A line for each row from top to bottom, with a dot for each of `keys`, labelled by its value.

    log: on a logarithmic axis, on which 0 stands at 1e-17.
    """
    for key, label in keys.items():
        values = [max(row[key], 1e-17) if log else row[key] for row in rows]
        axis.plot(values, range(len(rows)), "o", alpha=0.8, label=label or None)
    axis.set_yticks(range(len(rows)), [row["setting"] for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel=xlabel)
    if log:
        axis.set_xscale("log")
