"""DINOv2: its loss against plain formulas and lightly, both recipes, distillation, larger crops, its ranks."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from negah import ranks
from negah.errors import InputError
from negah.losses.koleo import koleo
from negah.nn.backbone import ViTBackbone
from negah.nn.vit import ViT
from negah.ssl.dinov2 import DINOv2
from negah.train import fit
from negah.train.callbacks import Callback
from negah.train.objective import check_groups
from negah.train.schedules import constant

K = 40
TINY = {"prototypes": K, "hidden": 32, "bottleneck": 8}
RECIPES = {"short": {}, "long": {"patch_bottleneck": 6}}


def backbone(seed: int = 0, *, dim: int = 32, patch: int = 8, drop_path: float = 0.0) -> ViTBackbone:
    torch.manual_seed(seed)
    return ViTBackbone(
        ViT(patch=patch, dim=dim, depth=2, heads=2, grid=(4, 4), layer_scale=None, drop_path=drop_path, registers=1)
    )


def small(recipe: str = "short", kind: type[DINOv2] = DINOv2, *, drop_path: float = 0.0, **options) -> DINOv2:
    return getattr(kind, recipe)(backbone(drop_path=drop_path), **(TINY | RECIPES[recipe] | options))


def crops(n: int = 6, seed: int = 0, side: int = 32) -> list[Tensor]:
    """Pictures of their own colours, whole with noise and in corners."""
    g = torch.Generator().manual_seed(seed)
    base = F.interpolate(torch.rand(n, 3, 2, 2, generator=g), size=side, mode="bilinear")
    noisy = [(base + 0.05 * torch.randn(base.shape, generator=g)).clamp(0, 1) for _ in range(4)]
    return noisy[:2] + [view[:, :, 8 * i : 8 * i + 16, :16] for i, view in enumerate(noisy[2:])]


def fixed_masks(images: int) -> Tensor:
    """Every other image, 3 or 5 patches of 16."""
    masks = torch.zeros(images, 16, dtype=torch.bool)
    masks[::2, 2:5] = True
    masks[::4, 8:10] = True
    return masks


class Fixed(DINOv2):
    def masks(self, images: int, grid: tuple[int, int]) -> Tensor:
        return fixed_masks(images)


# The step


@pytest.mark.parametrize("recipe", RECIPES)
def test_loss_is_that_of_lightlys_parts_put_together(recipe):
    from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
    from lightly.loss.swav_loss import sinkhorn

    objective = small(recipe, Fixed, freeze_last=0.0, teacher_temperature=constant(0.0625)).double()
    dino, ibot = DINOLoss(K, teacher_temp=0.0625).double(), IBOTPatchLoss(K, teacher_temp=0.0625).double()
    balance = objective.balanced
    for step in range(2):
        batch = [view.double() for view in crops(seed=step)]
        student = [objective.backbone, objective.head, objective.patch_head or objective.head]
        teacher = list(objective.teacher.model.children())
        masks = fixed_masks(12)
        views = [student[0].vit(view, masks[6 * i : 6 * i + 6] if i < 2 else None) for i, view in enumerate(batch)]
        whole = [teacher[0].vit(view) for view in batch[:2]]
        patches = [torch.cat([view.patches for view in some[:2]])[masks] for some in (views, whole)]
        answers, patch_answers = [teacher[1](view.cls) for view in whole], teacher[-1](patches[1])
        if balance:  # their losses take a softmax of what they are given: its logarithm gives them our targets
            answers = list((0.0625 * sinkhorn(torch.cat(answers), epsilon=0.0625).log()).chunk(2))
            patch_answers = 0.0625 * sinkhorn(patch_answers, epsilon=0.0625).log()
            dino.center.zero_(), ibot.center.center.zero_()
        expected = dino(answers, [student[1](view.cls) for view in views], teacher_temp=0.0625)
        expected = expected + ibot(patch_answers, student[2](patches[0]), masks.view(12, 4, 4))
        expected = expected + 0.1 * sum(KoLeoLoss()(view.cls) for view in views[:2])
        found = objective(batch)["loss"]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        parameters = [p for p in objective.parameters() if p.requires_grad]
        for ours, theirs in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters)):
            # As vectors: their KoLeo adds 1e-8 to every coordinate of a difference, their weights are in fp32.
            assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
        if not balance:
            torch.testing.assert_close(objective.center.center, dino.center.flatten(), rtol=1e-6, atol=1e-12)
            torch.testing.assert_close(
                objective.patch_center.center, ibot.center.value.flatten(), rtol=1e-6, atol=1e-12
            )


@pytest.mark.parametrize("recipe", RECIPES)
def test_at_step_0_teacher_and_student_answer_alike(recipe):
    objective = small(recipe, drop_path=0.5)
    with torch.no_grad():
        views = [objective.backbone.eval().vit(view) for view in crops()[:2]]
        cls, patches = (
            torch.cat([view.cls for view in views]),
            torch.cat([view.patches for view in views]).flatten(0, 1),
        )
        expected = objective.head(cls), (objective.patch_head or objective.head)(patches)
    logits, patch_logits = objective.train().answers(crops()[:2], torch.arange(12 * 16))
    torch.testing.assert_close((logits.flatten(0, 1), patch_logits), expected, rtol=1e-4, atol=1e-5)


def test_recipes_are_those_of_the_paper():
    short, long = small("short"), small("long")
    assert short.patch_head is None and not short.balanced and short.layer_decay == 0.9
    assert long.patch_head is not None and long.balanced and long.layer_decay == 1.0
    assert [short.teacher.momentum(0.0), long.teacher.momentum(0.0)] == pytest.approx([0.992, 0.994])
    assert [short.teacher.momentum(1.0), long.teacher.momentum(1.0)] == pytest.approx([1.0, 1.0])
    for objective in (short, long):
        objective.before_step(0.4)
        assert objective.temperature == pytest.approx(0.07)
    with torch.device("meta"):
        heads = DINOv2.long(backbone())
    assert heads.head.last.weight.shape == (131_072, 384)
    assert heads.patch_head is not None and heads.patch_head.last.weight.shape == (131_072, 256)


def test_uniform_answers_read_ln_k_for_whole_images_and_for_patches():
    objective = small(freeze_last=0.0)
    torch.nn.init.zeros_(objective.head.mlp[-1].weight)
    entries = objective(crops())
    for name in ("dino", "ibot"):
        assert entries[name].item() == pytest.approx(math.log(K), rel=1e-5)


def test_the_teacher_sees_what_is_hidden_from_the_student():
    objective, batch = small(kind=Fixed).eval(), crops()
    shown = [view.clone() for view in batch]
    shown[0].view(6, 3, 4, 8, 4, 8)[0, :, 0, :, 2:4] += 0.5  # patches 2 and 3, hidden in the first image
    torch.manual_seed(0)
    before, answers = (
        objective.backbone.vit(batch[0], fixed_masks(6)).cls,
        objective.answers(batch[:2], torch.arange(9)),
    )
    after, others = objective.backbone.vit(shown[0], fixed_masks(6)).cls, objective.answers(shown[:2], torch.arange(9))
    torch.testing.assert_close(before, after)
    assert not torch.allclose(answers[0][0, 0], others[0][0, 0], atol=1e-6)


def test_what_the_doctor_sees_and_what_a_checkpoint_holds():
    objective = small("long")
    entries = objective(crops())
    assert set(entries) == {"loss", "dino", "ibot", "koleo", "entropy", "kl", "kl_uniform"}
    shapes = {name: tuple(x.shape) for name, x in objective.seen.items()}
    assert shapes == {"embedding": (2, 6, 8), "teacher_logits": (2, 6, K), "teacher_probs": (2, 6, K)}
    assert not any(x.requires_grad for x in objective.seen.values())
    assert {"center.center", "patch_center.center"} <= objective.state_dict().keys()


def test_koleo_is_of_each_view_apart():
    objective = small(kind=Fixed).eval()
    entries = objective(crops())
    views = objective.backbone.vit.many(crops()[:2], list(fixed_masks(12).split(6)))
    expected = (koleo(views[0].cls) + koleo(views[1].cls)) / 2
    torch.testing.assert_close(entries["koleo"], expected.detach())


def test_one_image_can_be_trained_on():
    entries = small()([view[:1] for view in crops()])
    assert entries["loss"].isfinite() and entries["koleo"] == 0


def test_one_crop_is_refused():
    with pytest.raises(InputError, match="two global crops"):
        small()(crops()[:1])


# Groups


@pytest.mark.parametrize("recipe", RECIPES)
def test_groups_decay_with_depth_and_are_clipped_apart(recipe):
    objective = small(recipe, layer_decay=0.5)
    groups = objective.param_groups()
    check_groups(objective, groups)
    of = {p: group for group in groups for p in group["params"]}
    vit = objective.backbone.vit
    scales = [
        of[p]["lr_scale"]
        for p in (
            vit.patch_embed.proj.weight, vit.pos_embed, vit.mask_token, vit.blocks[0].norm1.weight,
            vit.blocks[1].mlp.fc1.weight, vit.norm.bias, objective.head.last.weight,
        )
    ]  # fmt: skip
    assert scales == pytest.approx([0.2 * 0.125, 0.125, 0.125, 0.25, 0.5, 1.0, 1.0])
    assert {group["part"] for group in groups} == {"backbone", "head"} | ({"patch_head"} if recipe == "long" else set())
    decayed = {name for name, p in objective.named_parameters() if p in of and "weight_decay" not in of[p]}
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    assert {"backbone.vit.blocks.0.attn.qkv.weight", "head.last.weight"} <= decayed


# The run


@pytest.mark.parametrize("recipe", RECIPES)
def test_frozen_last_layers_do_not_move(recipe):
    objective = small(recipe, freeze_last=1.0)
    heads = [head for head in (objective.head, objective.patch_head) if head is not None]
    start = [copy.deepcopy(head.state_dict()) for head in heads]
    fit(objective, [crops()], steps=3, lr=1e-2, weight_decay=0.5, clip=3)
    for head, was in zip(heads, start):
        assert torch.equal(head.last.weight, was["last.weight"])
        assert not torch.equal(head.mlp[0].weight, was["mlp.0.weight"])


class CrashAfter(Callback):
    def __init__(self, step: int):
        self.step = step

    def after_step(self, run) -> None:
        if run.step == self.step:
            raise RuntimeError("crash")


def test_a_run_that_goes_on_after_a_crash_ends_in_the_same_bits_masks_included(tmp_path):
    def run(crash: int | None = None, **options) -> dict[str, Tensor]:
        objective = small(drop_path=0.5, freeze_last=0.3)
        batches = [crops(seed=seed) for seed in range(3)]
        fit(objective, batches, steps=8, lr=1e-3, callbacks=[CrashAfter(crash or 99)], **options)
        return objective.state_dict()

    with pytest.raises(RuntimeError, match="crash"):
        run(crash=5, out=tmp_path, checkpoint_every=4)
    resumed, whole = run(out=tmp_path), run()
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_toy_run_brings_the_loss_below_ln_k_with_a_share_for_every_prototype():
    objective = small("long", teacher_temperature=constant(0.04), freeze_last=0.0)
    result = fit(objective, [crops(16, seed) for seed in range(2)], steps=20, lr=1e-2, clip=3, log_every=1)
    dino, ibot, uneven = ([row[name] for row in result.history] for name in ("dino", "ibot", "kl_uniform"))
    assert dino[0] > math.log(K) > max(dino[-3:]) and uneven[-1] < 0.1
    assert max(ibot[-3:]) < 0.6 * ibot[0]  # patches take longer


# After the run: distillation, larger crops


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_student_is_distilled_from_a_frozen_teacher(recipe):
    guide = small(recipe)
    guide.teacher.model[1].mlp[0].bias.data += 0.1  # so that it is the teacher, not the student, that guides
    guide(crops())
    assert guide.center.center.any()
    objective = DINOv2.distil(backbone(1, dim=16), guide, hidden=16, bottleneck=8, freeze_last=0.0)
    where = torch.arange(12 * 16)
    torch.testing.assert_close(objective.answers(crops()[:2], where), guide.answers(crops()[:2], where))
    assert torch.equal(objective.center.center, guide.center.center) and objective.balanced == guide.balanced

    assert objective.guide is not None
    frozen, start = copy.deepcopy(objective.guide.state_dict()), objective.teacher.model[0].vit.norm.weight.clone()
    result = fit(objective, [crops(16)], steps=12, lr=1e-2, clip=3, log_every=1)
    assert all(torch.equal(was, now) for was, now in zip(frozen.values(), objective.guide.state_dict().values()))
    assert not torch.equal(start, objective.teacher.model[0].vit.norm.weight)  # the average of the student, to be kept
    assert result.history[-1]["kl"] < result.history[0]["kl"]


def test_under_a_guide_nothing_is_hidden_and_all_patches_are_compared():
    objective = DINOv2.distil(backbone(1), small(), hidden=16, bottleneck=8)
    assert objective.masks(4, (4, 4)).all()
    objective(crops())["loss"].backward()
    assert objective.backbone.vit.mask_token.grad is None


def test_another_patch_size_is_refused():
    with pytest.raises(InputError, match="patches of 16 px cannot learn from patches of 8 px"):
        DINOv2.distil(backbone(patch=16), small())


def test_the_high_resolution_stage_goes_on_with_larger_crops():
    first = small()
    fit(first, [crops()], steps=2, lr=1e-3)
    second = small()
    second.load_state_dict(first.state_dict())
    result = fit(second, [crops(side=48)], steps=2, lr=1e-4, log_every=1)
    assert all(math.isfinite(row["loss"]) for row in result.history)
    assert not torch.equal(first.backbone.vit.pos_embed, second.backbone.vit.pos_embed)


# Two processes


def gradients(mine: slice) -> dict[str, dict[str, Tensor]]:
    """Two steps' losses, gradients and centers, on this process's rows of each crop; gradients averaged as fit does."""
    found = {}
    for recipe in RECIPES:

        class Part(DINOv2):
            def masks(self, images: int, grid: tuple[int, int]) -> Tensor:
                return fixed_masks(12).unflatten(0, (2, 6))[:, mine].flatten(0, 1)

        objective = small(recipe, Part, freeze_last=0.0).double()
        of = found[recipe] = {}
        for step in range(2):
            objective.zero_grad()
            entries = objective([view[mine].double() for view in crops(seed=step)])
            entries["loss"].backward()
            of |= {f"{name} {step}": ranks.mean(entries[name].detach()) for name in ("loss", "koleo", "kl_uniform")}
        of |= {name: ranks.mean(p.grad) for name, p in objective.named_parameters() if p.grad is not None}
        of |= {name: module.center for name, module in objective.named_modules() if name.endswith("center")}
    return found


def main(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    ranks.join()
    # 4 and 2 of the 6 images: the processes differ in masked patches, too.
    torch.save(gradients(slice(3 * ranks.rank(), 3 * ranks.rank() + 3)), folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


def test_two_processes_equal_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    alone = gradients(slice(0, 6))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-6, atol=1e-9)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
