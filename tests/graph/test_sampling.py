"""Neighbour sampling: what is drawn is part of the graph, of the sizes asked for, fair, and enough for the network."""

import pytest
import torch

from negah.errors import InputError
from negah.graph import SAGE, Edges
from negah.graph.nodes import Network
from negah.graph.sampling import sample


def random_edges(nodes: int = 60, count: int = 400, weighted: bool = False) -> Edges:
    g = torch.Generator().manual_seed(0)
    index = torch.randint(nodes, (2, count), generator=g)
    weights = torch.rand(count, generator=g) if weighted else None
    return Edges.of(index, nodes, weights, loops="drop", duplicates="merge")


def drawn(edges: Edges, seeds: torch.Tensor, fanout: list[int], seed: int = 0) -> tuple[torch.Tensor, Edges]:
    return sample(edges, seeds, fanout, torch.Generator().manual_seed(seed))


def test_a_sample_is_part_of_the_graph_with_its_weights():
    edges, seeds = random_edges(weighted=True), torch.tensor([7, 3, 50])
    near, part = drawn(edges, seeds, [3, 2])
    assert near[:3].equal(seeds) and len(near.unique()) == len(near) == part.nodes
    whole = edges.sum.dense()
    found = part.sum.dense()
    assert found.equal(whole[near][:, near].where(found > 0, 0)) and (found > 0).sum() == len(part)
    counts = part.pattern.offsets.diff()
    assert (counts[:3] == (whole[seeds] > 0).sum(1).clamp(max=3)).all() and counts.max() <= 3
    again, same = drawn(edges, seeds, [3, 2])
    assert again.equal(near) and same.index.equal(part.index)


def test_every_neighbour_has_the_same_chance():
    star = Edges.of(torch.tensor([[1, 2, 3, 4, 5], [0] * 5]), 6)
    seen = torch.zeros(6)
    for seed in range(600):
        near, part = drawn(star, torch.tensor([0]), [2], seed)
        assert len(part) == 2
        seen[near] += 1
    assert ((seen[1:] / 600 - 0.4).abs() < 0.08).all()


def test_all_neighbours_give_what_the_whole_graph_gives():
    edges, seeds = random_edges(), torch.tensor([5, 0, 9])
    h = torch.randn(60, 4)
    network = Network([SAGE(4, 8), SAGE(8, 3, over="max")]).eval()
    near, part = drawn(edges, seeds, [-1, -1])
    torch.testing.assert_close(network(h[near], part)[:3], network(h, edges)[seeds])


def test_bad_requests_are_said():
    edges = random_edges()
    with pytest.raises(InputError, match=r"fanout \[3, 0\]: each hop draws at least 1"):
        drawn(edges, torch.tensor([1]), [3, 0])
    with pytest.raises(InputError, match="numbered 0 to 59"):
        drawn(edges, torch.tensor([60]), [3])
    with pytest.raises(InputError, match="more than once"):
        drawn(edges, torch.tensor([1, 1]), [3])
