"""Claim: Windows around a window help a detector to tell whether it has panels, in generated towns that it never saw

    python benchmarks/refine_neighbours.py [--work build/neighbours/towns]

Presence in windows of 31 m: the detector alone; a network that refines its probability from the backbone's features of
the window itself; and the bundled refiner, which hears of the neighbours as well, also where it is shown none, or, in
their place, any windows of the town ("any neighbours").  Both networks come of one recipe (`negah.runs.neighbours`).
The towns measured on are drawn with other seeds than those trained on, each once with panels that clump in streets and
once without.  AUC is over all windows, with 95 % bootstrap intervals over towns; `within` is the mean over towns of the
AUC within one, which knowing how many panels a town has does not raise.  The intervals of a gain are those of the
difference.

On photographs: Duke tiles of the fold that the detector was not trained on, joined where they overlap by less than
half; most have no neighbour, so what is seen there is what the network makes of photographs.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import results
import torch
from torch import Tensor

from negah.graph.edges import Edges
from negah.graph.refine import load as load_refiner
from negah.probe.detector import Detector, load
from negah.probe.metrics import auc, bootstrap_weights, calibration_error
from negah.runs.aerial.recipe import ASIDE
from negah.runs.aerial.tiles import duke, read_csv
from negah.runs.neighbours.recipe import HELD, TRAIN, Graph, apart, graph_of, refined, train
from negah.runs.neighbours.towns import towns
from negah.runs.refine import REFINER

SEEDS = range(1000, 1030)  # of the towns measured on
CLUMPING = {"clumps": 0.4, "no clumps": 0.0}
RESAMPLES = 2000
Answer = Callable[[Graph], Tensor]


class Asked(NamedTuple):
    """Windows of which presence is known: label, probability of each setting, town; how many have a neighbour."""

    label: np.ndarray
    probability: dict[str, np.ndarray]
    town: np.ndarray
    joined: int


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("build/neighbours/towns"), help="where drawn towns are kept")
    work = parser.parse_args().work
    torch.set_num_threads(1)
    detector = load("negah/aerial-tiny")
    side = detector.info.window_px * detector.info.gsd_m
    known = [graph_of(town, side) for town in towns(detector, [*TRAIN, *HELD], work=work)]
    alone = train(known[: len(TRAIN)], known[len(TRAIN) :], neighbours=False)
    refiner, _ = load_refiner(REFINER)
    settings: dict[str, Answer] = {
        "detector alone": lambda graph: graph.logit,
        "own features": lambda graph: refined(alone, apart(graph)),
        "neighbours": lambda graph: refined(refiner, graph),
        "no neighbours": lambda graph: refined(refiner, apart(graph)),
        "any neighbours": lambda graph: refined(refiner, elsewhere(graph)),
    }
    rows = []
    for place, clumping in CLUMPING.items():
        seen = [graph_of(town, side) for town in towns(detector, SEEDS, work=work, clumping=clumping)]
        rows += measured(place, asked(settings, seen))
    for row in measured("Duke photographs", asked(settings, *photographs(detector))):
        rows.append({name: value for name, value in row.items() if name != "within"})  # groups of a tile or two
    gain = next(row for row in rows if row["setting"] == "neighbours less own features" and row["place"] == "clumps")
    path = results.write(
        "refine_neighbours", claim=(__doc__ or "").splitlines()[0].removeprefix("Claim: "), rows=rows,
        seeds=list(SEEDS), packages=("numpy", "scipy"),
        towns={"trained": len(TRAIN), "calibrated": len(HELD), "measured": len(SEEDS), "clumping": CLUMPING},
        headline={"value": gain["auc"], "interval": gain["interval"], "target": 0.0,
                  "unit": "AUC that the neighbours add to a window's own features, towns where panels clump",
                  "better": "higher"},
    )  # fmt: skip
    print(path.read_text())


def asked(settings: dict[str, Answer], graphs: Sequence[Graph], town: np.ndarray | None = None) -> Asked:
    """What each setting says of the windows that can be asked for.  town: of each window, if not each graph is one."""
    which = np.concatenate([graph.asked.numpy() > 0 for graph in graphs])
    if town is None:
        town = np.repeat(np.arange(len(graphs)), [len(graph.logit) for graph in graphs])
    said = {
        name: torch.cat([answer(graph) for graph in graphs]).sigmoid().numpy()[which]
        for name, answer in settings.items()
    }
    label = np.concatenate([graph.present.numpy() for graph in graphs])[which].astype(int)
    joined = np.concatenate([~graph.edges.isolated.numpy() for graph in graphs])[which]
    return Asked(label, said, town[which], int(joined.sum()))


def measured(place: str, seen: Asked) -> list[dict]:
    """A row for each setting, and one for each gain."""
    member = np.unique(seen.town, return_inverse=True)[1]
    generator = torch.Generator().manual_seed(0)
    weights = np.concatenate(list(bootstrap_weights(member, RESAMPLES, generator)))
    drawn = {name: auc(seen.label, p, weights) for name, p in seen.probability.items()}
    common = {"place": place, "windows": len(seen.label), "positives": int(seen.label.sum()),
              "joined": seen.joined, "towns": int(member.max()) + 1}  # fmt: skip
    rows = [
        {"setting": name} | common | figures(float(auc(seen.label, p)), drawn[name])
        | {"within": within(seen, member, name), "calibration_error": float(calibration_error(seen.label, p)),
           "log_loss": log_loss(seen.label, p)}
        for name, p in seen.probability.items()
    ]  # fmt: skip
    for more, less in (("own features", "detector alone"), ("neighbours", "detector alone"),
                       ("neighbours", "own features"), ("neighbours", "any neighbours")):  # fmt: skip
        value = float(auc(seen.label, seen.probability[more]) - auc(seen.label, seen.probability[less]))
        both = [within(seen, member, name) for name in (more, less)]
        rows.append({"setting": f"{more} less {less}"} | common | figures(value, drawn[more] - drawn[less])
                    | {"within": both[0] - both[1]})  # fmt: skip
    return rows


def elsewhere(graph: Graph) -> Graph:
    """Each window with as many neighbours, drawn from all of its town."""
    order = torch.randperm(len(graph.logit), generator=torch.Generator().manual_seed(0))
    source, target = graph.edges.index
    return graph._replace(edges=Edges.of(torch.stack([order[source], target]), len(order), loops="drop"))


def figures(value: float, drawn: np.ndarray) -> dict:
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"auc": value, "interval": [float(low), float(high)]}


def within(seen: Asked, member: np.ndarray, name: str) -> float:
    """Mean over the towns of the AUC within one; NaN where none has both."""
    each = [auc(seen.label[member == k], seen.probability[name][member == k]) for k in range(member.max() + 1)]
    each = [float(value) for value in each if not np.isnan(value)]
    return float(np.mean(each)) if each else 0.0


def log_loss(label: np.ndarray, probability: np.ndarray) -> float:
    p = np.clip(probability.astype(float), 1e-7, 1 - 1e-7)
    return float(-np.where(label == 1, np.log(p), np.log1p(-p)).mean())


def photographs(detector: Detector) -> tuple[list[Graph], np.ndarray]:
    """The Duke tiles that the detector was not trained on, and the overlapping group of each."""
    folder = results.data_folder()
    tiles = duke(folder)
    aside = np.flatnonzero(tiles.folds() == ASIDE)
    names = [row["id"] for row in read_csv(folder / "duke-solar/labels.csv") if row["label"]]
    place = {names[k]: number for number, k in enumerate(aside)}
    with open(folder / "duke-solar/overlaps.csv", newline="") as file:
        pairs = [
            (place[row["id_a"]], place[row["id_b"]]) for row in csv.DictReader(file)
            if row["id_a"] in place and row["id_b"] in place and max(abs(int(row["dy"])), abs(int(row["dx"]))) > 50
        ]  # fmt: skip
    features, logits = [], []
    with torch.inference_mode():
        for batch in torch.from_numpy(tiles.labelled.images[aside]).permute(0, 3, 1, 2).split(16):
            reading = detector(batch, above=1.0)
            features.append(reading.feature)
            logits.append(reading.logit)
    edges = Edges.of(torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T, len(aside), undirected=True)
    present = torch.from_numpy(tiles.labelled.labels[aside]).float()
    graph = Graph(torch.cat(features), torch.cat(logits), edges, present, torch.ones(len(aside)))
    return [graph], tiles.groups[aside]


if __name__ == "__main__":
    main()
