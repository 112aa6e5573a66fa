"""Node classification: some nodes of a graph have labels, the others are to get theirs from features and neighbours.

    data = read_planetoid("cora")
    network = Network([GCN(data.width, 16), GCN(16, data.classes)], dropout=0.5)
    result = train(network, data, steps=200, lr=0.01, weight_decay=5e-4)
    accuracy(network, data, data.test)

Full batch: all nodes at each step, the loss on those for training (`whole`).  Large graphs: some of them with a sample
of their neighbours (`sampled`, see `negah.graph.sampling`); the accuracy is always that of the whole graph.

The test labels have no part in training: weights are chosen by the nodes for validation, if at all.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Adam

from negah.errors import InputError
from negah.graph.aggregate import Features
from negah.graph.csr import CSR
from negah.graph.edges import Edges
from negah.graph.sampling import sample
from negah.nn.dropout import dropout
from negah.train import Batches, FitResult, Objective, fit
from negah.train.batches import BatchSource
from negah.train.callbacks import KeepBest
from negah.train.schedules import constant

Keep = Literal["accuracy", "loss"]


@dataclass(frozen=True)
class NodeData:
    """A graph whose nodes have features, labels (-1: unknown), and places in a split; checked when made.

    Raises InputError, saying which node: features that are not finite, labels missing where they are needed or out of
    range, nodes in two parts of the split, sizes that do not fit; and for a graph without edges.
    """

    features: Features
    edges: Edges
    labels: Int[Tensor, " label"]
    classes: int
    train: Int[Tensor, " train"]
    val: Int[Tensor, " val"]
    test: Int[Tensor, " test"]

    def __post_init__(self) -> None:
        n = self.edges.nodes
        if self.features.shape[0] != n or len(self.labels) != n:
            raise InputError(f"{n} nodes have {self.features.shape[0]} rows of features and {len(self.labels)} labels")
        if not len(self.edges):
            raise InputError(f"the graph of {n} nodes has no edges: give some, or use negah.probe, which needs none")
        numbers = self.features.values if isinstance(self.features, CSR) else self.features
        if not numbers.isfinite().all():
            at = int((~numbers.isfinite()).nonzero()[0][0])
            node = int(self.features.pattern.rows[at]) if isinstance(self.features, CSR) else at
            raise InputError(f"features of node {node} are not finite: correct them, or leave the node out")
        wrong = ((self.labels < -1) | (self.labels >= self.classes)).nonzero()
        if len(wrong):
            node = int(wrong[0])
            label, last = int(self.labels[node]), self.classes - 1
            raise InputError(f"node {node} has label {label}: classes are 0 to {last}, and -1 stands for none")
        if not len(self.train):
            raise InputError("no node is for training: there is nothing to learn from")
        seen = torch.zeros(n, dtype=torch.long)  # in how many parts each node is
        for name, part in (("training", self.train), ("validation", self.val), ("test", self.test)):
            if len(part) and (part.min() < 0 or part.max() >= n):
                raise InputError(f"the {name} split names a node that is not there: nodes are numbered 0 to {n - 1}")
            missing = (self.labels[part] < 0).nonzero()
            if len(missing):
                node = int(part[int(missing[0])])
                raise InputError(
                    f"{len(missing)} {name} nodes have no label, the first is node {node}: drop them there"
                )
            seen += torch.bincount(part.cpu(), minlength=n)
        if (seen > 1).any():
            raise InputError(f"node {int((seen > 1).nonzero()[0])} is twice in the split: each node has one part")

    @property
    def width(self) -> int:
        """Features of a node."""
        return self.features.shape[1]

    def to(self, device: torch.device | str) -> "NodeData":
        """On another device."""
        names = ("features", "edges", "labels", "train", "val", "test")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class Batch(NamedTuple):
    """What a step sees: a graph, and the nodes of it on which the loss is taken."""

    features: Any  # Features
    edges: Edges
    labels: Tensor
    nodes: Tensor


class Network(nn.Module):
    """Layers one after the other, with dropout in front of each and a non-linearity between them.

    Args:
        layers: called as layer(h, edges).
        dropout: of each layer's input, sparse features included.
        sigma: between layers, and not after the last.
    """

    def __init__(
        self, layers: Iterable[nn.Module], *, dropout: float = 0.5, sigma: Callable[[Tensor], Tensor] = torch.relu
    ):
        super().__init__()
        self.layers, self.dropout, self.sigma = nn.ModuleList(layers), dropout, sigma

    def forward(self, h: Features, edges: Edges) -> Float[Tensor, "node outer"]:
        """Features [node, inner] to [node, outer]."""
        first, *others = self.layers
        out = first(dropped(h, self.dropout, self.training), edges)
        for layer in others:
            out = self.sigma(out)  # one step a line: what is not needed any more is not held
            out = dropped(out, self.dropout, self.training)
            out = layer(out, edges)
        return out


def dropped(h: Features, rate: float, training: bool) -> Features:
    """Dropout; of sparse features only the entries have to be drawn, since zeros stay zeros."""
    if not training or rate == 0:
        return h
    if isinstance(h, CSR):
        return CSR(h.pattern, dropout(h.values, rate))
    return dropout(h, rate)


class Classify(Objective):
    """Cross-entropy on the nodes of a `Batch`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss and accuracy."""
        where = batch.labels.device  # `fit` has moved the tensors
        logits = self.network(batch.features.to(where), batch.edges.to(where)).index_select(0, batch.nodes)
        labels = batch.labels.index_select(0, batch.nodes)
        with torch.no_grad():
            right = (logits.argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": right}


def whole(data: NodeData) -> list[Batch]:
    """The one batch of full-batch training."""
    return [Batch(data.features, data.edges, data.labels, data.train)]


def sampled(data: NodeData, batch: int, fanout: Sequence[int], *, seed: int = 0, workers: int = 0) -> Batches:
    """Batches of training nodes, each with a sample of the graph around it.

    Args:
        fanout: how many neighbours of a node are drawn, hop by hop; as many hops as the network has layers.
    """

    def around(nodes: Sequence[Tensor], generator: torch.Generator) -> Batch:
        # A batch may lie across two epochs, and then hold a node twice.
        seeds, places = torch.unique(torch.stack(list(nodes)), return_inverse=True)
        near, edges = sample(data.edges, seeds, fanout, generator)
        features = data.features.take(near) if isinstance(data.features, CSR) else data.features[near]
        return Batch(features, edges, data.labels[near], places)

    return Batches(data.train, min(batch, len(data.train)), seed=seed, collate=around, workers=workers)


@torch.no_grad()
def accuracy(network: nn.Module, data: NodeData, nodes: Int[Tensor, " some"]) -> float:
    """Share of right answers on some nodes, with the whole graph in view; the network in its present mode."""
    return float((network(data.features, data.edges)[nodes].argmax(1) == data.labels[nodes]).float().mean())


def train(
    network: nn.Module, data: NodeData, *, steps: int = 200, lr: float = 0.01, weight_decay: float = 5e-4,
    batches: BatchSource | Iterable[Batch] | None = None, keep: Keep = "accuracy", patience: int | None = None,
    score_every: int = 1, seed: int = 0, device: str | torch.device | None = None, out: str | Path | None = None,
) -> FitResult:  # fmt: skip
    """Train with Adam at a constant rate, and keep the weights that are best on the validation nodes.

    Args:
        weight_decay: of matrices, as a term of the loss (not AdamW's).
        batches: by default the whole graph at each step; `sampled` makes others.
        keep: best by accuracy, or by loss.
        patience: end after that many scores without a better one.
        score_every: steps between scores.

    Without validation nodes the last weights stay.
    """
    if device is not None:
        data = data.to(device)
        network.to(device)
    labels = data.labels[data.val]

    def scores() -> dict[str, float]:
        logits = network(data.features, data.edges)[data.val]
        right = (logits.argmax(1) == labels).float().mean()
        return {"accuracy": float(right), "loss": float(F.cross_entropy(logits, labels))}

    judged = bool(len(labels))
    best = KeepBest(keep, better="higher" if keep == "accuracy" else "lower", patience=patience)
    return fit(
        Classify(network), whole(data) if batches is None else batches, steps=steps, lr=lr, optimizer=Adam,
        weight_decay=weight_decay, schedule=constant(), seed=seed, device=device, out=out,
        callbacks=[best] if judged else [], scores=scores if judged else None, score_every=score_every,
    )  # fmt: skip


def row_normalised(features: Features) -> Features:
    """Each row of non-negative features divided by its sum, as bags of words are by GCN and GAT; empty rows stay."""
    if isinstance(features, CSR):
        sums = features.values.new_zeros(len(features)).index_add(0, features.pattern.rows, features.values)
        return CSR(features.pattern, features.values / sums.where(sums > 0, 1).index_select(0, features.pattern.rows))
    sums = features.sum(1, keepdim=True)
    return features / sums.where(sums > 0, 1)


def random_split(
    data: NodeData, generator: torch.Generator, *, of_each_class: int = 20, val: int = 500, test: int = 1000
) -> NodeData:
    """The same graph with another split of the sizes of Planetoid's, as in Shchur et al. 2018 (arXiv:1811.05868).

    Raises InputError where there are not enough labelled nodes.
    """
    order = torch.randperm(len(data.labels), generator=generator)
    order = order[data.labels[order] >= 0]
    labels = data.labels[order]
    train = torch.cat([order[labels == k][:of_each_class] for k in range(data.classes)])
    rest = order[~torch.isin(order, train)]
    if len(train) < of_each_class * data.classes or len(rest) < val + test:
        raise InputError(
            f"{len(order)} labelled nodes are too few for {of_each_class} of each class, {val} for validation and"
            f" {test} for tests"
        )
    return replace(data, train=train, val=rest[:val], test=rest[val : val + test])
