"""Claim: a training epoch of GCN and GraphSAGE takes no more time and memory than torch-geometric's, on the same CPU.

    python benchmarks/graph_epoch.py [--threads 2] [--rounds 40] [--what speed memory]

An epoch is: forward with dropout of 0.5, cross-entropy on the training nodes, backward, Adam, on the whole graph.  Two
layers, fp32, the same initial weights; before anything is measured, both sides' logits are compared without dropout.

    cora        2,708 nodes, 10,556 edges (either way counts), 1,433 words; GCN 16 wide, GraphSAGE (mean) 64 wide
    generated   100,000 nodes, 10^6 edges (either way counts) of uneven degrees, 64 features, 64 wide, 10 classes

torch-geometric in two forms: "edge list", the edge index that its layers take and its examples use, with GCN's
normalisation kept (cached=True); and "sparse matrix", the transposed adjacency as a CSR tensor of torch, which its
documentation recommends for memory.  Neither torch-sparse nor pyg-lib is installed: where they are, it can be faster.
Ratios are ours over that of its faster form (time) and its smaller one (memory) in that setting.  Cora's words are a
dense matrix there, as its data set gives them, and sparse here, as `read_planetoid` gives them; "negah dense words"
tells what that alone is worth.

Speed: the contestants take turns in one process, and each round gives a ratio; medians of those, by the clock and by
the processor's time ("cpu").  Memory: each in a process of its own, from reading the graph to the end of the third
epoch, so that what is kept of the graph counts, and making it as well: what PyTorch's allocator holds at its peak
("mb", the same every time; the ratio is of this), and how far the whole process grew ("process_mb", which holds the
libraries' own memory and code, and differs from run to run by a fifth).  Rows of other numbers of threads stay.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import results
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv
from torch_geometric.utils import to_torch_csr_tensor

from negah.graph import CSR, GCN, SAGE, Edges
from negah.graph.aggregate import Features
from negah.graph.nodes import Network
from negah.graph.planetoid import read_planetoid
from negah.lab.costs import highest, peak_memory

NAME = "graph_epoch"
GRAPHS, MODELS = ("cora", "generated"), ("gcn", "sage")
OURS, DENSE = "negah", "negah dense words"
LISTED, SPARSE = "torch-geometric edge list", "torch-geometric sparse matrix"
NODES, EDGES, FEATURES, CLASSES = 100_000, 1_000_000, 64, 10
SEED, EPOCHS = 0, 3
Step = Callable[[], object]


class Graph(NamedTuple):
    """What a file would hold: each undirected edge once."""

    features: Features
    pairs: Tensor
    labels: Tensor
    classes: int
    train: Tensor


def read(graph: str, file: Path | None = None) -> Graph:
    if graph == "cora":
        data = read_planetoid(results.data_folder() / "cora")
        index = data.edges.index
        return Graph(data.features, index[:, index[0] < index[1]], data.labels, data.classes, data.train)
    if file is not None:
        return Graph(**torch.load(file, weights_only=True))
    g = torch.Generator().manual_seed(SEED)
    # An end is a node in proportion to its number to the power of -0.4: a few nodes have many neighbours.
    likely = torch.arange(1, NODES + 1, dtype=torch.float64).pow(-0.4)
    ends = torch.multinomial(likely, 2 * EDGES, replacement=True, generator=g).view(2, -1)
    ends = torch.unique(ends[:, ends[0] != ends[1]].sort(0).values, dim=1)
    pairs = ends[:, torch.randperm(ends.shape[1], generator=g)[: EDGES // 2]]
    labels = torch.randint(CLASSES, (NODES,), generator=g)
    train = torch.randperm(NODES, generator=g)[: NODES // 2]
    return Graph(torch.randn(NODES, FEATURES, generator=g), pairs, labels, CLASSES, train)


class Theirs(nn.Module):
    """Two of torch-geometric's layers, on an edge index or a sparse matrix."""

    def __init__(self, model: str, inner: int, width: int, classes: int):
        super().__init__()
        kind = (lambda i, o: GCNConv(i, o, cached=True)) if model == "gcn" else (lambda i, o: SAGEConv(i, o))
        self.layers = nn.ModuleList([kind(inner, width), kind(width, classes)])

    def forward(self, h: Tensor, edges: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            h = layer(F.dropout(h if place == 0 else h.relu(), 0.5, self.training), edges)
        return h


def prepared(who: str, model: str, graph: str, data: Graph) -> tuple[nn.Module, Any, Any]:
    """Network, features and edges of a contestant."""
    nodes, inner = data.features.shape
    width = 16 if (graph, model) == ("cora", "gcn") else 64
    torch.manual_seed(SEED)
    kind = GCN if model == "gcn" else SAGE
    ours = Network([kind(inner, width), kind(width, data.classes)])
    features = data.features
    if who != OURS and isinstance(features, CSR):
        features = features.dense()
    if who in (OURS, DENSE):
        return ours, features, Edges.of(data.pairs, nodes, undirected=True)
    theirs = Theirs(model, inner, width, data.classes)
    for layer, its in zip(ours.layers, theirs.layers):
        if model == "gcn":
            its.lin.weight.data, its.bias.data = layer.weight.data, layer.bias.data
        else:
            its.lin_r.weight.data, its.lin_l.weight.data = layer.own.weight.data, layer.others.weight.data
            its.lin_l.bias.data = layer.others.bias.data
    index = torch.cat([data.pairs, data.pairs.flip(0)], 1)
    # The adjacency of an undirected graph is the transposed one that its layers want.
    return theirs, features, index if who == LISTED else to_torch_csr_tensor(index, size=(nodes, nodes))


def epoch(network: nn.Module, features: Any, edges: Any, data: Graph) -> Step:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    targets, train = data.labels[data.train], data.train

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(features, edges)[train], targets).backward()
        optimizer.step()

    return step


def contestants(graph: str) -> list[str]:
    return [OURS, LISTED, SPARSE, *([DENSE] if graph == "cora" else [])]


def speed(graph: str, model: str, rounds: int) -> list[dict[str, Any]]:
    data = read(graph)
    made = {who: prepared(who, model, graph, data) for who in contestants(graph)}
    with torch.no_grad():
        logits = {who: net.eval()(features, edges) for who, (net, features, edges) in made.items()}
    for who, found in logits.items():
        torch.testing.assert_close(found, logits[OURS], rtol=1e-4, atol=1e-4, msg=lambda m, who=who: f"{who}: {m}")
    steps = {who: epoch(net.train(), features, edges, data) for who, (net, features, edges) in made.items()}
    seconds: dict[str, list[tuple[float, float]]] = {who: [] for who in steps}
    for turn in range(2 + rounds):
        for who in list(steps)[:: 1 if turn % 2 else -1]:
            start, used = time.perf_counter(), time.process_time()
            steps[who]()
            if turn > 1:
                seconds[who].append((time.perf_counter() - start, time.process_time() - used))
    rival = min((LISTED, SPARSE), key=lambda who: statistics.median(clock for clock, _ in seconds[who]))
    rows = []
    for who, taken in seconds.items():
        wall, cpu = ([our / their for our, their in zip(a, b)] for a, b in zip(zip(*taken), zip(*seconds[rival])))
        low, middle, high = statistics.quantiles(wall, n=4)
        rows.append({
            "what": "speed", "graph": graph, "model": model, "who": who, "threads": torch.get_num_threads(),
            "rounds": rounds, "ms": 1000 * statistics.median(clock for clock, _ in taken), "ratio": middle,
            "ratio_quarters": [low, high], "cpu_ms": 1000 * statistics.median(used for _, used in taken),
            "ratio_cpu": statistics.median(cpu), "ratio_to": rival, "load": os.getloadavg()[0],
        })  # fmt: skip
        print(f"{graph} {model} {who}: {rows[-1]['ms']:.2f} ms, {middle:.3f}", flush=True)
    return rows


def memory(graph: str, model: str) -> list[dict[str, Any]]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.pt"
        if graph != "cora":
            torch.save(read(graph)._asdict(), file)
        for who in contestants(graph):
            command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--peak", who, graph, model]
            done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=True)
            found[who] = json.loads(done.stdout)
            print(f"{graph} {model} {who}: {found[who]}", flush=True)
    rival = min((LISTED, SPARSE), key=lambda who: found[who]["mb"])
    return [
        {
            "what": "memory", "graph": graph, "model": model, "who": who, "threads": torch.get_num_threads(),
            **used, "ratio": used["mb"] / found[rival]["mb"], "ratio_to": rival,
        }
        for who, used in found.items()
    ]  # fmt: skip


def peak(who: str, graph: str, model: str, file: str) -> dict[str, float]:
    """MB from reading the graph to the end of the last epoch: of the process above the imports, and of tensors."""
    warm = nn.Linear(4, 4)  # the optimiser and the libraries' own threads are no part of it
    torch.optim.Adam(warm.parameters()).zero_grad()
    warm(torch.ones(300, 4)).sum().backward()

    def run() -> None:
        data = read(graph, Path(file))
        network, features, edges = prepared(who, model, graph, data)
        step = epoch(network, features, edges, data._replace(features=features))
        del data
        for _ in range(EPOCHS):
            step()

    return {"process_mb": highest(run)[0] / 2**20, "mb": peak_memory(run) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--what", nargs="+", choices=("speed", "memory"), default=["speed", "memory"])
    parser.add_argument("--peak", nargs=4, metavar=("WHO", "GRAPH", "MODEL", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    if args.peak:
        print(json.dumps(peak(*args.peak)))
        return
    path = results.FOLDER / f"{NAME}.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in kept if row["what"] not in args.what or row["threads"] != args.threads]
    for graph in GRAPHS:
        for model in MODELS:
            if "speed" in args.what:
                rows += speed(graph, model, args.rounds if graph == "cora" else max(5, args.rounds // 4))
            if "memory" in args.what:
                rows += memory(graph, model)
    worst = {what: max((r["ratio"] for r in rows if r["what"] == what and r["who"] == OURS), default=float("nan"))
             for what in ("speed", "memory")}  # fmt: skip
    results.write(
        NAME,
        claim="A training epoch of GCN and GraphSAGE on Cora and on a graph of 10^6 edges, against torch-geometric's",
        rows=rows,
        headline={
            "value": worst["speed"], "target": 1.0, "better": "lower",
            "unit": f"of the time of torch-geometric's faster form, and {worst['memory']:.3f} of the memory of its"
            " smaller one; each the worst of 4 settings",
        },
        seeds=[SEED], packages=("torch-geometric",), worst_memory=worst["memory"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
