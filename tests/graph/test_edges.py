"""Edges: what is refused and how it is said, and the matrices against dense ones."""

import pytest
import torch

from negah.errors import InputError
from negah.graph import CSR, Edges


def index(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2).T


def test_the_matrices_are_those_of_the_adjacency():
    pairs, weights = index((0, 1), (2, 1), (1, 2)), torch.tensor([2.0, 6.0, 3.0])
    edges = Edges.of(pairs, 4, weights)
    a = torch.zeros(4, 4)
    a[pairs[1], pairs[0]] = weights
    assert edges.sum.dense().equal(a)
    assert edges.sum.T.dense().equal(a.T)
    assert edges.degree.tolist() == [0, 8, 3, 0]
    torch.testing.assert_close(edges.mean.dense()[1], torch.tensor([0.25, 0, 0.75, 0]))
    looped = a + torch.eye(4)
    scale = looped.sum(1).rsqrt()
    torch.testing.assert_close(edges.gcn.dense(), scale[:, None] * looped * scale)
    assert edges.index.tolist() == [[0, 2, 1], [1, 1, 2]] and edges.weights is not None
    assert edges.weights.tolist() == [2, 6, 3]
    assert edges.unweighted().sum.dense().equal((a > 0).float())
    assert repr(edges) == "Edges(4 nodes, 3 edges, weighted)"


def test_what_a_layer_asks_for_is_made_once():
    edges = Edges.of(index((0, 1), (1, 2)), 3, undirected=True)
    assert edges.gcn is edges.gcn and edges.gcn.T is edges.gcn.T
    assert edges.typed(torch.float64).gcn is edges.typed(torch.float64).gcn
    assert edges.typed(torch.bfloat16) is edges
    assert edges.pattern.transposed[0] is edges.pattern, "an undirected pattern is held once"


def test_undirected_edges_go_both_ways_with_their_weight():
    edges = Edges.of(index((0, 1), (2, 2)), 3, torch.tensor([0.5, 7.0]), undirected=True, loops="keep")
    assert edges.sum.dense().tolist() == [[0, 0.5, 0], [0.5, 0, 0], [0, 0, 7]]
    assert Edges.of(index((0, 1), (2, 2)), 3, undirected=True, loops="drop").sum.dense().sum() == 2


def test_a_self_loop_that_is_there_keeps_its_weight():
    edges = Edges.of(index((0, 0), (0, 1)), 2, torch.tensor([3.0, 1.0]), loops="keep")
    assert edges.with_loops.sum.dense().tolist() == [[3, 0], [1, 1]]


def test_duplicates_are_kept_or_merged_when_asked():
    twice, weights = index((0, 1), (0, 1), (1, 0)), torch.tensor([1.0, 2.0, 4.0])
    assert Edges.of(twice, 2, weights, duplicates="keep").sum.dense().tolist() == [[0, 4], [3, 0]]
    merged = Edges.of(twice, 2, weights, duplicates="merge")
    assert len(merged) == 2 and merged.sum.dense().tolist() == [[0, 4], [3, 0]]
    assert Edges.of(twice, 2, duplicates="merge").sum.dense().tolist() == [[0, 1], [1, 0]]
    assert Edges.of(twice, 2, duplicates="keep").degree.tolist() == [1, 2]


@pytest.mark.parametrize("undirected", [False, True])
def test_bad_edges_are_said(undirected):
    with pytest.raises(InputError, match=r"1 edges name a node that is not there, the first is edge 1 \(from 1 to 3\)"):
        Edges.of(index((0, 1), (1, 3)), 3, undirected=undirected)
    with pytest.raises(InputError, match=r"the first is edge 0 \(from -1 to 0\): the 3 nodes are numbered 0 to 2"):
        Edges.of(index((-1, 0)), 3, undirected=undirected)
    with pytest.raises(InputError, match=r"2 edges lead from a node to itself, the first is edge 1 \(node 2\).*'drop'"):
        Edges.of(index((0, 1), (2, 2), (1, 1)), 3, undirected=undirected)
    with pytest.raises(InputError, match="more than once, the first from node 0 to node 1.*duplicates='merge'"):
        Edges.of(index((0, 1), (2, 1), (0, 1)), 3)
    with pytest.raises(InputError, match="either way counts"):
        Edges.of(index((0, 1), (1, 0)), 3, undirected=True)
    with pytest.raises(InputError, match="2 edges have 1 weights"):
        Edges.of(index((0, 1), (1, 2)), 3, torch.ones(1), undirected=undirected)
    with pytest.raises(InputError, match=r"the weight of edge 1 \(from 1 to 2\) is nan"):
        Edges.of(index((0, 1), (1, 2)), 3, torch.tensor([1.0, torch.nan]), undirected=undirected)
    with pytest.raises(InputError, match="at least 1 node, got 0"):
        Edges.of(index(), 0, undirected=undirected)


def test_a_sparse_matrix_multiplies_like_a_dense_one():
    g = torch.Generator().manual_seed(0)
    dense = torch.randn(6, 8, generator=g, dtype=torch.float64).relu()
    dense[2] = 0
    sparse, x = CSR.of_dense(dense), torch.randn(8, 3, generator=g, dtype=torch.float64, requires_grad=True)
    assert sparse.dense().equal(dense) and sparse.shape == (6, 8) and len(sparse) == 6
    torch.testing.assert_close(sparse @ x, dense @ x)
    values = sparse.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v, x: CSR(sparse.pattern, v) @ x, (values, x))
    with pytest.raises(InputError, match="one for each"):
        CSR(sparse.pattern, values[1:])


def test_entries_are_gone_through_some_at_a_time(monkeypatch):
    dense = torch.rand(6, 5, dtype=torch.float64)
    sparse, x = CSR.of_dense(dense), torch.rand(5, 3, dtype=torch.float64)
    values = sparse.values.clone().requires_grad_()
    (whole,) = torch.autograd.grad((CSR(sparse.pattern, values) @ x).square().sum(), values)
    monkeypatch.setattr("negah.graph.csr.CHUNK", 12)
    (parts,) = torch.autograd.grad((CSR(sparse.pattern, values) @ x).square().sum(), values)
    torch.testing.assert_close(parts, whole)
