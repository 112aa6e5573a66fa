"""`diffusion.generate`: diffusers' pictures step by step, the contract of seeds, pictures to begin with, masks."""

import re

import pytest
import torch
from torch import Tensor

from negah.diffusion import generate as generating
from negah.diffusion.generate import generate
from negah.diffusion.load import load
from negah.diffusion.model import TextToImage
from negah.diffusion.sample import SAMPLERS
from negah.diffusion.schedule import Schedule
from negah.errors import InputError, NegahError

diffusers = pytest.importorskip("diffusers")

PROMPT, NEGATIVE = "two houses with red roofs", "a street"
PEERS = {
    "ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler", "dpmpp-2m": "DPMSolverMultistepScheduler",
}  # fmt: skip
STEPS = 7


@pytest.fixture(scope="module")
def model(pipeline) -> TextToImage:
    return load(pipeline)


def pictures(n: int) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def peer_of(folder, kind: str, sampler: str, prediction: str = "epsilon"):
    """A pipeline of diffusers with the sampler's scheduler."""
    peer = getattr(diffusers, kind).from_pretrained(folder, safety_checker=None)
    config = {**peer.scheduler.config, "prediction_type": prediction}
    peer.scheduler = getattr(diffusers, PEERS[sampler]).from_config(config)
    peer.set_progress_bar_config(disable=True)
    return peer


def of_prediction(model: TextToImage, prediction: str) -> TextToImage:
    return TextToImage(
        unet=model.unet, vae=model.vae, text=model.text, tokenizer=model.tokenizer,
        schedule=Schedule.of_config({**model.schedule.config(), "prediction_type": prediction}),
    )  # fmt: skip


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", PEERS)
def test_latents_of_each_step_and_the_picture_are_those_of_diffusers(pipeline, model, sampler, prediction):
    theirs, ours = [], []
    peer = peer_of(pipeline, "StableDiffusionPipeline", sampler, prediction)

    def note(pipe, step: int, t: int, given: dict) -> dict:
        theirs.append(given["latents"])
        return given

    picture = peer(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=5.0, output_type="pt",
        generator=[torch.Generator().manual_seed(11)], callback_on_step_end=note,
    ).images  # fmt: skip
    ours_too = of_prediction(model, prediction)
    stops = ours_too.schedule.levels(STEPS, sampler=sampler)

    # Denoisers see x before each step, so the sampler's states are read there, and the last from the picture.
    seen = {}
    denoise = ours_too.denoise

    def watched(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        seen[float(sigma)] = x[:1]
        return denoise(x, sigma, context)

    ours_too.denoise = watched
    same = generate(
        ours_too, [PROMPT], [11], sampler=sampler, steps=STEPS, scale=5.0, negative=NEGATIVE
    )  # fmt: skip
    ours = [seen[float(sigma)] for sigma in stops[1:-1]]
    assert len(theirs) == STEPS and len(ours) == STEPS - 1
    for sigma, x, latents in zip(stops[1:-1], ours, theirs):
        plain = sampler == "euler"  # whose latents are in sigma space in diffusers
        torch.testing.assert_close(x if plain else x / (1 + sigma.float() ** 2) ** 0.5, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(same, picture, rtol=0, atol=1e-5)
    assert same.std() > 0.01, "an even picture shows nothing"
