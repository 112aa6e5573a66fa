"""Node classification: it learns, whole and sampled; the network is equivariant; bad data are said."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negah.errors import InputError
from negah.graph import CSR, GAT, GCN, SAGE, Edges
from negah.graph.nodes import (
    Network,
    NodeData,
    accuracy,
    dropped,
    random_split,
    row_normalised,
    sampled,
    train,
)

N = 90


def town(sparse: bool = False) -> NodeData:
    """Three quarters whose nodes know each other; their features tell the quarter about half the time."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % 3
    pairs = torch.combinations(torch.arange(N)).T
    same = labels[pairs[0]] == labels[pairs[1]]
    kept = torch.rand(pairs.shape[1], generator=g) < torch.where(same, 0.2, 0.01)
    features = torch.randn(N, 6, generator=g)
    features[:, :3] += 1.5 * torch.nn.functional.one_hot(labels, 3)
    if sparse:
        features = features.relu()
    order = torch.randperm(N, generator=g)
    return NodeData(
        CSR.of_dense(features) if sparse else features, Edges.of(pairs[:, kept], N, undirected=True), labels, 3,
        order[:12], order[12:40], order[40:],
    )  # fmt: skip


def made(*layers) -> Network:
    torch.manual_seed(0)
    layers = layers or (GCN, GCN)
    return Network([layers[0](6, 8), *(kind(8, 8) for kind in layers[1:-1]), layers[-1](8, 3)], dropout=0.2)


@pytest.mark.parametrize("sparse", [False, True])
def test_neighbours_help(sparse):
    data, network = town(sparse), made()
    result = train(network, data, steps=60, lr=0.05, seed=1)
    network.eval()
    assert accuracy(network, data, data.test) > 0.9
    assert result.step == 60 and result.scores[-1].keys() == {"step", "accuracy", "loss"}
    again = made()
    train(again, data, steps=60, lr=0.05, seed=1)
    assert all(a.equal(b) for a, b in zip(network.parameters(), again.parameters())), "the seed decides"


def test_samples_of_the_graph_teach_as_well():
    data, network = town(), made(SAGE, SAGE)
    batches = sampled(data, 8, [4, 4], seed=2)
    train(network, data, steps=60, lr=0.05, batches=batches, score_every=20)
    network.eval()
    assert accuracy(network, data, data.test) > 0.85
    batch = next(batches.start(0))
    assert batch.features.shape[0] == batch.edges.nodes < N and len(batch.nodes) == 8
    assert batch.labels[batch.nodes].equal(data.labels[data.train[torch.tensor(batches.indices(0))]])


def test_samples_keep_features_sparse():
    data = town(sparse=True)
    batch = next(sampled(data, 4, [3]).start(0))
    assert isinstance(batch.features, CSR) and isinstance(data.features, CSR)
    whole = data.features.dense()
    assert all((row == whole).all(1).any() for row in batch.features.dense())


def test_the_best_weights_are_kept_and_patience_ends_a_run():
    data, network = town(), made()
    result = train(network, data, steps=400, lr=0.05, keep="loss", patience=10)
    network.eval()
    logits = network(data.features, data.edges)[data.val]
    loss = torch.nn.functional.cross_entropy(logits, data.labels[data.val]).item()
    assert result.step < 400 and loss == pytest.approx(min(row["loss"] for row in result.scores), rel=1e-5)


def test_without_validation_nodes_the_last_weights_stay():
    data = dataclasses.replace(town(), val=torch.tensor([], dtype=torch.long))
    assert train(made(), data, steps=3).scores == []


@pytest.fixture(scope="module")
def trained() -> list[Network]:
    """Networks that have learnt, in fp64: rounding is then far from what is looked for."""
    networks = [made(GCN, GCN), made(SAGE, SAGE), made(lambda i, o: GAT(i, o // 2, heads=2), GCN, GCN)]
    for network in networks:
        train(network, town(), steps=20)
    return [network.eval().double() for network in networks]


@settings(max_examples=15)
@given(order=st.permutations(range(N)), which=st.integers(0, 2))
def test_a_trained_network_is_equivariant(trained, order, which):
    data, network, order = town(), trained[which], torch.tensor(order)
    assert isinstance(data.features, torch.Tensor)
    h = data.features.double()
    moved = Edges.of(torch.argsort(order)[data.edges.index], N)
    torch.testing.assert_close(network(h[order], moved), network(h, data.edges)[order], rtol=1e-10, atol=1e-10)


def test_dropout_of_sparse_features_leaves_zeros_alone():
    torch.manual_seed(0)
    features = CSR.of_dense(torch.ones(100, 50).triu())
    out = dropped(features, 0.5, True)
    assert isinstance(out, CSR) and out.pattern is features.pattern
    assert out.values.mean().item() == pytest.approx(1, abs=0.1) and set(out.values.tolist()) == {0, 2}
    assert dropped(features, 0.5, False) is features


def test_rows_are_divided_by_their_sum():
    x = torch.tensor([[1.0, 3.0], [0, 0]])
    expected = [[0.25, 0.75], [0, 0]]
    sparse = row_normalised(CSR.of_dense(x))
    assert isinstance(sparse, CSR)
    assert sparse.dense().tolist() == expected and row_normalised(x).tolist() == expected


def test_a_random_split_has_its_sizes():
    data = random_split(town(), torch.Generator().manual_seed(0), of_each_class=4, val=20, test=30)
    assert data.labels[data.train].bincount().tolist() == [4, 4, 4]
    assert (len(data.val), len(data.test)) == (20, 30)
    with pytest.raises(InputError, match="90 labelled nodes are too few"):
        random_split(data, torch.Generator().manual_seed(0), of_each_class=4, val=60, test=30)


@pytest.mark.parametrize("change, message", [
    ({"features": torch.zeros(N - 1, 6)}, "90 nodes have 89 rows of features and 90 labels"),
    ({"features": torch.full((N, 6), torch.nan)}, "features of node 0 are not finite"),
    ({"features": CSR.of_dense(torch.eye(N).mul(torch.arange(1, N + 1)).log())}, "features of node 0 are not finite"),
    ({"labels": torch.full((N,), -1)}, "12 training nodes have no label, the first is node"),
    ({"labels": torch.full((N,), 3)}, "node 0 has label 3: classes are 0 to 2, and -1 stands for none"),
    ({"train": torch.tensor([], dtype=torch.long)}, "no node is for training"),
    ({"train": torch.tensor([N])}, "the training split names a node that is not there"),
    ({"val": torch.tensor([5]), "test": torch.tensor([5]), "train": torch.tensor([6])}, "node 5 is twice in the split"),
    ({"edges": Edges.of(torch.zeros(2, 0, dtype=torch.long), N)}, "the graph of 90 nodes has no edges"),
])  # fmt: skip
def test_bad_data_are_said(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(town(), **change)
