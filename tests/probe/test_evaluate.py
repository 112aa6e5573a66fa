"""Accuracies that mean what they say, and measuring that changes nothing."""

import copy

import pytest
import torch
from torch import nn

from negah.errors import InputError
from negah.probe.evaluate import embed, knn_accuracy, linear_accuracy


class Backbone(nn.Module):
    """Batch norm and dropout: everything that a careless evaluation would disturb."""

    width = 6

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, images):
        return self.net(images.float() / 255).mean((2, 3))


def pictures(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def clusters(n: int, classes: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.eye(max(classes, 16))[labels] + spread * torch.randn(n, max(classes, 16), generator=g), labels


def test_embedding_is_the_evaluation_mode_output_whatever_the_batches():
    backbone, images = Backbone(), pictures(10)
    with torch.no_grad():
        expected = copy.deepcopy(backbone).eval()(images)
    for found in (embed(backbone, images), embed(backbone, images, batch=3), embed(backbone, iter(images), batch=4)):
        assert torch.allclose(found, expected, atol=1e-6) and not found.requires_grad


def test_embedding_leaves_no_trace():
    backbone = Backbone().train()
    backbone.net[1].eval()  # somebody froze it: it must be frozen afterwards, and nothing else
    before, rng = copy.deepcopy(backbone.state_dict()), torch.get_rng_state()
    embed(backbone, pictures(5))
    assert [m.training for m in backbone.net] == [True, False, True, True]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), backbone.state_dict().values()))
    assert torch.equal(rng, torch.get_rng_state()) and all(p.grad is None for p in backbone.parameters())


def test_the_mode_comes_back_after_an_error_too():
    backbone = Backbone().train()
    with pytest.raises(RuntimeError):
        embed(backbone, torch.zeros(2, 3, 1, 1, dtype=torch.uint8))
    assert backbone.training


@pytest.mark.parametrize("classes", [2, 3, 21])
def test_separate_classes_are_all_found_and_noise_is_chance(classes):
    train, labels = clusters(40 * classes, classes, 0.1)
    test, truth = clusters(10 * classes, classes, 0.1, seed=1)
    assert knn_accuracy(train, labels, test, truth, k=20) == 1
    assert linear_accuracy(train, labels, test, truth) == 1
    shuffled = truth[torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))]
    for accuracy in (knn_accuracy, linear_accuracy):
        assert abs(accuracy(train, labels, test, shuffled) - 1 / classes) < 0.25


def test_accuracy_is_the_share_that_is_named_rightly():
    train, labels = clusters(60, 3, 0.05)
    test, truth = clusters(30, 3, 0.05, seed=1)
    wrong = truth.clone()
    wrong[:6] = (wrong[:6] + 1) % 3
    assert knn_accuracy(train, labels, test, wrong) == pytest.approx(0.8)
    assert linear_accuracy(train, labels, test, wrong) == pytest.approx(0.8)


def test_a_linear_probe_reads_what_neighbours_do_not_see():
    """A class that is a small part of a feature with large other parts: a line finds it, distances do not."""
    g = torch.Generator().manual_seed(0)
    x, labels = torch.randn(600, 30, generator=g), torch.arange(600) % 2
    x[:, 0] += 4.0 * labels
    x[:, 1:] *= 5
    halves = x[:400], labels[:400], x[400:], labels[400:]
    assert linear_accuracy(*halves) > 0.93 and knn_accuracy(*halves) < 0.75


def test_nothing_to_measure_is_refused():
    x, labels = clusters(9, 3, 0.1)
    for accuracy in (knn_accuracy, linear_accuracy):
        with pytest.raises(InputError, match="a label for each"):
            accuracy(x, labels, x[:0], labels[:0])
    with pytest.raises(InputError, match="no images"):
        embed(Backbone(), pictures(0))
