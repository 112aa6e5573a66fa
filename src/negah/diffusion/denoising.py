"""Train a text-to-image model: tell the noise in a noisy picture, given the words for it.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, eq. 14; Rombach et al. 2022,
arXiv:2112.10752, eq. 3 (in latents, under words).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,   t uniform, eps normal
    loss = w_t |target - unet(x_t, t, words)|^2
    target = eps                                       "epsilon"
           = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0   "v_prediction", Salimans & Ho 2022, arXiv:2202.00512

Words are dropped from a share of the pictures, so that one network is both halves of classifier-free guidance
(Ho & Salimans 2022, arXiv:2207.12598).  With `min_snr` g the error of x_0 is weighed by min(snr_t, g), snr = abar /
(1 - abar), which keeps the many nearly clean levels from pulling the network away from the noisy ones (Hang et al.
2023, arXiv:2303.09556).

How it can fail: pictures are judged through an average of the weights, since a single step's colours drift; latents
that are not of unit variance shift every noise level (`autoencoder.latent_scale`).
Departure: the timesteps of a batch lie evenly over all of them from a random start, as in Kingma et al. 2021
(arXiv:2107.00630, appendix I.1): each is uniform, and the loss varies less from batch to batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from negah.diffusion.schedule import PredictionType, Schedule
from negah.train.ema import EMA
from negah.train.objective import Objective

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel


class Denoising(Objective):
    """Objective; `average` holds the networks to make pictures with.

    Args:
        unet, text: networks of diffusers and transformers; one whose parameters ask for no gradient stays as it is.
        empty: tokens of the text without words, which stand for dropped ones.
        drop: share of the pictures whose words are dropped.
        min_snr: most weight of a level, see above; None weighs the error of the target alike everywhere.
        momentum: of the average.
    """

    abar: Tensor
    empty: Tensor

    def __init__(
        self, unet: "UNet2DConditionModel", text: "CLIPTextModel", schedule: Schedule, *, empty: Int[Tensor, " tokens"],
        drop: float = 0.1, min_snr: float | None = None, momentum: float = 0.999,
    ):  # fmt: skip
        super().__init__()
        self.networks = nn.ModuleDict({"unet": unet, "text": text})
        self.average = EMA(self.networks, momentum)
        self.prediction: PredictionType = schedule.prediction
        self.drop, self.min_snr = drop, min_snr
        self.register_buffer("abar", schedule.alphas_cumprod.float(), persistent=False)
        self.register_buffer("empty", empty, persistent=False)

    def forward(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Of scaled latents, or of pictures in [-1, 1], [batch, c, h, w] and the tokens of their words."""
        clean, ids = batch
        # Global generator, which `fit` seeds.
        t, noise = spread(len(clean), len(self.abar), clean.device), torch.randn_like(clean)
        without = torch.rand(len(clean), device=clean.device) < self.drop
        return {"loss": self.errors(clean, self.words(ids, without), t, noise).mean()}

    def words(
        self, ids: Int[Tensor, "batch tokens"], without: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "batch tokens dim"]:
        ids = torch.where(without[:, None], self.empty, ids)
        return self.networks["text"](ids).last_hidden_state

    def errors(
        self, clean: Float[Tensor, "batch c h w"], context: Float[Tensor, "batch tokens dim"],
        t: Int[Tensor, " batch"], noise: Float[Tensor, "batch c h w"],
    ) -> Float[Tensor, " batch"]:  # fmt: skip
        """Weighed mean square of each picture."""
        abar = self.abar[t].view(-1, 1, 1, 1)
        told = self.networks["unet"](noised(clean, noise, abar), t, context).sample.float()
        errors = (told - target(clean, noise, abar, self.prediction)).square().mean((1, 2, 3))
        return errors if self.min_snr is None else errors * snr_weight(self.abar[t], self.min_snr, self.prediction)

    def after_step(self, progress: float) -> None:
        self.average.update(self.networks, progress)


def spread(batch: int, levels: int, device: torch.device) -> Int[Tensor, " batch"]:
    """Timesteps at equal distances from a random start, in a random order."""
    places = (torch.rand((), device=device) + torch.arange(batch, device=device) / batch) % 1
    return (places * levels).long().clamp(max=levels - 1)[torch.randperm(batch, device=device)]


def noised(
    clean: Float[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"], abar: Float[Tensor, "batch 1 1 1"]
) -> Float[Tensor, "batch c h w"]:
    """x_t above."""
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def target(
    clean: Float[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"], abar: Float[Tensor, "batch 1 1 1"],
    prediction: PredictionType,
) -> Float[Tensor, "batch c h w"]:  # fmt: skip
    """What the network is to tell."""
    return noise if prediction == "epsilon" else abar.sqrt() * noise - (1 - abar).sqrt() * clean


def snr_weight(abar: Float[Tensor, " batch"], most: float, prediction: PredictionType) -> Float[Tensor, " batch"]:
    """min(snr, most) for the error of x_0, in units of the target's: |x_0|^2 errors are 1 / snr of those of epsilon,
    and 1 / (snr + 1) of those of v."""
    snr = abar / (1 - abar)
    return snr.clamp(max=most) / (snr if prediction == "epsilon" else snr + 1)
