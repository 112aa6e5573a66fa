import numpy as np
import pytest
import torch

from negah.diffusion.sample import SAMPLERS
from negah.diffusion.schedule import Schedule
from negah.errors import InputError, WeightsError

# scheduler_config.json of Stable Diffusion 1.5: no timestep_spacing, so each scheduler takes its own.
SD = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip


def sigmas_and_timesteps(scheduler) -> tuple[np.ndarray, np.ndarray]:
    timesteps = scheduler.timesteps.double().numpy()
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double().numpy()
        if len(sigmas) > len(timesteps) + 1 or len(set(timesteps.tolist())) < len(timesteps):  # Heun's are there twice
            return np.array([sigmas[0], *sigmas[1:-1:2], sigmas[-1]]), timesteps[[0, *range(1, len(timesteps), 2)]]
        return sigmas, timesteps
    abar = scheduler.alphas_cumprod.double().numpy()[timesteps.astype(int)]
    abar = np.append(abar, float(scheduler.final_alpha_cumprod))
    return np.sqrt((1 - abar) / abar), timesteps


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("config", [{}, {"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}])
@pytest.mark.parametrize("steps", [8, 20, 50])
def test_levels_are_those_of_diffusers_for_a_checkpoint(sampler, config, steps, peer):
    scheduler = peer(sampler, SD | config, steps)
    theirs, timesteps = sigmas_and_timesteps(scheduler)
    schedule = Schedule.of_config(SD | config)
    ours = schedule.levels(steps, sampler=sampler)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(schedule.timestep(ours[:-1]), timesteps, atol=1e-3)
    start = float(scheduler.init_noise_sigma)
    if sampler == "ddim" or sampler.startswith("dpmpp"):
        start *= float((1 + ours[0] ** 2).sqrt())  # theirs is of x_t
    assert schedule.start(ours[0], sampler=sampler) == pytest.approx(start, rel=1e-5)


def test_ddim_on_linspace_rounds_as_diffusers_does(peer):
    _, timesteps = sigmas_and_timesteps(peer("ddim", SD, 20, timestep_spacing="linspace"))
    schedule = Schedule.of_config(SD)
    np.testing.assert_array_equal(schedule.timestep(schedule.levels(20, "linspace", sampler="ddim")[:-1]), timesteps)


def test_karras_levels_are_those_of_diffusers(peer):
    theirs, timesteps = sigmas_and_timesteps(peer("euler", SD, 12, use_karras_sigmas=True))
    schedule = Schedule.of_config(SD | {"use_karras_sigmas": True})
    ours = schedule.levels(12, sampler="euler")
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(schedule.timestep(ours[:-1]), timesteps, atol=0.05)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000},
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 500},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
        {"trained_betas": np.linspace(0.001, 0.02, 100).tolist()},
        SD | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
)
def test_noise_levels_are_those_of_diffusers(config):
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler.from_config(config).alphas_cumprod.double()
    schedule = Schedule.of_config(config)
    rtol = 1e-3 if "rescale_betas_zero_snr" in config else 1e-6  # theirs loses digits on the way to zero signal
    torch.testing.assert_close(schedule.alphas_cumprod, theirs, rtol=rtol, atol=1e-7)
    assert schedule.sigmas.isfinite().all() and (schedule.sigmas.diff() > 0).all()


def test_zero_signal_starts_at_the_finite_level_of_diffusers(peer):
    config = SD | {
        "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"
    }  # fmt: skip
    schedule = Schedule.of_config(config)
    assert schedule.prediction == "v_prediction" and schedule.spacing == "trailing"
    theirs, _ = sigmas_and_timesteps(peer("euler", config, 10))
    np.testing.assert_allclose(schedule.levels(10, sampler="euler"), theirs, rtol=1e-3)
    assert schedule.sigmas[-1] == pytest.approx(4096, rel=1e-6)


def test_config_comes_back_and_diffusers_reads_it():
    from diffusers import DDIMScheduler

    for schedule in (Schedule.scaled_linear(), Schedule.cosine(100, prediction="v_prediction", spacing="trailing")):
        again = Schedule.of_config(schedule.config())
        torch.testing.assert_close(again.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-6, atol=0)
        assert again.config().keys() == schedule.config().keys()
        assert (again.prediction, again.spacing, again.offset, again.to_one) == (
            schedule.prediction, schedule.spacing, schedule.offset, schedule.to_one
        )  # fmt: skip
        theirs = DDIMScheduler.from_config(schedule.config()).alphas_cumprod.double()
        torch.testing.assert_close(theirs, schedule.alphas_cumprod, rtol=1e-6, atol=0)


def test_timesteps_are_whole_at_levels_and_between_elsewhere():
    schedule = Schedule.scaled_linear()
    assert schedule.timestep(schedule.sigmas).tolist() == list(range(1000))
    between = schedule.timestep((schedule.sigmas[41:51] + schedule.sigmas[40:50]) / 2)
    assert torch.allclose(between, torch.arange(40, 50) + 0.5, atol=1e-4)
    assert schedule.timestep(torch.tensor(1e9)) == 999 and schedule.timestep(torch.tensor(0.0)) == 0


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", "karras"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30, 77, 300])
def test_levels_fall_to_the_end_for_any_number_of_steps(spacing, sampler, steps):
    levels = Schedule.scaled_linear().levels(steps, spacing, sampler=sampler)
    assert len(levels) == steps + 1 and (levels.diff() < 0).all()
    # Leading spacing is known to start lower (Lin et al. 2023); a single step from there would start without noise.
    assert levels[0] > (1.5 if spacing == "leading" and steps > 1 else 14)
    assert levels[-1] == 0 or (sampler == "ddim" and levels[-1] == Schedule.scaled_linear().sigmas[0])


def test_ddim_ends_where_the_file_says():
    assert Schedule.scaled_linear().levels(10)[-1] == pytest.approx(0.0292, abs=1e-3)
    assert Schedule.scaled_linear(to_one=True).levels(10)[-1] == 0
    # Without an offset the last step is at timestep 0 itself: it must still take the noise out.
    assert Schedule.scaled_linear(offset=0).levels(10)[-1] == 0


@pytest.mark.parametrize("steps", [0, -3, 1001, 1000])
def test_too_many_steps_are_refused(steps):
    # 1,000 steps of leading spacing would begin at timestep 1,000, which does not exist.
    with pytest.raises(InputError, match=f"{steps} steps"):
        Schedule.scaled_linear().levels(steps)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "beta_schedule None"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}, "beta_schedule None"),
        (SD | {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        (SD | {"prediction_type": "sample"}, "prediction_type 'sample'.* epsilon, v_prediction"),
        (SD | {"timestep_spacing": "random"}, "timestep_spacing 'random'"),
        (SD | {"trained_betas": [0.1, 1.5]}, "betas must lie between 0 and 1"),
        (SD | {"trained_betas": [0.1, 0.0]}, "betas must lie between 0 and 1"),
        (SD | {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr .*'epsilon'"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(config, message):
    with pytest.raises(WeightsError, match=message) as caught:
        Schedule.of_config(config)
    assert "\n" not in str(caught.value)
