"""Samplers: from noise to a picture, by asking a denoiser again and again what lies behind the noise.

A denoiser tells x_0(x, sigma), the expected clean picture behind x = x_0 + sigma eps.  With it a sampler follows

    dx / dsigma = eps,   eps = (x - x_0) / sigma          (Karras et al. 2022, arXiv:2206.00364, eq. 1)

from sigmas[0] down to sigmas[-1], or a stochastic process with the same distribution at every level, which takes out
more noise than that and puts fresh noise in.  Samplers differ in what they assume between two levels:

    ddim             eps is constant; `eta` of the fresh noise (Song et al. 2021, arXiv:2010.02502)            order 1
    euler            the same at eta 0, under its other name (Karras et al.)                                   order 1
    euler_ancestral  the same at eta 1                                                                         order 1
    heun             eps is linear: it is asked for at both ends, two evaluations a step (Karras et al., alg. 1)     2
    dpmpp_2m         x_0 is linear in log sigma, through the last two answers (Lu et al. 2022, arXiv:2211.01095)     2
    dpmpp_2m_sde     the same, with fresh noise (the same paper, "SDE-DPM-Solver++(2M)", midpoint form)              2

Guidance changes the denoiser (`negah.diffusion.guidance`) and so works with all of them.  CFG++ takes the noise of
another prediction than the picture; a denoiser then returns a `Prediction`, whose `renoise` gives eps, and a step reads
x_0 + sigma' eps everywhere below.

What rules out pictures that depend on their batch: nothing here draws a number.  `noise` does, for each picture from a
generator of its own, and it is called only where its noise is used: never for the step to sigma = 0.
What can fail: too few steps, at any order, and network outputs that are not finite (`check_finite`).
Departures: all of it is in sigma space; a latent of a variance-preserving network is x / sqrt(1 + sigma^2).  No sampler
clips x_0.  Heun and DPM++ under CFG++, which its paper leaves open, go from x_0 with the eps of their own rule.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from negah.errors import NegahError

SamplerName = Literal["ddim", "euler", "euler-ancestral", "heun", "dpmpp-2m", "dpmpp-2m-sde"]
State = Float[Tensor, "batch *shape"]


class Prediction(NamedTuple):
    """What a denoiser tells.

    clean: x_0, the picture.
    renoise: the x_0 that the noise (x - renoise) / sigma is seen against.
    """

    clean: Tensor
    renoise: Tensor


Denoiser = Callable[[Tensor, Tensor], Tensor | Prediction]
Noise = Callable[[], Tensor]
Each = Callable[[int, Tensor, Tensor], None]


def nothing(step: int, x: Tensor, clean: Tensor) -> None:
    """What is done after a step by default."""


class Sampler(Protocol):
    """What all samplers have in common.

    denoise: called as denoise(x, sigma); sigma is a scalar tensor, an element of `sigmas`, on its device.
    x: at noise level sigmas[0].
    sigmas: falling; the last may be 0.  On the CPU in float64 they cost no synchronisation and no precision.
    noise: draws standard normal numbers like x; samplers that add no noise do not ask for it.
    each: called after each step with its number (from 0), the new x, and x_0 of the step.
    Returns x at noise level sigmas[-1], without gradients.

    Raises ValueError for sigmas that do not fall or are not finite, and where noise is needed and not given.
    """

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, each: Each = nothing
    ) -> Tensor: ...


@torch.no_grad()
def ddim(
    denoise: Denoiser, x: State, sigmas: Float[Tensor, " stops"], *,
    eta: float = 0.0, noise: Noise | None = None, each: Each = nothing,
) -> State:  # fmt: skip
    """x' = x_0 + sqrt(sigma'^2 - fresh^2) eps + fresh z,   fresh = eta sigma' sqrt(1 - sigma'^2 / sigma^2).

    Eq. 12 and 16 of Song et al., divided by sqrt(abar').  eta 0 adds no noise; eta 1 is the ancestral process of DDPM.
    """
    for step, (sigma, after) in enumerate(falling(sigmas)):
        clean, renoise = ask(denoise, x, sigmas[step])
        fresh = eta * after * math.sqrt(1 - (after / sigma) ** 2)
        x = clean + math.sqrt(after**2 - fresh**2) / sigma * (x - renoise)
        if fresh > 0:
            x = x + fresh * draw(noise)
        each(step, x, clean)
    return x


@torch.no_grad()
def euler(
    denoise: Denoiser, x: State, sigmas: Float[Tensor, " stops"], *,
    noise: Noise | None = None, each: Each = nothing,
) -> State:  # fmt: skip
    """x' = x_0 + sigma' eps, which is x + (sigma' - sigma) eps where `renoise` is x_0."""
    for step, (sigma, after) in enumerate(falling(sigmas)):
        clean, renoise = ask(denoise, x, sigmas[step])
        x = clean + after / sigma * (x - renoise)
        each(step, x, clean)
    return x


def euler_ancestral(
    denoise: Denoiser, x: State, sigmas: Float[Tensor, " stops"], *,
    noise: Noise | None = None, each: Each = nothing,
) -> State:  # fmt: skip
    """Euler to sigma_down = sigma'^2 / sigma, then fresh noise up to sigma': what DDIM does at eta 1."""
    return ddim(denoise, x, sigmas, eta=1.0, noise=noise, each=each)


@torch.no_grad()
def heun(
    denoise: Denoiser, x: State, sigmas: Float[Tensor, " stops"], *,
    noise: Noise | None = None, each: Each = nothing,
) -> State:  # fmt: skip
    """Euler's step to x^, then once more from x with (eps(x) + eps(x^)) / 2; the step to 0, where eps has no value, is
    Euler's."""
    for step, (sigma, after) in enumerate(falling(sigmas)):
        clean, renoise = ask(denoise, x, sigmas[step])
        eps = (x - renoise) / sigma
        x = clean + after * eps
        if after > 0:
            eps_there = (x - ask(denoise, x, sigmas[step + 1]).renoise) / after
            x = x + (after - sigma) * (eps_there - eps) / 2
        each(step, x, clean)
    return x


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoiser, x: State, sigmas: Float[Tensor, " stops"], *,
    noise: Noise | None = None, each: Each = nothing,
) -> State:  # fmt: skip
    """x' = x_0 + e^-h (x - x_0) + (1 - e^-h) h / (2 h_b) (x_0 - x_0b),   h = log(sigma / sigma'),   b: the step before.

    Algorithm 2 of Lu et al., divided by alpha'.  The first step has none before, and the step to 0 has an infinite h:
    both are Euler's.
    """
    before = None
    for step, (sigma, after) in enumerate(falling(sigmas)):
        clean, renoise = ask(denoise, x, sigmas[step])
        kept = after / sigma  # e^-h
        x = clean + kept * (x - renoise)
        if before is not None and after > 0:
            x = x + (1 - kept) * slope(sigmas, step) * (clean - before)
        before = clean
        each(step, x, clean)
    return x


@torch.no_grad()
def dpmpp_2m_sde(
    denoise: Denoiser, x: State, sigmas: Float[Tensor, " stops"], *,
    noise: Noise | None = None, each: Each = nothing,
) -> State:  # fmt: skip
    """x' = x_0 + e^-2h (x - x_0) + (1 - e^-2h) h / (2 h_b) (x_0 - x_0b) + sigma' sqrt(1 - e^-2h) z."""
    before = None
    for step, (sigma, after) in enumerate(falling(sigmas)):
        clean, renoise = ask(denoise, x, sigmas[step])
        kept = (after / sigma) ** 2  # e^-2h
        x = clean + kept * (x - renoise)
        if before is not None and after > 0:
            x = x + (1 - kept) * slope(sigmas, step) * (clean - before)
        if after > 0:
            x = x + after * math.sqrt(1 - kept) * draw(noise)
        before = clean
        each(step, x, clean)
    return x


SAMPLERS: dict[SamplerName, Sampler] = dict(
    zip(get_args(SamplerName), (ddim, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde))
)


def ask(denoise: Denoiser, x: Tensor, sigma: Tensor) -> Prediction:
    """What the denoiser tells, as a `Prediction`."""
    told = denoise(x, sigma)
    return told if isinstance(told, Prediction) else Prediction(told, told)


def draw(noise: Noise | None) -> Tensor:
    """Fresh noise, from who was to give it."""
    if noise is None:
        raise ValueError("this sampler adds noise: give it `noise`, which draws standard normal numbers like x")
    return noise()


def falling(sigmas: Float[Tensor, " stops"]) -> list[tuple[float, float]]:
    """Each step's sigma and the one after it."""
    stops = sigmas.tolist()
    if not (math.isfinite(stops[0]) and stops[-1] >= 0 and all(a > b for a, b in pairwise(stops))):
        raise ValueError(f"sigmas must be finite and fall to 0 or above it, got {stops}")
    return list(pairwise(stops))


def slope(sigmas: Float[Tensor, " stops"], step: int) -> float:
    """h / (2 h_b): how much of the last change in x_0 is expected by the middle of the step, in log sigma."""
    before, sigma, after = sigmas[step - 1 : step + 2].tolist()
    return math.log(sigma / after) / (2 * math.log(before / sigma))


def check_finite(x: State, step: int, steps: int, sigma: float | Tensor) -> None:
    """For `each`: raises NegahError, naming the step (from 0) and the pictures, where x is not finite."""
    bad = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise NegahError(
            f"latents of picture {', '.join(str(place + 1) for place in bad)} of {len(x)} are not finite after step"
            f" {step + 1} of {steps} (sigma {float(sigma):.3g}): lower the guidance scale, or compute in float32"
        )
