"""Stable Diffusion's parts in one module: what reads the words, what denoises, what turns latents into pictures.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752.

    context = text(tokens)                           last hidden state behind the final norm, [tokens, dim]
    latents = scale mean(vae.encode(2 image - 1))    of unit variance; without an autoencoder 2 image - 1 itself
    x_0     = x - sigma unet(x / sqrt(1 + sigma^2), t, context)                       of a network that tells epsilon
            = x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) unet(...)                 of one that tells v

The networks are classes of diffusers and transformers, so every checkpoint of theirs fits; `denoise` is what samplers
and guidance see of them.  x stays in float32 also where the networks compute in bf16.
Trap: latents are multiplied by the scale behind the encoder and divided by it before the decoder.
"""

import shutil
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah.diffusion.schedule import PredictionType, Schedule
from negah.errors import InputError, OutputError, install
from negah.nn import packed
from negah.weights.save import write_json

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


class TextToImage(nn.Module):
    """A text-to-image model.

    Args:
        unet, vae, text, tokenizer: of diffusers and transformers; vae None for one that denoises pixels.
        schedule: noise levels, and what the unet tells.
    """

    def __init__(
        self, *, unet: "UNet2DConditionModel", vae: "AutoencoderKL | None", text: "CLIPTextModel",
        tokenizer: "CLIPTokenizer", schedule: Schedule,
    ):  # fmt: skip
        super().__init__()
        self.unet, self.vae, self.text = unet, vae, text
        self.tokenizer, self.schedule, self.packed = tokenizer, schedule, False

    @property
    def prediction(self) -> PredictionType:
        """What the unet tells."""
        return self.schedule.prediction

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That the networks compute in."""
        return next(self.unet.parameters()).dtype

    @property
    def factor(self) -> int:
        """Pixels a side of a latent."""
        return 1 if self.vae is None else 2 ** (len(_config(self.vae)["block_out_channels"]) - 1)

    @property
    def size(self) -> int:
        """Side of the pictures that the model was made for, in pixels."""
        side = _config(self.unet)["sample_size"] or 64
        return (side if isinstance(side, int) else side[0]) * self.factor

    @property
    def length(self) -> int:
        """Most tokens of a prompt, with its start and end; tokenizers that were not told it say 10^30."""
        return min(self.tokenizer.model_max_length, dict(self.text.config.to_dict())["max_position_embeddings"])

    def pack(self) -> "TextToImage":
        """For nothing but drawing on a CPU, faster there: see `negah.nn.packed`; elsewhere nothing happens.

        It can then be neither trained nor saved, and no gradient passes it, which `guidance.universal` needs.
        """
        if self.device.type == "cpu" and not self.packed and packed.available():
            self.packed = True
            packed.pack_layers(self.unet)
            if self.vae is not None:
                packed.pack_layers(self.vae)
                for layer in self.vae.modules():  # each behind a norm whose result nobody else sees; the largest maps
                    if isinstance(layer, nn.SiLU):
                        layer.inplace = True
        return self

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[channels, h, w] of a picture of this many pixels.  Raises InputError where it does not fit the grid."""
        step = self.factor * 2 ** (len(_config(self.unet)["block_out_channels"]) - 1)
        if height < step or width < step or height % step or width % step:
            raise InputError(f"{width} x {height} px: sides of this model's pictures are multiples of {step} px")
        return _config(self.unet)["in_channels"], height // self.factor, width // self.factor

    def ids(self, prompts: Sequence[str]) -> Int[Tensor, "n length"]:
        """Token numbers of each, on the CPU, cut or filled up to `length`."""
        how: dict[str, Any] = {"padding": "max_length", "max_length": self.length, "truncation": True}
        return torch.tensor(self.tokenizer(list(prompts), **how)["input_ids"])

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "n tokens dim"]:
        """The context of each; a prompt that occurs twice is read once.

        Warns of what is cut from a prompt with more tokens than the text encoder takes (77 of Stable Diffusion).
        """
        different = list(dict.fromkeys(prompts))
        length = self.length
        for prompt in different:
            ids = self.tokenizer(prompt, truncation=False)["input_ids"]
            if len(ids) > length:
                lost = str(self.tokenizer.decode(ids[length - 1 : -1])).strip()
                warnings.warn(f"a prompt is longer than {length} tokens; not seen: {lost!r}", stacklevel=2)
        context = self.text(self.ids(different).to(self.device)).last_hidden_state
        return context[[different.index(prompt) for prompt in prompts]]

    def denoise(
        self, x: Float[Tensor, "batch c h w"], sigma: Float[Tensor, "*batch"],
        context: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch c h w"]:  # fmt: skip
        """x_0 above; sigma is one number, or one for each of the batch."""
        t = self.schedule.timestep(sigma)
        if sigma.ndim:
            t, s = t.to(x.device), sigma.to(x).view(-1, 1, 1, 1)
        else:  # numbers reach a GPU without waiting for it; tensors do not
            t, s = torch.full((len(x),), float(t), device=x.device), float(sigma)
        root = (1 + s**2) ** 0.5
        # Laid out as the convolutions of `load` are; else each would turn it around.
        scaled = (x / root).to(self.dtype, memory_format=torch.channels_last)
        told = self.unet(scaled, t, context.to(self.dtype), return_dict=False)[0].to(x.dtype)
        if self.prediction == "epsilon":
            return x - s * told
        return x / root**2 - s / root * told

    def encode(
        self, images: Float[Tensor, "n 3 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "n c rows columns"]:
        """Scaled latents of pictures in [0, 1]: the mean of their distribution, or with a generator a draw from it."""
        return encoded(self.vae, images.to(self.device, self.dtype), generator)

    def decode(self, latents: Float[Tensor, "n c rows columns"]) -> Float[Tensor, "n 3 h w"]:
        """Pictures in [0, 1]."""
        return decoded(self.vae, latents)

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """A folder that `load` and diffusers' StableDiffusionPipeline open; it replaces one of that name when whole.

        Raises OutputError when it cannot be written, ValueError for a packed model.
        """
        hush()
        if self.packed:
            raise ValueError("a packed model cannot be saved: load it again without packing")
        part = folder.with_name(f"{folder.name}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            nets: dict[str, Any] = {"unet": self.unet, "vae": self.vae, "text_encoder": self.text}
            for name, net in nets.items():
                if net is not None:
                    deepcopy(net).cpu().to(dtype).save_pretrained(str(part / name))
            self.tokenizer.save_pretrained(str(part / "tokenizer"))
            words: Any = self.tokenizer
            words.backend_tokenizer.model.save(str(part / "tokenizer"))  # vocab.json and merges.txt, for older releases
            scheduler = {"_class_name": "DDIMScheduler", **self.schedule.config()}
            write_json(scheduler, part / "scheduler" / "scheduler_config.json")
            write_json({
                "_class_name": "StableDiffusionPipeline",
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"] if self.vae is not None else [None, None],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "scheduler": ["diffusers", "DDIMScheduler"],
                "safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False,
            }, part / "model_index.json")  # fmt: skip
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise OutputError(
                f"cannot write {folder}: {error.strerror or error}; free some space or choose another"
            ) from error
        return folder


def encoded(
    vae: "AutoencoderKL | None", images: Float[Tensor, "n 3 h w"], generator: torch.Generator | None = None
) -> Float[Tensor, "n c rows columns"]:
    """Scaled latents of pictures in [0, 1], see `TextToImage.encode`; without an autoencoder pictures in [-1, 1]."""
    if vae is None:
        return (2 * images - 1).float()
    latents: Any = vae.encode(2 * images - 1)
    mean, spread = latents.latent_dist.mean.float(), latents.latent_dist.std.float()
    if generator is not None:
        mean = mean + spread * torch.randn(mean.shape, generator=generator).to(mean)
    return mean * _config(vae)["scaling_factor"]


def decoded(vae: "AutoencoderKL | None", latents: Float[Tensor, "n c rows columns"]) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [0, 1] of what `encoded` gives."""
    if vae is None:
        return (latents / 2 + 0.5).clamp(0, 1)
    scaled = (latents / _config(vae)["scaling_factor"]).to(vae.dtype, memory_format=torch.channels_last)
    told: Any = vae.decode(scaled)
    return (told.sample.float() / 2 + 0.5).clamp(0, 1)


def hush() -> None:
    """Keep diffusers and transformers from warning of, and drawing bars for, what is no concern of the user's.

    Raises InputError where they are not installed.
    """
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise InputError(f"text-to-image models need the extra: {install('diffusion')}") from error
    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity(logging.CRITICAL)  # what fails is raised as well
        logging.disable_progress_bar()


def _config(net: nn.Module) -> Any:
    """Of a module of diffusers, as a mapping."""
    return net.config
