"""A picture of two numbers whose distribution, and so whose best denoiser, is known; diffusers' samplers."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass
class Mixture:
    """Gaussians of standard deviation `spreads` [k] around `means` [k, 2], with probabilities `shares` [k]."""

    means: Tensor
    spreads: Tensor
    shares: Tensor

    def log_joint(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(x, k) at a noise level, [batch, k], less a constant."""
        variance = self.spreads**2 + sigma**2
        far = (x[:, None] - self.means).square().sum(2)
        return self.shares.log() - variance.log() - far / (2 * variance)

    def log_prob(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """log p(label | x) at a noise level, [batch]: the exact classifier."""
        return self.log_joint(x, sigma).log_softmax(1).gather(1, label[:, None])[:, 0]

    def per_part(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x, k], [batch, k, 2]."""
        pull = self.spreads**2 / (self.spreads**2 + sigma**2)
        return self.means + pull[:, None] * (x[:, None] - self.means)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x]."""
        return (self.log_joint(x, sigma).softmax(1)[:, :, None] * self.per_part(x, sigma)).sum(1)

    def network(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """E[x_0 | x, label], or E[x_0 | x] where the context [batch] is -1."""
        told = self.per_part(x, sigma)[torch.arange(len(x)), context.clamp(min=0)]
        return torch.where(context[:, None] < 0, self.denoise(x, sigma), told)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        part = torch.multinomial(self.shares, n, replacement=True, generator=generator)
        noise = torch.randn(n, 2, generator=generator, dtype=self.means.dtype)
        return self.means[part] + self.spreads[part, None] * noise

    def mean(self) -> Tensor:
        return self.shares @ self.means

    def covariance(self) -> Tensor:
        within = (self.shares * self.spreads**2).sum() * torch.eye(2, dtype=self.means.dtype)
        away = self.means - self.mean()
        return within + away.T @ (self.shares[:, None] * away)


@pytest.fixture
def mixture() -> Mixture:
    return Mixture(
        torch.tensor([[-2.0, 0.0], [1.0, 1.5], [1.5, -1.0]], dtype=torch.float64),
        torch.tensor([0.5, 0.3, 0.6], dtype=torch.float64),
        torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
    )


@pytest.fixture
def peer():
    """Makes diffusers' scheduler of a sampler as its pipelines make it from a checkpoint's, ready for some steps."""
    import diffusers

    peers = {
        "ddim": ("DDIMScheduler", {}), "euler": ("EulerDiscreteScheduler", {}),
        "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}), "heun": ("HeunDiscreteScheduler", {}),
        "dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
        "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    }  # fmt: skip

    def make(sampler: str, config: dict, steps: int, **others):
        name, own = peers[sampler]
        scheduler = getattr(diffusers, name).from_config(config, **own, **others)
        scheduler.set_timesteps(steps)
        return scheduler

    return make
