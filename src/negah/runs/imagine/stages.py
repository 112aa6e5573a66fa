"""The stages of a text-to-image model: an autoencoder, a denoiser of its latents, a classifier that sees through noise.

Each is a run of `train.fit` with a folder of its own, so each goes on where it was when it is called again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim import AdamW

from negah.diffusion.autoencoder import Autoencoding
from negah.diffusion.classifier import Classifying, NoisyClassifier
from negah.diffusion.denoising import Denoising
from negah.diffusion.model import encoded
from negah.diffusion.schedule import Schedule
from negah.images.views import View, views
from negah.language.captions import Captions
from negah.language.tokens import Tokenizer
from negah.progress import Progress, silent
from negah.train import Batches, FitResult, fit
from negah.train.objective import Objective

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

AT_A_TIME = 64  # pictures that are encoded at once


@dataclass(frozen=True)
class Seen:
    """For `Batches(collate=...)`: views of the pictures of `Captions`, without their words."""

    view: View

    def __call__(
        self, items: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator
    ) -> Float[Tensor, "batch 3 side side"]:
        return views(torch.stack([image for image, _ in items]), [self.view], generator=generator)[0]


@dataclass(frozen=True)
class Latents:
    """Views of each picture in the space that is denoised, `copies` of each, made once; and what is said of it.

    images: [copy, picture, c, h, w].
    """

    images: Float[Tensor, "copy picture c h w"]
    said: Sequence[Int[Tensor, " _"]]
    names: list[str]

    @classmethod
    @torch.no_grad()
    def of(
        cls, vae: "AutoencoderKL | None", captions: Captions, view: View, *, copies: int, seed: int,
        progress: Progress = silent,
    ) -> "Latents":  # fmt: skip
        """Encoded where the autoencoder is, kept on the CPU; without one pictures in [-1, 1]."""
        where = torch.device("cpu") if vae is None else vae.device
        generator, rows = torch.Generator().manual_seed(seed), []
        for copy in range(copies):
            parts = []
            for numbers in torch.arange(len(captions)).split(AT_A_TIME):
                images = torch.stack([captions.images[int(i)] for i in numbers])
                parts.append(encoded(vae, views(images, [view], generator=generator)[0].to(where)).cpu())
                progress("encoding", copy * len(captions) + int(numbers[-1]) + 1, copies * len(captions))
            rows.append(torch.cat(parts))
        return cls(torch.stack(rows), captions.said, list(captions.names))

    def of_those(self, chosen: Bool[Tensor, " picture"]) -> "Latents":
        """Only some of the pictures."""
        numbers = chosen.nonzero().flatten().tolist()
        said, names = [self.said[i] for i in numbers], [self.names[i] for i in numbers]
        return Latents(self.images[:, chosen], said, names)

    def __len__(self) -> int:
        return len(self.said)

    def __getitem__(self, index: int) -> int:
        return range(len(self))[index]

    def drawn(self, items: Sequence[int], generator: torch.Generator) -> Float[Tensor, "batch c h w"]:
        """One of the views of each."""
        copies = torch.randint(len(self.images), (len(items),), generator=generator)
        return self.images[copies, torch.tensor(items)]

    def with_words(self, ids: Int[Tensor, "text tokens"]) -> Callable[..., tuple[Tensor, Tensor]]:
        """For `Batches(collate=...)`: views and the tokens of one text of each."""

        def collate(items: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
            drawn = torch.rand(len(items), generator=generator).tolist()
            number = [int(its[int(share * len(its))]) for share, its in zip(drawn, (self.said[i] for i in items))]
            return self.drawn(items, generator), ids[number]

        return collate

    def with_labels(self, labels: Int[Tensor, " picture"]) -> Callable[..., tuple[Tensor, Tensor]]:
        """For `Batches(collate=...)`: views and the label of each."""
        return lambda items, generator: (self.drawn(items, generator), labels[torch.tensor(items)])


def new_autoencoder(
    *, size: int, widths: Sequence[int] = (24, 48, 96), channels: int = 4, seed: int = 0
) -> "AutoencoderKL":  # fmt: skip
    """An untrained one that makes pictures smaller by half with each width but the first."""
    from diffusers import AutoencoderKL

    with seeded(seed):
        levels: dict[str, Any] = {
            "block_out_channels": tuple(widths), "down_block_types": ("DownEncoderBlock2D",) * len(widths),
            "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        }  # fmt: skip
        return AutoencoderKL(
            sample_size=size, latent_channels=channels, layers_per_block=1, norm_num_groups=8,
            mid_block_add_attention=False, **levels,
        )  # fmt: skip


def new_networks(
    *, side: int, channels: int, tokens: int, length: int, end: int, widths: Sequence[int] = (64, 128),
    layers: int = 1, dim: int = 128, depth: int = 3, seed: int = 0,
) -> tuple["UNet2DConditionModel", "CLIPTextModel"]:  # fmt: skip
    """An untrained denoiser of [channels, side, side] that looks at words below its finest level, and what reads them.

    tokens: how many there are.  length: most of a text.  end: number of the one behind it.  dim, depth: of the text
    transformer.
    """
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    under = len(widths) - 1
    with seeded(seed):
        unet = UNet2DConditionModel(
            sample_size=side, in_channels=channels, out_channels=channels, block_out_channels=tuple(widths),
            layers_per_block=layers, cross_attention_dim=dim, attention_head_dim=4, norm_num_groups=16,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * under),
            up_block_types=(*("CrossAttnUpBlock2D",) * under, "UpBlock2D"),
        )  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=tokens, hidden_size=dim, intermediate_size=4 * dim, num_hidden_layers=depth,
            num_attention_heads=dim // 32, max_position_embeddings=length, bos_token_id=0, eos_token_id=end,
            pad_token_id=end,
        ))  # fmt: skip
    return unet, text


def tokenizer_of(texts: Sequence[str], folder: Path, *, vocabulary: int, length: int) -> "CLIPTokenizer":
    """A vocabulary of byte pairs of these texts, in CLIP's files in `folder`."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    Tokenizer.train(texts, vocabulary=vocabulary, length=length).pairs.model.save(str(folder))
    files: dict[str, Any] = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    return CLIPTokenizer(**files, model_max_length=length)


def autoencoder(vae: "AutoencoderKL", captions: Captions, *, size: int, seed: int, **how: Any) -> FitResult:
    """Trained in place on crops of the pictures; `how` goes to `fit`."""
    view = View(size, scale=(0.25, 1.0), flip=0.5, turns=True)
    vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    batches = Batches(captions, 16, seed=seed, collate=Seen(view))
    return fit(Autoencoding(vae), batches, lr=1e-3, warmup=50, clip=1.0, seed=seed, **how)


def denoiser(
    objective: Denoising, latents: Latents, ids: Int[Tensor, "text tokens"], *, batch: int, seed: int, **how: Any
) -> FitResult:
    """Trained in place; `how` goes to `fit`."""
    objective.networks["unet"].to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    batches = Batches(latents, batch, seed=seed, collate=latents.with_words(ids))
    return _learn(objective, batches, weight_decay=0.01, seed=seed, **how)


def classifier(
    net: NoisyClassifier, schedule: Schedule, latents: Latents, labels: Int[Tensor, " picture"], *, batch: int,
    seed: int, **how: Any,
) -> FitResult:  # fmt: skip
    """Trained in place; `how` goes to `fit`."""
    batches = Batches(latents, batch, seed=seed, collate=latents.with_labels(labels))
    return _learn(Classifying(net, schedule), batches, lr=1e-3, weight_decay=0.05, seed=seed, **how)


def _learn(objective: Objective, batches: Batches, *, steps: int, **how: Any) -> FitResult:
    adam = partial(AdamW, betas=(0.9, 0.99))
    return fit(objective, batches, optimizer=adam, steps=steps, warmup=min(200, steps // 10), clip=1.0, **how)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fresh weights of networks that draw them from torch's global generator, which is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
