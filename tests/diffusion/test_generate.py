"""`diffusion.generate`: diffusers' pictures step by step, the contract of seeds, pictures to begin with, masks."""

import jaxtyping
import pytest
import torch
from torch import Tensor

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


def of_prediction(model: TextToImage, prediction: str) -> TextToImage:
    """The same networks, taken to tell something else."""
    schedule = Schedule.of_config({**model.schedule.config(), "prediction_type": prediction})
    return TextToImage(
        unet=model.unet, vae=model.vae, text=model.text, tokenizer=model.tokenizer, schedule=schedule
    )  # fmt: skip


def peer_of(folder, kind: str, sampler: str, prediction: str = "epsilon"):
    """A pipeline of diffusers with the sampler's scheduler."""
    peer = getattr(diffusers, kind).from_pretrained(folder, safety_checker=None)
    config = {**peer.scheduler.config, "prediction_type": prediction}
    peer.scheduler = getattr(diffusers, PEERS[sampler]).from_config(config)
    peer.set_progress_bar_config(disable=True)
    return peer


def pictures(n: int, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(3))


def hole(n: int = 1) -> Tensor:
    """The right half of a picture may change."""
    mask = torch.zeros(n, 1, 32, 32)
    mask[..., 16:] = 1
    return mask


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", PEERS)
def test_latents_of_each_step_and_the_picture_are_those_of_diffusers(pipeline, model, sampler, prediction):
    theirs, seen = [], {}
    peer = peer_of(pipeline, "StableDiffusionPipeline", sampler, prediction)

    def note(pipe, step: int, t: int, given: dict) -> dict:
        theirs.append(given["latents"])
        return given

    wanted = peer(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=5.0, output_type="pt",
        generator=[torch.Generator().manual_seed(11)], callback_on_step_end=note,
    ).images  # fmt: skip
    ours = of_prediction(model, prediction)
    denoise = ours.denoise

    def watched(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        seen[float(sigma)] = x[:1]  # what the step before has left
        return denoise(x, sigma, context)

    ours.denoise = watched
    picture = generate(ours, [PROMPT], [11], sampler=sampler, steps=STEPS, scale=5.0, negative=NEGATIVE)
    stops = ours.schedule.levels(STEPS, sampler=sampler).tolist()[1:-1]
    assert len(theirs) == STEPS
    for sigma, latents in zip(stops, theirs):
        x = seen[sigma] if sampler == "euler" else seen[sigma] / (1 + sigma**2) ** 0.5  # as diffusers scales them
        assert (x - latents).abs().max() < 1e-5 * latents.abs().max()
    torch.testing.assert_close(picture, wanted, rtol=0, atol=1e-5)
    assert picture.std() > 0.01, "an even picture shows nothing"


@pytest.mark.parametrize("sampler", PEERS)
@pytest.mark.parametrize("strength", [0.35, 0.8, 1.0])
def test_a_picture_to_begin_with_leads_where_it_does_in_diffusers(pipeline, model, sampler, strength, monkeypatch):
    posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(posterior, "sample", lambda self, generator=None: self.mode())  # ours begins with the mean
    start = pictures(1)
    peer = peer_of(pipeline, "StableDiffusionImg2ImgPipeline", sampler)
    wanted = peer(
        PROMPT, image=start, strength=strength, num_inference_steps=STEPS, guidance_scale=4.0, output_type="pt",
        generator=[torch.Generator().manual_seed(5)],
    ).images  # fmt: skip
    ours = generate(model, [PROMPT], [5], sampler=sampler, steps=STEPS, scale=4.0, start=start, strength=strength)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("begun", [False, True], ids=["noise", "picture and mask"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_depends_on_its_words_and_seed_alone(model, sampler, begun):
    prompts, seeds = [PROMPT, "a house", PROMPT, "the pool of a house", "a house"], [1, 2, 3, 2**63 - 1, 1]
    given = {"start": pictures(1).expand(5, -1, -1, -1), "mask": hole(5)} if begun else {}

    def drawn(numbers: list[int], batch: int) -> Tensor:
        some = {name: value[numbers] for name, value in given.items()}
        return generate(
            model, [prompts[i] for i in numbers], [seeds[i] for i in numbers], sampler=sampler, steps=4, batch=batch,
            **some,
        )  # fmt: skip

    one_by_one = drawn([0, 1, 2, 3, 4], batch=1)
    torch.testing.assert_close(drawn([0, 1, 2, 3, 4], batch=5), one_by_one, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn([3, 0, 4], batch=2), one_by_one[[3, 0, 4]], rtol=0, atol=1e-5)
    for i in range(4):
        assert (one_by_one[i] - one_by_one[4]).abs().max() > 1e-3, "another seed or other words are another picture"


def test_no_random_numbers_of_others_are_used_or_spent(model):
    before = torch.get_rng_state()
    first = generate(model, [PROMPT], [0], sampler="dpmpp-2m-sde", steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    torch.testing.assert_close(generate(model, [PROMPT], [0], sampler="dpmpp-2m-sde", steps=3), first, rtol=0, atol=0)
    torch.set_rng_state(before)


def test_strength_of_guidance_may_differ_within_a_batch(model):
    scales = torch.tensor([1.0, 3.0, 9.0])
    together = generate(model, [PROMPT] * 3, [4] * 3, scale=scales, steps=3, batch=2)
    for scale, image in zip(scales.tolist(), together):
        torch.testing.assert_close(generate(model, [PROMPT], [4], scale=scale, steps=3)[0], image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_outside_of_the_mask_every_pixel_stays(model, sampler):
    start, mask = pictures(1), hole()
    image = generate(model, [PROMPT], [0], sampler=sampler, steps=4, start=start, mask=mask, strength=1.0)
    assert torch.equal(image[..., :16], start[..., :16])
    assert (image[..., 16:] - start[..., 16:]).abs().mean() > 0.05


def test_what_is_drawn_into_a_hole_knows_what_is_around_it(model):
    seen = []
    watched = TextToImage(
        unet=model.unet, vae=model.vae, text=model.text, tokenizer=model.tokenizer, schedule=model.schedule
    )  # fmt: skip
    watched.denoise = lambda x, sigma, context: (seen.append((float(sigma), x[0])), model.denoise(x, sigma, context))[1]
    start = pictures(1)
    generate(watched, [PROMPT], [0], sampler="euler", steps=6, start=start, mask=hole(), strength=1.0)
    known = model.encode(start)[0]
    noise = torch.randn(known.shape, generator=torch.Generator().manual_seed(0))
    for sigma, x in seen:  # at each level the known half is the picture with the picture's own noise of that level
        torch.testing.assert_close(x[..., :8], (known + sigma * noise)[..., :8], rtol=1e-4, atol=1e-4)


def test_progress_is_told_of_all_batches(model):
    told = []
    each = lambda done, total, clean: told.append((done, total, len(clean)))  # noqa: E731
    generate(model, [PROMPT] * 3, [0, 1, 2], steps=2, batch=2, each=each)
    assert told == [(1, 4, 2), (2, 4, 2), (3, 4, 1), (4, 4, 1)]


def test_latents_that_are_not_finite_are_named_with_their_step(model):
    broken = TextToImage(
        unet=model.unet, vae=model.vae, text=model.text, tokenizer=model.tokenizer, schedule=model.schedule
    )  # fmt: skip
    calls = []

    def denoise(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        calls.append(sigma)
        clean = model.denoise(x, sigma, context).clone()
        if len(calls) == 3:
            clean[1::2] = float("nan")
        return clean

    broken.denoise = denoise
    with pytest.raises(NegahError, match=r"picture 2 of 2 .* after step 3 of 5"):
        generate(broken, [PROMPT] * 2, [0, 1], steps=5)
    assert len(calls) == 3, "no time is spent on a picture that is lost"


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                 "to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"),
])  # fmt: skip
def test_too_little_memory_is_said_in_a_line_of_advice(model, error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(model.unet, "forward", fail)
    with pytest.raises(InputError, match="out of memory: take smaller batches, smaller pictures, or bf16"):
        generate(model, [PROMPT], [0], steps=2)


def test_other_errors_of_the_networks_are_not_taken_for_lack_of_memory(model, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(model.unet, "forward", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        generate(model, [PROMPT], [0], steps=2)


@pytest.mark.parametrize("given, words", [
    ({"steps": 0}, "0 steps"),
    ({"strength": 0.0}, "strength 0.0"),
    ({"mask": hole()}, "give the picture to begin with"),
    ({"height": 30, "width": 32}, "multiples of 4 px"),
    ({"start": pictures(1, 30)}, "multiples of 4 px"),
    ({"start": pictures(2)}, "for each prompt"),
    ({"start": pictures(1), "mask": torch.ones(1, 1, 16, 16)}, "a mask of its size"),
    ({"seeds": [1, 2]}, "1 prompts and 2 seeds"),
])  # fmt: skip
def test_arguments_that_do_not_go_together_are_refused(model, given, words):
    with pytest.raises(InputError, match=words):
        generate(model, [PROMPT], **{"seeds": [0], **given})


def test_an_unknown_sampler_is_answered_with_those_there_are(model):
    jaxtyping.config.update("jaxtyping_disable", True)  # else the tests' own checks of types speak first
    try:
        with pytest.raises(InputError, match="no sampler 'plms': there are ddim, euler, euler-ancestral, heun"):
            generate(model, [PROMPT], [0], sampler="plms")  # pyright: ignore[reportArgumentType]
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
