"""BYOL: its loss and one step of it against lightly and a hand-written one, its teacher, its collapse, its ranks."""

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from negah import ranks
from negah.errors import InputError
from negah.nn.backbone import Backbone
from negah.ssl.byol import BYOL, regression
from negah.ssl.teacher import Teacher
from negah.train import Batches, fit
from negah.train.optim import LARS


class Small(Backbone):
    """Two layers with a norm, on pictures of 8 x 8."""

    width = 32

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def small(kind: type[BYOL] = BYOL, **options) -> BYOL:
    torch.manual_seed(1)
    return kind(Small(), hidden=64, dim=16, **options)


def pictures(n: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Two views each: the same soft picture under different noise."""
    g = torch.Generator().manual_seed(seed)
    base = F.interpolate(torch.rand(n, 3, 2, 2, generator=g), size=8, mode="bilinear")
    first, second = ((base + 0.1 * torch.randn(base.shape, generator=g)).clamp(0, 1) for _ in range(2))
    return list(zip(first, second))


def views(n: int = 16) -> list[Tensor]:
    first, second = zip(*pictures(n))
    return [torch.stack(first).double(), torch.stack(second).double()]


def test_loss_is_the_formula_and_lightlys():
    from lightly.loss import NegativeCosineSimilarity

    g = torch.Generator().manual_seed(0)
    p, z = (torch.randn(32, 16, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    by_hand = (p / p.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)).square().sum(1).mean()
    torch.testing.assert_close(regression(p, z), by_hand, rtol=1e-12, atol=0)
    torch.testing.assert_close(regression(p, z), 2 + 2 * NegativeCosineSimilarity()(p, z), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(regression, (p, z))
    assert regression(p, 3 * p).abs() < 1e-12 and (regression(p, -p) - 4).abs() < 1e-12
    assert regression(p.bfloat16(), z.bfloat16()).dtype == torch.float32


def test_one_step_is_lightlys():
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.utils.lars import LARS as Lightly

    ours = small(momentum=0.9).double()
    optimizer = LARS(ours.param_groups(), lr=0.3, weight_decay=1e-4)

    # Theirs, as in their example; their loss is a quarter of ours, without the constant.
    backbone, projector = copy.deepcopy(ours.backbone), BYOLProjectionHead(32, 64, 16).double()
    predictor = BYOLPredictionHead(16, 64, 16).double()
    projector.layers.load_state_dict(ours.projector.state_dict())
    predictor.layers.load_state_dict(ours.predictor.state_dict())
    student = nn.Sequential(backbone, projector)
    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    parameters = [*student.parameters(), *predictor.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    their_optimizer = Lightly(groups, lr=0.3, momentum=0.9, weight_decay=1e-4, eps=0.0)
    criterion = NegativeCosineSimilarity()

    x0, x1 = views()
    for _ in range(2):
        loss = ours([x0, x1])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ours.after_step(0.0)

        p0, p1 = (predictor(student(x)) for x in (x0, x1))
        z0, z1 = (teacher(x).detach() for x in (x0, x1))
        their_loss = 4 + 4 * 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        their_optimizer.zero_grad()
        their_loss.backward()
        their_optimizer.step()
        update_momentum(student, teacher, m=0.9)
        torch.testing.assert_close(loss, their_loss, rtol=1e-10, atol=0)

    same = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)
    same(list(ours.backbone.state_dict().values()), list(backbone.state_dict().values()))
    same(list(ours.projector.state_dict().values()), list(projector.state_dict().values()))
    same(list(ours.predictor.state_dict().values()), list(predictor.state_dict().values()))
    # Buffers too: the running statistics are those of what the teacher itself saw.
    same(list(ours.teacher.model.state_dict().values()), list(teacher.state_dict().values()))


def test_teacher_is_the_student_at_the_start_and_moves_by_the_average_alone():
    byol = small(momentum=0.75)
    student, teacher = byol._student(), byol.teacher.model
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), teacher.state_dict().values()))
    before = [p.clone() for p in teacher.parameters()]
    optimizer = LARS(byol.param_groups(), lr=5.0)
    byol([x.float() for x in views()])["loss"].backward()
    optimizer.step()
    assert all(p.grad is None for p in teacher.parameters()) and all(p.grad is not None for p in student.parameters())
    assert all(torch.equal(p, b) for p, b in zip(teacher.parameters(), before))
    assert not any(p is q for group in byol.param_groups() for p in group["params"] for q in teacher.parameters())
    byol.after_step(0.5)
    for p, b, s in zip(teacher.parameters(), before, student.parameters()):
        torch.testing.assert_close(p, 0.75 * b + 0.25 * s.detach())


def test_momentum_rises_to_one_as_in_the_paper():
    momentum = small().teacher.momentum
    assert callable(momentum)
    assert momentum(0.0) == pytest.approx(0.996) and momentum(0.5) == pytest.approx(0.998)
    assert momentum(1.0) == pytest.approx(1.0)


def test_teachers_noise_is_off_and_its_batch_norms_are_on():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    teacher, x = Teacher(net, 0.9), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    _, dropout, norm = teacher.model.children()
    assert net[1].training and not dropout.training
    for _ in range(2):
        torch.testing.assert_close(teacher(x), F.batch_norm(net[0](x), None, None, training=True))
    own = {name: value.clone() for name, value in norm.state_dict().items()}
    assert own["running_mean"].abs().sum() > 0
    net(x + 5)
    teacher.update(net)
    torch.testing.assert_close(norm.state_dict(), own)  # the student's are those of other weights
    assert teacher.train() is teacher.eval() and not any(m.training for m in teacher.modules())
    assert torch.equal(teacher(x), teacher(x))
    torch.testing.assert_close(norm.state_dict(), own)
    assert not any(m.training for m in Teacher(net.eval(), 0.9).modules())


class Through(BYOL):
    """Gradients reach the target."""

    def target(self, views: list[Tensor]) -> list[Tensor]:
        return self.online(views)


def spread(byol: BYOL) -> float:
    """Standard deviation of the embedding scaled to length 1, over the batch: 1 if isotropic, 0 after a collapse."""
    fit(byol, Batches(pictures(320), 64), steps=150, lr=5.0, optimizer=LARS)
    embedding = F.normalize(byol.seen["embedding"], dim=-1)
    assert embedding.shape == (2, 64, 16)
    return float(embedding.std(1).mean() * 16**0.5)


def test_what_keeps_it_from_collapse():
    assert spread(small()) > 0.7
    assert spread(small(momentum=0.0)) > 0.5  # SimSiam
    assert spread(small(predictor=nn.Identity(), momentum=0.0)) < 0.01
    assert spread(small(Through)) < 0.1


def test_another_number_of_views_is_refused():
    with pytest.raises(InputError, match="two views of each image, got 3"):
        small()([torch.rand(4, 3, 8, 8)] * 3)


def train(folder: Path, **options) -> dict:
    """One forward's gradients in float64, then four steps of `fit`: its history and the weights of its checkpoint."""
    byol, rows = small(momentum=0.9).double(), [v.chunk(ranks.world())[ranks.rank()] for v in views()]
    loss = byol(rows)["loss"]
    loss.backward()
    gradients = [ranks.mean(p.grad) for p in byol.parameters() if p.grad is not None]
    settings = {"steps": 4, "lr": 3.0, "optimizer": partial(LARS, momentum=0.8), "weight_decay": 1e-4, "log_every": 1}
    history = fit(small(momentum=0.9), Batches(pictures(24), 16), out=folder, **settings, **options).history
    weights = torch.load(folder / "checkpoint.pt")["objective"]
    return {"loss": ranks.mean(loss.detach()), "gradients": gradients, "history": history, "weights": weights}


def main(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    ranks.join()
    found = {"ddp": train(folder / "ddp"), "sharded": train(folder / "sharded", shard=True)}
    torch.save(found, folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


def test_two_processes_equal_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    alone = train(tmp_path / "alone")
    for found in (torch.load(tmp_path / f"{rank}.pt") for rank in range(2)):
        for how in ("ddp", "sharded"):
            torch.testing.assert_close(found[how]["loss"], alone["loss"], rtol=1e-12, atol=0)
            torch.testing.assert_close(found[how]["gradients"], alone["gradients"], rtol=1e-8, atol=1e-12)
            for row, expected in zip(found[how]["history"], alone["history"], strict=True):
                torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(found[how]["weights"], alone["weights"], rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
