"""DINO: head and training step against lightly and plain formulas, its teacher, its frozen layer, its ranks."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from negah import ranks
from negah.errors import InputError
from negah.nn.backbone import Backbone, ConvBackbone, ViTBackbone
from negah.nn.resnet import ResNet
from negah.nn.vit import ViT
from negah.ssl.dino import DINO
from negah.ssl.dino_head import DINOHead
from negah.train import fit
from negah.train.callbacks import Callback
from negah.train.schedules import constant, linear

K = 48


def small(**options) -> DINO:
    torch.manual_seed(0)
    vit = ViT(patch=8, dim=32, depth=2, heads=2, grid=(4, 4), layer_scale=None, drop_path=options.pop("drop_path", 0.0))
    return DINO(ViTBackbone(vit), **({"prototypes": K, "hidden": 32, "bottleneck": 8} | options))


class Normed(Backbone):
    """A network with batch norm, on pictures of any size."""

    width = 16

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).mean((2, 3))


def crops(n: int = 6, seed: int = 0, local: int = 2) -> list[Tensor]:
    """Pictures of their own colours, whole with noise and in corners."""
    g = torch.Generator().manual_seed(seed)
    base = F.interpolate(torch.rand(n, 3, 2, 2, generator=g), size=32, mode="bilinear")
    noisy = [(base + 0.05 * torch.randn(base.shape, generator=g)).clamp(0, 1) for _ in range(2 + local)]
    return noisy[:2] + [view[:, :, 8 * i : 8 * i + 16, :16] for i, view in enumerate(noisy[2:])]


# The head


def test_the_head_is_lightlys_with_its_weight_norm():
    from lightly.models.modules import DINOProjectionHead

    torch.manual_seed(0)
    peer, ours = DINOProjectionHead(12, 20, 6, K).double(), DINOHead(12, K, hidden=20, bottleneck=6).double()
    linears = [[m for m in layers.modules() if isinstance(m, nn.Linear)] for layers in (ours.mlp, peer.layers)]
    assert len(linears[0]) == len(linears[1]) == 3
    for mine, theirs in zip(*linears):
        mine.load_state_dict(theirs.state_dict())
    ours.last.weight.data.copy_(peer.last_layer.weight_v.data)
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), peer(x), rtol=1e-6, atol=1e-12)
    for head in (ours, peer):
        head(x).square().sum().backward()
    torch.testing.assert_close(ours.last.weight.grad, peer.last_layer.weight_v.grad, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(linears[0][0].weight.grad, linears[1][0].weight.grad, rtol=1e-6, atol=1e-12)


def test_logits_are_cosines_whatever_the_length_of_the_last_layers_weights():
    head, x = DINOHead(12, K, hidden=20, bottleneck=6), torch.randn(5, 12)
    before = head(x)
    head.last.weight.data *= 7
    torch.testing.assert_close(head(x), before)
    assert before.abs().max() <= 1 + 1e-6


def test_a_head_with_batch_norm_has_two_of_them():
    norms = [m for m in DINOHead(12, K, hidden=20, norm=True).modules() if isinstance(m, nn.BatchNorm1d)]
    assert [norm.num_features for norm in norms] == [20, 20]


# The step


def test_at_step_0_teacher_and_student_answer_alike():
    objective, batch = small(drop_path=0.5), crops()
    objective.eval()
    with torch.no_grad():
        student = objective.head(torch.cat(objective.backbone.many(batch[:2])))
    assert torch.equal(objective.answers(batch[:2]).flatten(0, 1), student)
    objective.train()  # the student drops paths now, the teacher does not
    assert torch.equal(objective.answers(batch[:2]).flatten(0, 1), student)


def test_a_step_is_lightlys():
    from lightly.loss import DINOLoss
    from lightly.models.utils import update_momentum

    objective = small(momentum=0.9, teacher_temperature=constant(0.0625), freeze_last=0.0).double()
    backbone, head = copy.deepcopy(objective.backbone), copy.deepcopy(objective.head)
    teachers = [copy.deepcopy(objective.backbone), copy.deepcopy(objective.head)]
    peer = DINOLoss(output_dim=K, teacher_temp=0.0625).double()
    ours = torch.optim.SGD(objective.backbone.parameters(), lr=0.1)
    theirs = torch.optim.SGD(backbone.parameters(), lr=0.1)
    for step in range(3):
        batch = [view.double() for view in crops(seed=step)]
        objective.before_step(step / 3)
        loss = objective(batch)["loss"]
        with torch.no_grad():
            answers = [teachers[1](teachers[0](view)) for view in batch[:2]]
        expected = peer(answers, [head(backbone(view)) for view in batch], teacher_temp=0.0625)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        for optimizer, value in ((ours, loss), (theirs, expected)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        objective.after_step(step / 3)
        for student, teacher in zip((backbone, head), teachers):
            update_momentum(student, teacher, 0.9)
        torch.testing.assert_close(objective.center.center, peer.center.flatten(), rtol=1e-6, atol=1e-12)
    for mine, other in zip(objective.teacher.model[0].parameters(), teachers[0].parameters()):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-12)


def test_readings_hold_together_and_what_the_doctor_sees_is_detached():
    objective = small()
    entries = objective(crops())
    torch.testing.assert_close(entries["entropy"] + entries["kl"], entries["loss"].detach())
    assert 0 <= entries["kl_uniform"] <= math.log(K) and entries["kl"] > 0
    shapes = {name: tuple(x.shape) for name, x in objective.seen.items()}
    assert shapes == {"embedding": (2, 6, 8), "teacher_logits": (2, 6, K), "teacher_probs": (2, 6, K)}
    assert not any(x.requires_grad for x in objective.seen.values())


def test_the_center_is_of_raw_logits_moves_in_training_only_and_is_saved():
    objective, batch = small(), crops()
    raw = objective.answers(batch[:2])
    objective.eval()(batch)
    assert not objective.center.center.any()
    objective.train()(batch)
    torch.testing.assert_close(objective.center.center, 0.1 * raw.mean((0, 1)))
    assert "center.center" in objective.state_dict()


def test_temperature_and_freezing_follow_progress():
    objective = small(teacher_temperature=linear(0.04, 0.08), freeze_last=0.25)
    assert objective.temperature == 0.04 and objective.head.frozen
    objective.before_step(0.5)
    assert objective.temperature == pytest.approx(0.06) and not objective.head.frozen


def test_one_crop_is_refused():
    with pytest.raises(InputError, match="two global crops"):
        small()(crops()[:1])


def test_convolutional_backbones_train_too_and_their_teacher_has_statistics_of_its_own():
    torch.manual_seed(0)
    backbone = ConvBackbone(ResNet(widths=(8, 16), depths=(1, 1), stem="cifar"))
    objective = DINO(backbone, prototypes=K, hidden=16, bottleneck=8, head_norm=True)
    objective(crops())["loss"].backward()
    # The last layer is frozen, and a new block's second norm starts at 0, so the branch before it has gradients of 0.
    assert {name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None} == {
        "head.last.weight"
    }
    seen = [m.resnet.bn1.running_mean for m in (objective.backbone, objective.teacher.model[0])]
    assert seen[1].any() and not torch.equal(*seen)


# The run


class Weights(Callback):
    """The last layer's weights after each step, and how many tensors the optimiser keeps for it."""

    def __init__(self):
        self.weights: list[Tensor] = []
        self.kept: list[int] = []

    def after_step(self, run) -> None:
        weight = run.objective.head.last.weight
        self.weights.append(weight.detach().clone())
        self.kept.append(len(run.optimizer.state[weight]) if weight in run.optimizer.state else 0)


def test_a_frozen_last_layer_is_not_moved_by_gradient_decay_or_momentum():
    objective = small(freeze_last=0.5)
    start, seen = objective.head.last.weight.detach().clone(), Weights()
    fit(objective, [crops()], steps=6, lr=1e-2, weight_decay=0.5, clip=3, callbacks=[seen])
    assert all(torch.equal(weight, start) for weight in seen.weights[:3]) and seen.kept[:3] == [0, 0, 0]
    assert not torch.equal(seen.weights[3], start) and seen.kept[3] > 0


class CrashAfter(Callback):
    def __init__(self, step: int):
        self.step = step

    def after_step(self, run) -> None:
        if run.step == self.step:
            raise RuntimeError("crash")


def test_a_run_that_goes_on_after_a_crash_ends_in_the_same_bits(tmp_path):
    def run(crash: int | None = None, **options) -> dict[str, Tensor]:
        objective = small(drop_path=0.5, freeze_last=0.3)
        batches = [crops(seed=seed) for seed in range(3)]
        fit(objective, batches, steps=8, lr=1e-3, callbacks=[CrashAfter(crash or 99)], **options)
        return objective.state_dict()

    with pytest.raises(RuntimeError, match="crash"):
        run(crash=5, out=tmp_path, checkpoint_every=4)
    resumed, whole = run(out=tmp_path), run()
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_toy_run_brings_the_loss_below_ln_k_without_collapse():
    objective = small(teacher_temperature=constant(0.04), freeze_last=0.0, momentum=0.99)
    batches = [crops(16, seed) for seed in range(2)]
    # Untrained networks answer alike whatever they see, which costs little until the center has caught up with it.
    objective.center.center.copy_(torch.stack([objective.answers(batch[:2]).mean((0, 1)) for batch in batches]).mean(0))
    result = fit(objective, batches, steps=20, lr=3e-3, clip=3, log_every=1)
    losses = [row["loss"] for row in result.history]
    assert losses[0] > math.log(K) > 3 > max(losses[-4:])
    first, second = objective.seen["teacher_probs"].argmax(-1)
    assert len(first.unique()) > 1 and (first == second).float().mean() > 0.5


# Two processes


def gradients(mine: slice) -> dict[str, Tensor]:
    """Two steps' losses, gradients and center, on this process's rows of each crop; gradients averaged as fit does."""
    torch.manual_seed(0)
    objective = DINO(Normed(), prototypes=K, hidden=16, bottleneck=8, head_norm=True, freeze_last=0.0).double()
    found = {}
    for step in range(2):
        objective.zero_grad()
        loss = objective([view[mine].double() for view in crops(seed=step)])["loss"]
        loss.backward()
        found[f"loss {step}"] = ranks.mean(loss.detach())
    for name, parameter in objective.named_parameters():
        if parameter.grad is not None:
            found[name] = ranks.mean(parameter.grad)
    return found | {name: buffer.clone() for name, buffer in objective.named_buffers() if buffer.is_floating_point()}


def main(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    ranks.join()
    torch.save(gradients(slice(3 * ranks.rank(), 3 * ranks.rank() + 3)), folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


def test_two_processes_equal_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    alone = gradients(slice(0, 6))
    assert "center.center" in alone and "head.last.weight" in alone
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-7, atol=1e-10)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
