"""Noise levels: those that a network was trained on, and those that a sampler stops at.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239; Karras et al. 2022, "Elucidating the
Design Space of Diffusion-Based Generative Models", arXiv:2206.00364.

    abar_t  = product of (1 - beta_s) for s <= t
    x_t     = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps            what networks are trained on ("variance-preserving")
    sigma_t = sqrt((1 - abar_t) / abar_t)
    x       = x_0 + sigma_t eps = x_t sqrt(1 + sigma_t^2)        what we compute with ("sigma space")

In sigma space a sampler needs to know nothing of the training.  Which levels it stops at is a convention of each
sampler, and pictures depend on it; `Schedule.levels` keeps to diffusers' conventions, so that a seed gives the same
picture.

What rules out an infinite level: networks trained to zero signal at the end (Lin et al. 2023, arXiv:2305.08891, alg. 1)
have sigma_T = inf there; as in diffusers, abar_T is then 2^-24, so sigma_T is 4,096.
Departures from diffusers: sigmas of float64; DDIM's steps lead from level to level of its list (diffusers steps down by
T // steps timesteps, which leaves the list under trailing and linspace spacing); a single step starts at the last
timestep under any spacing; `timestep` interpolates linearly in sigma, which undoes exactly how linspace spacing finds
sigmas, and differs from diffusers' under karras spacing by a small part of a timestep.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from negah.diffusion.sample import SamplerName
from negah.errors import InputError, WeightsError

Spacing = Literal["leading", "linspace", "trailing", "karras"]
PredictionType = Literal["epsilon", "v_prediction"]
LEAST_SIGNAL = 2.0**-24  # abar_T of networks trained to zero signal
RHO = 7  # of karras spacing, as in the paper


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of a training, timesteps 0 to T - 1.

    alphas_cumprod: abar, falling, in (0, 1), float64.
    prediction: what the network was trained to tell.
    spacing: the one that its file asks for; None leaves it to the sampler.
    offset: added to all timesteps of leading spacing.
    to_one: whether DDIM's last step ends without noise, or else at timestep 0, as Stable Diffusion's does.
    """

    alphas_cumprod: Float[Tensor, " levels"]
    prediction: PredictionType = "epsilon"
    spacing: Spacing | None = None
    offset: int = 1
    to_one: bool = False

    @classmethod
    def of_betas(cls, betas: Float[Tensor, " levels"], **others: Any) -> "Schedule":
        """abar as diffusers computes it, in float32: its error of 1e-6 shows in the latents (3e-5 in 12 steps of
        Heun), so a more exact one would not give the same pictures.  Others: fields besides abar."""
        return cls((1 - betas.float()).cumprod(0).double(), **others)

    @classmethod
    def scaled_linear(cls, start: float = 0.00085, end: float = 0.012, levels: int = 1000, **others: Any) -> "Schedule":
        """Stable Diffusion's: the square roots of the betas rise linearly."""
        return cls.of_betas(torch.linspace(start**0.5, end**0.5, levels).square(), **others)

    @classmethod
    def linear(cls, start: float = 1e-4, end: float = 0.02, levels: int = 1000, **others: Any) -> "Schedule":
        """That of Ho et al."""
        return cls.of_betas(torch.linspace(start, end, levels), **others)

    @classmethod
    def cosine(cls, levels: int = 1000, **others: Any) -> "Schedule":
        """That of Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17; betas of at most 0.999."""
        time = torch.arange(levels + 1, dtype=torch.float64) / levels
        abar = torch.cos((time + 0.008) / 1.008 * torch.pi / 2).square()
        return cls.of_betas((1 - abar[1:] / abar[:-1]).clamp(max=0.999), **others)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Schedule":
        """From the content of diffusers' scheduler_config.json.

        Raises WeightsError for a training that cannot be sampled here: another process (flow matching), an unknown
        schedule, prediction or spacing, betas outside of (0, 1), or zero signal at the end told by its noise.
        """
        trained, kind = config.get("trained_betas"), config.get("beta_schedule")
        prediction = config.get("prediction_type", "epsilon")
        spacing = "karras" if config.get("use_karras_sigmas") else config.get("timestep_spacing")
        for name, value, known in (
            ("prediction_type", prediction, get_args(PredictionType)),
            ("timestep_spacing", spacing, (None, *get_args(Spacing))),
        ):
            if value not in known:
                raise WeightsError(f"{name} {value!r} of the scheduler is not known, only {listed(known)}")
        others = {
            "prediction": prediction, "spacing": spacing,
            "offset": config.get("steps_offset", 0), "to_one": config.get("set_alpha_to_one", True),
        }  # fmt: skip
        levels = config.get("num_train_timesteps", 1000)
        start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        if trained is not None:
            made = cls.of_betas(torch.as_tensor(trained, dtype=torch.float64), **others)
        elif kind == "scaled_linear":
            made = cls.scaled_linear(start, end, levels, **others)
        elif kind == "linear":
            made = cls.linear(start, end, levels, **others)
        elif kind == "squaredcos_cap_v2":
            made = cls.cosine(levels, **others)
        else:
            known = "scaled_linear, linear, squaredcos_cap_v2 and trained_betas"
            raise WeightsError(f"beta_schedule {kind!r} of the scheduler is not known, only {known}")
        if config.get("rescale_betas_zero_snr"):
            if prediction == "epsilon":
                raise WeightsError(
                    "rescale_betas_zero_snr with prediction_type 'epsilon': in pure noise the noise says nothing of the"
                    " picture; set rescale_betas_zero_snr to false in scheduler_config.json"
                )
            made = cls(zero_signal(made.alphas_cumprod), **others)
        abar = made.alphas_cumprod
        if not (0 < abar[-1] and abar[0] < 1 and (abar.diff() < 0).all()):
            raise WeightsError("the scheduler's betas must lie between 0 and 1")
        return made

    def config(self) -> dict[str, Any]:
        """What `of_config` and the schedulers of diffusers read."""
        abar = self.alphas_cumprod
        betas = 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])
        config: dict[str, Any] = {
            "num_train_timesteps": len(self), "trained_betas": betas.tolist(),
            "prediction_type": self.prediction, "steps_offset": self.offset, "set_alpha_to_one": self.to_one,
            "clip_sample": False,
        }  # fmt: skip
        if self.spacing == "karras":
            config["use_karras_sigmas"] = True
        elif self.spacing:
            config["timestep_spacing"] = self.spacing
        return config

    def __len__(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    @cached_property
    def sigmas(self) -> Float[Tensor, " levels"]:
        """Of each timestep, rising, float64."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def timestep(self, sigma: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """The timestep, in [0, T - 1], that a network is told for a sigma: whole at the levels of the training, between
        them linear in sigma.  float32, on the sigma's device."""
        places = np.interp(sigma.detach().double().cpu().numpy(), self.sigmas.numpy(), np.arange(len(self)))
        return torch.as_tensor(places, dtype=torch.float32, device=sigma.device)

    def levels(
        self, steps: int, spacing: Spacing | None = None, *, sampler: SamplerName = "ddim"
    ) -> Float[Tensor, " stops"]:
        """Where a sampler stops: steps + 1 falling sigmas, float64, as in diffusers' scheduler of its kind.

        spacing: by default the file's, else leading for DDIM, else linspace.
            leading: every (T // steps)-th timestep, from `offset` on.
            linspace: at equal distances from 0 to T - 1, which only DDIM and DPM++ round to whole timesteps.
            trailing: every (T / steps)-th timestep from T - 1 down (Lin et al.).
            karras: at equal distances in sigma^(1/7), over all levels (Karras et al., eq. 5).
        DPM++ counts one more step under leading and linspace and leaves out the lowest timestep.
        The last sigma is 0; DDIM's is that of timestep 0 unless `to_one`, where it is below all others.

        Raises InputError for fewer than 1 step, and for more than there are timesteps for.
        """
        spacing = self.spacing_of(sampler, spacing)
        multistep, top, sigmas = int(sampler.startswith("dpmpp")), len(self) - 1, self.sigmas.numpy()
        if not 1 <= steps <= len(self):
            raise InputError(f"{steps} steps: give 1 to {len(self)}, the levels that the model was trained on")
        if spacing == "karras":
            stops = np.linspace(sigmas[-1] ** (1 / RHO), sigmas[0] ** (1 / RHO), steps) ** RHO
        else:
            if steps == 1:
                t = np.array([top])
            elif spacing == "leading":
                t = np.arange(multistep, steps + multistep)[::-1] * (len(self) // (steps + multistep)) + self.offset
            elif spacing == "trailing":
                t = np.round(len(self) - np.arange(steps) * len(self) / steps) - 1
            else:
                t = np.linspace(top, 0, steps + multistep)[:steps]
                t = t if sampler in ("euler", "euler-ancestral", "heun") else t.round()
            stops = np.interp(t, np.arange(len(self)), sigmas)
        if (np.diff(stops) >= 0).any():
            raise InputError(f"{steps} steps are too many for {spacing} spacing over {len(self)} timesteps: take fewer")
        ends_at_first = sampler == "ddim" and not self.to_one and sigmas[0] < stops[-1]
        return torch.tensor([*stops, sigmas[0] if ends_at_first else 0.0], dtype=torch.float64)

    def start(self, sigma: float | Tensor, spacing: Spacing | None = None, *, sampler: SamplerName = "ddim") -> float:
        """By what standard normal noise is multiplied to begin at `sigma`, as in diffusers.

        Variance-preserving samplers begin with x_t = noise, so x = sqrt(1 + sigma^2) noise; Euler, Euler ancestral and
        Heun with x = sigma noise, but as the others under leading spacing.
        """
        plain = sampler in ("euler", "euler-ancestral", "heun") and self.spacing_of(sampler, spacing) != "leading"
        return float(sigma) if plain else (1 + float(sigma) ** 2) ** 0.5

    def spacing_of(self, sampler: SamplerName, spacing: Spacing | None = None) -> Spacing:
        """The spacing asked for, else the file's, else the sampler's."""
        return spacing or self.spacing or ("leading" if sampler == "ddim" else "linspace")


def zero_signal(abar: Float[Tensor, " levels"]) -> Float[Tensor, " levels"]:
    """sqrt(abar) shifted to (nearly) 0 at the end and stretched back to where it starts (Lin et al. 2023, alg. 1)."""
    root = abar.sqrt()
    scaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    scaled[-1] = LEAST_SIGNAL
    return scaled


def listed(values: tuple[Any, ...]) -> str:
    """Names in a row, without None."""
    return ", ".join(str(value) for value in values if value is not None)
