import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from negah.diffusion import sample
from negah.diffusion.sample import SAMPLERS, Prediction, check_finite
from negah.diffusion.schedule import Schedule
from negah.errors import NegahError

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "set_alpha_to_one": False,
      "steps_offset": 1, "clip_sample": False}  # fmt: skip
STOCHASTIC = ("euler-ancestral", "dpmpp-2m-sde")
PLAIN = tuple(name for name in SAMPLERS if name not in STOCHASTIC)


def ramp(start: float, end: float, steps: int, rho: float = 7) -> Tensor:
    """steps + 1 sigmas, evenly in sigma^(1 / rho)."""
    return torch.linspace(start ** (1 / rho), end ** (1 / rho), steps + 1, dtype=torch.float64) ** rho


def normal(like: Tensor, seed: int = 0):
    """Draws standard normal numbers like a tensor, and counts how often."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        draw.calls += 1
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    draw.calls = 0
    return draw


# Distributions


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_distribution(name, mixture):
    n, generator = 20_000, torch.Generator().manual_seed(1)
    sigmas = torch.cat([ramp(20, 0.02, 120), torch.zeros(1, dtype=torch.float64)])
    x = mixture.sample(n, generator) + sigmas[0] * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    # Order 1 misses the spread by O(1 / steps): 120 steps of Euler shrink it by 2 %, which is not Monte-Carlo error.
    bias = 0.04 if name in ("ddim", "euler", "euler-ancestral") else 0.005
    x = SAMPLERS[name](mixture.denoise, x, sigmas, noise=normal(x))
    covariance, sd = mixture.covariance(), mixture.covariance().diag().sqrt()
    torch.testing.assert_close(x.mean(0) / sd, mixture.mean() / sd, rtol=0, atol=4 / n**0.5 + bias / 2)
    torch.testing.assert_close(
        x.T.cov() / covariance.trace(), covariance / covariance.trace(), rtol=0, atol=0.01 + bias / 2
    )
    part = mixture.log_joint(x, torch.zeros(())).argmax(1)
    shares = part.bincount(minlength=3) / n
    truth = (
        mixture.log_joint(mixture.sample(200_000, generator), torch.zeros(())).argmax(1).bincount(minlength=3) / 200_000
    )
    torch.testing.assert_close(shares, truth, rtol=0, atol=4 * 0.5 / n**0.5 + 0.005)
    for k in range(3):
        spread = (x[part == k] - x[part == k].mean(0)).square().mean().sqrt()
        assert spread == pytest.approx(float(mixture.spreads[k]), rel=0.05), f"part {k}"


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp-2m", 2)])
def test_error_falls_at_the_order_of_the_method(name, order):
    # One Gaussian N(1, s^2): the probability flow keeps (x - 1) / sqrt(s^2 + sigma^2).
    s, first, last = 0.8, 10.0, 0.1

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return 1 + s**2 / (s**2 + sigma**2) * (x - 1)

    x = torch.linspace(-20, 20, 9, dtype=torch.float64)[:, None]
    exact = 1 + (x - 1) * math.sqrt((s**2 + last**2) / (s**2 + first**2))
    steps = [32, 64, 128, 256]
    errors = [
        float((SAMPLERS[name](denoise, x, ramp(first, last, n, rho=1e3)) - exact).abs().max()) for n in steps
    ]  # fmt: skip
    logs = torch.tensor([[math.log(n), 1.0] for n in steps]), torch.tensor([math.log(e) for e in errors])
    slope = torch.linalg.lstsq(logs[0], logs[1][:, None]).solution[0]
    assert float(-slope) == pytest.approx(order, abs=0.1), errors


@pytest.mark.parametrize(("name", "order"), [("euler-ancestral", 1), ("dpmpp-2m-sde", 2)])
def test_variance_of_stochastic_samplers_falls_at_the_order_of_the_method(name, order):
    # Of a Gaussian every step is linear in x and z, so the variance at the end is known without drawing: it is the
    # squared sum of what one unit of x or of each z becomes.
    s, first, last = 0.8, 10.0, 0.1

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return s**2 / (s**2 + sigma**2) * x

    def variance(steps: int) -> float:
        units = iter(torch.eye(steps + 1, dtype=torch.float64)[1:])
        start = math.sqrt(s**2 + first**2) * torch.eye(steps + 1, dtype=torch.float64)[0]
        return float(
            SAMPLERS[name](denoise, start, ramp(first, last, steps, rho=1e3), noise=lambda: next(units)).square().sum()
        )

    steps = [32, 64, 128, 256]
    errors = [abs(variance(n) - (s**2 + last**2)) for n in steps]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders[-1] == pytest.approx(order, abs=0.15), errors


def test_samplers_agree_on_where_a_noise_leads(mixture):
    x = 20 * torch.randn(50, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sigmas = ramp(20, 0.02, 2000)
    ends = [SAMPLERS[name](mixture.denoise, x, sigmas) for name in PLAIN]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[-1], rtol=0, atol=0.02)


# Their relations


def test_ddim_at_eta_0_is_euler(mixture):
    x, sigmas = 5 * torch.randn(7, 2, dtype=torch.float64), torch.tensor([5.0, 2.0, 1.0, 0.3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(
        sample.ddim(mixture.denoise, x, sigmas), sample.euler(mixture.denoise, x, sigmas), rtol=1e-12, atol=1e-12
    )


def test_ancestral_steps_are_the_posterior_of_ddpm():
    # q(x_t-1 | x_t, x_0), eq. 6 and 7 of Ho et al., of x_0 = 0 and x_t = 1, in their own symbols.
    schedule = Schedule.scaled_linear()
    abar, sigmas = schedule.alphas_cumprod[[500, 499]], schedule.sigmas[[500, 499]]
    beta = 1 - abar[0] / abar[1]
    mean = (1 - beta).sqrt() * (1 - abar[1]) / (1 - abar[0])
    deviation = ((1 - abar[1]) / (1 - abar[0]) * beta).sqrt()
    x = torch.ones(1, 1, dtype=torch.float64) / abar[0].sqrt()

    def step(z: float) -> Tensor:
        end = sample.euler_ancestral(lambda x, sigma: 0 * x, x, sigmas, noise=lambda: z * torch.ones_like(x))
        return (end * abar[1].sqrt())[0, 0]

    torch.testing.assert_close(step(0.0), mean)
    torch.testing.assert_close(step(1.0) - step(0.0), deviation)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_goes_from_the_picture_with_the_other_noise(name):
    # CFG++: one Euler-like step to sigma' = 0 is the picture itself; before, eps is that of `renoise`.
    x = torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    said = Prediction(
        torch.tensor([[2.0], [0.5]], dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    )
    sigmas = torch.tensor([4.0, 1.0], dtype=torch.float64)
    end = SAMPLERS[name](lambda x, sigma: said, x, sigmas, noise=lambda: torch.zeros_like(x))
    kept = {"euler-ancestral": 1 / 16, "dpmpp-2m-sde": 1 / 16}.get(name, 1 / 4)
    expected = said.clean + kept * (x - said.renoise)
    if name == "heun":
        eps, there = (x - said.renoise) / 4, expected
        expected = x + said.clean - said.renoise - 3 * (eps + (there - said.renoise)) / 2
    torch.testing.assert_close(end, expected)
    last = SAMPLERS[name](lambda x, sigma: said, x, torch.tensor([4.0, 0.0]), noise=lambda: torch.zeros_like(x))
    torch.testing.assert_close(last, said.clean)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_prediction_twice_is_a_plain_one(name, mixture):
    x, sigmas = 9 * torch.randn(6, 2, dtype=torch.float64), torch.tensor([9.0, 3.0, 2.0, 1.0, 0.2, 0.0])

    def twice(x: Tensor, sigma: Tensor) -> Prediction:
        return Prediction(mixture.denoise(x, sigma), mixture.denoise(x, sigma))

    one = SAMPLERS[name](mixture.denoise, x, sigmas, noise=normal(x))
    torch.testing.assert_close(SAMPLERS[name](twice, x, sigmas, noise=normal(x)), one)


# Noise, and what samplers do besides


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_drawn_only_where_it_is_used(name, mixture):
    x, sigmas = 9 * torch.randn(6, 2, dtype=torch.float64), torch.tensor([9.0, 3.0, 1.0, 0.0])
    state, noise = torch.get_rng_state(), normal(x)
    SAMPLERS[name](mixture.denoise, x, sigmas, noise=noise)
    assert noise.calls == (2 if name in STOCHASTIC else 0), "noise for the step to 0, or for none"
    assert torch.equal(torch.get_rng_state(), state), "the global generator was asked"


@pytest.mark.parametrize("name", STOCHASTIC)
def test_missing_noise_is_named(name, mixture):
    with pytest.raises(ValueError, match="`noise`"):
        SAMPLERS[name](mixture.denoise, torch.ones(1, 2), torch.tensor([2.0, 1.0]))


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sees_every_step_and_x_keeps_its_type(name):
    seen, asked = [], []
    x, sigmas = torch.ones(3, 1, 2, 2), torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    weight = torch.ones((), requires_grad=True)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        return weight * x / 2

    end = SAMPLERS[name](
        denoise, x, sigmas, noise=lambda: torch.zeros_like(x), each=lambda step, x, clean: seen.append((step, x, clean))
    )
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert seen[-1][1] is end and end.dtype == torch.float32 and end.shape == x.shape and not end.requires_grad
    assert torch.equal(seen[0][2], x / 2), "x_0 of the step, from its start"
    assert asked == ([4, 2, 2, 1, 1] if name == "heun" else [4, 2, 1])
    assert torch.equal(x, torch.ones_like(x)), "the start was changed in place"


@pytest.mark.parametrize("sigmas", [[1.0, 2.0], [2.0, 2.0, 0.0], [float("inf"), 1.0], [float("nan"), 0.0], [1.0, -1.0]])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sigmas_that_do_not_fall_are_refused(name, sigmas):
    with pytest.raises(ValueError, match="fall"):
        SAMPLERS[name](lambda x, sigma: x, torch.ones(1, 1), torch.tensor(sigmas), noise=lambda: torch.zeros(1, 1))


def test_numbers_that_are_not_finite_are_named_with_their_step():
    x = torch.zeros(3, 4, 2, 2)
    check_finite(x, 0, 5, 1.0)
    x[1, 2, 0, 0], x[2, 0, 0, 0] = float("nan"), float("-inf")
    with pytest.raises(
        NegahError, match=r"picture 2, 3 of 3 are not finite after step 4 of 5 \(sigma 0\.25\)"
    ) as caught:
        check_finite(x, 3, 5, torch.tensor(0.25))
    assert "\n" not in str(caught.value) and "guidance" in str(caught.value)


# diffusers


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", [*SAMPLERS, "ddim at eta 0.6"])
def test_latents_are_those_of_diffusers_at_each_step(name, prediction, peer):
    steps, more, name = 12, {"eta": 0.6} if "eta" in name else {}, name.split()[0]
    scheduler = peer(name, SD, steps, prediction_type=prediction)
    schedule = Schedule.of_config(SD | {"prediction_type": prediction})
    mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)) / 2
    first = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    noises = torch.randn(steps, *first.shape, generator=torch.Generator().manual_seed(5))

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        told = torch.einsum("ij,bjhw->bihw", mixing, torch.tanh(x_t * (0.5 + t / 1000))) + 0.1 * torch.sin(t / 50)
        if prediction == "v_prediction":
            return told
        # As the noise in front of a bounded picture, so that latents are of the size of real ones.
        sigma = float(np.interp(float(t), np.arange(1000), schedule.sigmas))
        return (x_t * (1 + sigma**2) ** 0.5 - told) / sigma

    theirs, x, draws = [], first * scheduler.init_noise_sigma, iter(noises)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            f"{type(scheduler).__module__}.randn_tensor", lambda *a, **k: next(draws), raising=name in STOCHASTIC
        )
        for t in scheduler.timesteps:
            told = network(scheduler.scale_model_input(x, t), t.float())
            x = scheduler.step(told, t, x, **more).prev_sample
            theirs.append(x)
    if name == "heun":  # twice a step, save for the last
        theirs = [*theirs[1::2], theirs[-1]]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        spread = (1 + sigma**2).sqrt()
        told = network(x / spread, schedule.timestep(sigma))
        return x - sigma * told if prediction == "epsilon" else x / spread**2 - sigma / spread * told

    sigmas, ours, draws = schedule.levels(steps, sampler=name), [], iter(noises)
    SAMPLERS[name](
        denoise, first * schedule.start(sigmas[0], sampler=name), sigmas, noise=lambda: next(draws),
        each=lambda step, x, clean: ours.append(x), **more,
    )  # fmt: skip
    assert len(ours) == len(theirs) == steps
    in_sigma_space = name in ("euler", "euler-ancestral", "heun")
    for our, their, sigma in zip(ours, theirs, sigmas[1:]):
        spread = float((1 + sigma**2).sqrt())
        torch.testing.assert_close(our / spread, their / (spread if in_sigma_space else 1), rtol=1e-5, atol=1e-5)
