"""What the recipe minimises: first a convolutional teacher learns from the truth, then the detector from both.

The loss of a network asks for presence (its logit and its pooled evidence, by image label) and, where the truth is
known to the pixel (generated, drawn, masked, or no panel at all), for the fraction of panel in each patch:

    truth = bce(logit, present) + 1/2 bce(pooled evidence, present) + dense * mean_j bce(e_j, fraction_j)

A transformer from scratch learns slowly from a thousand tiles; convolutions, which know that things look the same
everywhere, do not (Touvron et al. 2020, arXiv:2012.12877, section 5).  So the detector also learns to say of every view
what a convolutional network says of it, patch by patch, and to hold its features (FitNets, Romero et al. 2014,
arXiv:1412.6550):

    loss = truth + bce(logit, p) + 1/2 bce(pooled, p) + dense * mean_j bce(e_j, p_j)
         + features * mean_j (1 - cos(W t_j, f_j))

with p, p_j, f_j the teacher's probability, patch probabilities and features, t_j the detector's tokens.
"""

from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from negah.nn.resnet import ResNet
from negah.nn.vit import IMAGENET_MEAN, IMAGENET_STD
from negah.probe.attentive import pooled_evidence
from negah.probe.detector import Detector
from negah.runs.aerial.tiles import Batch
from negah.train.ema import EMA
from negah.train.objective import Objective

Net = TypeVar("Net", bound=nn.Module)


class TeacherReading(NamedTuple):
    """What a teacher says of a batch of images, on the detector's grid of patches."""

    logit: Float[Tensor, " batch"]
    patch_logits: Float[Tensor, "batch patch"]
    features: Float[Tensor, "batch patch dim"]


class Teacher(nn.Module):
    """A residual network whose last map has one place per patch of 8 px."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, widths: tuple[int, int, int] = (32, 96, 192), depths: tuple[int, int, int] = (2, 2, 2)):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.body = ResNet(widths=widths, depths=depths, stem="fine").to(memory_format=torch.channels_last)
        self.patch = nn.Linear(self.body.dim, 1)
        self.whole = nn.Linear(2 * self.body.dim, 1)
        for layer in (self.patch, self.whole):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Num[Tensor, "batch 3 h w"]) -> TeacherReading:
        """Images as uint8 or float in [0, 1]; h and w multiples of 8."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        pixels = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = self.body(pixels).flatten(2).transpose(1, 2)
        seen = F.dropout(features, 0.1, self.training)
        logit = self.whole(torch.cat([seen.mean(1), seen.amax(1)], 1)).squeeze(1)
        return TeacherReading(logit, self.patch(features).squeeze(-1), features)


class Detection(Objective, Generic[Net]):
    """The truth alone, for a teacher or a detector; the average of the weights is what is kept."""

    model: Net

    def __init__(self, model: Net, *, dense: float = 2.0, momentum: float = 0.998):
        super().__init__()
        self.model = model
        self.dense = dense
        self.average = EMA(model, lambda progress: momentum if progress > 0.02 else 0.9)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.truth(self.model(batch.images), batch)

    def truth(self, reading, batch: Batch) -> dict[str, Tensor]:
        """Loss of what a network says against what is known."""
        bce = F.binary_cross_entropy_with_logits
        patch_logits = reading.patch_logits.float()
        presence = (bce(reading.logit.float(), batch.present, reduction="none") * batch.asked).mean()
        evidence = (bce(pooled_evidence(patch_logits), batch.present, reduction="none") * batch.asked).mean()
        dense = (bce(patch_logits, batch.fraction, reduction="none").mean(1) * batch.dense).mean()
        return {
            "loss": presence + 0.5 * evidence + self.dense * dense,
            "presence": presence.detach(), "evidence": evidence.detach(), "dense": dense.detach(),
        }  # fmt: skip

    def after_step(self, progress: float) -> None:
        self.average.update(self.model, progress)


class Distillation(Detection[Detector]):
    """The truth, and what the teacher says of the same views; the teacher itself does not change."""

    def __init__(self, detector: Detector, teacher: Teacher, *, features: float = 1.0, **options):
        super().__init__(detector, **options)
        self.teacher = teacher.requires_grad_(False).eval()
        self.features = features
        self.to_teacher = nn.Linear(detector.backbone.dim, teacher.body.dim)

    def train(self, mode: bool = True) -> "Distillation":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            said = self.teacher(batch.images)
        tokens = self.model.backbone.tokens(batch.images)
        reading = self.model.head(tokens)
        entries = self.truth(reading, batch)
        bce = F.binary_cross_entropy_with_logits
        patch_logits, wanted = reading.patch_logits.float(), said.patch_logits.float()
        told = bce(reading.logit.float(), said.logit.float().sigmoid())
        pooled = bce(pooled_evidence(patch_logits), pooled_evidence(wanted).sigmoid())
        patches = bce(patch_logits, wanted.sigmoid())
        away = 1 - F.cosine_similarity(self.to_teacher(tokens[:, 1:]).float(), said.features.float(), dim=-1).mean()
        loss = entries["loss"] + told + 0.5 * pooled + self.dense * patches + self.features * away
        return entries | {"loss": loss, "told": told.detach(), "patches": patches.detach(), "away": away.detach()}
