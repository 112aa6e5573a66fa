"""LoRA: changes of low rank to a model's layers, from a file, added to its weights.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.

    W += alpha / rank B A          (alpha / sqrt(rank) where the file asks for it)

Files are in the names of diffusers, peft or kohya.  Merging is done here, because diffusers leaves out in silence what
has no place in the networks, makes up what is missing, and wants a certain release of peft for text encoders.  Training
is in `dreambooth`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from negah.diffusion.model import TextToImage
from negah.errors import WeightsError
from negah.weights.files import one_line, read_file, read_json

EMBEDDINGS = "learned_embeds.safetensors"  # of new words, beside a LoRA
# Of layers that a LoRA changes, as kohya, diffusers and peft name them.
LORA = re.compile(
    r"(?P<part>lora_unet_|lora_te_|unet\.|text_encoder\.|base_model\.model\.)(?P<layer>.+?)\."
    r"(?:alpha|(?:lora_|lora\.|lora_linear_layer\.)(?P<half>A|B|down|up)(?:\.default)?\.weight)"
)


@torch.no_grad()
def merge(model: TextToImage, lora: Path) -> None:
    """Add a LoRA, a file or the folder of one, to the weights, and the words of an embeddings file beside it to the
    vocabulary.

    Raises WeightsError for what is not whole, not finite, or has no place in this model.
    """
    files = sorted(lora.glob("*lora*.safetensors")) if lora.is_dir() else [lora]
    if len(files) != 1 or not files[0].is_file() or files[0].suffix != ".safetensors":
        raise WeightsError(f"no LoRA at {lora}: give its .safetensors file")
    tensors, about = _read_lora(files[0])
    if (files[0].parent / EMBEDDINGS).is_file():
        _learn_words(model, files[0].parent / EMBEDDINGS)
    # kohya's names have no dots, and releases of transformers differ in whether names begin with text_model.
    nets = {"unet": model.unet, "text_encoder": model.text}
    layers = {(part, flat(name)): layer for part, net in nets.items() for name, layer in net.named_modules()}
    for (part, place), halves in tensors.items():
        down, up = halves.get("A"), halves.get("B")
        if down is None or up is None:
            raise WeightsError(f"the LoRA {files[0]} has only a half of {part} {place}: it is not whole")
        weight = getattr(layers.get((part, flat(place))), "weight", None)
        if weight is None or up.shape[1] != len(down) or weight.shape != (len(up), *down.shape[1:]):
            raise WeightsError(f"the LoRA {files[0]} does not fit this model, which has no {part} {place} of its shape")
        pattern: dict[str, float] = about.get(f"{part}.alpha_pattern") or {}
        alpha = next((value for key, value in pattern.items() if re.fullmatch(rf"(.*\.)?{key}", place)),
                     about.get(f"{part}.lora_alpha", len(down)))  # fmt: skip
        rank = len(down) ** 0.5 if about.get(f"{part}.use_rslora") else len(down)
        change = float(halves.get("alpha", alpha)) / rank * (up.float().flatten(1) @ down.float().flatten(1))
        weight += change.view(weight.shape).to(weight)


def _read_lora(file: Path) -> tuple[dict[tuple[str, str], dict[str, Tensor]], dict[str, Any]]:
    """A file's tensors as {(part, layer): {"A": [rank, in], "B": [out, rank], "alpha": []}}, "alpha" only of kohya's;
    and what peft's config says, "unet.lora_alpha" and others."""
    content, _ = read_file(file)
    check_values({name: value for name, value in content.items() if value.ndim}, str(file))
    tensors: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, value in content.items():
        if not (match := LORA.fullmatch(name)):
            raise WeightsError(f"{file} holds {name}, which is of no LoRA of Stable Diffusion 1.x or 2.x")
        part = "text_encoder" if match["part"] in ("lora_te_", "text_encoder.") else "unet"
        half = {"down": "A", "up": "B"}.get(match["half"] or "alpha", match["half"] or "alpha")
        tensors.setdefault((part, match["layer"]), {})[half] = value
    with safe_open(str(file), framework="pt") as opened:
        about = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    if (config := file.parent / "adapter_config.json").is_file():
        about = {f"unet.{name}": value for name, value in read_json(config).items()}
    return tensors, about


def flat(name: str) -> str:
    return name.replace(".", "_").removeprefix("text_model_")


def _learn_words(model: TextToImage, file: Path) -> None:
    """Words and their embeddings, as textual inversion keeps them."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    parts: Any = {"unet": model.unet, "vae": model.vae, "text_encoder": model.text, "tokenizer": model.tokenizer}
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)  # unused; other values would be warned of
    pipeline = StableDiffusionPipeline(
        **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False  # pyright: ignore
    )  # fmt: skip
    try:
        with torch.random.fork_rng(devices=[]):  # new rows are drawn before they are filled
            pipeline.load_textual_inversion(str(file))
    except Exception as error:  # whatever the libraries' parsers meet
        raise WeightsError(f"the words in {file} do not fit this model: {one_line(error)}") from error


def check_values(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raises WeightsError that names the first tensor which is not floating or not finite."""
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise WeightsError(f"{origin}: {name} is {value.dtype}, not floating: quantised files cannot be read")
        if not value.isfinite().all():
            raise WeightsError(f"{origin}: {name} holds values that are not finite: the file is broken")
