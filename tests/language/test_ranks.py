"""CLIP, CoCa and SimVLM on two processes: what they learn of half a batch each is what one learns of all of it."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from negah import ranks
from negah.language import CLIP, CoCa, SimVLM
from negah.nn.clip_resnet import ClipResNet
from negah.nn.resnet import ResNet
from negah.nn.text import TextTransformer
from negah.nn.vit import ViT
from negah.train import Batches, Objective, fit

PAD, START, END, VOCABULARY, LENGTH, PAIRS = 0, 18, 19, 20, 9, 8


def vit() -> ViT:
    return ViT(patch=8, dim=32, depth=1, heads=2, grid=(2, 2), layer_scale=None)


def text() -> TextTransformer:
    return TextTransformer(vocabulary=VOCABULARY, length=LENGTH, dim=32, depth=1, heads=2)


def coca() -> CoCa:
    return CoCa(
        vit(), dim=24, vocabulary=VOCABULARY, length=LENGTH, start=START, end=END, width=32, depth=1, heads=2,
        queries=4, pooler_heads=2,
    )  # fmt: skip


def simvlm() -> SimVLM:
    stem = ResNet(widths=(8, 16, 32), depths=(1, 1, 1), stem="cifar")
    return SimVLM(stem, places=16, vocabulary=VOCABULARY, length=LENGTH, start=START, end=END, dim=32, depth=1, heads=2)


# name: (model, side of its pictures, words of each text, which may be fewer than there are, what else is of a pair).
# Processes hold consecutive halves of a batch, so sorted lengths give one of them few tokens and the other many.
EQUAL, SORTED = [4] * PAIRS, sorted(1 + i % 7 for i in range(PAIRS))
CASES = {
    "clip": (lambda: CLIP(vit(), text(), dim=16, end=END), 16, EQUAL, None),
    "clip, texts that mean the same": (lambda: CLIP(vit(), text(), dim=16, end=END), 16, EQUAL, [0, 1, 2, 3] * 2),
    "clip, residual network": (
        lambda: CLIP(ClipResNet(depths=(1, 1, 1, 1), width=8, size=32, dim=16), text(), dim=16, end=END),
        32, EQUAL, None,
    ),
    "coca": (coca, 16, EQUAL, None),
    "coca, few and many tokens": (coca, 16, SORTED, None),
    "simvlm": (simvlm, 16, EQUAL, [2] * PAIRS),
    "simvlm, few and many tokens": (simvlm, 16, SORTED, [0] * PAIRS),
}  # fmt: skip


def batches(name: str) -> Batches:
    """All pairs in each batch, in their order."""
    _, side, words, more = CASES[name]
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(PAIRS, 3, side, side, generator=generator, dtype=torch.float64)
    ids = torch.full((PAIRS, LENGTH), PAD)
    for row, count in zip(ids, words):
        row[0], row[1 + count] = START, END
        row[1 : 1 + count] = torch.randint(1, START, (count,), generator=generator)
    pairs = list(zip(images, ids)) if more is None else list(zip(images, ids, torch.tensor(more)))
    return Batches(pairs, PAIRS, sampler=lambda generator: torch.arange(PAIRS))


def made(name: str) -> Objective:
    """In float64, so that a difference is one of the formula and not of rounding."""
    torch.manual_seed(0)
    return CASES[name][0]().double()


def train(name: str) -> dict[str, dict[str, float] | dict[str, Tensor]]:
    """Two steps, of which the second shows what the first has made of the weights."""
    objective = made(name)
    result = fit(
        objective, batches(name), steps=2, lr=0.1, optimizer=partial(SGD, momentum=0.9), log_every=1
    )  # fmt: skip
    losses = {f"{entry} {row['step']}": row[entry] for row in result.history for entry in row}
    return {"losses": losses, "weights": {key: value.clone() for key, value in objective.state_dict().items()}}


def main(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    ranks.join()
    torch.save({name: train(name) for name in CASES}, folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_of_half_a_batch_each_what_one_learns_of_all(together, name):
    alone, before = train(name), made(name).state_dict()
    for rank in range(2):
        torch.testing.assert_close(together[rank][name]["losses"], alone["losses"], rtol=1e-6, atol=0)  # kept in fp32
        torch.testing.assert_close(together[rank][name]["weights"], alone["weights"], rtol=1e-9, atol=1e-12)
    moved = max((alone["weights"][key].double() - before[key].double()).abs().max() for key in before)
    assert moved > 1e-3  # so that the weights of a run that had not learned would be told


if __name__ == "__main__":
    main(Path(sys.argv[1]))
