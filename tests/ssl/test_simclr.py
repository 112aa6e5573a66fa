"""SimCLR: lightly's loss and step, what a batch must hold, learning, and two processes as one."""

import copy
import math
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.optim import SGD

from negah import ranks
from negah.errors import InputError
from negah.nn.backbone import ConvBackbone
from negah.nn.resnet import ResNet
from negah.ssl.simclr import SimCLR, nt_xent
from negah.train import Batches, fit
from negah.train.optim import LARS


def simclr(**options) -> SimCLR:
    torch.manual_seed(0)
    backbone = ConvBackbone(ResNet(widths=(4, 8), depths=(1, 1), stem="cifar"))
    return SimCLR(backbone, **({"hidden": 16, "dim": 8, "temperature": 0.5} | options)).double()


def pairs(n: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Two noisy views of each of n random textures."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    noise = torch.rand(n, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    return [(a, b) for a, b in 0.7 * images + 0.3 * noise]


def views(items: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator | None = None) -> list[Tensor]:
    return [torch.stack(view) for view in zip(*items)]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_is_that_of_lightly(temperature):
    z = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    loss, expected = nt_xent(z, temperature=temperature), NTXentLoss(temperature)(*z)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (loss, expected)), rtol=1e-10, atol=1e-14)


def test_more_than_two_views_average_a_views_positives():
    z = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = torch.nn.functional.normalize(z.flatten(0, 1), dim=1)
    expected = []
    for i in range(12):
        others = [j for j in range(12) if j != i]
        log_sum = torch.logsumexp(unit[others] @ unit[i] / 0.2, 0)
        expected += [log_sum - unit[j] @ unit[i] / 0.2 for j in others if j % 4 == i % 4]
    torch.testing.assert_close(nt_xent(z, temperature=0.2), torch.stack(expected).mean())


def test_one_step_is_that_of_lightly():
    ours = simclr()
    theirs = copy.deepcopy(ours)
    batch = views(pairs())
    for objective in (ours, theirs):
        optimizer = SGD(objective.param_groups(), lr=0.1)
        if objective is ours:
            loss = objective(batch)["loss"]
        else:
            z = objective.projector(objective.backbone(torch.cat(batch)))
            loss = NTXentLoss(0.5)(*z.chunk(2))
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-12)


def test_equal_projections_leave_the_loss_of_knowing_nothing():
    z = torch.ones(2, 16, 4)
    torch.testing.assert_close(nt_xent(z, temperature=0.1), torch.tensor(math.log(2 * 16 - 1)))


def test_a_batch_without_negatives_and_a_single_view_are_refused():
    objective = simclr()
    with pytest.raises(InputError, match="at least 2 images"):
        objective(views(pairs(1)))
    with pytest.raises(InputError, match="two views"):
        objective(views(pairs())[:1])


def test_the_doctor_sees_the_projections_of_each_view():
    objective = simclr()
    objective(views(pairs()))
    assert objective.seen["embedding"].shape == (2, 8, 8) and not objective.seen["embedding"].requires_grad


def test_norms_and_biases_have_neither_decay_nor_adaptation():
    objective = simclr()
    first, second = objective.param_groups()
    assert all(p.ndim > 1 for p in first["params"]) and "weight_decay" not in first
    assert all(p.ndim == 1 for p in second["params"]) and second["weight_decay"] == 0 and second["adapt"] is False


def test_it_learns():
    lars = partial(LARS, trust=0.05)  # the paper's trust would hardly move it in so few steps
    result = fit(simclr(), Batches(pairs(32), 16, collate=views), steps=30, lr=1.0, optimizer=lars, log_every=5)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < losses[0] - 0.2


# Several processes


def train() -> dict:
    """Gradients of one batch and the weights after three steps, on as many processes as there are."""
    objective = simclr()
    batch = [view.chunk(ranks.world())[ranks.rank()] for view in views(pairs())]
    loss = objective(batch)["loss"]
    loss.backward()
    gradients = [ranks.mean(p.grad) for p in objective.parameters() if p.grad is not None]
    trained = simclr()
    fit(trained, Batches(pairs(), 4, collate=views), steps=3, lr=0.1, optimizer=SGD)
    return {"loss": ranks.mean(loss), "gradients": gradients, "trained": trained.state_dict()}


def main(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    ranks.join()
    torch.save(train(), folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


def test_two_processes_equal_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    alone = train()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-7, atol=1e-10)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
