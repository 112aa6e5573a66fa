"""Training on towns: each batch is some towns as one graph, and the loss is the cross-entropy of presence."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from negah.graph.edges import Edges
from negah.graph.refine import Refiner
from negah.runs.aerial.tiles import MASKED
from negah.runs.neighbours.towns import Windows
from negah.runs.refine import beside
from negah.train import Batches, Objective, fit

TRAIN, HELD = range(100), range(100, 120)  # seeds of towns, see `towns`: trained on, and calibrated on
STEPS, BATCH = 600, 10  # towns in a batch
LR, WEIGHT_DECAY = 3e-3, 0.05
ALONE = 0.2  # part of the towns whose windows are trained on without their neighbours


class Graph(NamedTuple):
    """Windows and which lie side by side.  asked: 1 where it is known whether there are panels."""

    feature: Float[Tensor, "window dim"]
    logit: Float[Tensor, " window"]
    edges: Edges
    present: Float[Tensor, " window"]
    asked: Float[Tensor, " window"]


class Refinement(Objective):
    """Cross-entropy of the refined probability."""

    def __init__(self, refiner: Refiner):
        super().__init__()
        self.refiner = refiner

    def forward(self, batch: Graph) -> dict[str, Tensor]:
        logit = self.refiner(batch.feature, batch.logit, batch.edges.to(batch.logit.device))
        each = F.binary_cross_entropy_with_logits(logit, batch.present, reduction="none")
        return {"loss": (each * batch.asked).sum() / batch.asked.sum()}


def graph_of(town: Windows, side_m: float) -> Graph:
    """A town's windows as a graph.  side_m: of a window."""
    label = torch.from_numpy(town.label)
    return Graph(
        torch.from_numpy(town.feature.astype(np.float32)), torch.from_numpy(town.logit), beside(town.place, side_m),
        (label == 1).float(), (label != MASKED).float(),
    )  # fmt: skip


def together(graphs: Sequence[Graph], generator: torch.Generator, *, alone: float) -> Graph:
    """Several graphs as one, some of them without their edges."""
    keep = torch.rand(len(graphs), generator=generator) >= alone
    ends = np.cumsum([len(graph.logit) for graph in graphs]).tolist()
    index = [graph.edges.index + start for graph, start, kept in zip(graphs, [0, *ends], keep) if kept]
    edges = Edges.of(torch.cat([torch.zeros(2, 0, dtype=torch.long), *index], dim=1), ends[-1])
    columns = list(zip(*graphs))
    return Graph(torch.cat(columns[0]), torch.cat(columns[1]), edges, *map(torch.cat, columns[3:]))


def apart(graph: Graph) -> Graph:
    """The same windows, each by itself."""
    return graph._replace(edges=Edges.of(graph.edges.index[:, :0], len(graph.logit)))


def train(
    graphs: Sequence[Graph], held: Sequence[Graph], *, neighbours: bool = True, steps: int = STEPS, seed: int = 0
) -> Refiner:
    """A refiner trained on some towns and calibrated on others; without neighbours, on windows one by one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        refiner = Refiner(graphs[0].feature.shape[1])
    batches = Batches(
        list(graphs), BATCH, seed=seed, collate=partial(together, alone=ALONE if neighbours else 1.0)
    )  # fmt: skip
    fit(Refinement(refiner), batches, steps=steps, lr=LR, weight_decay=WEIGHT_DECAY, warmup=steps // 10, clip=1.0,
        seed=seed)  # fmt: skip
    refiner.eval()
    calibrate(refiner, held if neighbours else [apart(graph) for graph in held])
    return refiner


@torch.no_grad()
def refined(refiner: Refiner, graph: Graph) -> Float[Tensor, " window"]:
    """Refined logits of a town's windows."""
    return refiner(graph.feature, graph.logit, graph.edges)


def calibrate(refiner: Refiner, held: Sequence[Graph]) -> None:
    """Fit the refiner's scale and shift, by which its probabilities are right on average on towns held aside."""
    refiner.scale, refiner.shift = torch.ones(()), torch.zeros(())
    logit = torch.cat([refined(refiner, graph) for graph in held])
    present, asked = (torch.cat([getattr(graph, name) for graph in held]) for name in ("present", "asked"))
    line = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(line[0] * logit + line[1], present, weight=asked)
        loss.backward()
        return loss

    optimizer.step(closure)
    refiner.scale, refiner.shift = line.detach()
