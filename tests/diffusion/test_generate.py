"""From words and seeds to pictures: diffusers' numbers, the contract of seeds, image to image, inpainting."""

import json
import shutil
from functools import partial

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
)

from negah.diffusion import generate as module
from negah.diffusion.generate import generate
from negah.diffusion.guidance import APG
from negah.diffusion.load import load
from negah.diffusion.sample import SAMPLERS
from negah.errors import InputError, NegahError

PEERS = {
    "ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "euler-ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler, "dpmpp-2m": DPMSolverMultistepScheduler,
}  # fmt: skip
PROMPTS = ["a house", "a red roof", "two houses", "trees"]
close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def model(pipeline):
    return load(pipeline)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def both(request, pipeline, tmp_path_factory):
    """Our model and diffusers' pipeline from one folder."""
    folder = tmp_path_factory.mktemp("models") / request.param
    shutil.copytree(pipeline, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": request.param}), "utf-8")
    peer = StableDiffusionPipeline.from_pretrained(folder)
    peer.set_progress_bar_config(disable=True)
    return load(folder), peer


@pytest.fixture
def start():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def watched(monkeypatch, name):
    """The latents of each step, in sigma space."""
    seen, sample = [], SAMPLERS[name]

    def watch(denoise, x, sigmas, *, noise, each):
        def told(step, x, clean):
            seen.append((x, float(sigmas[step + 1])))
            each(step, x, clean)

        return sample(denoise, x, sigmas, noise=noise, each=told)

    monkeypatch.setitem(module.SAMPLERS, name, watch)
    return seen


# Parity


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own use of numpy
@pytest.mark.parametrize("sampler", PEERS)
def test_latents_and_pixels_are_those_of_diffusers(both, sampler, monkeypatch):
    model, peer = both
    ours, theirs = watched(monkeypatch, sampler), []
    peer.scheduler = PEERS[sampler].from_config(peer.scheduler.config, clip_sample=False)

    def keep(_, step, t, found):
        theirs.append(found["latents"])
        return found

    wanted = peer(
        PROMPTS[:2], negative_prompt=["trees"] * 2, num_inference_steps=8, guidance_scale=6.0, output_type="pt",
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)], callback_on_step_end=keep,
    ).images  # fmt: skip
    made = generate(model, PROMPTS[:2], [3, 4], sampler=sampler, steps=8, scale=6.0, negative="trees")
    if sampler != "heun":  # which diffusers counts two steps a step
        assert len(ours) == len(theirs) == 8
        for step, ((x, sigma), latents) in enumerate(zip(ours, theirs)):
            unit = 1.0 if sampler.startswith("euler") else (1 + sigma**2) ** 0.5
            spread = latents.std()  # up to 15, so float32 alone leaves more than 1e-5
            close(x / unit / spread, latents / spread, msg=lambda text, step=step: f"step {step}: {text}")
    close(made, wanted)
    assert wanted.std() > 0.05  # there is something to differ in


# The contract of seeds


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_depends_on_neither_batch_nor_place(model, sampler):
    draw = partial(generate, model, sampler=sampler, steps=3)
    alone = draw(PROMPTS, [5, 6, 7, 8], batch=1)
    for batch in (2, 4):
        close(draw(PROMPTS, [5, 6, 7, 8], batch=batch), alone)
    close(draw(PROMPTS[::-1], [8, 7, 6, 5], batch=4), alone.flip(0))
    assert (draw(PROMPTS[:1], [6]) - alone[0]).abs().mean() > 0.01  # another seed is another picture
    assert (draw(PROMPTS[1:2], [5]) - alone[0]).abs().mean() > 1e-3  # so are other words


def test_the_strength_of_guidance_is_each_pictures_own(model):
    scales = [1.0, 4.0, 9.0]
    together = generate(model, ["a house"] * 3, [1, 1, 1], steps=4, scale=torch.tensor(scales), batch=2)
    for scale, image in zip(scales, together):
        close(generate(model, ["a house"], [1], steps=4, scale=scale)[0], image)
    assert (together[1] - together[2]).abs().max() > 1e-3


def test_guides_are_told_whose_pictures_they_guide(model):
    told = []

    def guide(denoise, numbers):
        told.append(list(numbers))
        return lambda x, sigma: denoise(x, sigma) + torch.tensor([float(n) for n in numbers]).view(-1, 1, 1, 1)

    plain, guided = (
        generate(model, ["a house"] * 3, [0, 1, 2], steps=2, batch=2, guides=g) for g in ((), (guide,))
    )  # fmt: skip
    assert told == [[0, 1], [2]]
    close(guided[0], plain[0])
    assert (guided[1:] - plain[1:]).abs().flatten(1).amax(1).min() > 0.01


@pytest.mark.parametrize("how", [
    {"interval": (0.5, 5.0)}, {"rescale": 0.7}, {"plus_plus": True, "scale": 0.6}, {"apg": APG(momentum=-0.5, norm=15.0)},
    {"spacing": "karras"}, {"spacing": "trailing"}, {"negative": "trees"},
])  # fmt: skip
def test_each_kind_of_guidance_and_spacing_changes_pictures_and_keeps_the_contract(model, how):
    draw = partial(generate, model, PROMPTS[:2], [0, 1], steps=5)
    one, two, plain = draw(batch=1, **how), draw(batch=2, **how), draw(scale=how.get("scale", 6.0))
    close(one, two)
    assert (one - plain).abs().max() > 1e-4


def test_global_random_numbers_are_neither_used_nor_moved(pipeline, start):
    before = torch.get_rng_state()
    model = load(pipeline)
    first = generate(model, PROMPTS[:2], [0, 1], sampler="dpmpp-2m-sde", steps=3, start=start)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = generate(model, PROMPTS[:2], [0, 1], sampler="dpmpp-2m-sde", steps=3, start=start)
    close(again, first)


def test_each_step_is_told_over_all_batches(model):
    told = []
    generate(model, ["a house"] * 3, [0, 1, 2], steps=2, batch=2, each=lambda *news: told.append(news))
    assert [news[:2] for news in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [len(clean) for _, _, clean in told] == [2, 2, 1, 1]


# From a picture


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler-ancestral", "dpmpp-2m"])
def test_strength_is_how_far_a_picture_goes(model, start, sampler, monkeypatch):
    seen = watched(monkeypatch, sampler)
    draw = partial(generate, model, PROMPTS[:2], [0, 1], sampler=sampler, steps=10, scale=1.0)
    off = []
    for strength in (0.1, 0.4, 0.8):
        draw(start=start, strength=strength)
        off.append((seen[-1][0] - model.encode(start)).abs().mean())
    assert off[0] < off[1] < off[2] and off[0] < 0.2 * off[2], off
    close(draw(start=start, strength=1.0), draw())  # nothing of it is kept


def test_strength_is_the_share_of_the_steps_that_are_made(model, start):
    for strength, made in ((0.05, 1), (0.3, 3), (0.75, 8), (1.0, 10)):
        told = []
        generate(model, PROMPTS[:2], [0, 1], steps=10, start=start, strength=strength, each=lambda *n: told.append(n))
        assert [news[:2] for news in told] == [(k + 1, made) for k in range(made)]


# Into a hole


@pytest.mark.parametrize(("sampler", "how"), [
    *((sampler, {}) for sampler in SAMPLERS),
    ("ddim", {"plus_plus": True, "scale": 0.6}), ("heun", {"plus_plus": True, "scale": 0.6}),
])  # fmt: skip
def test_inpainting_keeps_what_is_known(model, start, sampler, how):
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:20, 12:27] = 1
    cleans = []
    draw = partial(generate, model, PROMPTS[:2], [0, 1], sampler=sampler, steps=4, start=start, strength=1.0, **how)
    images = draw(mask=mask, each=lambda done, total, clean: cleans.append(clean))
    hole = mask.bool().expand_as(start)
    assert torch.equal(images[~hole], start[~hole])
    assert (images[hole] - start[hole]).abs().mean() > 0.05
    # The network is told what is known: the expected latents outside of the mask are those of the picture.
    latents = model.encode(start)
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[4:10, 6:14] = False
    close(cleans[-1][:, :, outside], latents[:, :, outside])
    assert (draw()[hole] - images[hole]).abs().max() > 1e-3  # so what is drawn into the hole heeds what is around it


# What cannot be drawn


def test_arguments_that_do_not_go_together_are_refused_in_a_line(model, start):
    draw = partial(generate, model, PROMPTS[:2], [0, 1], steps=2)
    for how, said in (
        ({"sampler": "plms"}, "no sampler 'plms': there are ddim, euler"),
        ({"strength": 0.0, "start": start}, "strength 0.0: give a share"),
        ({"strength": 1.1, "start": start}, "strength 1.1"),
        ({"mask": torch.ones(2, 1, 32, 32)}, "give the picture to begin with"),
        ({"start": start[:1]}, "1 pictures to begin with for 2 prompts"),
        ({"start": start[:, :, :, :30]}, "30 x 32 px: sides"),
        ({"height": 15}, "32 x 15 px: sides"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 2000}, "2000 steps"),
    ):
        # Where types are checked as the tests do, an unknown sampler would not reach the function.
        function = getattr(generate, "__wrapped__", generate) if "sampler" in how else generate
        with pytest.raises(InputError, match=said):
            partial(function, *draw.args, **draw.keywords)(**how)
    for prompts, seeds in (([], []), (["a house"], [0, 1])):
        with pytest.raises(InputError, match=f"{len(prompts)} prompts and {len(seeds)} seeds"):
            generate(model, prompts, seeds)


@pytest.mark.parametrize(("strength", "step"), [(None, 3), (0.6, 5)])
def test_latents_that_are_not_finite_stop_it_and_name_the_step(model, start, monkeypatch, strength, step):
    calls, forward = [], model.unet.forward

    def broken(x, *args, **how):
        calls.append(1)
        told = forward(x, *args, **how)[0]
        if len(calls) == 3:
            told = told.index_fill(0, torch.tensor([3]), torch.nan)  # with words, the second picture
        return (told,)

    monkeypatch.setattr(model.unet, "forward", broken)
    how = {} if strength is None else {"start": start, "strength": strength}
    with pytest.raises(NegahError, match=f"picture 2 of 2 are not finite after step {step} of 5"):
        generate(model, PROMPTS[:2], [0, 1], steps=5, **how)
    assert len(calls) == 3


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
])  # fmt: skip
@pytest.mark.parametrize("part", ["unet", "vae", "text"])
def test_too_little_memory_is_one_line_of_advice(model, monkeypatch, error, part):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(getattr(model, part), "decode" if part == "vae" else "forward", full)
    with pytest.raises(InputError, match="out of memory: take smaller batches"):
        generate(model, ["a house"], [0], steps=2)


def test_other_errors_of_torch_are_not_taken_for_memory(model, monkeypatch):
    def wrong(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(model.unet, "forward", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        generate(model, ["a house"], [0], steps=2)
