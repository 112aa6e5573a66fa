"""The towns that a refiner learns from, and its training: labels from the truth, neighbours that are worth hearing."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from negah.graph.edges import Edges
from negah.probe.detector import Detector
from negah.probe.metrics import auc
from negah.runs.aerial.tiles import MASKED
from negah.runs.neighbours.recipe import Graph, apart, calibrate, graph_of, refined, train
from negah.runs.neighbours.towns import Windows, towns, windows_of


@pytest.fixture(scope="module")
def town() -> Windows:
    return windows_of(Detector.random(), 5, adoption=0.9, clumping=0.0, side=3)


def test_windows_are_labelled_by_the_truth(town):
    assert town.feature.shape == (9, 32) and town.feature.dtype == np.float16
    assert set(town.label.tolist()) <= {0, 1, MASKED} and (town.label == 1).sum() >= 2
    assert np.abs(town.logit).max() < 20 and np.allclose(town.place[4], 1.5 * 31.2)
    bare = windows_of(Detector.random(), 5, adoption=0.0, clumping=0.0, side=2)
    assert (bare.label == 0).all()


def test_a_town_becomes_a_graph_of_windows_that_touch(town):
    graph = graph_of(town, 31.2)
    assert sorted(graph.edges.degree.tolist()) == [3, 3, 3, 3, 5, 5, 5, 5, 8]
    assert graph.asked.tolist() == (town.label != MASKED).astype(float).tolist()


def test_towns_are_kept_and_taken_up_again(tmp_path, monkeypatch):
    drawn = []

    def instead(detector: Detector, seed: int, *, adoption: float, clumping: float) -> Windows:
        drawn.append((seed, adoption, clumping))
        return Windows(np.zeros((2, 4), np.float16), np.zeros(2), np.zeros((2, 2)), np.array([seed, 1]))

    monkeypatch.setattr("negah.runs.neighbours.towns.windows_of", instead)
    detector = Detector.random()
    first = towns(detector, range(4), work=tmp_path)
    again = towns(detector, range(4), work=tmp_path)
    assert len(drawn) == 4 and [t.label[0] for t in first] == [t.label[0] for t in again]
    assert [clumping > 0 for *_, clumping in drawn] == [False, True, False, True]
    assert all(0.05 <= adoption <= 0.5 for _, adoption, _ in drawn)
    assert towns(Detector.random(seed=1), [0], work=tmp_path) and len(drawn) == 5, "another detector sees other things"


def streets(count: int, seed: int) -> list[Graph]:
    """Rows of ten windows that are all of one kind, of which each says a little."""
    generator, graphs = torch.Generator().manual_seed(seed), []
    line = torch.stack([torch.arange(9), torch.arange(1, 10)])
    for _ in range(count):
        kind = float(torch.rand((), generator=generator) < 0.5)
        feature = torch.randn(10, 4, generator=generator)
        feature[:, 0] += 1.5 * (2 * kind - 1)
        edges = Edges.of(line, 10, undirected=True)
        graphs.append(Graph(feature, torch.zeros(10), edges, torch.full((10,), kind), torch.ones(10)))
    return graphs


def test_neighbours_are_learned_from_and_probabilities_are_calibrated():
    held = streets(40, 1)
    both, alone = (train(streets(60, 0), held, neighbours=neighbours, steps=80) for neighbours in (True, False))
    label = torch.cat([graph.present for graph in held])
    with_them = torch.cat([refined(both, graph) for graph in held])
    without = torch.cat([refined(alone, apart(graph)) for graph in held])
    assert auc(label, with_them) > auc(label, without) + 0.03
    assert with_them.sigmoid().mean() == pytest.approx(label.mean().item(), abs=0.01)


def test_calibration_leaves_out_what_is_not_known():
    held = streets(30, 2)
    model = train(streets(20, 0), held, steps=5)
    wrong = [graph._replace(present=torch.where(torch.arange(10) < 5, 1 - graph.present, graph.present),
                            asked=(torch.arange(10) >= 5).float()) for graph in held]  # fmt: skip
    known = [graph._replace(asked=(torch.arange(10) >= 5).float()) for graph in held]
    calibrate(model, known)
    expected = model.scale.item(), model.shift.item()
    calibrate(model, wrong)
    assert (model.scale.item(), model.shift.item()) == pytest.approx(expected, rel=1e-3)


def test_the_recipe_writes_what_the_survey_reads(tmp_path, monkeypatch):
    from negah.graph.refine import load
    from negah.runs.neighbours import __main__ as main
    from negah.runs.record import fingerprint_of

    detector = Detector.random()
    instead = [Windows(np.random.default_rng(k).normal(size=(4, 32)).astype(np.float16), np.zeros(4, np.float32),
                       np.array([[0.0, 0], [0, 31], [31, 0], [31, 31]]), np.array([0, 1, 0, 1]))
               for k in range(120)]  # fmt: skip
    monkeypatch.setattr(main, "load", lambda name: detector)
    monkeypatch.setattr(main, "towns", lambda detector, seeds, *, work, progress: instead)
    monkeypatch.setattr(main, "train", partial(train, steps=3))
    main.main(main.Recipe(out=tmp_path))
    refiner, mark = load(Path(tmp_path) / "refine-neighbours.safetensors")
    assert mark == fingerprint_of(detector)[:12] and refiner.dim == 32
