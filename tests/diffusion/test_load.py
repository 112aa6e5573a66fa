"""`diffusion.load`: folders, single files and LoRA as others write them; what is broken is named."""

import json
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from negah.diffusion.load import chosen, load
from negah.diffusion.lora import EMBEDDINGS
from negah.diffusion.model import TextToImage
from negah.errors import NegahError, WeightsError

loading = sys.modules["negah.diffusion.load"]  # the file, whose name in the room is that of its function

diffusers = pytest.importorskip("diffusers")

PROMPTS = ["two houses with red roofs", "a house"]


@pytest.fixture
def folder(pipeline, tmp_path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(pipeline, tmp_path / "sd")


def answers(model: TextToImage) -> torch.Tensor:
    """What a model says of some noise and words, [2, 4, 8, 8]."""
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.denoise(noise, torch.tensor(1.5, dtype=torch.float64), model.encode_prompts(PROMPTS))


def weights_of(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def changed(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def edited(file: Path, **fields) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.fixture(scope="module")
def wanted(pipeline) -> torch.Tensor:
    return answers(load(pipeline))


# Folders


def test_words_and_pictures_are_read_as_diffusers_reads_them(pipeline):
    model, peer = load(pipeline), diffusers.StableDiffusionPipeline.from_pretrained(pipeline)
    context, _ = peer.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(model.encode_prompts(PROMPTS), context, rtol=0, atol=1e-5)
    for ours, theirs in ((model.unet, peer.unet), (model.vae, peer.vae), (model.text, peer.text_encoder)):
        theirs = theirs.state_dict()
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs[name]), name
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_half_precision_files_are_computed_in_float32(folder, wanted):
    model = load(folder)
    half = load(model.save(folder.parent / "half", dtype=torch.float16))
    assert next(iter(load_file(weights_of(folder.parent / "half", "unet")).values())).dtype == torch.float16
    assert half.dtype == torch.float32
    torch.testing.assert_close(answers(half), wanted, rtol=0, atol=2e-2)


@pytest.mark.parametrize("start", ["text_model.", ""], ids=["with text_model.", "without"])
def test_text_encoders_of_old_and_new_transformers_are_read(folder, wanted, start):
    def rename(tensors: dict) -> None:
        for name in list(tensors):
            tensors[start + name.removeprefix("text_model.")] = tensors.pop(name)

    changed(weights_of(folder, "text_encoder"), rename)
    torch.testing.assert_close(answers(load(folder)), wanted)


def test_old_names_of_the_autoencoder_are_read(folder, pipeline):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict) -> None:
        for name in list(tensors):
            for new, before in old.items():
                if f"attentions.0.{new}." in name:
                    tensors[name.replace(new, before)] = tensors.pop(name)

    changed(weights_of(folder, "vae"), rename)
    assert any("proj_attn" in name for name in load_file(weights_of(folder, "vae")))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load(folder).decode(noise), load(pipeline).decode(noise))


def test_torch_files_and_shards_are_read(folder, wanted):
    file = weights_of(folder, "unet")
    tensors = load_file(file)
    file.unlink()
    torch.save(tensors, folder / "unet" / "diffusion_pytorch_model.bin")
    torch.testing.assert_close(answers(load(folder)), wanted)

    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    halves = [dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:])]
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for half, name in zip(halves, names):
        save_file(half, folder / "unet" / name)
    index = {"weight_map": {key: name for half, name in zip(halves, names) for key in half}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    torch.testing.assert_close(answers(load(folder)), wanted)


def test_a_safety_checker_is_left_where_it_is(folder, wanted):
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"not read")
    edited(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    torch.testing.assert_close(answers(load(folder)), wanted)


def test_loading_draws_no_random_numbers_of_others(pipeline):
    before = torch.get_rng_state()
    load(pipeline)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_network_is_asked_for_what_lies_here(pipeline, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    load(pipeline)


def test_a_name_of_the_hub_without_a_network_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="owner/sd-nowhere cannot be fetched") as caught:
        load("owner/sd-nowhere")
    assert "\n" not in str(caught.value)


def test_of_the_hub_one_form_of_the_weights_is_fetched(pipeline, monkeypatch, tmp_path):
    """Whole files before half-precision ones, safetensors before pickles, several files by their index."""
    words = ["tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json", "model_index.json"]
    configs = [f"{part}/config.json" for part in ("unet", "vae", "text_encoder")]
    vae, text = "vae/diffusion_pytorch_model", "text_encoder/pytorch_model.bin"
    shards = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    useless = [
        f"{vae}.bin", f"{vae}.fp16.safetensors", "unet/diffusion_pytorch_model-00001-of-00002.bin", "README.md",
        "v1-5-pruned.safetensors", "safety_checker/model.safetensors", "unet/model.onnx",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json.txt.old",
    ]  # fmt: skip
    wanted = [*words, *configs, f"{vae}.safetensors", text, *shards, index]
    assert sorted(chosen([*useless, *wanted])) == sorted(wanted)
    halves = ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.bin"]
    assert chosen(halves) == halves[:1]

    asked = {}
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name, revision: [*wanted, *useless])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.update(how) or str(pipeline))
    assert load("owner/sd").prediction == "epsilon"
    assert sorted(asked["allow_patterns"]) == sorted(wanted)


# What is broken


def without(part: str):
    return lambda folder: shutil.rmtree(folder / part)


def of_tensor(change):
    """Change the first tensor of the denoiser."""
    return lambda folder: changed(weights_of(folder, "unet"), lambda tensors: change(tensors, next(iter(tensors))))


@pytest.mark.parametrize("damage, words", [
    (without("unet"), "has no unet: a model has the parts"),
    (without("vae"), "has no vae"),
    (without("text_encoder"), "has no text_encoder"),
    (without("tokenizer"), "has no tokenizer"),
    (without("scheduler"), "has no scheduler"),
    (lambda folder: weights_of(folder, "vae").unlink(), "vae has no weights"),
    (lambda folder: (folder / "model_index.json").unlink(), "no model_index.json"),
    (lambda folder: (folder / "unet" / "config.json").unlink(), "config.json cannot be read"),
    (lambda folder: weights_of(folder, "unet").write_bytes(b"\x00" * 9), "cannot be read as safetensors"),
    (lambda folder: (folder / "tokenizer" / "tokenizer_config.json").write_text("{"), "vocabulary in .* be read"),
    (lambda folder: [file.unlink() for file in (folder / "tokenizer").iterdir()], "tokenizer has no vocab.json"),
    (lambda folder: edited(folder / "model_index.json", _class_name="FluxPipeline"), "holds a FluxPipeline"),
    (lambda folder: edited(folder / "model_index.json", text_encoder_2=["a", "b"]), "1.x and 2.x are known"),
    (lambda folder: edited(folder / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid"), "'sigmoid'"),
    (lambda folder: edited(folder / "unet" / "config.json", down_block_types=["None"] * 2), "cannot be built"),
    (lambda folder: edited(folder / "unet" / "config.json", in_channels=9), "misshapen conv_in.weight"),
    (of_tensor(lambda tensors, name: tensors.pop(name)), "unet lacks "),
    (of_tensor(lambda tensors, name: tensors.update({"more": tensors[name].clone()})), "unet has unknown more"),
    (of_tensor(lambda tensors, name: tensors.update({name: tensors[name].to(torch.int8)})), "not floating: quantised"),
    (of_tensor(lambda tensors, name: tensors[name].fill_(float("nan"))), "holds values that are not finite"),
    (of_tensor(lambda tensors, name: tensors.update({name: tensors[name].flatten()[:1]})), "unet has misshapen"),
])  # fmt: skip
def test_what_is_broken_in_a_folder_is_named_in_one_line(folder, damage, words):
    damage(folder)
    with pytest.raises(WeightsError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_network_made_for_inpainting_is_refused_and_told_what_to_do(folder):
    edited(folder / "unet" / "config.json", in_channels=9)

    def widen(tensors: dict) -> None:
        tensors["conv_in.weight"] = tensors["conv_in.weight"].repeat(1, 3, 1, 1)[:, :9].contiguous()

    changed(weights_of(folder, "unet"), widen)
    with pytest.raises(
        WeightsError, match=r"takes 9 channels and latents have 4; .* ordinary ones inpaint with --mask"
    ):
        load(folder)


def test_a_text_encoder_of_another_model_is_refused(folder):
    model = load(folder)
    model.text.config.hidden_size = 48
    with pytest.raises(WeightsError, match="are of different models"):
        loading._checked(model, "it")


class Run:
    """What a pickle that runs code looks like."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_code_in_a_pickle_is_not_run(folder, tmp_path):
    weights_of(folder, "unet").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"conv_in.weight": Run()}))
    torch.save({"state_dict": {"model.diffusion_model.x": Run()}}, tmp_path / "evil.ckpt")
    for given in (folder, tmp_path / "evil.ckpt"):
        with pytest.raises(WeightsError, match="cannot be read as a torch file of plain tensors"):
            load(given)


@pytest.mark.parametrize("name, words", [
    ("nowhere/at/all", "no model at nowhere/at/all"), ("gone.safetensors", "no model at gone.safetensors"),
    ("negah/imagine-none", "negah/imagine-none is not in this install"),
])  # fmt: skip
def test_what_is_not_there_is_said(name, words):
    with pytest.raises(WeightsError, match=words):
        load(name)


# Single files


def published(model: TextToImage) -> dict[str, torch.Tensor]:
    """Tensors as Stable Diffusion 1.x was published, of a model of two levels with one residual block each."""
    state = {}
    resnet = {
        "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
        "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
    }  # fmt: skip
    unet = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
        "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv", "middle_block.1": "mid_block.attentions.0",
        "input_blocks.3.1": "down_blocks.1.attentions.0",
        "output_blocks.0.1": "up_blocks.0.attentions.0", "output_blocks.1.1": "up_blocks.0.attentions.1",
        "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv",
    }  # fmt: skip
    blocks = {
        "input_blocks.1.0": "down_blocks.0.resnets.0", "input_blocks.3.0": "down_blocks.1.resnets.0",
        "middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1",
        **{f"output_blocks.{2 * i + j}.0": f"up_blocks.{i}.resnets.{j}" for i in (0, 1) for j in (0, 1)},
    }  # fmt: skip
    unet |= {f"{a}.{c}": f"{b}.{d}" for a, b in blocks.items() for c, d in resnet.items()}
    vae = {
        f"{side}.{a}": f"{side}.{b}" for side in ("encoder", "decoder")
        for a, b in {"norm_out": "conv_norm_out", "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
                     **{f"mid.attn_1.{p}": f"mid_block.attentions.0.to_{p}" for p in "qkv"},
                     "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
                     "mid.block_1": "mid_block.resnets.0", "mid.block_2": "mid_block.resnets.1"}.items()
    }  # fmt: skip
    vae |= {"encoder.down.0.downsample": "encoder.down_blocks.0.downsamplers.0"}
    vae |= {"decoder.up.1.upsample": "decoder.up_blocks.0.upsamplers.0"}
    vae |= {f"encoder.down.{i}.block.0": f"encoder.down_blocks.{i}.resnets.0" for i in (0, 1)}
    vae |= {f"decoder.up.{1 - i}.block.{j}": f"decoder.up_blocks.{i}.resnets.{j}" for i in (0, 1) for j in (0, 1)}

    def put(start: str, tensors: dict, names: dict[str, str]) -> None:
        by_length = sorted(names.items(), key=lambda pair: -len(pair[1]))
        for name, value in tensors.items():
            old, new = next(((a, b) for a, b in by_length if name.startswith(b + ".")), ("", ""))
            state[start + (old + name.removeprefix(new) if new else name).replace("conv_shortcut", "nin_shortcut")] = (
                value
            )

    put("model.diffusion_model.", model.unet.state_dict(), unet)
    assert model.vae is not None
    put("first_stage_model.", model.vae.state_dict(), vae)
    for name in [name for name in state if "first_stage_model" in name and "attn_1" in name and "norm" not in name]:
        if name.endswith("weight"):
            state[name] = state[name][:, :, None, None]  # they were convolutions
    for name, value in model.text.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return {name: value.clone().contiguous() for name, value in state.items()} | {"betas": torch.rand(1000)}


@pytest.fixture
def single(pipeline, monkeypatch):
    """Tensors of a single file, and what a small Stable Diffusion 1.x is taken to look like."""
    for part, name in (("unet", "UNET_1"), ("vae", "VAE_1"), ("text_encoder", "TEXT_1")):
        monkeypatch.setattr(loading, name, json.loads((pipeline / part / "config.json").read_text()))
    return published(load(pipeline))


@pytest.mark.parametrize("file", ["model.safetensors", "model.ckpt"])
def test_single_files_are_the_folder_in_other_names(pipeline, tmp_path, single, wanted, file):
    if file.endswith("ckpt"):
        torch.save({"state_dict": single, "global_step": 470000}, tmp_path / file)
    else:
        save_file(single, tmp_path / file)
    model = load(tmp_path / file, vocabulary=pipeline / "tokenizer")
    torch.testing.assert_close(answers(model), wanted)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.decode(noise), load(pipeline).decode(noise))
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.encode(images), load(pipeline).encode(images))


@pytest.mark.parametrize("lost, words", [
    ("model.diffusion_model.", "has no denoiser"), ("first_stage_model.", "has no autoencoder"),
    ("cond_stage_model.", "has no text encoder"), ("model.diffusion_model.input_blocks.3.", "lacks|has no"),
    ("first_stage_model.quant_conv.", "has no first_stage_model.quant_conv|lacks quant_conv"),
    ("model.diffusion_model.out.2.bias", "lacks conv_out.bias"),
])  # fmt: skip
def test_single_files_that_are_not_whole_are_refused(pipeline, tmp_path, single, lost, words):
    save_file(
        {name: value for name, value in single.items() if not name.startswith(lost)}, tmp_path / "part.safetensors"
    )
    with pytest.raises(WeightsError, match=words) as caught:
        load(tmp_path / "part.safetensors", vocabulary=pipeline / "tokenizer")
    assert "\n" not in str(caught.value)


def test_a_single_file_without_a_vocabulary_says_what_to_give(tmp_path, single, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_file(single, tmp_path / "model.safetensors")
    for vocabulary in (tmp_path, None):
        with pytest.raises(WeightsError, match="holds no vocabulary: give --vocabulary") as caught:
            load(tmp_path / "model.safetensors", vocabulary=vocabulary)
        assert "\n" not in str(caught.value)


# LoRA


@pytest.fixture(scope="module")
def adapted(pipeline):
    """A pipeline of diffusers with a LoRA in its denoiser and text encoder, and the LoRA's tensors in its names."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    peer, tensors = diffusers.StableDiffusionPipeline.from_pretrained(pipeline), {}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for part, net, layers in (
            ("unet", peer.unet, ["to_q", "to_out.0", "proj_in", "conv1"]), ("text_encoder", peer.text_encoder, ["fc1"]),
        ):  # fmt: skip
            inject_adapter_in_model(
                LoraConfig(r=2, lora_alpha=6, target_modules=layers, init_lora_weights=False), net
            )  # fmt: skip
            for name, value in get_peft_model_state_dict(net).items():
                name = name.removeprefix("text_model.")
                tensors[f"{part}.text_model.{name}" if part == "text_encoder" else f"{part}.{name}"] = value.clone()
    with torch.no_grad():
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        context, _ = peer.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
        schedule = load(pipeline).schedule
        sigma = torch.tensor(1.5, dtype=torch.float64)
        t = schedule.timestep(sigma).expand(2)
        told = noise - 1.5 * peer.unet(noise / (1 + 1.5**2) ** 0.5, t, context).sample
    return tensors, told


ABOUT = {"unet.lora_alpha": 6, "unet.r": 2, "text_encoder.lora_alpha": 6, "text_encoder.r": 2}


def in_old_names(tensors: dict) -> dict:
    """Of diffusers before peft; its LoRA was multiplied by 1, so B takes what alpha / rank was."""
    old = {}
    for name, value in tensors.items():
        layer, half = name.split(".lora_")
        kind = "lora_linear_layer" if "text_encoder" in name else "lora"
        old[f"{layer}.{kind}.{'down' if half[0] == 'A' else 'up'}.weight"] = value if half[0] == "A" else 3 * value
    return old


def as_kohya(tensors: dict) -> dict:
    named = {}
    for name, value in tensors.items():
        layer, half = name.split(".lora_")
        layer = layer.replace("text_encoder.", "lora_te_").replace("unet.", "lora_unet_").replace(".", "_")
        named[f"{layer}.lora_{'down' if half[0] == 'A' else 'up'}.weight"] = value
        named[f"{layer}.alpha"] = torch.tensor(6)
    return named


@pytest.mark.parametrize("names, about", [
    (dict, ABOUT), (in_old_names, {}), (as_kohya, {}),
    (lambda tensors: {name.replace("text_model.", ""): value for name, value in tensors.items()}, ABOUT),
], ids=["diffusers", "old diffusers", "kohya", "without text_model"])  # fmt: skip
def test_a_lora_does_what_it_does_where_it_was_trained(pipeline, tmp_path, adapted, wanted, names, about):
    tensors, told = adapted
    file = tmp_path / "style.safetensors"
    save_file(names(tensors), file, {"lora_adapter_metadata": json.dumps(about)})
    assert (told - wanted).abs().max() > 0.05
    torch.testing.assert_close(answers(load(pipeline, lora=file)), told, rtol=0, atol=1e-4)


def test_a_folder_of_peft_is_read_with_its_config(pipeline, tmp_path, adapted):
    unet = {n.removeprefix("unet."): v for n, v in adapted[0].items() if n.startswith("unet.")}
    save_file(
        {f"base_model.model.{name}": value for name, value in unet.items()}, tmp_path / "adapter_lora.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 2}))
    other = tmp_path / "same.safetensors"
    save_file({f"unet.{name}": value for name, value in unet.items()}, other,
              {"lora_adapter_metadata": json.dumps(ABOUT)})  # fmt: skip
    ours = answers(load(pipeline, lora=tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    torch.testing.assert_close(ours, answers(load(pipeline, lora=other)))


def test_a_model_with_a_lora_is_saved_with_it(pipeline, tmp_path, adapted):
    tensors, told = adapted
    save_file(tensors, tmp_path / "style.safetensors", {"lora_adapter_metadata": json.dumps(ABOUT)})
    again = load(load(pipeline, lora=tmp_path / "style.safetensors").save(tmp_path / "merged"))
    torch.testing.assert_close(answers(again), told, rtol=0, atol=1e-4)


def test_words_beside_a_lora_are_learnt_and_nothing_is_said_of_it(pipeline, tmp_path, adapted, recwarn):
    save_file(adapted[0], tmp_path / "style_lora.safetensors")
    row = torch.randn(1, 32, generator=torch.Generator().manual_seed(4))
    save_file({"<new>": row}, tmp_path / EMBEDDINGS, {"format": "pt"})
    before = torch.get_rng_state()
    model = load(pipeline, lora=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    number = model.tokenizer.convert_tokens_to_ids("<new>")
    torch.testing.assert_close(model.text.get_input_embeddings().weight[number], row[0])
    plain = load(pipeline, lora=tmp_path / "style_lora.safetensors")
    assert (model.encode_prompts(["a <new> house"]) - plain.encode_prompts(["a house"])).abs().max() > 0.1
    assert not recwarn.list


@pytest.mark.parametrize("damage, words", [
    (lambda t: {n.replace("unet.", "transformer."): v for n, v in t.items()}, "is of no LoRA of Stable Diffusion"),
    (lambda t: {n.replace("down_blocks.1", "down_blocks.7"): v for n, v in t.items()}, "has no unet down_blocks.7"),
    (lambda t: dict(list(t.items())[1:]), "has only a half of unet"),
    (lambda t: {n: v * float("nan") for n, v in t.items()}, "holds values that are not finite"),
    (lambda t: {n: v.to(torch.int8) for n, v in t.items()}, "not floating"),
    (lambda t: {n: v.repeat_interleave(2, 1) if "lora_A" in n else v for n, v in t.items()}, "of its shape"),
    (lambda t: {**t, "unet.conv_in.dora_scale": torch.ones(3)}, "is of no LoRA"),
])  # fmt: skip
def test_a_lora_that_does_not_fit_is_refused_and_never_left_out_in_part(pipeline, tmp_path, adapted, damage, words):
    save_file({n: v.contiguous() for n, v in damage(adapted[0]).items()}, tmp_path / "style.safetensors")
    with pytest.raises(WeightsError, match=words) as caught:
        load(pipeline, lora=tmp_path / "style.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.safetensors", "style.bin", "empty"])
def test_no_lora_is_one_clear_line(pipeline, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "style.bin").write_bytes(pickle.dumps({"x": Run()}))
    with pytest.raises(WeightsError, match=f"no LoRA at .*{name}: give its .safetensors file"):
        load(pipeline, lora=tmp_path / name)


# The model


def test_what_is_cut_from_a_long_prompt_is_told(pipeline):
    model = load(pipeline)
    with pytest.warns(UserWarning, match=r"longer than 77 tokens; not seen: .*the pool of the house'"):
        model.encode_prompts(["a house " * 60 + "the pool of the house"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_prompts(["a house", "", "two houses"])


def test_a_tokenizer_that_was_not_told_its_length_takes_the_encoders(folder, wanted):
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "model_max_length"}))
    assert load(folder).tokenizer.model_max_length > 10**9
    torch.testing.assert_close(answers(load(folder)), wanted)


def test_a_prompt_that_occurs_twice_is_read_once(pipeline, monkeypatch):
    model, read = load(pipeline), []
    forward = model.text.forward
    monkeypatch.setattr(model.text, "forward", lambda ids, *_, **__: (read.append(len(ids)), forward(ids))[1])
    context = model.encode_prompts(["a house", "a street", "a house", ""])
    assert read == [3] and torch.equal(context[0], context[2]) and not torch.equal(context[0], context[1])


def test_pictures_go_to_latents_and_back_as_in_diffusers(pipeline):
    model, vae = load(pipeline), diffusers.AutoencoderKL.from_pretrained(pipeline / "vae")
    images = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = vae.encode(2 * images - 1).latent_dist
        torch.testing.assert_close(model.encode(images), posterior.mean * vae.config.scaling_factor, rtol=0, atol=1e-5)
        drawn = posterior.sample(torch.Generator().manual_seed(1)) * vae.config.scaling_factor
        ours = model.encode(images, torch.Generator().manual_seed(1))
        torch.testing.assert_close(ours, drawn, rtol=0, atol=1e-5)
        back = (vae.decode(drawn / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(model.decode(ours), back, rtol=0, atol=1e-5)
    assert model.latent_shape(32, 24) == tuple(ours.shape[1:]) and model.size == 32 and model.factor == 2


def test_a_level_for_each_picture_is_the_same_as_one_by_one(pipeline):
    model, noise = load(pipeline), torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    context, sigmas = model.encode_prompts(["a house"] * 3), torch.tensor([0.1, 1.0, 9.0])
    together = model.denoise(noise, sigmas, context)
    for i in range(3):
        alone = model.denoise(noise[i : i + 1], sigmas[i], context[:1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_diffusers_opens_what_is_saved_and_draws_the_same(pipeline, tmp_path):
    saved = load(pipeline).save(tmp_path / "again")
    images = []
    for folder in (pipeline, saved):
        peer = diffusers.StableDiffusionPipeline.from_pretrained(folder)
        peer.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(peer("a house", num_inference_steps=3, generator=generator, output_type="pt").images)
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-5)


def test_a_model_without_an_autoencoder_denoises_pixels(pipeline, tmp_path):
    model = load(pipeline)
    config = {**dict(model.unet.config), "in_channels": 3, "out_channels": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel.from_config(config)
    pixels = TextToImage(unet=unet, vae=None, text=model.text, tokenizer=model.tokenizer, schedule=model.schedule)
    again = load(pixels.save(tmp_path / "pixels"))
    images = torch.rand(1, 3, 16, 16)
    assert again.vae is None and again.size == 16 and again.latent_shape(16, 8) == (3, 16, 8)
    torch.testing.assert_close(again.decode(again.encode(images)), images, rtol=0, atol=1e-6)


def test_a_folder_that_cannot_be_written_is_said_and_what_was_there_stays(pipeline, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NegahError, match="cannot write"):
        load(pipeline).save(tmp_path / "file" / "model")
    assert not list(tmp_path.glob("*.part"))


def test_a_mistyped_path_beside_models_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "model_index.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"no model at mine/modle: mine/ holds mine/model \(for"):
        load("mine/modle")
