"""The probes side by side: attentive head, linear, kNN and image statistics, trained on the same rows.

The attentive head reads cached tokens of a frozen backbone, or, with low-rank adapters (LoRA, Hu et al. 2021,
arXiv:2106.09685), images.  Its loss is

    loss = bce(logit, y) + EVIDENCE * bce(pooled patch logits, y)

whose second term teaches the patches from image labels.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from negah.errors import InputError, install
from negah.nn.vit import ViT
from negah.probe.attentive import AttentiveHead, pooled_evidence
from negah.probe.features import CachedTokens, fit_to, turned
from negah.probe.knn import knn_probability
from negah.probe.labels import Samples
from negah.probe.linear import fit_linear, pooled
from negah.train import Batches, Objective, fit
from negah.train.surroundings import randomness

HEAD, LINEAR, KNN, STATISTICS = "attentive head", "linear", "kNN", "image statistics"
EVIDENCE = 0.2  # weight of the pooled patch evidence in the head's loss: enough to point, too little to lead


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the head is trained.

    lora: rank of the adapters on the backbone's attention, 0 for a frozen one.  views: of the eight turned and mirrored
    views of each image, how many it is trained on.
    """

    lora: int = 0
    views: int = 4
    epochs: int = 20
    lr: float = 1e-3
    batch: int = 64


class ProbeObjective(Objective):
    """Presence of panels from images (with a backbone) or from cached tokens (without)."""

    def __init__(self, head: AttentiveHead, backbone: ViT | None = None):
        super().__init__()
        self.head = head
        self.backbone = backbone

    def forward(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Batch of (tokens or images, labels as floats)."""
        inputs, labels = batch
        tokens = inputs.float() if self.backbone is None else self.backbone.tokens(inputs)
        reading = self.head(tokens)
        presence = F.binary_cross_entropy_with_logits(reading.logit, labels)
        evidence = F.binary_cross_entropy_with_logits(pooled_evidence(reading.patch_logits), labels)
        return {"loss": presence + EVIDENCE * evidence, "presence": presence, "evidence": evidence}

    @torch.no_grad()
    def probability(self, inputs: Tensor) -> Float[ndarray, " n"]:
        """Probability of panels, on the objective's device, in evaluation mode."""
        self.eval()
        inputs = inputs.to(next(self.head.parameters()).device)
        tokens = inputs.float() if self.backbone is None else self.backbone.tokens(inputs)
        return self.head(tokens).logit.sigmoid().double().cpu().numpy()


class Images:
    """Images brought to one size, read when asked for."""

    def __init__(self, samples: Samples, size: int, patch: int):
        self.samples, self.size, self.patch = samples, size, patch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> UInt8[Tensor, "3 size size"]:
        return fit_to(self.samples.image(i), self.size, patch=self.patch)


@dataclass(frozen=True)
class Learner:
    """Everything that the probes learn from.

    tokens[i * cached_views + v] are those of view v of image i.  groups: images that belong together, which the
    strength of the linear probes' penalty is chosen by.
    """

    vit: ViT
    images: Images
    tokens: CachedTokens
    cached_views: int
    labels: Int[ndarray, " n"]
    groups: ndarray
    statistics: Float[ndarray, "n d"]
    training: Training

    def learn(
        self, rows: Int[ndarray, " train"], *, seed: int
    ) -> tuple[Callable[[ndarray], dict[str, ndarray]], ProbeObjective]:
        """All four probes trained on `rows`: a function from rows to each one's probabilities, and the head's part."""
        y, groups = self.labels[rows], self.groups[rows]
        head = self._head(rows, seed)
        flat = self._pooled(rows)
        linear = fit_linear(flat.numpy(), y, groups, seed=seed)
        by_statistics = fit_linear(self.statistics[rows], y, groups, seed=seed)

        def predict(at: ndarray) -> dict[str, ndarray]:
            seen = self._pooled(at)
            cls = self.vit.dim  # kNN compares CLS alone, as DINO does; the linear probe has the mean patch as well
            neighbours = knn_probability(flat[:, :cls], torch.from_numpy(y), seen[:, :cls], k=20, classes=2)
            return {
                HEAD: np.concatenate([head.probability(part) for part in self._inputs(at, head)]),
                LINEAR: linear.probability(seen.numpy()),
                KNN: neighbours[:, 1].double().numpy(),
                STATISTICS: by_statistics.probability(self.statistics[at]),
            }

        return predict, head

    def _head(self, rows: Int[ndarray, " train"], seed: int) -> ProbeObjective:
        training = self.training
        device = next(self.vit.parameters()).device
        with randomness(device, seed):
            head = AttentiveHead(self.vit.dim, heads=self.vit.heads)
            tuned, merge = with_lora(self.vit, training.lora) if training.lora else (None, None)
        objective = ProbeObjective(head, tuned).to(device)
        labels = torch.from_numpy(self.labels).float()

        def collate(chosen: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
            at = torch.as_tensor(list(chosen))
            view = torch.randint(training.views, (len(at),), generator=generator)
            if tuned is None:
                return self.tokens[at * self.cached_views + view], labels[at]
            return torch.stack([turned(self.images[i], v) for i, v in zip(at.tolist(), view.tolist())]), labels[at]

        batches = Batches(rows.tolist(), training.batch, seed=seed, collate=collate)
        steps = max(1, training.epochs * len(rows) // training.batch)
        fit(
            objective, batches, steps=steps, lr=training.lr, weight_decay=0.05, warmup=max(1, steps // 20), clip=1.0,
            seed=seed, device=device,
        )  # fmt: skip
        if merge is not None:
            objective.backbone = merge()
        return objective.eval()

    def _inputs(self, rows: ndarray, objective: ProbeObjective) -> Iterator[Tensor]:
        """What the objective reads, a few rows at a time, upright."""
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            if objective.backbone is None:
                yield self.tokens[part * self.cached_views]
            else:
                yield torch.stack([self.images[int(i)] for i in part])

    def _pooled(self, rows: ndarray) -> Float[Tensor, "n features"]:
        upright = rows * self.cached_views
        return torch.cat([pooled(self.tokens[upright[i : i + 256]]) for i in range(0, len(rows), 256)])


def with_lora(vit: ViT, rank: int) -> tuple[ViT, Callable[[], ViT]]:
    """A copy of the backbone with trainable adapters on qkv and proj of each block (alpha = 2 rank), and their merger.

    Raises InputError where the package peft is missing.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise InputError(f"--lora needs the package peft: {install('lora')}") from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=r"blocks\.\d+\.attn\.(qkv|proj)")
    adapted: Any = LoraModel(deepcopy(vit), config, "default")
    return adapted.model, adapted.merge_and_unload
