"""A classifier that sees through noise: log p(y | x_t) for classifier guidance.

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233, section 4.

    loss = -log p(y | x_0 + sigma eps, sigma),   sigma of a uniform timestep, eps normal

What guides is the gradient by x, which `guidance.classifier` takes at every level, so the classifier has to know each:
one of clean pictures only is blind where the coarse shape is decided, and its gradient there is noise.
Departure from the paper: a small residual network with the noise level in each of its blocks, not half of the UNet.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah.diffusion.denoising import spread
from negah.diffusion.schedule import Schedule
from negah.errors import WeightsError
from negah.train.objective import Objective
from negah.weights.files import one_line, read
from negah.weights.save import write_json, write_tensors

WIDE = 64  # of the noise level's embedding
GROUPS = 8


class NoisyClassifier(nn.Module):
    """Logits [batch, classes] of latents (or pictures in [-1, 1]) at noise level sigma; x = x_0 + sigma eps.

    Args:
        classes: their names.
        channels: of x.
        widths: of its stages, each but the first at half the side of the one before.
    """

    def __init__(self, classes: Sequence[str], *, channels: int = 4, widths: Sequence[int] = (48, 64, 96)):
        super().__init__()
        self.config = {"classes": list(classes), "channels": channels, "widths": list(widths)}
        self.classes = list(classes)
        self.level = nn.Sequential(nn.Linear(WIDE, WIDE), nn.SiLU(), nn.Linear(WIDE, WIDE), nn.SiLU())
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.ModuleList([Block(before, width), Block(width, width)])
            for before, width in zip([widths[0], *widths], widths)
        )
        self.norm = nn.GroupNorm(GROUPS, widths[-1])
        self.last = nn.Linear(widths[-1], len(classes))

    def forward(
        self, x: Float[Tensor, "batch c h w"], sigma: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "batch classes"]:
        sigma = sigma.to(x).expand(len(x))
        level = self.level(waves(sigma))
        x = self.first(x / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1))
        for number, stage in enumerate(self.stages):
            x = F.avg_pool2d(x, 2) if number else x
            for block in stage:  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x, level)
        return self.last(F.silu(self.norm(x)).mean((2, 3)))

    def log_prob(
        self, x: Float[Tensor, "batch c h w"], sigma: Float[Tensor, "*batch"], label: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """log p(label | x), for `guidance.classifier`."""
        return self(x, sigma).log_softmax(1).gather(1, label[:, None])[:, 0]

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """config.json and model.safetensors, in an existing or a new folder, which is returned."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self.config, folder / "config.json")
        state = {name: value.detach().to(dtype).contiguous() for name, value in self.state_dict().items()}
        write_tensors(state, folder / "model.safetensors", {})
        return folder

    @classmethod
    def load(cls, folder: Path) -> "NoisyClassifier":
        """From what `save` wrote, in fp32.  Raises WeightsError for what is missing or does not fit."""
        checkpoint = read(folder / "model.safetensors")
        try:
            net = cls(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
            net.load_state_dict({name: value.float() for name, value in checkpoint.content.items()})
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise WeightsError(f"the classifier in {folder} cannot be read: {one_line(error)}") from error
        return net.eval()


class Block(nn.Module):
    """Two convolutions around a shortcut; the noise level scales and shifts what lies between them."""

    def __init__(self, before: int, width: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, before), nn.Conv2d(before, width, 3, padding=1)
        self.level = nn.Linear(WIDE, 2 * width)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 3, padding=1)
        self.short = nn.Conv2d(before, width, 1) if before != width else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # a block begins as its shortcut

    def forward(self, x: Float[Tensor, "batch c h w"], level: Float[Tensor, "batch wide"]) -> Tensor:
        scale, shift = self.level(level)[:, :, None, None].chunk(2, 1)
        y = self.conv1(F.silu(self.norm1(x)))
        return self.short(x) + self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))


def waves(sigma: Float[Tensor, " batch"]) -> Float[Tensor, "batch wide"]:
    """Sines and cosines of log sigma, from a wave over all levels of Stable Diffusion down to fine ones."""
    rates = torch.logspace(-1, 1, WIDE // 2, device=sigma.device, dtype=sigma.dtype) * math.pi
    angles = sigma.clamp(min=1e-4).log()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class Classifying(Objective):
    """Objective; a batch is clean latents and their labels."""

    sigmas: Tensor

    def __init__(self, classifier: NoisyClassifier, schedule: Schedule):
        super().__init__()
        self.classifier = classifier
        self.register_buffer("sigmas", schedule.sigmas.float(), persistent=False)

    def forward(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Of clean latents [batch, c, h, w] and labels [batch]."""
        clean, label = batch
        # Global generator, which `fit` seeds.
        sigma = self.sigmas[spread(len(clean), len(self.sigmas), clean.device)]
        logits = self.classifier(clean + sigma.view(-1, 1, 1, 1) * torch.randn_like(clean), sigma)
        right = logits.argmax(1) == label
        return {"loss": F.cross_entropy(logits.float(), label), "accuracy": right.float().mean()}
