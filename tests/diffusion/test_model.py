"""Stable Diffusion's parts: what the words become, what the network's answer means, pictures to latents and back."""

import warnings
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from negah.diffusion.generate import generate
from negah.diffusion.load import load
from negah.diffusion.model import TextToImage
from negah.errors import InputError, OutputError


@pytest.fixture(scope="module")
def model(pipeline):
    return load(pipeline)


@pytest.fixture(scope="module")
def original(pipeline):
    return StableDiffusionPipeline.from_pretrained(pipeline)


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# Words


def test_contexts_are_those_of_diffusers(model, original):
    prompts = ["a house", "", "two houses and a red roof"]
    theirs, _ = original.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(model.encode_prompts(prompts), theirs, rtol=0, atol=1e-6)


def test_a_prompt_that_repeats_is_read_once(model, monkeypatch):
    read, forward = [], model.text.forward
    monkeypatch.setattr(model.text, "forward", lambda ids: read.append(len(ids)) or forward(ids))
    context = model.encode_prompts(["a house", "trees", "a house", "a house"])
    assert read == [2] and torch.equal(context[0], context[2]) and torch.equal(context[0], context[3])
    assert not torch.equal(context[0], context[1])


def test_what_is_cut_from_a_prompt_is_said(model):
    room = " ".join(["house"] * 75)  # and a start and an end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = model.encode_prompts([room])
    with pytest.warns(UserWarning, match="longer than 77 tokens; not seen: 'red roof'"):
        cut = model.encode_prompts([f"{room} red roof"])
    assert torch.equal(fits, cut)


# What the network tells


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_clean_picture_is_found_behind_what_the_network_tells(model, monkeypatch, prediction):
    draw = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(3, 4, 8, 8, generator=draw), torch.randn(3, 4, 8, 8, generator=draw)
    sigmas = model.schedule.sigmas[torch.tensor([10, 400, 990])]
    abar = (1 / (1 + sigmas**2)).float().view(-1, 1, 1, 1)
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise

    def told(x, t, context, return_dict):
        torch.testing.assert_close(x, noisy)  # the network sees what it was trained on
        assert t.tolist() == [10, 400, 990]
        return [noise if prediction == "epsilon" else abar.sqrt() * noise - (1 - abar).sqrt() * clean]

    monkeypatch.setattr(model.unet, "forward", told)
    monkeypatch.setattr(TextToImage, "prediction", prediction)
    found = model.denoise(noisy / abar.sqrt(), sigmas, model.encode_prompts(["a house"] * 3))
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-4)


# Pictures and latents


def test_latents_are_those_of_diffusers(model, original, images):
    scale = original.vae.config.scaling_factor
    spread = original.vae.encode(2 * images - 1).latent_dist
    torch.testing.assert_close(model.encode(images), spread.mean * scale, rtol=0, atol=1e-6)
    draw = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    torch.testing.assert_close(model.encode(images, draw()), spread.sample(draw()) * scale, rtol=0, atol=1e-6)

    latents = torch.randn(2, 4, 8, 8, generator=draw())
    theirs = (original.vae.decode(latents / scale).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decode(latents), theirs, rtol=0, atol=1e-6)


def test_sizes_that_the_network_cannot_halve_are_refused(model):
    assert model.size == 32 and model.latent_shape(16, 24) == (4, 8, 12)
    for height, width in ((18, 16), (16, 2), (0, 16), (-4, 16)):
        with pytest.raises(InputError, match=f"{width} x {height} px: .* multiples of 4 px"):
            model.latent_shape(height, width)


def test_a_model_without_autoencoder_denoises_pixels(model, images, tmp_path):
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**model.unet.config, "in_channels": 3, "out_channels": 3})
    pixels = TextToImage(unet=unet, vae=None, text=model.text, tokenizer=model.tokenizer, schedule=model.schedule)
    assert pixels.size == 16 and pixels.latent_shape(8, 8) == (3, 8, 8)
    torch.testing.assert_close(pixels.decode(pixels.encode(images)), images)
    again = load(pixels.eval().save(tmp_path / "pixels"))
    made, remade = (generate(m, ["a house"], [0], steps=3) for m in (pixels, again))
    assert made.shape == (1, 3, 16, 16) and again.vae is None
    torch.testing.assert_close(made, remade)


# Files


def test_what_is_saved_is_what_was_there_for_us_and_for_diffusers(model, tmp_path):
    folder = model.save(tmp_path / "deep" / "copy")
    again = load(folder)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(again.schedule.alphas_cumprod, model.schedule.alphas_cumprod, rtol=1e-6, atol=0)

    original = StableDiffusionPipeline.from_pretrained(folder)
    original.set_progress_bar_config(disable=True)
    theirs = original(["a red roof"], num_inference_steps=4, guidance_scale=3.0, output_type="pt",
                      generator=torch.Generator().manual_seed(1)).images  # fmt: skip
    ours = generate(model, ["a red roof"], [1], sampler="ddim", steps=4, scale=3.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_folder_in_half_precision_is_half_as_large_and_computes_in_fp32(model, tmp_path):
    whole, half = model.save(tmp_path / "whole"), model.save(tmp_path / "half", dtype=torch.float16)
    of = lambda folder: sum(path.stat().st_size for path in folder.rglob("*.safetensors"))  # noqa: E731
    assert of(half) < 0.6 * of(whole)
    again = load(half)
    assert {value.dtype for value in again.parameters()} == {torch.float32}
    for name, value in model.state_dict().items():
        assert torch.equal(value.half().float(), again.state_dict()[name].float()), name
    assert {value.dtype for value in model.parameters()} == {torch.float32}  # the model itself is as it was


def test_saving_replaces_what_was_there_and_keeps_it_when_it_fails(model, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old.txt").write_text("old", encoding="utf-8")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="cannot write .*model: No space left"):
        patch.setattr(model.tokenizer, "save_pretrained", full)
        model.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (folder / "old.txt").is_file()
    model.save(folder)
    assert not (folder / "old.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(OutputError, match=r"cannot write"):
        model.save(folder / "model_index.json" / "below")


def test_a_packed_model_draws_the_same_and_is_for_nothing_else(tmp_path):
    plain, fast = load("negah/imagine-tiny"), load("negah/imagine-tiny").pack()
    if not fast.packed:
        pytest.skip("this PyTorch or CPU lacks the operators; plain layers are used")
    for scale in (6.0, 1.0):
        args: dict[str, Any] = {"prompts": ["a house with a red roof", "a field"], "seeds": [1, 2], "steps": 3}
        wanted, found = (generate(model, scale=scale, **args) for model in (plain, fast))
        assert (found - wanted).abs().max() < 1e-4
    with pytest.raises(ValueError, match="packed"):
        fast.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert fast.pack() is fast
