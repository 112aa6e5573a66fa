"""DINOv2: DINO on whole images, iBOT on hidden patches, KoLeo against crowding; features to be used frozen.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", arXiv:2304.07193; iBOT: Zhou et al.
2021, arXiv:2111.07832.  A vision transformer's CLS token goes through the head h, its patch tokens through a head p
(the same one where heads are tied).  The teacher sees two global crops whole; the student sees them with half of the
images' patches hidden in blocks, and local crops.

    loss = mean over g, v other than g, of CE(t_g, h(cls_v))            as in DINO, over all pairs of crops
         + mean over the global crops of mean over hidden patches i of CE(t_i, p(patch_i))       0 if none is hidden
         + 0.1 sum over the two global crops of KoLeo(cls)

CE takes the student's logits at temperature 0.1; targets t come from the teacher's by centring and sharpening, or by
Sinkhorn-Knopp, see `losses.distill`.

What rules out the constant solution: centring against one prototype and sharpening against uniformity, or
Sinkhorn-Knopp against both, since every prototype gets the same share of the batch; KoLeo keeps embeddings apart.
How it can still fail: as DINO can, with the same readings; `ibot` is per hidden patch, so ln K for uniform answers.

`DINOv2.short` and `DINOv2.long` are the paper's two recipes (ImageNet-1k for 100 epochs; ImageNet-22k or more for 500).
Both: AdamW, clip 3 for each part, 8 local crops, scales 0.32-1 and 0.05-0.32, drop-path 0.3 or more in the student.
Short: lr 4e-3 * sqrt(batch / 1024) after 10 epochs of warm-up, weight decay from 0.04 to 0.4 by a cosine; long: lr 2e-4
* sqrt(batch / 1024) after 80, weight decay to 0.2.

`DINOv2.distil` trains a small student from a large teacher that is done (section 5): the same losses with the large
teacher frozen, nothing hidden, iBOT on all patches of the global crops.  The moving average of the student is what to
keep.  Stochastic depth is to be left out of the student's backbone.

The high-resolution stage (section 4) is the same objective, loaded from the first run's state, for a few steps more
(10,000 in the paper) on larger crops: the backbone interpolates its positions.

Departures: the number of hidden patches is exact (`ssl.masks`).  Masks are drawn from torch's global generator, as
stochastic depth is, which `fit` seeds and keeps in its checkpoints; in evaluation mode as well.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from negah import ranks
from negah.errors import InputError
from negah.losses.distill import Center, entropy, kl_uniform, masked_cross_entropy, pairs_cross_entropy, sinkhorn
from negah.losses.koleo import koleo
from negah.nn.backbone import ViTBackbone
from negah.nn.linear import product
from negah.nn.vit import Tokens
from negah.ssl.dino_head import DINOHead
from negah.ssl.masks import block_masks
from negah.ssl.teacher import Teacher
from negah.train import Objective
from negah.train.objective import Groups
from negah.train.schedules import Schedule, cosine, linear, ramp


class DINOv2(Objective):
    """Objective on batches of crops: two global ones, which the teacher sees, then local ones.

    Args:
        prototypes: K, of each head.
        hidden, bottleneck: of the heads, see `DINOHead`.
        patch_bottleneck: of a head of its own for patches; None ties the two.
        balanced: targets by Sinkhorn-Knopp instead of centring.
        teacher_temperature: by progress; the default is 30 of 100 epochs of warm-up.
        momentum: m of the teacher.
        mask_share, mask_ratio: share of the global crops that are masked, and how much of such a one is hidden.
        koleo_weight: of each global crop's KoLeo.
        layer_decay: factor on the learning rate for each layer below the last norm.
        patch_lr: factor on the learning rate of the patch embedding, beside its layer decay.
        freeze_last: share of the run over which the heads' last layers stay as they are; one epoch.
        guide: a trained objective whose teacher is to be distilled, see `distil`.
    """

    def __init__(
        self, backbone: ViTBackbone, *, prototypes: int = 65_536, hidden: int = 2048, bottleneck: int = 256,
        patch_bottleneck: int | None = None, balanced: bool = False, student_temperature: float = 0.1,
        teacher_temperature: Schedule = ramp(linear(0.04, 0.07), until=0.3),
        center_momentum: float = 0.9,
        momentum: float | Schedule = cosine(0.992, 1.0),
        mask_share: float = 0.5, mask_ratio: tuple[float, float] = (0.1, 0.5), koleo_weight: float = 0.1,
        layer_decay: float = 0.9, patch_lr: float = 0.2, freeze_last: float = 0.01, guide: "DINOv2 | None" = None,
    ):  # fmt: skip
        super().__init__()
        self.backbone = backbone
        self.head = DINOHead(backbone.width, prototypes, hidden=hidden, bottleneck=bottleneck)
        self.patch_head = None
        if patch_bottleneck is not None:
            self.patch_head = DINOHead(backbone.width, prototypes, hidden=hidden, bottleneck=patch_bottleneck)
        self.teacher = Teacher(self._student(), momentum)
        self.guide = None if guide is None else Teacher(guide.teacher.model, 1.0)  # a moving average that never moves
        self.center, self.patch_center = Center(prototypes, center_momentum), Center(prototypes, center_momentum)
        self.balanced = balanced
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.mask_share, self.mask_ratio, self.koleo_weight = mask_share, mask_ratio, koleo_weight
        self.layer_decay, self.patch_lr, self.freeze_last = layer_decay, patch_lr, freeze_last
        self.seen: dict[str, Tensor] = {}
        self.before_step(0.0)

    @classmethod
    def short(cls, backbone: ViTBackbone, **changes: Any) -> "DINOv2":
        """Centring, tied heads, K 65,536, m from 0.992, layer decay 0.9: the defaults."""
        return cls(backbone, **changes)

    @classmethod
    def long(cls, backbone: ViTBackbone, **changes: Any) -> "DINOv2":
        """Sinkhorn-Knopp, untied heads, K 131,072, m from 0.994, no layer decay; 500 epochs."""
        recipe = {
            "prototypes": 131_072, "bottleneck": 384, "patch_bottleneck": 256, "balanced": True, "layer_decay": 1.0,
            "momentum": cosine(0.994, 1.0), "teacher_temperature": ramp(linear(0.04, 0.07), until=0.06),
            "freeze_last": 0.002,
        }  # fmt: skip
        return cls(backbone, **(recipe | changes))

    @classmethod
    def distil(cls, backbone: ViTBackbone, guide: "DINOv2", **changes: Any) -> "DINOv2":
        """A student of `guide.teacher`, which is copied with its heads and centers, and stays as it is.

        Prototypes and the kind of targets are the guide's; heads are new.  Raises InputError where the two backbones
        cut an image into different patches.
        """
        ours, theirs = backbone.vit.patch, guide.backbone.vit.patch
        if ours != theirs:
            raise InputError(f"patches of {ours} px cannot learn from patches of {theirs} px: take one size for both")
        recipe = {"prototypes": guide.head.prototypes, "balanced": guide.balanced}
        student = cls(backbone, guide=guide, **(recipe | changes))
        student.center.load_state_dict(guide.center.state_dict())
        student.patch_center.load_state_dict(guide.patch_center.state_dict())
        return student

    def forward(self, crops: Sequence[Float[Tensor, "batch 3 _ _"]]) -> dict[str, Tensor]:
        if len(crops) < 2:
            raise InputError(f"DINOv2 needs two global crops of each image, got {len(crops)} crops in all")
        images, vit = len(crops[0]), self.backbone.vit
        masks = self.masks(2 * images, (crops[0].shape[2] // vit.patch, crops[0].shape[3] // vit.patch))
        counts = masks.sum(1)
        where = masks.flatten().nonzero().squeeze(1).to(crops[0].device)  # masks are on the CPU: no wait for a device
        logits, patch_logits = self.answers(crops[:2], where)
        targets, patch_targets = self.targets(logits, patch_logits)
        if self.training:
            self.center.update(logits)
            self.patch_center.update(patch_logits)
        del patch_logits  # as large as anything here

        hidden = [None, None] if self.guide is not None else list(masks.to(crops[0].device).split(images))
        tokens = vit.many(crops, [*hidden, *[None] * (len(crops) - 2)])
        cls = torch.cat([view.cls for view in tokens])
        projected, student, patch_student = read(self._heads(), cls, patches_at(tokens[:2], where))
        dino = pairs_cross_entropy(
            student.unflatten(0, (len(crops), -1)), targets, temperature=self.student_temperature
        )
        ibot = masked_cross_entropy(patch_student, patch_targets, counts, temperature=self.student_temperature)
        spread = koleo(tokens[0].cls) + koleo(tokens[1].cls)

        embedding = projected.detach().unflatten(0, (len(crops), -1))[:2]
        self.seen = {"embedding": embedding, "teacher_logits": logits, "teacher_probs": targets}
        unsure = entropy(targets).mean()
        return {
            "loss": dino + ibot + self.koleo_weight * spread,
            "dino": dino.detach(),
            "ibot": ibot.detach() * (2 * images / int((counts > 0).sum())),
            "koleo": spread.detach() / 2,
            "entropy": unsure,
            "kl": dino.detach() - unsure,
            "kl_uniform": kl_uniform(ranks.mean(targets.mean((0, 1)))),
        }

    def masks(self, images: int, grid: tuple[int, int]) -> Bool[Tensor, "images patch"]:
        """The patches that iBOT compares, on the CPU: those hidden from the student; under a guide, all."""
        if self.guide is not None:
            return torch.ones(images, grid[0] * grid[1], dtype=torch.bool)
        return block_masks(images, grid, share=self.mask_share, ratio=self.mask_ratio)

    @torch.no_grad()
    def answers(
        self, crops: Sequence[Float[Tensor, "batch 3 h w"]], where: Tensor
    ) -> tuple[Float[Tensor, "view batch prototype"], Float[Tensor, "masked prototype"]]:
        """The teacher's logits of whole crops, and of the patches at `where`, numbered over all of them."""
        backbone, *heads = (self.guide or self.teacher).model.children()
        tokens = backbone.vit.many(crops)  # pyright: ignore
        _, logits, patch_logits = read(heads, torch.cat([view.cls for view in tokens]), patches_at(tokens, where))
        return logits.unflatten(0, (len(crops), -1)), patch_logits

    def targets(
        self, logits: Float[Tensor, "view batch prototype"], patch_logits: Float[Tensor, "masked prototype"]
    ) -> tuple[Float[Tensor, "view batch prototype"], Float[Tensor, "masked prototype"]]:
        """t of both kinds."""
        if self.balanced:
            whole = sinkhorn(logits.flatten(0, 1), self.temperature).view_as(logits)
            return whole, sinkhorn(patch_logits, self.temperature)
        return self.center(logits, self.temperature), self.patch_center(patch_logits, self.temperature)

    def param_groups(self) -> Groups:
        """Layer decay; no weight decay on biases, norms and gains; backbone and heads clipped apart."""
        vit = self.backbone.vit
        groups: dict[tuple, dict[str, Any]] = {}
        for part, module in self.named_children():
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                scale = self._lr_scale(name.removeprefix("vit."), vit.depth) if module is self.backbone else 1.0
                key = (part, scale, parameter.ndim > 1)
                group = groups.setdefault(key, {"params": [], "part": part, "lr_scale": scale})
                group["params"].append(parameter)
                if parameter.ndim <= 1:
                    group["weight_decay"] = 0.0
        return list(groups.values())

    def _lr_scale(self, name: str, depth: int) -> float:
        """Of a parameter of the transformer: what stands before block 0 is layer 0, the last norm layer depth + 1."""
        first, *rest = name.split(".")
        layer = int(rest[0]) + 1 if first == "blocks" else depth + 1 if first == "norm" else 0
        return self.layer_decay ** (depth + 1 - layer) * (self.patch_lr if first == "patch_embed" else 1.0)

    def units(self) -> Sequence[nn.Module]:
        teachers = [teacher for teacher in (self.teacher, self.guide) if teacher is not None]
        return [self.backbone.vit, *(teacher.model.get_submodule("0.vit") for teacher in teachers)]

    def before_step(self, progress: float) -> None:
        self.temperature = self.teacher_temperature(progress)
        for head in self._heads():
            head.frozen = progress < self.freeze_last

    def after_step(self, progress: float) -> None:
        self.teacher.update(self._student(), progress)

    def _student(self) -> nn.Sequential:
        """What the teacher averages."""
        return nn.Sequential(self.backbone, *self._heads())

    def _heads(self) -> list[DINOHead]:
        """One where they are tied."""
        return [self.head] if self.patch_head is None else [self.head, self.patch_head]


def patches_at(tokens: Sequence[Tokens], where: Tensor) -> Float[Tensor, "masked dim"]:
    """Patch tokens at `where`, numbered through all images and views."""
    return torch.cat([view.patches.flatten(0, 1) for view in tokens]).index_select(0, where)


def read(
    heads: Sequence[Any], cls: Float[Tensor, "all dim"], patches: Float[Tensor, "masked dim"]
) -> tuple[Float[Tensor, "all bottleneck"], Float[Tensor, "all prototype"], Float[Tensor, "masked prototype"]]:
    """Projections of CLS tokens, their logits, and those of patches, by two heads or by one that does both."""
    head, *others = heads
    directions = head.directions()
    if others:
        projected = head.project(cls)
        return projected, product(projected, directions), others[0](patches)
    projected, of_patches = head.project(torch.cat([cls, patches])).split([len(cls), len(patches)])
    return projected, product(projected, directions), product(of_patches, directions)
