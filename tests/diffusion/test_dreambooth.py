"""DreamBooth: losses half by half, a word of its own, and files that diffusers reads."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from negah.diffusion.dreambooth import TOKEN_LR, Draw, DreamBooth, Halves, Noised, default_lr, save_lora
from negah.diffusion.generate import generate
from negah.diffusion.identifier import add_token, candidates, weakest
from negah.diffusion.load import load
from negah.errors import InputError
from negah.train import Batches, fit

pytest.importorskip("diffusers")


@pytest.fixture
def model(pipeline):
    return load(pipeline)


def noised(model, n: int, seed: int, t: int | None = None) -> Noised:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, *model.latent_shape(model.size, model.size))
    steps = torch.randint(1000, (n,), generator=generator) if t is None else torch.full((n,), t)
    return Noised(torch.randn(shape, generator=generator), steps, torch.randn(shape, generator=generator))


def known(model, **more) -> DreamBooth:
    return DreamBooth(model, weakest(model, "house")[0], **more)


# The loss


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_equation(model, prediction):
    model.schedule = replace(model.schedule, prediction=prediction)
    objective = known(model, method="full", prior_weight=0.5)
    batch = Halves(noised(model, 2, 0), noised(model, 2, 1))
    found = objective(batch)
    expected = []
    for half, prompt in zip(batch, (objective.identifier.prompt, "a house")):
        abar = model.schedule.alphas_cumprod[half.timesteps].float().view(-1, 1, 1, 1)
        z = abar.sqrt() * half.latents + (1 - abar).sqrt() * half.noise
        context = model.encode_prompts([prompt]).expand(2, -1, -1)
        said = model.unet(z, half.timesteps, encoder_hidden_states=context).sample
        target = half.noise if prediction == "epsilon" else abar.sqrt() * half.noise - (1 - abar).sqrt() * half.latents
        expected.append((said - target).square().mean())
    torch.testing.assert_close(found["instance"], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["prior"], expected[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["loss"], expected[0] + 0.5 * expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_each_half_by_its_own_timesteps(model, prediction):
    model.schedule = replace(model.schedule, prediction=prediction)
    identifier = weakest(model, "house")[0]
    plain = DreamBooth(model, identifier, method="full")
    weighed = DreamBooth(model, identifier, method="full", min_snr=5.0)
    batch = Halves(noised(model, 3, 0, t=20), noised(model, 3, 1, t=800))
    for half, t in (("instance", 20), ("prior", 800)):
        abar = float(model.schedule.alphas_cumprod[t])
        snr = abar / (1 - abar)
        weight = min(snr, 5.0) / (snr + (prediction == "v_prediction"))
        assert float(weighed(batch)[half]) == pytest.approx(weight * float(plain(batch)[half]), rel=1e-4)


def test_halves_are_drawn_apart_and_again_the_same():
    own, others = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 3, 3), 10 + torch.zeros(6, 2, 3, 3)
    draw = Draw(own, others, timesteps=1000)
    batch = draw([2, 0, 3, 1], torch.Generator().manual_seed(7))
    assert batch.prior is not None
    assert batch.instance.latents[:, 0, 0, 0].tolist() == [2, 0, 3, 1] and (batch.prior.latents == 10).all()
    assert not torch.equal(batch.instance.timesteps, batch.prior.timesteps)
    assert not torch.equal(batch.instance.noise, batch.prior.noise)
    again = draw([2, 0, 3, 1], torch.Generator().manual_seed(7))
    assert all(torch.equal(a, b) for one, two in zip(batch, again) for a, b in zip(one, two))
    assert Draw(own, None, timesteps=1000)([0], torch.Generator()).prior is None


def test_the_held_out_loss_draws_nothing_anew_and_knows_no_weights(model):
    identifier = weakest(model, "house")[0]
    z = noised(model, 3, 0).latents
    objective = DreamBooth(model, identifier, method="full", min_snr=5.0)
    before = torch.get_rng_state()
    first = objective.held_out(z)
    assert objective.held_out(z) == first == DreamBooth(model, identifier, method="full").held_out(z)
    assert torch.equal(torch.get_rng_state(), before) and objective.min_snr == 5.0
    assert objective.held_out(z, seed=1) != first


# Words


def test_a_new_token_starts_as_the_class_word_and_only_its_row_is_trained(model):
    before = model.text.get_input_embeddings().weight.detach().clone()
    plain = model.encode_prompts(["a house house"])
    identifier = add_token(model, "<new>", "house")
    assert identifier.new and identifier.number == len(before)
    torch.testing.assert_close(model.encode_prompts(["a <new> house"]), plain)
    objective = DreamBooth(model, identifier, method="lora", lr=1e-3)
    rows = [group for group in objective.param_groups() if objective.row is group["params"][0]]
    assert [row["lr_scale"] * 1e-3 for row in rows] == [TOKEN_LR] and rows[0]["weight_decay"] == 0
    trained(objective, model)
    table = model.text.get_input_embeddings().weight
    assert torch.equal(table[:-1], before) and not torch.equal(table[-1], before[model_number(model, "house")])
    assert (model.encode_prompts(["a <new> house"]) - plain).abs().max() > 1e-5  # no stale prompt is used


def model_number(model, word: str) -> int:
    return model.tokenizer(word, add_special_tokens=False).input_ids[0]


def trained(objective: DreamBooth, model, steps: int = 4):
    z = noised(model, 3, 0).latents
    batches = Batches(range(3), 2, collate=Draw(z, z + 1, timesteps=1000))
    found = fit(objective, batches, steps=steps, lr=objective.lr, log_every=1)
    objective.settle()
    return found


@pytest.mark.parametrize(
    "token, class_word, message",
    [
        ("house", "house", "is a word of this model already"), ("House", "house", "is a word of this model already"),
        ("", "house", "is not one word"), ("my house", "house", "is not one word"), ("<new>", "  ", "is empty"),
    ],
)  # fmt: skip
def test_a_token_that_cannot_be_new_is_refused(model, token, class_word, message):
    with pytest.raises(InputError, match=message):
        add_token(model, token, class_word)
    assert len(model.tokenizer) == model.text.get_input_embeddings().num_embeddings


def test_the_token_that_says_least_is_found(model):
    found = candidates(model, "house")
    words = [word for word, _ in found]
    assert words and all(len(word) <= 3 for word in words) and not {"a", "of", "the", "house"} & set(words)
    assert all(model_number(model, word) == number for word, number in found)
    # One is made to say nothing beyond the class word: as the text encoder reads from left to right, a twin of it.
    number = dict(found)["red"]
    with torch.no_grad():
        table = model.text.get_input_embeddings().weight
        table.mul_(3)
        table[number] = table[model_number(model, "a")]
    identifier, ranking = weakest(model, "house")
    assert identifier.token == ranking[0].token and not identifier.new
    assert [weak.noise_change for weak in ranking] == sorted(weak.noise_change for weak in ranking)
    assert f"{ranking[0].noise_change:.2%}" in identifier.why


# What is trained, and its files


def test_defaults_are_the_recipe():
    assert default_lr("lora", train_text=True) == 1e-4
    assert default_lr("full", train_text=False) == 5e-6 and default_lr("full", train_text=True) == 2e-6


@pytest.mark.parametrize("text", [False, True])
def test_only_what_is_trained_changes_and_is_in_the_state(model, text):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = known(model, method="full", train_text=text, lr=1e-3)
    assert all(name.startswith(("trained.unet", "trained.text")) for name in objective.state_dict())
    trained(objective, model)
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == ({"unet", "text"} if text else {"unet"})
    table = next(name for name in before if "token_embedding" in name)
    assert torch.equal(model.state_dict()[table], before[table])


@pytest.mark.parametrize("text", [False, True])
def test_a_lora_and_its_token_load_in_diffusers_and_here(model, pipeline, tmp_path, text):
    from diffusers import StableDiffusionPipeline

    identifier = add_token(model, "<new>", "house")
    objective = DreamBooth(model, identifier, method="lora", train_text=text, lr=1e-2)
    assert all("lora" in name for name in objective.state_dict() if name != "row")
    trained(objective, model)
    files = save_lora(objective, tmp_path)
    assert [path.name for path in files] == ["pytorch_lora_weights.safetensors", "learned_embeds.safetensors"]
    assert load_file(files[1])["<new>"].shape == (model.text.config.hidden_size,)

    prompts, seeds = ["a <new> house", "a house"], [1, 2]
    quick = partial(generate, seeds=seeds, sampler="ddim", steps=3, scale=3.0)
    ours = quick(model, prompts)
    assert (quick(load(pipeline), ["a house house", "a house"]) - ours).abs().max() > 1e-3
    back = load(pipeline, lora=files[0])
    torch.testing.assert_close(quick(back, prompts), ours, atol=1e-4, rtol=0)

    theirs = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
    theirs.load_textual_inversion(str(files[1]))
    theirs.load_lora_weights(str(tmp_path), weight_name=files[0].name)
    context, _ = theirs.encode_prompt(prompts, "cpu", 1, False)
    half = noised(model, 2, 0)
    with torch.no_grad():
        said = theirs.unet(half.latents, half.timesteps, encoder_hidden_states=context).sample
        expected = model.unet(half.latents, half.timesteps, encoder_hidden_states=model.encode_prompts(prompts)).sample
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-4)


def test_what_was_learned_can_be_learned_on(model, pipeline, tmp_path):
    objective = known(model, lr=1e-2, train_text=True)
    trained(objective, model)
    save_lora(objective, tmp_path)
    merged = load(pipeline, lora=tmp_path)
    assert list(merged.state_dict()) == list(load(pipeline).state_dict())
    again = known(merged, lr=1e-2, train_text=True)
    assert again.trained.keys() == objective.trained.keys()
    with pytest.raises(InputError, match="has adapters already"):
        known(merged)
