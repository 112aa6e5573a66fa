"""From files to a model: every name that a checkpoint may have, and one line for whatever it must not be."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from negah.diffusion import load as module
from negah.diffusion.generate import generate
from negah.diffusion.load import load
from negah.errors import InputError, WeightsError

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(pipeline, tmp_path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(pipeline, tmp_path / "model"))


def same(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def change(path: Path, **entries) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | entries), "utf-8")


# Folders


def test_weights_are_those_of_diffusers_in_eval_mode_and_need_no_gradients(pipeline):
    model, peer = load(pipeline), StableDiffusionPipeline.from_pretrained(pipeline)
    assert same(model.unet, peer.unet) and same(model.vae, peer.vae) and same(model.text, peer.text_encoder)
    assert not any(part.training for part in model.modules())
    assert not any(value.requires_grad for value in model.parameters())
    assert model.prediction == "epsilon" and len(model.schedule) == 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_in_half_precision_are_computed_in_what_is_asked_for(pipeline, tmp_path, dtype):
    peer = StableDiffusionPipeline.from_pretrained(pipeline, dtype=torch.float16)
    peer.save_pretrained(tmp_path / "half", variant="fp16")
    assert (tmp_path / "half" / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    half = load(tmp_path / "half", dtype=dtype)
    assert {value.dtype for value in half.parameters()} == {dtype}
    whole = load(pipeline)
    weight = whole.unet.conv_in.weight
    assert torch.equal(half.unet.conv_in.weight, weight.half().to(dtype)) and not torch.equal(weight.half(), weight)
    assert generate(half, ["a house"], [0], steps=2).isfinite().all()


def test_weights_in_torchs_format_and_in_shards_are_the_same(pipeline, folder):
    tensors = load_file(folder / UNET)
    (folder / UNET).unlink()
    torch.save(tensors, folder / "unet" / "diffusion_pytorch_model.bin")
    assert same(load(folder), load(pipeline))

    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    names = sorted(tensors)
    placed = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(placed.values()):
        save_file({name: tensors[name] for name in names if placed[name] == part}, folder / "unet" / part)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": placed}), "utf-8")
    assert same(load(folder), load(pipeline))


@pytest.mark.parametrize("start", ["text_model.", ""])
def test_text_encoders_of_all_releases_of_transformers_are_read(pipeline, folder, start):
    tensors = {f"{start}{n.removeprefix('text_model.')}": v for n, v in load_file(folder / TEXT).items()}
    save_file({**tensors, f"{start}embeddings.position_ids": torch.arange(77)[None]}, folder / TEXT)
    assert same(load(folder), load(pipeline))


def test_autoencoders_with_the_old_names_of_attention_are_read(pipeline, folder):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(folder / VAE)
    for new, before in old.items():
        tensors = {name.replace(f".{new}.", f".{before}."): value for name, value in tensors.items()}
    assert sum("proj_attn" in name for name in tensors) == 4
    save_file(tensors, folder / VAE)
    assert same(load(folder), load(pipeline))


def test_a_vocabulary_of_two_plain_files_is_as_long_as_the_text_encoder(pipeline, folder):
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    load(pipeline).tokenizer._tokenizer.model.save(str(folder / "tokenizer"))
    assert sorted(path.name for path in (folder / "tokenizer").iterdir()) == ["merges.txt", "vocab.json"]
    model, whole = load(folder), load(pipeline)
    assert torch.equal(model.encode_prompts(["a red roof"]), whole.encode_prompts(["a red roof"]))
    again = load(model.save(folder.parent / "saved"))  # and says so to others
    assert again.tokenizer.model_max_length == 77


def test_names_that_lead_nowhere_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    for name, said in (
        (tmp_path / "none.safetensors", "no model at .*none.safetensors: give a folder"),
        ("negah/nothing", "negah/nothing is not in this install"),
        (tmp_path / "empty", "has no model_index.json"),
    ):
        with pytest.raises(WeightsError, match=said):
            load(name)


def test_a_name_on_the_hub_is_fetched_without_what_is_not_needed(pipeline, monkeypatch):
    import huggingface_hub

    asked = {}

    def fetched(repository, **how):
        asked.update(how, repository=repository)
        return str(pipeline)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert same(load("owner/diffusion@main"), load(pipeline))
    assert asked["repository"] == "owner/diffusion" and asked["revision"] == "main"
    assert "unet/*" in asked["allow_patterns"] and "safety_checker/*" not in asked["allow_patterns"]

    def gone(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gone)
    with pytest.raises(WeightsError, match="owner/diffusion cannot be fetched: offline"):
        load("owner/diffusion")


def test_without_the_extra_it_is_named(pipeline, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(InputError, match=re.escape("pip install 'negah[diffusion]'")):
        load(pipeline)


# Folders that cannot be used


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(WeightsError, match=f"has no {part}: a model has the parts"):
        load(folder)


@pytest.mark.parametrize("path", [UNET, VAE, TEXT])
def test_tensors_that_are_missing_unknown_misshapen_or_broken_are_named(folder, path):
    whole = load_file(folder / path)
    name = sorted(name for name, value in whole.items() if value.ndim == 1)[0]
    part = path.split("/")[0]
    for tensors, said in (
        ({n: v for n, v in whole.items() if n != name}, "lacks .*"),
        ({**whole, "extra.weight": torch.zeros(1)}, "has unknown .*extra.weight"),
        ({**whole, name: whole[name][1:].clone()}, "has misshapen .*"),
        ({**whole, name: whole[name].to(torch.int8)}, ".* is torch.int8, not floating"),
        ({**whole, name: torch.full_like(whole[name], torch.nan)}, ".* not finite"),
        ({**whole, name: torch.full_like(whole[name], torch.inf)}, ".* not finite"),
    ):
        save_file(tensors, folder / path)
        with pytest.raises(WeightsError, match=f"{part}.*{said}") as caught:
            load(folder)
        named = name.removeprefix("text_model.")
        assert ("unknown" in said or named in str(caught.value)) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(folder):
    for path, said in (
        ("model_index.json", "model_index.json"), ("unet/config.json", "unet.config.json"), (UNET, "unet"),
        ("scheduler/scheduler_config.json", "scheduler_config.json"), ("tokenizer/tokenizer.json", "vocabulary in"),
    ):  # fmt: skip
        held = (folder / path).read_bytes()
        (folder / path).write_bytes(b"broken")
        with pytest.raises(WeightsError, match=said) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
        (folder / path).write_bytes(held)
    load(folder)
    (folder / UNET).unlink()
    with pytest.raises(WeightsError, match="unet has no weights"):
        load(folder)


@pytest.mark.parametrize(("part", "entries"), [
    ("unet", {"down_block_types": ["NoBlock2D", "DownBlock2D"]}), ("text_encoder", {"num_attention_heads": 3}),
])  # fmt: skip
def test_a_network_that_cannot_be_built_is_one_line(folder, part, entries):
    change(folder / part / "config.json", **entries)
    with pytest.raises(WeightsError, match=f"{part} describes a network that cannot be built"):
        load(folder)


def test_a_vocabulary_of_another_model_or_none_is_refused(folder):
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(WeightsError, match="a vocabulary of 2 tokens does not fit a text encoder of "):
        load(folder)


def test_other_kinds_of_models_are_refused(pipeline, folder, tmp_path):
    index = folder / "model_index.json"
    change(index, text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(WeightsError, match=r"Stable Diffusion 1\.x and 2\.x are known"):
        load(folder)
    shutil.copy(pipeline / "model_index.json", index)
    change(index, _class_name="FluxPipeline")
    with pytest.raises(WeightsError, match="holds a FluxPipeline"):
        load(folder)
    shutil.copy(pipeline / "model_index.json", index)

    def other(**entries) -> Path:
        config = json.loads((pipeline / "unet" / "config.json").read_text("utf-8"))
        shutil.rmtree(folder / "unet")
        UNet2DConditionModel.from_config({**config, **entries}).save_pretrained(folder / "unet")
        return folder

    with pytest.raises(WeightsError, match="takes 9 channels and latents have 4; networks made for inpainting"):
        load(other(in_channels=9))
    with pytest.raises(WeightsError, match="denoiser and the text encoder are of different models"):
        load(other(cross_attention_dim=24))
    with pytest.raises(WeightsError, match="wants more than words"):
        load(other(class_embed_type="timestep"))


# Single files


@pytest.fixture
def single(pipeline, tmp_path, monkeypatch):
    """One file of the model as Stable Diffusion 1.x was published, and the small size said in the place of its own."""
    part = lambda path: load_file(pipeline / path)  # noqa: E731
    config = lambda name: json.loads((pipeline / name / "config.json").read_text("utf-8"))  # noqa: E731
    monkeypatch.setattr(module, "UNET_1", config("unet"))
    monkeypatch.setattr(module, "VAE_1", config("vae"))
    monkeypatch.setattr(module, "TEXT_1", config("text_encoder"))
    state = {f"model.diffusion_model.{published_unet(name)}": value for name, value in part(UNET).items()}
    for name, value in part(VAE).items():
        new = f"first_stage_model.{published_vae(name)}"
        # Attention was made of 1 x 1 convolutions.
        state[new] = value[..., None, None] if ".attn_1." in new and value.ndim == 2 else value
    for name, value in part(TEXT).items():
        state[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return {**state, "betas": torch.linspace(0, 1, 1000)}


def published_unet(name: str) -> str:
    """Of a tensor of a denoiser of two levels with one layer each."""
    for new, old in {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }.items():  # fmt: skip
        name = re.sub(rf"(resnets\.\d\.){new}", rf"\g<1>{old}", name)
    for new, old in {
        r"down_blocks\.0\.resnets\.0": "input_blocks.1.0",
        r"down_blocks\.0\.downsamplers\.0\.conv": "input_blocks.2.0.op",
        r"down_blocks\.1\.resnets\.0": "input_blocks.3.0", r"down_blocks\.1\.attentions\.0": "input_blocks.3.1",
        r"up_blocks\.0\.resnets\.(\d)": r"output_blocks.\1.0", r"up_blocks\.0\.attentions\.(\d)": r"output_blocks.\1.1",
        r"up_blocks\.0\.upsamplers\.0\.conv": "output_blocks.1.2.conv",
        r"up_blocks\.1\.resnets\.0": "output_blocks.2.0", r"up_blocks\.1\.resnets\.1": "output_blocks.3.0",
        r"mid_block\.resnets\.0": "middle_block.0", r"mid_block\.attentions\.0": "middle_block.1",
        r"mid_block\.resnets\.1": "middle_block.2",
        r"time_embedding\.linear_1": "time_embed.0", r"time_embedding\.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    }.items():  # fmt: skip
        name = re.sub(f"^{new}", old, name)
    return name


def published_vae(name: str) -> str:
    """Of a tensor of an autoencoder of two levels."""
    for new, old in {
        r"down_blocks\.(\d)\.resnets\.(\d)": r"down.\1.block.\2",
        r"down_blocks\.(\d)\.downsamplers\.0": r"down.\1.downsample",
        r"up_blocks\.0\.resnets\.(\d)": r"up.1.block.\1", r"up_blocks\.1\.resnets\.(\d)": r"up.0.block.\1",
        r"up_blocks\.0\.upsamplers\.0": "up.1.upsample",
        r"mid_block\.resnets\.0": "mid.block_1", r"mid_block\.resnets\.1": "mid.block_2",
        r"mid_block\.attentions\.0": "mid.attn_1", "group_norm": "norm", r"to_([qkv])": r"\1",
        r"to_out\.0": "proj_out", "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out",
    }.items():  # fmt: skip
        name = re.sub(new, old, name)
    return name


def test_a_single_file_is_the_same_model(pipeline, single, tmp_path):
    whole, words = load(pipeline), pipeline / "tokenizer"
    save_file({name: value.contiguous() for name, value in single.items()}, tmp_path / "one.safetensors")
    model = load(tmp_path / "one.safetensors", vocabulary=words)
    assert same(model, whole)
    torch.save({"state_dict": single, "global_step": 7}, tmp_path / "one.ckpt")
    again = load(tmp_path / "one.ckpt", vocabulary=words)
    assert same(again, whole)
    made, wanted = (generate(m, ["a house"], [0], steps=3, spacing="leading") for m in (model, whole))
    torch.testing.assert_close(made, wanted)


def test_a_single_file_that_is_not_whole_is_told_what_it_lacks(pipeline, single, tmp_path):
    words, path = pipeline / "tokenizer", tmp_path / "one.safetensors"

    def without(start: str) -> dict[str, Tensor]:
        return {name: value.contiguous() for name, value in single.items() if not name.startswith(start)}

    for start, said in (
        ("model.diffusion_model.", "has no denoiser"),
        ("first_stage_model.", "has no autoencoder"),
        ("cond_stage_model.", "has no text encoder"),
        ("model.diffusion_model.input_blocks.0.0.bias", "lacks conv_in.bias"),
        ("model.diffusion_model.input_blocks.2.0.op.bias", "downsamplers.0.conv.bias"),
        ("first_stage_model.decoder.conv_in", "lacks decoder.conv_in"),
        ("cond_stage_model.transformer.text_model.final_layer_norm", "lacks .*final_layer_norm"),
    ):
        save_file(without(start), path)
        with pytest.raises(WeightsError, match=said):
            load(path, vocabulary=words)
    save_file({**without("nothing"), "cond_stage_model.model.ln_final.bias": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"holds Stable Diffusion 2\.x, .* give its folder"):
        load(path, vocabulary=words)
    save_file(without("nothing"), path)
    with pytest.raises(WeightsError, match="give --vocabulary, a folder"):
        load(path, vocabulary=tmp_path / "nowhere")


# LoRA


@pytest.fixture
def lora(pipeline, tmp_path) -> Path:
    """One for denoiser and text encoder, as diffusers' training scripts write it."""
    peer = StableDiffusionPipeline.from_pretrained(pipeline)
    layers = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for part, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "out_proj"])):
            net = getattr(peer, part)
            inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=targets), net)
            for name, value in net.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(value)
            layers[f"{part}_lora_layers"] = get_peft_model_state_dict(net)
    StableDiffusionPipeline.save_lora_weights(tmp_path / "style", **layers)
    return tmp_path / "style" / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_merged_lora_is_what_diffusers_makes_of_it(pipeline, lora, recwarn, as_folder):
    merged = load(pipeline, lora=lora.parent if as_folder else lora)
    assert not [str(warning.message) for warning in recwarn], "merging warns of what is no concern of the user's"
    ours = generate(merged, ["a red roof"], [1], sampler="ddim", steps=4, scale=3.0)
    plain = generate(load(pipeline), ["a red roof"], [1], sampler="ddim", steps=4, scale=3.0)
    assert not any("lora" in name for name in merged.state_dict())

    peer = StableDiffusionPipeline.from_pretrained(pipeline)
    peer.set_progress_bar_config(disable=True)
    peer.scheduler = DDIMScheduler.from_config(peer.scheduler.config, clip_sample=False)
    peer.load_lora_weights(lora.parent, weight_name=lora.name)
    theirs = peer(["a red roof"], num_inference_steps=4, guidance_scale=3.0, output_type="pt",
                      generator=torch.Generator().manual_seed(1)).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours - plain).abs().mean() > 0.01


def test_new_words_beside_a_lora_are_added(pipeline, lora):
    vector = torch.full((32,), 0.5)
    save_file({"<panel>": vector}, lora.parent / "learned_embeds.safetensors")
    merged = load(pipeline, lora=lora)
    place = merged.tokenizer.convert_tokens_to_ids("<panel>")
    assert place == len(merged.tokenizer) - 1 and torch.equal(merged.text.get_input_embeddings().weight[place], vector)
    assert merged.tokenizer("a <panel>")["input_ids"][2] == place
    again = load(merged.save(lora.parent / "merged"))
    context = merged.encode_prompts(["a <panel> house"])
    torch.testing.assert_close(again.encode_prompts(["a <panel> house"]), context)


def test_loras_that_do_not_fit_are_refused_in_a_line(pipeline, lora, tmp_path, capfd):
    whole = load_file(lora)
    name = sorted(whole)[0]
    for number, (tensors, said) in enumerate((
        ({"transformer.blocks.0.to_q.lora_A.weight": torch.zeros(2, 2)}, "holds no layer of this model"),
        ({**whole, name: torch.zeros(2, 99)}, "does not fit this model"),
        ({**whole, name: torch.full_like(whole[name], torch.nan)}, "does not fit this model: .*NaN"),
        ({"weight": torch.zeros(1)}, "does not fit this model"),
        ({"unet.nothing.lora_A.weight": torch.zeros(2, 2), "unet.nothing.lora_B.weight": torch.zeros(2, 2)},
         "does not fit this model"),
    )):  # fmt: skip
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        with pytest.raises(WeightsError, match=said) as caught:
            load(pipeline, lora=path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # the line is all that is said
    for place in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WeightsError, match="no LoRA at"):
            load(pipeline, lora=place)


def test_an_autoencoder_of_another_width_is_refused(folder):
    config = json.loads((folder / "vae" / "config.json").read_text("utf-8"))
    AutoencoderKL.from_config({**config, "latent_channels": 8}).save_pretrained(folder / "vae")
    with pytest.raises(WeightsError, match="takes 4 channels and latents have 8"):
        load(folder)
