"""Batch k is the same whenever it is made, and an epoch holds every item once."""

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from negah.errors import InputError
from negah.train import Batches
from negah.train.batches import Repeated


def noisy(items, generator: torch.Generator):
    return torch.tensor(items) + torch.rand(len(items), generator=generator)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 9))
def test_every_epoch_holds_every_item_once_and_every_batch_is_full(items, batch, seed):
    batches = Batches(range(items), batch, seed=seed)
    line = [i for k in range(items) for i in batches.indices(k)]  # as many epochs as a batch has items
    for epoch in range(batch):
        assert sorted(line[epoch * items : (epoch + 1) * items]) == list(range(items))
    assert all(len(found) == batch for found in islice(batches.start(0), 3))


def test_epochs_differ_and_so_do_seeds():
    batches = Batches(range(50), 50)
    assert batches.indices(0) != batches.indices(1)
    assert batches.indices(0) != Batches(range(50), 50, seed=1).indices(0)
    assert batches.indices(0) == Batches(range(50), 50).indices(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_started_anywhere_the_batches_are_those_of_an_undisturbed_run(workers):
    plain = list(islice(Batches(range(10), 4, collate=noisy).start(0), 9))
    state = torch.get_rng_state()
    resumed = list(islice(Batches(range(10), 4, collate=noisy, workers=workers).start(6), 3))
    assert all(torch.equal(a, b) for a, b in zip(plain[6:], resumed, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(plain[0] % 1, plain[1] % 1)  # each batch has random numbers of its own


def test_a_sampler_decides_what_an_epoch_is():
    share = torch.tensor([1.0] * 90 + [9.0] * 10)
    balanced = Batches(range(100), 20, sampler=lambda g: torch.multinomial(share, 40, True, generator=g))
    assert balanced.epoch_size == 40
    rare = Counter(i >= 90 for k in range(100) for i in balanced.indices(k))[True]
    assert 900 < rare < 1100


def test_what_cannot_make_a_batch_is_refused():
    with pytest.raises(InputError, match="empty"):
        Batches([], 4)
    with pytest.raises(InputError, match="at least 1"):
        Batches([1], 0)


def test_an_iterable_is_gone_through_again_and_again():
    assert list(islice(Repeated([0, 1, 2]).start(4), 4)) == [1, 2, 0, 1]


class Spoilt:
    """Four items with names, of which the third cannot be read."""

    names = ("a.png", "b.png", "c.png", "d.png")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        if index == 2:
            raise InputError("c.png cannot be read: it is gone")
        return torch.tensor(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_that_cannot_be_read_is_an_error_of_one_line_wherever_it_is_read(workers):
    with pytest.raises(InputError) as caught:
        list(islice(Batches(Spoilt(), 2, workers=workers).start(0), 2))
    assert str(caught.value) == "c.png cannot be read: it is gone"


def test_a_batch_is_described_by_the_names_of_its_items():
    batches = Batches(Spoilt(), 2)
    assert batches.describe(0) == "items " + ", ".join(Spoilt.names[i] for i in batches.indices(0))
    assert Batches(range(99), 20).describe(0).endswith(" and 4 more, see indices(0)")
