"""What `negah lab graph` runs: generated graphs, update functions valid and not, and networks of them.

An update function is f(h, messages), with h [width] of a node and messages [neighbour, width] in the order in which the
neighbours come.  Edges list them by number, so a network of an invalid one depends on how the nodes are numbered.
"""

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah.graph.csr import CSR
from negah.graph.edges import Edges
from negah.graph.layers import GAT, GCN, GIN, SAGE, Update
from negah.graph.nodes import NodeData

CLASSES, WIDTH, DEGREE = 5, 16, 6  # of generated graphs: features of a node, and neighbours on average
NOISE = 0.6  # of each feature, where the classes' means are vectors of length 1
TRAIN = 20  # nodes of each class that are trained on
POSITIONS = 8  # that have a weight of their own; neighbours beyond share the last

NUMBERINGS = 5  # other ones of the same graph

UpdateFunction = Callable[[Float[Tensor, " width"], Float[Tensor, "neighbour width"]], Tensor]
Layer = Callable[[int, int], nn.Module]  # from the widths of what comes in and goes out


def drawn(nodes: int, *, homophily: float, seed: int, by_class: bool = False) -> NodeData:
    """A graph of CLASSES classes, with features that say something of the class, and neighbours likewise.

    homophily: part of the edges within a class.  by_class: nodes are numbered one class after another, not at random.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (nodes,), generator=generator)
    if by_class:
        labels = labels.sort().values
    means = F.normalize(torch.randn(CLASSES, WIDTH, generator=generator), dim=1)
    features = means[labels] + NOISE * torch.randn(nodes, WIDTH, generator=generator)
    source = torch.arange(nodes).repeat(DEGREE // 2)
    same = torch.rand(len(source), generator=generator) < homophily
    other = (labels[source] + torch.randint(1, CLASSES, (len(source),), generator=generator)) % CLASSES
    wanted = torch.where(same, labels[source], other)
    target = torch.empty_like(source)
    for k in range(CLASSES):
        mine, places = (wanted == k).nonzero()[:, 0], (labels == k).nonzero()[:, 0]
        target[mine] = places[torch.randint(len(places), (len(mine),), generator=generator)]
    edges = Edges.of(torch.stack([source, target]), nodes, undirected=True, loops="drop", duplicates="merge")
    order = torch.randperm(nodes, generator=generator)
    train = torch.cat([order[labels[order] == k][:TRAIN] for k in range(CLASSES)])
    test = order[~torch.isin(order, train)]
    return NodeData(features, edges.unweighted(), labels, CLASSES, train, order[:0], test)


def renumbered(
    features: Float[Tensor, "node width"], edges: Edges, generator: torch.Generator
) -> tuple[Float[Tensor, "node width"], Edges, Int[Tensor, " node"]]:
    """The same graph with its nodes numbered in another way; `order[k]` is the old number of the new node k."""
    order = torch.randperm(edges.nodes, generator=generator)
    new = torch.empty_like(order)
    new[order] = torch.arange(len(order))
    return features[order], Edges.of(new[edges.index], edges.nodes, edges.weights), order


def updates(width: int, *, seed: int = 0) -> dict[str, UpdateFunction]:
    """Update functions by name, of random weights: three candidates, then more of either kind."""
    generator = torch.Generator().manual_seed(seed)
    own, shared, query = (torch.randn(width, width, generator=generator, dtype=torch.float64) for _ in range(3))
    each = torch.randn(POSITIONS, width, width, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lstm = nn.LSTM(width, width, dtype=torch.float64).requires_grad_(False)

    def mean_shared(h, messages):
        return own @ h + shared @ messages.mean(0)

    def max_shared(h, messages):
        return torch.maximum(own @ h, (messages @ shared.T).amax(0))

    def max_by_position(h, messages):
        mine = each[torch.arange(len(messages)).clamp(max=POSITIONS - 1)]
        return torch.maximum(own @ h, torch.einsum("ndk,nk->nd", mine, messages).amax(0))

    def sum_shared(h, messages):
        return torch.relu(own @ h + (messages @ shared.T).sum(0))

    def attention(h, messages):
        return own @ h + (messages @ (query @ h)).softmax(0) @ messages

    def by_lstm(h, messages):
        return own @ h + lstm(messages)[0][-1]

    def first_only(h, messages):
        return own @ h + shared @ messages[0]

    return {
        "mean (shared weight)": mean_shared, "max (weight per position)": max_by_position,
        "max (shared weight)": max_shared, "sum (shared weight)": sum_shared, "attention": attention,
        "LSTM": by_lstm, "first neighbour": first_only,
    }  # fmt: skip


def largest_change(update: UpdateFunction, width: int, *, seed: int = 0, neighbours: int = 5) -> float:
    """Over all orders of some neighbours: how far the output moves, relative to its largest entry."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(width, generator=generator, dtype=torch.float64)
    messages = torch.randn(neighbours, width, generator=generator, dtype=torch.float64)
    before = update(h, messages)
    moved = [update(h, messages[list(order)]) - before for order in itertools.permutations(range(neighbours))]
    return float(torch.stack(moved).abs().max() / before.abs().max())


class Positions(nn.Module):
    """max(W1 h, W2 m1, W3 m2, ...): a weight for each position, which is no function of a set.

    shared: W2 for all positions, which is one.
    """

    def __init__(self, inner: int, outer: int, *, shared: bool = False):
        super().__init__()
        self.own = nn.Linear(inner, outer)
        self.others = nn.ModuleList(nn.Linear(inner, outer, bias=False) for _ in range(1 if shared else POSITIONS))

    def forward(self, h: Float[Tensor, "node inner"], edges: Edges) -> Float[Tensor, "node outer"]:
        """Features [node, inner] to [node, outer]."""
        position = places(edges).clamp(max=len(self.others) - 1)
        told = torch.stack([linear(h) for linear in self.others])[position, edges.pattern.columns.long()]
        rows = edges.pattern.rows.long()[:, None].expand_as(told)
        return self.own(h).scatter_reduce(0, rows, told, "amax")


class OverLSTM(nn.Module):
    """W h + LSTM(m1, m2, ...): GraphSAGE's third aggregator, which its paper feeds in a random order."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.own, self.first = nn.Linear(inner, outer), nn.Linear(inner, outer)
        self.lstm = nn.LSTM(outer, outer, batch_first=True)

    def forward(self, h: Float[Tensor, "node inner"], edges: Edges) -> Float[Tensor, "node outer"]:
        """Features [node, inner] to [node, outer]."""
        rows, place = edges.pattern.rows.long(), places(edges)
        count = edges.pattern.offsets.diff().long()
        table = h.new_zeros(edges.nodes, int(count.max()), self.first.out_features)
        table = table.index_put((rows, place), self.first(h)[edges.pattern.columns.long()])
        said = self.lstm(table)[0][torch.arange(edges.nodes), (count - 1).clamp(min=0)]
        return self.own(h) + torch.where((count > 0)[:, None], said, 0)


def places(edges: Edges) -> Int[Tensor, " edge"]:
    """Which neighbour of its target the source of each edge is: 0, 1, ..."""
    rows = edges.pattern.rows.long()
    return torch.arange(len(rows), device=rows.device) - edges.pattern.offsets.long()[rows]


LAYERS: dict[str, Layer] = {
    "Update": Update, "GCN": GCN, "SAGE (mean)": SAGE, "SAGE (max)": partial(SAGE, over="max"),
    "GIN": lambda inner, outer: GIN(nn.Sequential(nn.Linear(inner, outer), nn.ReLU(), nn.Linear(outer, outer))),
    "GAT": partial(GAT, heads=2, join="mean"), "max (shared weight)": partial(Positions, shared=True),
    "max (weight per position)": Positions, "LSTM": OverLSTM,
}  # fmt: skip
"""By name; the last two are not equivariant."""


def made(layer: Layer, inner: int, outer: int, *, seed: int) -> nn.Module:
    """A layer or network with the weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return layer(inner, outer)


class Deep(nn.Module):
    """As many graph convolutions as wanted between two linear layers.

    residual: each adds to what comes in.
    """

    def __init__(self, inner: int, outer: int, *, depth: int, width: int = 32, residual: bool = False):
        super().__init__()
        self.first, self.last = nn.Linear(inner, width), nn.Linear(width, outer)
        self.layers = nn.ModuleList(GCN(width, width) for _ in range(depth))
        self.residual = residual

    def hidden(self, h: Float[Tensor, "node inner"], edges: Edges) -> Float[Tensor, "node width"]:
        """What the last convolution leaves of each node."""
        h = self.first(h)
        for layer in self.layers:
            more = torch.relu(layer(h, edges))
            h = h + more if self.residual else more
        return h

    def forward(self, h: Float[Tensor, "node inner"], edges: Edges) -> Float[Tensor, "node outer"]:
        """Features [node, inner] to [node, outer]."""
        return self.last(self.hidden(h, edges))


class Alone(nn.Module):
    """A linear layer in the place of one that hears of neighbours."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.own = nn.Linear(inner, outer)

    def forward(self, h: Float[Tensor, "node inner"], edges: Edges) -> Float[Tensor, "node outer"]:
        """Features [node, inner] to [node, outer]; the edges play no part."""
        return self.own(h)


def energy(h: Float[Tensor, "node width"], edges: Edges) -> float:
    """Dirichlet energy by the graph's normalised Laplacian, per squared length of the features: 0 to 2.

    1 - <H, B~ H> / <H, H>, with the matrix B~ of a GCN.  0: neighbours all say the same, but for their degree.
    """
    return float(1 - (h * (edges.typed(h.dtype).gcn @ h)).sum() / h.square().sum().clamp(min=1e-30))


def likeness(h: Float[Tensor, "node width"]) -> float:
    """Mean cosine of two nodes' features, centred on nothing: 1 where all point the same way."""
    unit = F.normalize(h, dim=1)
    n = len(h)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def dense(data: NodeData) -> Float[Tensor, "node width"]:
    """Its features as a plain matrix."""
    return data.features.dense() if isinstance(data.features, CSR) else data.features
