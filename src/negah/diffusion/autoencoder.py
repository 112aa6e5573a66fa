"""Autoencoder: pictures to a small space in which a diffusion model is cheap, and back.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752, section 3.1.

    z ~ N(mean(x), var(x));  loss = |x - decode(z)|_1 + edges |d(x - decode(z))|_1 + kl KL(N(mean, var) || N(0, 1))

d: differences between neighbouring pixels, across and down.  The weight of KL is tiny: it keeps latents from growing
without bound, and does not make them normal.  What makes them of unit variance for the denoiser is one number,
`latent_scale`, measured afterwards.

How it can fail: with KL weighed as in a variational autoencoder for sampling the latents say nothing and pictures are
grey; without it their scale drifts, and noise levels that fit one training do not fit the next.
Departures from the paper: no discriminator and no perceptual network, which would have to be fetched; the difference of
edges makes up for part of the blur.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from negah.train.objective import Objective

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class Autoencoding(Objective):
    """Objective of a diffusers AutoencoderKL; a batch is pictures [batch, 3, h, w] in [0, 1]."""

    def __init__(self, vae: "AutoencoderKL", *, edges: float = 1.0, kl: float = 1e-6):
        super().__init__()
        self.vae, self.edges, self.kl = vae, edges, kl

    def forward(self, images: Float[Tensor, "batch 3 h w"]) -> dict[str, Tensor]:
        x = 2 * images - 1
        latents = self.vae.encode(x).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        # Global generator, which `fit` seeds.
        wrong = (x - self.vae.decode(latents.sample()).sample).float()  # pyright: ignore[reportAttributeAccessIssue]
        pixels = wrong.abs().mean()
        edges = wrong.diff(dim=2).abs().mean() + wrong.diff(dim=3).abs().mean()
        kl = latents.kl().float().mean()  # summed over a picture's latents, as in the paper's code
        return {"loss": pixels + self.edges * edges + self.kl * kl, "pixels": pixels, "edges": edges, "kl": kl}


@torch.no_grad()
def latent_scale(vae: "AutoencoderKL", batches: Iterable[Float[Tensor, "_ 3 h w"]]) -> float:
    """What latents are multiplied with to be of unit variance: 1 / std over pictures, places and channels."""
    squares = total = count = 0.0
    for images in batches:
        z = vae.encode(2 * images.to(vae.device) - 1).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        squares, total, count = squares + float(z.square().sum()), total + float(z.sum()), count + z.numel()
    mean = total / count
    return (squares / count - mean**2) ** -0.5
