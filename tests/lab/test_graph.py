"""Invalid updates are told from valid ones, layers do what their formulas say, and the words follow the figures."""

import pytest
import torch
import torch.nn.functional as F

from negah.errors import InputError
from negah.graph.audit import Audit, audit
from negah.graph.edges import Edges
from negah.graph.refute import Counterexample
from negah.lab import graph, graph_trained
from negah.lab.graph_nets import (
    LAYERS,
    POSITIONS,
    OverLSTM,
    Positions,
    dense,
    drawn,
    energy,
    largest_change,
    likeness,
    made,
    places,
    renumbered,
    updates,
)
from negah.lab.graph_trained import told_depth, told_neighbours
from negah.lab.training import Effort

INVALID = {"max (weight per position)", "LSTM", "first neighbour"}
STAR = Edges.of(torch.tensor([[1, 2, 3, 0], [0, 0, 0, 1]]), 5)  # 0 hears of 1, 2, 3; 1 of 0; 2, 3 and 4 of none


def test_each_candidate_is_told_rightly():
    changes = {name: largest_change(update, 4) for name, update in updates(4).items()}
    assert {name for name, change in changes.items() if change > 0.01} == INVALID
    assert max(change for name, change in changes.items() if name not in INVALID) < 1e-14


def test_layers_give_each_node_what_their_formula_says():
    h = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    each, shared, lstm = (made(layer, 3, 4, seed=0) for layer in (Positions, LAYERS["max (shared weight)"], OverLSTM))
    assert isinstance(each, Positions) and isinstance(shared, Positions) and isinstance(lstm, OverLSTM)
    assert places(STAR).tolist() == [0, 1, 2, 0]
    told = [each.own(h[0]), *(each.others[k](h[k + 1]) for k in range(3))]
    torch.testing.assert_close(each(h, STAR)[0], torch.stack(told).amax(0))
    torch.testing.assert_close(shared(h, STAR)[0], torch.stack([shared.own(h[0]), *shared.others[0](h[1:4])]).amax(0))
    torch.testing.assert_close(lstm(h, STAR)[0], lstm.own(h[0]) + lstm.lstm(lstm.first(h[1:4])[None])[0][0, -1])
    torch.testing.assert_close(lstm(h, STAR)[1], lstm.own(h[1]) + lstm.lstm(lstm.first(h[:1])[None])[0][0, -1])
    for layer in (each, shared, lstm):
        torch.testing.assert_close(layer(h, STAR)[4], layer.own(h[4]))  # an isolated node


def test_neighbours_beyond_the_last_position_share_its_weight():
    n = POSITIONS + 3
    star = Edges.of(torch.stack([torch.arange(1, n), torch.zeros(n - 1, dtype=torch.long)]), n)
    layer, h = made(Positions, 3, 4, seed=0), torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    assert isinstance(layer, Positions)
    told = [layer.own(h[0]), *(layer.others[min(k, POSITIONS - 1)](h[k + 1]) for k in range(n - 1))]
    torch.testing.assert_close(layer(h, star)[0], torch.stack(told).amax(0))


def test_energy_and_likeness_are_those_of_their_definitions():
    edges = Edges.of(torch.tensor([[0, 1, 1], [1, 2, 3]]), 4, undirected=True)
    h = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    degree = torch.tensor([2.0, 4, 2, 2])  # with self-loops
    scaled = h / degree.sqrt()[:, None]
    pairs = sum((scaled[a] - scaled[b]).square().sum() for a, b in ((0, 1), (1, 2), (1, 3)))
    assert energy(h, edges) == pytest.approx(float(pairs / h.square().sum()), rel=1e-5)
    assert energy(degree.sqrt()[:, None], edges) == pytest.approx(0, abs=1e-6)
    cosines = [float(F.cosine_similarity(h[a], h[b], dim=0)) for a in range(4) for b in range(4) if a != b]
    assert likeness(h) == pytest.approx(sum(cosines) / 12, abs=1e-6)


def test_generated_graphs_are_as_asked_for():
    data = drawn(2000, homophily=0.7, seed=0)
    source, target = data.edges.index
    assert (data.labels[source] == data.labels[target]).float().mean() == pytest.approx(0.7, abs=0.02)
    assert len(data.train) == 100 and len(data.test) == 1900 and data.edges.degree.mean() == pytest.approx(6, abs=0.1)
    ordered = drawn(200, homophily=0.7, seed=0, by_class=True).labels
    assert (ordered.diff() >= 0).all()
    moved, edges, order = renumbered(dense(data), data.edges, torch.Generator().manual_seed(0))
    assert torch.equal(moved, dense(data)[order]) and torch.equal(edges.degree, data.edges.degree[order])


def judged(update, *, width: int, seconds: float) -> Audit:
    """In the auditor's place, which takes its time: a counterexample where an exchange of two messages is one."""
    h, messages = torch.zeros(width, dtype=torch.float64), torch.eye(2, width, dtype=torch.float64)
    before, after = update(h, messages), update(h, messages.flip(0))
    apart = float((before - after).abs().max())
    if apart < 1e-9:
        return Audit("certified", "update", width)
    example = Counterexample("order", {"h": h, "messages": messages}, (1, 0), before, after, apart, 0.0)
    return Audit("refuted", "update", width, counterexample=example)


def test_the_auditor_refutes_the_second_candidate():
    found = audit(updates(4)["max (weight per position)"], width=4)
    assert found.verdict == "refuted" and found.counterexample and len(found.counterexample.permutation) == 2


def test_every_panel_is_made_of_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "NODES", 150)
    monkeypatch.setattr(graph, "audit", judged)
    monkeypatch.setattr(graph_trained, "DEPTHS", (1, 3))
    monkeypatch.setattr(graph_trained, "HOMOPHILIES", (0.2, 0.8))
    monkeypatch.setattr("negah.lab.page.svg", lambda figure: "<svg/>")  # which takes longer than all the rest
    page = graph.run(tmp_path, Effort(steps=10, say=lambda line: None))
    found = {panel.name: panel for panel in page.panels}
    assert list(found) == ["valid", "equivariance", "price", "depth", "neighbours"]
    valid = found["valid"]
    assert valid.found.startswith("Moved by another order: max (weight per position), LSTM, first neighbour. Not moved")
    assert {row["setting"] for row in valid.rows if row["verdict"] == "refuted"} == INVALID
    assert "certified: mean (shared weight), max (shared weight), sum (shared weight), attention;" in valid.found
    assert "refuted: max (weight per position) (2 messages), LSTM (2 messages), first neighbour (2" in valid.found
    assert found["equivariance"].found.startswith("Not equivariant: max (weight per position) (")
    rows = {row["setting"]: row for row in found["price"].rows}
    assert len(rows) == 8 and rows["SAGE (mean), numbered by class"]["changed"] == 0
    worst = rows["max (weight per position), numbered at random"]
    assert worst["changed"] > 0.02 and f"{worst['changed']:.1%} of the predictions change" in found["price"].found
    assert [row["setting"] for row in found["depth"].rows] == ["plain, 1", "plain, 3", "residual, 1", "residual, 3"]
    assert "generated graphs of 150 nodes, steps 10, seeds 1" in (tmp_path / "index.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="graph reads one graph"):
        graph.run(tmp_path, Effort(data=("a", "b")))


def test_conclusions_turn_with_the_figures(monkeypatch):
    monkeypatch.setattr(graph_trained, "HOMOPHILIES", (0.2, 0.4))
    rows = [{"accuracy": a, "energy": 0.5, "cosine": 0.1} for a in (0.5, 0.9, 0.3)]
    told = told_depth("plain", (1, 2, 4), rows, 1000)
    assert "best with 2 layers (0.900); with 4 it is 0.300, below that" in told
    assert "with 4 it is 0.900, no different from that" in told_depth("plain", (1, 2, 4), rows[:2] + rows[1:2], 1000)
    both = {
        "own features only": [{"accuracy": 0.6}, {"accuracy": 0.6}], "GCN": [{"accuracy": 0.4}, {"accuracy": 0.61}],
    }  # fmt: skip
    assert told_neighbours(both, 1000) == (
        "GCN against own features only: no different at 0.4 (0.610 and 0.600); below at 0.2 (0.400 and 0.600)."
    )
