"""`load`: from a folder, a file or a name to a `TextToImage`, strictly.

    load("negah/imagine-tiny")                        bundled
    load("sd15/"), load("owner/stable-diffusion")     a folder as diffusers writes it, here or on the hub
    load("v1-5-pruned.safetensors")                   one file as Stable Diffusion 1.x was published
    load("sd15/", lora="style.safetensors")           with a LoRA merged in (diffusers', peft's or kohya's names)

Known are Stable Diffusion 1.x and 2.x.  A safety checker in the folder is not loaded.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from negah.diffusion.lora import check_values, merge
from negah.diffusion.model import PARTS, TextToImage, hush
from negah.diffusion.schedule import Schedule
from negah.errors import WeightsError
from negah.weights.files import BUNDLED, HUB_NAME, folder_of, held_by, one_line, read_file, read_json

CLIP_VOCABULARY = "openai/clip-vit-large-patch14"  # of Stable Diffusion 1.x; single files do not hold one
WEIGHTS = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
INDEX = ".index.json"  # of weights in several files
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
STARTS = {
    "denoiser": "model.diffusion_model.", "autoencoder": "first_stage_model.", "text encoder": "cond_stage_model.",
}  # fmt: skip
# Stable Diffusion 1.x, in diffusers' words.
UNET_1 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}  # fmt: skip
VAE_1 = {
    "sample_size": 512, "latent_channels": 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}  # fmt: skip
TEXT_1 = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
          "num_attention_heads": 12, "max_position_embeddings": 77, "projection_dim": 768}  # fmt: skip


def load(
    name_or_path: str | Path, *, lora: str | Path | None = None, vocabulary: str | Path | None = None,
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
) -> TextToImage:  # fmt: skip
    """A model in eval mode, its convolutions laid out as they are fastest.

    Args:
        name_or_path: see above.
        lora: file, or folder with one, to be merged in; a learned_embeds.safetensors beside it adds its words.
        vocabulary: folder with CLIP's tokenizer for a single file; by default the hub's.
        dtype: that the networks compute in.

    Raises WeightsError for parts or tensors that are missing, unknown, misshapen, not floating or not finite, and for
    another kind of model; InputError where diffusers and transformers are not installed.
    """
    hush()
    path = found(name_or_path)
    model = of_folder(path, dtype=dtype) if path.is_dir() else of_file(path, vocabulary=vocabulary, dtype=dtype)
    if lora is not None:
        merge(model, Path(lora))
    return model.eval().requires_grad_(False).to(device)


def found(name_or_path: str | Path) -> Path:
    """Where it lies; what is on the hub is fetched."""
    text, path = str(name_or_path), Path(name_or_path)
    if path.exists():
        return path
    if text.startswith("negah/"):
        if not (BUNDLED / text.removeprefix("negah/") / "model_index.json").is_file():
            raise WeightsError(f"{text} is not in this install: negah/imagine-tiny is")
        return BUNDLED / text.removeprefix("negah/")
    if (match := HUB_NAME.fullmatch(text)) and path.suffix not in (".safetensors", ".ckpt", ".pt"):
        if match[2] is None and path.parent.is_dir():  # a path that was mistyped
            raise WeightsError(f"no model at {text}: {held_by(path.parent)} (for {text} of the hub: {text}@main)")
        return _fetched(match[1], match[2])
    raise WeightsError(f"no model at {text}: give a folder as diffusers writes it, a file, or negah/imagine-tiny")


def _fetched(repository: str, revision: str | None) -> Path:
    """The folder of a repository of the hub: what is read of it is fetched, or was before where there is no network."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        wanted = chosen(HfApi().list_repo_files(repository, revision=revision))
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # of the hub, of requests, of the disk
        try:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:
            raise WeightsError(f"{repository} cannot be fetched: {one_line(error)}") from error


def chosen(names: Sequence[str]) -> list[str]:
    """Of a repository's files those that `of_folder` reads: of weights, which many hold in several forms, one."""
    found = [name for name in names if name == "model_index.json"]
    for part in PARTS:
        mine = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        whole = next((name for name in WEIGHTS if name in mine), None)
        indices = sorted(name for name in mine if name.endswith(INDEX))
        kept = [name for name in mine if name.endswith((".json", ".txt")) and name not in indices]
        if whole:
            kept.append(whole)
        elif indices:
            stem, form = indices[0].removesuffix(INDEX).rsplit(".", 1)
            kept += [indices[0], *(name for name in mine if name.startswith(f"{stem}-") and name.endswith(f".{form}"))]
        found += [f"{part}/{name}" for name in kept]
    return found


def of_folder(folder: Path, *, dtype: torch.dtype) -> TextToImage:
    """From a folder as diffusers writes it."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    index = folder / "model_index.json"
    if not index.is_file():
        raise WeightsError(f"{folder} has no model_index.json: give a folder as diffusers writes it")
    content = read_json(index)
    if not str(content.get("_class_name", "")).startswith("StableDiffusion") or "text_encoder_2" in content:
        raise WeightsError(f"{folder} holds a {content.get('_class_name')}: Stable Diffusion 1.x and 2.x are known")
    latent = content.get("vae", [None])[0] is not None
    lacking = [part for part in PARTS if not (folder / part).is_dir() and (latent or part != "vae")]
    if lacking:
        raise WeightsError(f"{folder} has no {', '.join(lacking)}: a model has the parts {', '.join(PARTS)}")
    unet = _network(UNet2DConditionModel, read_json(folder / "unet" / "config.json"), _tensors(folder / "unet"),
                    str(folder / "unet"), dtype)  # fmt: skip
    vae = None
    if latent:
        tensors = {_renamed(name): value for name, value in _tensors(folder / "vae").items()}
        vae = _network(AutoencoderKL, read_json(folder / "vae" / "config.json"), tensors, str(folder / "vae"), dtype)
    text = _text(read_json(folder / "text_encoder" / "config.json"), _tensors(folder / "text_encoder"),
                 str(folder / "text_encoder"), dtype)  # fmt: skip
    tokenizer = _tokenizer(folder / "tokenizer")
    schedule = Schedule.of_config(read_json(folder / "scheduler" / "scheduler_config.json"))
    return _checked(TextToImage(unet=unet, vae=vae, text=text, tokenizer=tokenizer, schedule=schedule), str(folder))


def of_file(path: Path, *, vocabulary: str | Path | None, dtype: torch.dtype) -> TextToImage:
    """From one file of Stable Diffusion 1.x."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    content, _ = read_file(path)
    state = content.get("state_dict", content)
    if any(name.startswith("cond_stage_model.model.") for name in state):
        raise WeightsError(
            f"{path} holds Stable Diffusion 2.x, which one file does not tell enough of: give its folder"
        )
    words = {n.removeprefix("cond_stage_model.transformer."): v for n, v in state.items() if "cond_stage_model" in n}
    for part, start in STARTS.items():
        if not any(name.startswith(start) for name in state):
            raise WeightsError(f"{path} has no {part} ({start}*): give a whole Stable Diffusion 1.x checkpoint")
    try:
        of_unet = convert_ldm_unet_checkpoint(dict(state), {**UNET_1, "class_embed_type": None})
        of_vae = convert_ldm_vae_checkpoint(dict(state), VAE_1)
    except KeyError as error:
        raise WeightsError(
            f"{path} has no {error.args[0]}: it is not a whole Stable Diffusion 1.x checkpoint"
        ) from error
    unet = _network(UNet2DConditionModel, UNET_1, of_unet, str(path), dtype)
    vae = _network(AutoencoderKL, VAE_1, {_renamed(n): v for n, v in of_vae.items()}, str(path), dtype)
    text = _text(TEXT_1, words, str(path), dtype)
    try:
        tokenizer = _tokenizer(vocabulary or CLIP_VOCABULARY)
    except WeightsError as error:
        raise WeightsError(
            f"{path} holds no vocabulary: give --vocabulary, a folder with CLIP's vocab.json and merges.txt ({error})"
        ) from error
    return _checked(
        TextToImage(unet=unet, vae=vae, text=text, tokenizer=tokenizer, schedule=Schedule.scaled_linear()), str(path)
    )


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Of a part of a model: one file, or the shards that an index lists."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read_file(folder / name)[0]
    if indices := sorted(folder.glob(f"*{INDEX}")):
        shards = sorted(set(read_json(indices[0]).get("weight_map", {}).values()))
        return {name: value for shard in shards for name, value in read_file(folder / shard)[0].items()}
    raise WeightsError(f"{folder} has no weights: there should be a {WEIGHTS[0]} or {WEIGHTS[1]}")


def _renamed(name: str) -> str:
    """Of an autoencoder's attention as older files have it."""
    return re.sub(r"(attentions\.\d+\.)(query|key|value|proj_attn)\.", lambda m: f"{m[1]}{OLD_ATTENTION[m[2]]}.", name)


def _network(kind: Any, config: Mapping[str, Any], tensors: dict[str, Tensor], origin: str, dtype: torch.dtype) -> Any:
    """A network of diffusers with these weights, without drawing others first."""
    try:
        with torch.device("meta"):
            net = kind.from_config(dict(config))
    except Exception as error:  # whatever a config may hold
        raise WeightsError(f"{origin} describes a network that cannot be built: {one_line(error)}") from error
    return _filled(net, tensors, origin, dtype)


def _text(config: Mapping[str, Any], tensors: dict[str, Tensor], origin: str, dtype: torch.dtype) -> Any:
    """The text encoder; releases of transformers differ in whether its names begin with text_model."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):  # it has buffers, which would be empty on the meta device
        net = CLIPTextModel(CLIPTextConfig(**dict(config)))
    start = "text_model." if any(name.startswith("text_model.") for name in net.state_dict()) else ""
    named = {start + name.removeprefix("text_model."): v for name, v in tensors.items() if "position_ids" not in name}
    return _filled(net, named, origin, dtype)


def _tokenizer(place: str | Path) -> Any:
    """CLIP's, from a folder or the hub.  Where files are missing transformers makes one of no words, in silence."""
    from transformers import CLIPTokenizer

    two = ("vocab.json", "merges.txt")
    folder = Path(place) if Path(place).is_dir() else folder_of(str(place), two)
    if folder is None:
        raise WeightsError(f"the vocabulary {place} cannot be fetched")
    if not (folder / "tokenizer.json").is_file():
        for name in two:
            if not (folder / name).is_file():
                raise WeightsError(f"the vocabulary in {folder} has no {name}")
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever its parser meets
        raise WeightsError(f"the vocabulary in {folder} cannot be read: {one_line(error)}") from error


def _filled(net: nn.Module, tensors: dict[str, Tensor], origin: str, dtype: torch.dtype) -> nn.Module:
    wanted = net.state_dict()
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    misshapen = [n for n in wanted if n in tensors and wanted[n].shape != tensors[n].shape]
    for names, what in ((missing, "lacks"), (unknown, "has unknown"), (misshapen, "has misshapen")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise WeightsError(f"{origin} {what} {', '.join(names[:3])}{more}: it is not whole, or of another model")
    check_values(tensors, origin)
    # Copied, since a tensor that lies in a mapped file keeps all of the file in memory.
    copies = {name: value.to(dtype, copy=True, memory_format=_layout(value)) for name, value in tensors.items()}
    net.load_state_dict(copies, assign=True)
    return net.to(dtype)


def _layout(value: Tensor) -> torch.memory_format:
    """In which convolutions are fastest."""
    return torch.channels_last if value.ndim == 4 else torch.contiguous_format


def _checked(model: TextToImage, origin: str) -> TextToImage:
    """Raises WeightsError where the parts do not fit each other, or the denoiser takes more than noisy latents."""
    unet: Any = model.unet.config
    latent = 3 if model.vae is None else dict(model.vae.config)["latent_channels"]
    if unet.in_channels != latent or unet.out_channels != latent:
        raise WeightsError(
            f"{origin}: the denoiser takes {unet.in_channels} channels and latents have {latent}; networks made for"
            " inpainting or depth are not known, ordinary ones inpaint with --mask"
        )
    table: Any = model.text.get_input_embeddings()
    if len(model.tokenizer) > len(table.weight):
        raise WeightsError(
            f"{origin}: the vocabulary has more words than the text encoder: they are of different models"
        )
    if unet.cross_attention_dim != dict(model.text.config.to_dict())["hidden_size"]:
        raise WeightsError(f"{origin}: the denoiser and the text encoder are of different models")
    if unet.get("addition_embed_type") or unet.get("class_embed_type"):
        raise WeightsError(f"{origin}: the denoiser wants more than words: Stable Diffusion 1.x and 2.x are known")
    return model
