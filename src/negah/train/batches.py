"""Batches whose number says everything: batch k of a run is the same whenever and wherever it is made.

Epoch e is the order `sampler(generator seeded by (seed, e))`; the epochs follow each other without a seam, and batch k
holds items k * batch to (k + 1) * batch of that endless line.  So no item is dropped, every batch is full, and
continuing a run in the middle of an epoch is only a matter of counting.  Randomness inside a batch (augmentation) comes
from a generator seeded by (seed, k, rank), for the same reason.
"""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from negah import ranks
from negah.errors import InputError, NegahError

NAMED = 16  # items of a batch that a message names


@runtime_checkable
class BatchSource(Protocol):
    """What `fit` takes its batches from."""

    def start(self, at: int) -> Iterator[Any]:
        """Endless batches, the first of them number `at`."""
        ...

    def describe(self, number: int) -> str:
        """What batch `number` holds, for a message."""
        ...

    def settings(self) -> dict[str, int]:
        """What a resumed run must have in common with the one that it continues."""
        ...


class Batches:
    """Endless shuffled batches of a data set, by number.

    Under torchrun each process gets its own equal part of every batch.

    Args:
        dataset: has `len` and `dataset[index]`; it is used from worker processes when `workers` > 0.  Where it has
            `names`, one for each item, messages tell them.
        batch: items in a batch, over all processes.
        sampler: order of one epoch from a seeded generator, the same number of indices every time; by default a random
            permutation.  `lambda g: torch.multinomial(weights, n, True, generator=g)` balances classes.
        collate: items and a seeded generator to a batch; by default torch's `default_collate`, without randomness.
        workers: processes that prepare batches ahead; 0 prepares them in this one.

    Raises InputError on an empty data set, and on a batch size that the processes cannot share equally.
    """

    def __init__(
        self,
        dataset: Sized,
        batch: int,
        *,
        seed: int = 0,
        sampler: Callable[[torch.Generator], Tensor] | None = None,
        collate: Callable[[Sequence[Any], torch.Generator], Any] | None = None,
        workers: int = 0,
    ):
        self.dataset, self.batch, self.seed, self.workers = dataset, batch, seed, workers
        self.sampler = sampler or (lambda generator: torch.randperm(len(dataset), generator=generator))
        self.collate = collate or (lambda items, generator: default_collate(list(items)))
        if batch < 1:
            raise InputError(f"a batch needs at least 1 item, not {batch}")
        if len(dataset) == 0:
            raise InputError("the data set is empty: nothing to make batches of")
        self._order = lru_cache(maxsize=2)(self._shuffle)  # two: a batch may lie across the end of an epoch
        self.epoch_size = len(self._order(0))

    def start(self, at: int) -> Iterator[Any]:
        """Endless batches, the first of them number `at`."""
        rank, world = ranks.rank(), ranks.world()
        if self.batch % world:
            raise InputError(f"a batch of {self.batch} is not a multiple of the {world} processes")
        return map(
            _raised,
            DataLoader(
                _ByNumber(self.dataset, self.collate, self.seed, rank),
                sampler=_Numbers(self, at, rank, world),
                batch_size=None,
                num_workers=self.workers,
                worker_init_fn=_stay,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # its own: by default the loader draws a seed from the global one
            ),
        )

    def indices(self, number: int) -> list[int]:
        """Items of batch `number`, over all processes."""
        positions = range(number * self.batch, (number + 1) * self.batch)
        return [int(self._order(p // self.epoch_size)[p % self.epoch_size]) for p in positions]

    def describe(self, number: int) -> str:
        """The batch's first items, by name where the data set has `names`."""
        items, names = self.indices(number), getattr(self.dataset, "names", None)
        told = map(str, items) if names is None else (str(names[i]) for i in items)
        more = f" and {len(items) - NAMED} more, see indices({number})" if len(items) > NAMED else ""
        return f"items {', '.join(islice(told, NAMED))}{more}"

    def settings(self) -> dict[str, int]:
        """Size, batch size and seed: with these the same, batch k is the same."""
        return {"items": len(self.dataset), "batch_size": self.batch, "data seed": self.seed}  # as checkpoints have it

    def _shuffle(self, epoch: int) -> Tensor:
        return self.sampler(_generator(self.seed, epoch))


class Repeated:
    """Any iterable that can be gone through again, over and over (a list of batches, a DataLoader).

    To continue a run it is run through up to the position; that is exact only if each pass gives the same batches.
    """

    def __init__(self, batches: Iterable[Any]):
        self.batches = batches

    def start(self, at: int) -> Iterator[Any]:
        """Endless batches, the first of them number `at`."""
        passed = 0
        while True:
            before = passed
            for batch in self.batches:
                passed += 1
                if passed > at:
                    yield batch
            if passed == before:
                raise InputError(f"no batch number {passed}: give batches that can be gone through again, or Batches")

    def describe(self, number: int) -> str:
        """Its number is all that is known."""
        return "items unknown; Batches would name them"

    def settings(self) -> dict[str, int]:
        """Nothing is known of it."""
        return {}


class _Numbers:
    """Endless (batch number, this process's indices)."""

    def __init__(self, batches: Batches, at: int, rank: int, world: int):
        self.batches, self.at = batches, at
        share = batches.batch // world
        self.part = slice(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        number = self.at
        while True:
            yield number, self.batches.indices(number)[self.part]
            number += 1


class _ByNumber(Dataset):
    """Data set of whole batches, so that a worker prepares all of one."""

    def __init__(self, dataset: Any, collate: Callable, seed: int, rank: int):
        self.dataset, self.collate, self.seed, self.rank = dataset, collate, seed, rank

    def __getitem__(self, key: tuple[int, list[int]]) -> Any:
        number, indices = key
        try:
            return self.collate([self.dataset[i] for i in indices], _generator(self.seed, number, self.rank))
        except NegahError as error:  # raised by `_raised`: the loader would make a worker's whole traceback its message
            return error


def _raised(batch: Any) -> Any:
    if isinstance(batch, NegahError):
        raise batch
    return batch


def _stay(worker: int) -> None:
    """Ctrl-C and SIGTERM reach all processes of a group: the main one decides, and still needs its batches to do so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _generator(*words: int) -> torch.Generator:
    """Generator seeded by several numbers, mixed so that (1, 2) and (2, 1) have nothing in common."""
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed % 2**63)
