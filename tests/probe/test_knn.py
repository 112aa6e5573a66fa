"""The vote of the neighbours against a loop, and against tiling."""

import math

import pytest
import torch

from negah.errors import InputError
from negah.probe.knn import knn_probability


def test_equals_a_loop_over_neighbours():
    g = torch.Generator().manual_seed(0)
    train, test = torch.randn(30, 8, generator=g), torch.randn(7, 8, generator=g)
    labels = torch.randint(0, 3, (30,), generator=g)
    out = knn_probability(train, labels, test, k=5, temperature=0.2)
    for i, query in enumerate(test):
        cosine = [float(query @ z / (query.norm() * z.norm())) for z in train]
        nearest = sorted(range(30), key=lambda j: -cosine[j])[:5]
        votes = [sum(math.exp(cosine[j] / 0.2) for j in nearest if labels[j] == c) for c in range(3)]
        assert out[i].tolist() == pytest.approx([v / sum(votes) for v in votes], abs=1e-5)
    assert torch.allclose(out, knn_probability(train, labels, test, k=5, temperature=0.2, tile=2))


def test_length_of_features_does_not_matter_and_few_samples_suffice():
    train, labels = torch.eye(3), torch.tensor([0, 1, 1])
    out = knn_probability(train, labels, torch.tensor([[50.0, 0.1, 0.0]]), k=200)
    assert out.shape == (1, 2) and out[0, 0] > 0.99 and out.sum().item() == pytest.approx(1)
    assert torch.allclose(
        out, knn_probability(train.half(), labels, torch.tensor([[0.5, 0.001, 0.0]]), k=200), atol=1e-3
    )


def test_a_class_that_does_not_occur_gets_nothing():
    assert knn_probability(torch.eye(2), torch.tensor([0, 0]), torch.eye(2), classes=2)[:, 1].tolist() == [0, 0]


def test_unlabelled_samples_and_nothing_at_all_are_refused():
    with pytest.raises(InputError, match="unlabelled"):
        knn_probability(torch.eye(2), torch.tensor([0, -1]), torch.eye(2))
    with pytest.raises(InputError, match="at least one"):
        knn_probability(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.eye(2))
