"""MoCo: lightly's loss and step, the queue, where keys are computed, learning, and two processes as one."""

import copy
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.optim import SGD

from negah import ranks
from negah.errors import InputError
from negah.losses.contrast import contrast_queue
from negah.nn.backbone import ConvBackbone, ViTBackbone
from negah.nn.resnet import ResNet
from negah.nn.vit import ViT
from negah.ssl.moco import MoCo, MoCoV3
from negah.train import Batches, Objective, fit
from negah.train.schedules import constant


def small() -> ConvBackbone:
    torch.manual_seed(0)
    return ConvBackbone(ResNet(widths=(4, 8), depths=(1, 1), stem="cifar"))


def moco(**options) -> MoCo:
    return MoCo(small(), **({"dim": 8, "queue": 16, "parts": 2} | options)).double()


def moco_v3(**options) -> MoCoV3:
    return MoCoV3(small(), **({"hidden": 16, "dim": 8} | options)).double()


def pairs(n: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Two noisy views of each of n random textures."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    noise = torch.rand(n, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    return [(a, b) for a, b in 0.7 * images + 0.3 * noise]


def views(items: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator | None = None) -> list[Tensor]:
    return [torch.stack(view) for view in zip(*items)]


def lightly_loss(queue: Tensor, temperature: float) -> NTXentLoss:
    """lightly's InfoNCE with a memory bank that holds our queue."""
    loss = NTXentLoss(temperature, memory_bank_size=tuple(queue.shape)).double()
    loss.memory_bank.bank.copy_(queue)
    return loss


def test_loss_is_that_of_lightly():
    generator = torch.Generator().manual_seed(0)
    q, k, queue = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (4, 4, 12))
    queue = F.normalize(queue, dim=1)
    for temperature in (0.07, 0.2):
        q.requires_grad_()
        loss, expected = contrast_queue(q, k, queue, temperature=temperature), lightly_loss(queue, temperature)(q, k)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(x, q)[0] for x in (loss, expected)), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("layers", [1, 2])
def test_one_step_is_that_of_lightly(layers):
    ours = moco(layers=layers, parts=1)
    ours.queue.copy_(F.normalize(ours.queue, dim=1))  # it was made in fp32, and lightly takes it as it is
    theirs, criterion = copy.deepcopy(ours), lightly_loss(ours.queue, 0.2)
    first, second = views(pairs())
    loss = ours([first, second])["loss"]
    expected = criterion(theirs.projector(theirs.backbone(first)), theirs.teacher(second))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for objective, value in ((ours, loss), (theirs, expected)):
        optimizer = SGD(objective.param_groups(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        value.backward()
        optimizer.step()
        objective.after_step(0.0)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(ours.queue, criterion.memory_bank.bank, rtol=1e-8, atol=1e-12)


def test_the_queue_holds_the_newest_keys_and_wraps_around():
    objective = moco(queue=16)
    made = []
    for step in range(3):  # 24 keys into 16 places
        objective([view + 0.1 * step for view in views(pairs(8))])
        made.append(F.normalize(objective.seen["embedding"][1], dim=1))
    torch.testing.assert_close(objective.queue, torch.cat([made[2], made[1]]))
    assert objective.oldest == 8
    again = moco(queue=16)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.queue, objective.queue) and again.oldest == 8


def test_symmetric_is_the_mean_of_both_ways_and_fills_the_queue_with_both_keys():
    first, second = views(pairs(8))
    symmetric, one_way = moco(parts=1, symmetric=True), moco(parts=1)
    loss = symmetric([first, second])["loss"]
    there, back = one_way([first, second])["loss"], moco(parts=1)([second, first])["loss"]
    # Neither way sees the other's keys, which are views of the same images, among its negatives.
    torch.testing.assert_close(loss, (there + back) / 2, rtol=1e-10, atol=0)
    assert symmetric.oldest == 0  # 16 keys into 16 places
    for rows, images in ((slice(0, 8), second), (slice(8, 16), first)):
        torch.testing.assert_close(symmetric.queue[rows], F.normalize(moco(parts=1).teacher(images), dim=1))


def test_evaluation_leaves_the_queue_alone():
    objective = moco().eval()
    before = objective.queue.clone()
    objective(views(pairs()))
    assert torch.equal(objective.queue, before) and objective.oldest == 0


def test_a_queue_that_batches_do_not_fill_evenly_is_refused():
    with pytest.raises(InputError, match="queue of 20 keys is not a multiple of the batch of 8"):
        moco(queue=20)(views(pairs(8)))
    for objective in (moco(), moco_v3()):
        with pytest.raises(InputError, match="two views"):
            objective(views(pairs())[:1])
    with pytest.raises(InputError, match="at least 2 images"):
        moco_v3()(views(pairs(1)))


@pytest.mark.parametrize("make", [moco, moco_v3])
def test_the_teacher_starts_as_the_student_and_follows_by_its_momentum(make):
    objective = make(momentum=0.9)
    student = [*objective.backbone.parameters(), *objective.projector.parameters()]
    teacher = list(objective.teacher.parameters())
    assert all(torch.equal(s, t) for s, t in zip(student, teacher, strict=True))
    assert not any(t.requires_grad for t in teacher)
    start = [t.clone() for t in teacher]
    optimizer = SGD(objective.param_groups(), lr=0.1)
    objective(views(pairs()))["loss"].backward()
    optimizer.step()
    objective.after_step(0.0)
    assert any(not torch.equal(s, t) for s, t in zip(start, teacher))
    for t, before, s in zip(teacher, start, student):
        torch.testing.assert_close(t, 0.9 * before + 0.1 * s.detach())


def test_the_momentum_of_v3_ends_at_1():
    objective = moco_v3()
    assert callable(objective.teacher.momentum)
    assert math.isclose(objective.teacher.momentum(0.0), 0.99) and objective.teacher.momentum(1.0) == 1.0


def test_keys_come_back_in_the_order_of_their_images():
    objective = moco().eval()
    images = views(pairs())[1]
    torch.testing.assert_close(objective.keys(images), objective.teacher(images))


def test_keys_are_normalised_beside_other_images_than_their_queries():
    """Or else a query could find its key by the statistics that they share."""
    images = views(pairs(8))[0]
    objective = moco(parts=2)
    objective(views(pairs(8)))
    in_order = objective.teacher(images)
    torch.manual_seed(3)
    assert not torch.allclose(objective.keys(images), in_order, rtol=1e-3)
    # With one part nothing can be hidden: the order makes no difference.
    objective = moco(parts=1)
    torch.testing.assert_close(objective.keys(images), objective.teacher(images))


def test_v3_is_both_contrasts_times_twice_the_temperature():
    objective = moco_v3()
    batch = views(pairs())
    loss = objective(batch)["loss"]
    queries = [objective.predictor(objective.projector(objective.backbone(view))) for view in batch]
    keys = [objective.teacher(view) for view in batch]
    expected = torch.zeros((), dtype=torch.float64)
    for q, k in zip(queries, reversed(keys)):
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.2
        expected = expected + 2 * 0.2 * F.cross_entropy(logits, torch.arange(8))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(objective.seen["embedding"], torch.stack(queries).detach())


def test_v3_keeps_the_patch_embedding_of_a_vision_transformer():
    vit = ViT(patch=4, dim=12, depth=1, heads=2, grid=(2, 2))
    objective = MoCoV3(ViTBackbone(vit), hidden=16, dim=8)
    objective([view.float() for view in views(pairs())])["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in vit.patch_embed.parameters())
    assert vit.get_parameter("blocks.0.attn.qkv.weight").grad is not None
    learnt = {p for group in objective.param_groups() for p in group["params"]}
    assert vit.patch_embed.proj.weight not in learnt


def test_v3_learns():
    objective = moco_v3(momentum=0.9)
    result = fit(objective, Batches(pairs(32), 16, collate=views), steps=30, lr=0.1, optimizer=SGD, log_every=5)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.9 * losses[0]


def test_it_learns():
    # The loss first rises, as keys replace the queue's random directions, and equal outputs leave log(1 + queue).
    objective, batches = moco(queue=32, momentum=0.99), Batches(pairs(64), 16, collate=views)
    result = fit(objective, batches, steps=90, lr=0.03, schedule=constant(), log_every=15)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.85 * math.log(1 + 32) and losses[-1] < 0.85 * losses[1]


# Several processes


def train() -> dict:
    """Gradients of one batch and the weights after three steps, on as many processes as there are."""
    found = {}
    for name, make in (("moco", moco), ("v3", moco_v3)):
        objective: Objective = make()
        batch = [view.chunk(ranks.world())[ranks.rank()] for view in views(pairs())]
        torch.manual_seed(ranks.rank())  # process 0 decides the order of keys
        loss = objective(batch)["loss"]
        loss.backward()
        gradients = [ranks.mean(p.grad) for p in objective.parameters() if p.grad is not None]
        trained = make()
        fit(trained, Batches(pairs(), 4, collate=views), steps=3, lr=0.1, optimizer=SGD)
        found[name] = {"loss": ranks.mean(loss), "gradients": gradients, "trained": list(trained.parameters())}
        if isinstance(trained, MoCo):
            found["queue"] = [trained.queue, trained.oldest]
    return found


def main(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    ranks.join()
    torch.save(train(), folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


def test_two_processes_equal_one_with_norms_of_two_parts(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    alone = train()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-7, atol=1e-10)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
