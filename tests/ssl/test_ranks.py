"""Every method on two processes: the gradients of one, and a run that two begin is one's to end."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from negah import ranks
from negah.nn.backbone import ConvBackbone, ViTBackbone
from negah.nn.resnet import ResNet
from negah.nn.vit import ViT
from negah.ssl import BYOL, DINO, DINOv2, MoCo, MoCoV3, SimCLR
from negah.ssl.masks import block_masks
from negah.train import Batches, Objective, checkpoint, fit
from negah.train.callbacks import Callback
from negah.train.schedules import constant

PICTURES, BATCH, SIDE, LOCAL = 24, 8, 16, 8
HEAD = {"prototypes": 12, "hidden": 16, "bottleneck": 8}


class Masked(DINOv2):
    """With the masks of the whole batch drawn alike on all processes, each of which takes its own images' part."""

    def masks(self, images: int, grid: tuple[int, int]) -> Tensor:
        world, generator = ranks.world(), torch.Generator().manual_seed(5)
        whole = block_masks(images * world, grid, generator=generator).unflatten(0, (2, -1))
        return whole.chunk(world, 1)[ranks.rank()].flatten(0, 1)


def vit() -> ViTBackbone:
    return ViTBackbone(ViT(patch=4, dim=16, depth=2, heads=2, grid=(4, 4), layer_scale=None, interpolation="size"))


def resnet() -> ConvBackbone:
    return ConvBackbone(ResNet(widths=(8, 16), depths=(1, 1), stem="cifar"))


METHODS = {
    "simclr": lambda: SimCLR(resnet(), hidden=16, dim=8, temperature=0.5),
    "moco": lambda: MoCo(resnet(), dim=8, queue=16, momentum=0.9, parts=2),
    "mocov3": lambda: MoCoV3(vit(), hidden=16, dim=8, momentum=0.9),
    "byol": lambda: BYOL(resnet(), hidden=16, dim=8, momentum=0.9),
    "dino": lambda: DINO(vit(), **HEAD, momentum=0.9, freeze_last=0.5),
    "dino resnet": lambda: DINO(resnet(), **HEAD, head_norm=True, momentum=0.9),
    "dinov2": lambda: Masked(vit(), **HEAD, momentum=0.9, freeze_last=0.5),
    "dinov2 long": lambda: Masked(vit(), **HEAD, patch_bottleneck=8, balanced=True, momentum=0.9),
}


def made(name: str) -> Objective:
    """In float64: rounding would soon turn into other nearest neighbours, which KoLeo looks for."""
    torch.manual_seed(0)
    return METHODS[name]().double()


def crops(name: str, pictures: list[Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
    """Views without chance, so that a picture has the same ones on whichever process it is."""
    x = torch.stack(pictures).double()
    two = [x, x.flip(-1)]
    return two if "dino" not in name else [*two, x[..., :LOCAL, :LOCAL].clone(), x[..., -LOCAL:, -LOCAL:].clone()]


def pictures() -> list[Tensor]:
    return list(torch.rand(PICTURES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)))


class CrashAfter(Callback):
    def __init__(self, step: int):
        self.step = step

    def after_step(self, run) -> None:
        if run.step == self.step:
            raise RuntimeError("crash")


def gradients(name: str) -> dict[str, Tensor]:
    """Loss and gradients of one batch, averaged over the processes as `fit` does."""
    objective = made(name)
    objective.before_step(0.9)
    batch = [view.chunk(ranks.world())[ranks.rank()] for view in crops(name, pictures()[:BATCH])]
    torch.manual_seed(ranks.rank())  # process 0's numbers count: the order of MoCo's keys
    loss = objective(batch)["loss"]
    loss.backward()
    found = {parameter: ranks.mean(p.grad) for parameter, p in objective.named_parameters() if p.grad is not None}
    return {"loss": ranks.mean(loss.detach())} | found


def train(name: str, folder: Path, crash: int) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Up to six steps of `fit`, two batches each; the weights of its checkpoint, and its history."""
    fit(
        made(name), Batches(pictures(), BATCH, seed=4, collate=partial(crops, name)), steps=6, lr=0.05, accumulate=2,
        optimizer=partial(SGD, momentum=0.9), schedule=constant(), out=folder, checkpoint_every=1, log_every=1,
        callbacks=[CrashAfter(crash)],
    )  # fmt: skip
    state = checkpoint.load(folder / "checkpoint.pt")
    return state["objective"], state["history"]


def main(folder: Path) -> None:
    """What each process does: gradients, and the first half of a run."""
    torch.set_num_threads(1)
    ranks.join()
    torch.save({name: gradients(name) for name in METHODS}, folder / f"{ranks.rank()}.pt")
    for name in METHODS:
        try:
            train(name, folder / name, crash=4)
        except RuntimeError as error:
            assert str(error) == "crash", error
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_of_two_processes_are_those_of_one(together, name):
    alone = gradients(name)
    assert any(value.abs().max() > 1e-6 for value in alone.values())
    for rank in range(2):
        torch.testing.assert_close(torch.load(together / f"{rank}.pt")[name], alone, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_what_two_processes_begin_one_ends(together, tmp_path, name):
    begun = checkpoint.load(together / name / "checkpoint.pt")
    assert begun["step"] == 3 and len(begun["generators"]) == 2
    weights, history = train(name, together / name, crash=99)
    expected, rows = train(name, tmp_path, crash=99)
    for row, same in zip(history, rows, strict=True):
        for entry in ("step", "lr", "loss", "grad_norm"):
            assert row[entry] == pytest.approx(same[entry], rel=1e-5), entry
    learnt = [parameter for parameter, _ in made(name).named_parameters()]  # norms with parts count their batches apart
    torch.testing.assert_close({n: weights[n] for n in learnt}, {n: expected[n] for n in learnt}, rtol=1e-6, atol=1e-9)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
