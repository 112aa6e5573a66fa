"""Targets and cross-entropies of self-distillation against plain formulas and lightly."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from negah import ranks
from negah.losses import distill
from negah.losses.distill import (
    Center,
    entropy,
    kl_uniform,
    masked_cross_entropy,
    pairs_cross_entropy,
    sharpened,
    sinkhorn,
)
from negah.losses.koleo import koleo

COUNTS = torch.tensor([3, 1, 0, 2])


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_pairs(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    terms = [
        -(t * (s / temperature).log_softmax(-1)).sum(-1).mean()
        for g, t in enumerate(teacher)
        for v, s in enumerate(student)
        if v != g
    ]
    return torch.stack(terms).mean()


def plain_masked(student: Tensor, teacher: Tensor, counts: Tensor, temperature: float) -> Tensor:
    rows = -(teacher * (student / temperature).log_softmax(-1)).sum(-1)
    images = [part.mean() for part in rows.split(counts.tolist()) if len(part)]
    return torch.stack(images).sum() / len(counts)


def plain_sinkhorn(x: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    q = (x / temperature).exp()
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


# Cross-entropies


@pytest.mark.parametrize("views, targets", [(2, 2), (6, 2), (3, 1), (2, 1), (3, 3)])
def test_pairs_are_every_pair_but_the_same_view(views, targets, monkeypatch):
    monkeypatch.setattr(distill, "CHUNK", 14)  # two rows at a time, of three
    student = logits(views, 3, 7).requires_grad_()
    teacher = sharpened(logits(targets, 3, 7, seed=1), 0.3)
    found, expected = pairs_cross_entropy(student, teacher, temperature=0.2), plain_pairs(student, teacher, 0.2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(2 * loss, student)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_masked_is_the_mean_over_each_image_and_then_over_images():
    student, teacher = logits(6, 7).requires_grad_(), sharpened(logits(6, 7, seed=1), 0.3)
    found = masked_cross_entropy(student, teacher, COUNTS, temperature=0.2)
    expected = plain_masked(student, teacher, COUNTS, 0.2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_gradients_hold_for_targets_that_do_not_sum_to_1():
    student, teacher = logits(3, 2, 5).requires_grad_(), logits(2, 2, 5, seed=1).exp()
    assert torch.autograd.gradcheck(lambda s: pairs_cross_entropy(s, teacher, temperature=0.5), [student])
    rows = logits(6, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: masked_cross_entropy(s, logits(6, 5).exp(), COUNTS), [rows])


def test_pairs_equal_lightlys_with_its_center():
    from lightly.loss import DINOLoss

    peer, center = DINOLoss(output_dim=11).double(), Center(11).double()
    for step in range(3):
        student, teacher = logits(5, 4, 11, seed=step).requires_grad_(), logits(2, 4, 11, seed=9 + step)
        expected = peer(list(teacher), list(student), teacher_temp=0.0625)
        found = pairs_cross_entropy(student, center(teacher, 0.0625))
        center.update(teacher)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(center.center, peer.center.flatten(), rtol=1e-6, atol=1e-12)


def test_masked_equals_lightlys_with_its_center():
    from lightly.loss import IBOTPatchLoss

    peer, center = IBOTPatchLoss(output_dim=11, teacher_temp=0.0625).double(), Center(11).double()
    mask = torch.zeros(4, 3, dtype=torch.bool)
    for image, count in enumerate(COUNTS.tolist()):
        mask[image, :count] = True
    for step in range(3):
        student, teacher = logits(6, 11, seed=step).requires_grad_(), logits(6, 11, seed=9 + step)
        expected = peer(teacher, student, mask.unsqueeze(1))
        found = masked_cross_entropy(student, center(teacher, 0.0625), mask.sum(1))
        center.update(teacher)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(center.center, peer.center.value.flatten(), rtol=1e-6, atol=1e-12)


def test_uniform_answers_cost_ln_k_and_a_mask_on_half_of_the_images_half_of_it():
    flat = torch.zeros(2, 6, 50)
    targets = sharpened(logits(2, 6, 50), 0.04)
    torch.testing.assert_close(pairs_cross_entropy(flat, targets).item(), math.log(50))
    found = masked_cross_entropy(flat[0], targets[0], torch.tensor([4, 2, 0, 0])).item()
    torch.testing.assert_close(found, math.log(50) / 2)


def test_cold_temperatures_and_half_precision_stay_finite():
    student = (40 * logits(4, 3, 33)).float().requires_grad_()
    targets = sharpened((40 * logits(2, 3, 33, seed=1)).half(), 0.01)
    assert targets.dtype == torch.float32
    loss = pairs_cross_entropy(student.half(), targets, temperature=0.01)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()


def test_what_is_kept_for_the_backward_pass_is_logits_and_targets_alone():
    kept: dict[int, int] = {}
    student, teacher = torch.randn(8, 4, 512, requires_grad=True), sharpened(torch.randn(2, 4, 512), 0.1)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.update({x.untyped_storage().data_ptr(): x.numel()}), x)[1], lambda x: x
    ):
        pairs_cross_entropy(student, teacher)
    assert sum(kept.values()) < student.numel() + 2 * teacher.numel()


def test_losses_say_what_is_wrong():
    with pytest.raises(ValueError, match="no pairs"):
        pairs_cross_entropy(logits(1, 3, 5), logits(1, 3, 5))
    with pytest.raises(ValueError, match="no pairs"):
        pairs_cross_entropy(logits(2, 3, 5), logits(3, 3, 5))
    with pytest.raises(ValueError, match="6 rows for 4 masked patches"):
        masked_cross_entropy(logits(6, 5), logits(6, 5), torch.tensor([3, 1]))


# Targets


def test_sharpened_is_a_softmax_of_what_is_off_center(monkeypatch):
    monkeypatch.setattr(distill, "CHUNK", 10)
    x, center = logits(2, 4, 7), logits(7, seed=1)
    torch.testing.assert_close(sharpened(x, 0.05, center), ((x - center) / 0.05).softmax(-1))
    assert sharpened(x, 0.001).argmax(-1).equal(x.argmax(-1))


def test_the_center_is_state_and_momentum_1_leaves_it_at_0():
    assert list(Center(3).state_dict()) == ["center"]
    off = Center(3, momentum=1.0)
    off.update(torch.ones(4, 3))
    assert not off.center.any()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_sinkhorn_is_its_plain_form_and_lightlys(temperature):
    from lightly.loss.swav_loss import sinkhorn as peer

    x = 0.5 * logits(9, 13)
    x[4] -= 3  # a row far below the others, which the first iteration gives little weight
    found = sinkhorn(x, temperature)
    torch.testing.assert_close(found, plain_sinkhorn(x, temperature), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found, peer(x, epsilon=temperature), rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(found.sum(1), torch.ones(9, dtype=torch.float64))


def test_many_iterations_of_sinkhorn_give_every_prototype_the_same_share():
    found = sinkhorn(logits(12, 4), 0.5, iterations=100)
    torch.testing.assert_close(found.sum(0), torch.full((4,), 3.0, dtype=torch.float64), rtol=1e-3, atol=0)


def test_sinkhorn_does_not_overflow_where_the_plain_form_does():
    x = logits(16, 64) / 2
    x[3] -= 10  # exp(-1000) beside the others
    cold = sinkhorn(x.float(), 0.01)
    assert not plain_sinkhorn(x.float(), 0.01).isfinite().all()
    assert cold.isfinite().all()
    torch.testing.assert_close(cold.sum(1), torch.ones(16))
    torch.testing.assert_close(cold.double(), log_sinkhorn(x, 0.01), rtol=1e-3, atol=1e-5)


def log_sinkhorn(x: Tensor, temperature: float) -> Tensor:
    x = x / temperature
    for _ in range(3):
        x = x - x.logsumexp(0, keepdim=True)
        x = x - x.logsumexp(1, keepdim=True)
    return x.exp()


def test_sinkhorn_is_exact_under_autocast():
    x = logits(8, 16).float() / 4
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(x, 0.1), sinkhorn(x.clone(), 0.1))
        torch.testing.assert_close(sinkhorn(x, 0.1).sum(1), torch.ones(8))


def test_readings_tell_uniform_from_one_prototype():
    uniform, one = torch.full((1, 8), 1 / 8).double(), torch.eye(8)[:1].double()
    for p, expected in ((uniform, math.log(8)), (one, 0.0)):
        torch.testing.assert_close(entropy(p).item(), expected)
        torch.testing.assert_close(kl_uniform(p).item(), math.log(8) - expected)


# Two processes; KoLeo is here as well, since each start of two takes seconds


def measured(mine: slice, counts: Tensor, mine_masked: slice) -> dict[str, Tensor]:
    """All that looks at other processes, on this one's rows, with the gradient of its part of the loss."""
    student, embedding = logits(3, 6, 9)[:, mine].requires_grad_(), logits(6, 4, seed=3)[mine].requires_grad_()
    patches = logits(10, 9, seed=4)[mine_masked].requires_grad_()
    raw, raw_patches = logits(2, 6, 9, seed=1)[:, mine], logits(10, 9, seed=5)[mine_masked]
    center = Center(9).double()
    center.update(raw_patches)
    balanced = sinkhorn(raw.flatten(0, 1), 0.1).view_as(raw)
    patch_targets = sinkhorn(raw_patches, 0.1)
    loss = pairs_cross_entropy(student, balanced) + pairs_cross_entropy(student, center(raw, 0.1))
    loss = loss + masked_cross_entropy(patches, patch_targets, counts) + koleo(embedding)
    gradients = torch.autograd.grad(loss, [student, embedding, patches])
    return {
        "loss": ranks.mean(loss.detach()), "center": center.center, "balanced": balanced, "patches": patch_targets,
        **{f"gradient {i}": g / ranks.world() for i, g in enumerate(gradients)},
    }  # fmt: skip


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks.join()
    # The processes hold different numbers of masked patches.
    halves = [(slice(0, 3), torch.tensor([5, 2]), slice(0, 7)), (slice(3, 6), torch.tensor([0, 3]), slice(7, 10))]
    torch.save(measured(*halves[ranks.rank()]), folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()


def test_two_processes_equal_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = measured(slice(0, 6), torch.tensor([5, 2, 0, 3]), slice(0, 10))
    joined = {"balanced": 1, "gradient 0": 1, "gradient 1": 0, "gradient 2": 0, "patches": 0}
    for name, expected in whole.items():
        if name in joined:
            torch.testing.assert_close(torch.cat([part[name] for part in both], joined[name]), expected)
        else:
            for part in both:
                torch.testing.assert_close(part[name], expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
