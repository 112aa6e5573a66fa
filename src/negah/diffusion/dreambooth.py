"""DreamBooth: a few pictures of one thing, and a word for it, so that the model can draw that thing anywhere.

Ruiz et al. 2022, "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation",
arXiv:2208.12242.  With z latents of an instance's picture and z' of a picture that the model itself had drawn of the
class before it was trained, each noised by its own t and epsilon, z_t = sqrt(abar_t) z + sqrt(1 - abar_t) epsilon,

    loss = w_t  |f(z_t, t, "a [new] house") - target|^2                                            instance
         + prior_weight * w_t' |f(z'_t', t', "a house") - target'|^2                               prior preservation

where the target is epsilon, or v = sqrt(abar) epsilon - sqrt(1 - abar) z.  w is 1, or that of Min-SNR (Hang et al.
2023, arXiv:2303.09556), see `diffusion.denoising`.

What rules out that every house becomes this house: the second half, on pictures from before.  How it can still fail:
too many steps (the report of `negah dreambooth` says at which to stop), and too few pictures, whose background is
then learned with the thing.

Traps.  Each half has its own timesteps, and Min-SNR weights must be those of the half (public trainers weigh both by
the first half's, or chunk the loss and forget to chunk the weights).  Weight decay on the table of words would shrink
all of them for the sake of one, so of the table only a new word's row is trained, as a parameter of its own.  A file
listing has no order: pictures are sorted, or a seed would mean another run on another disk.

Departures: latents are the means of the autoencoder's distribution, computed once; the paper's model works on pixels.
Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) by peft on the attention's q, k, v and output projections.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah.diffusion.denoising import noised as mixed
from negah.diffusion.denoising import snr_weight, target
from negah.diffusion.identifier import Identifier, table_of
from negah.diffusion.lora import EMBEDDINGS
from negah.diffusion.model import TextToImage
from negah.errors import InputError, install
from negah.train.objective import Groups, Objective, decay_matrices_only
from negah.weights.save import write_tensors

Method = Literal["lora", "full"]
LORA = "pytorch_lora_weights.safetensors"  # as diffusers calls it
UNET_LAYERS, TEXT_LAYERS = ("to_q", "to_k", "to_v", "to_out.0"), ("q_proj", "k_proj", "v_proj", "out_proj")
TOKEN_LR = 5e-4  # of a new word's row: what textual inversion (arXiv:2208.01618) takes for one


def default_lr(method: Method, *, train_text: bool) -> float:
    """What is customary: 1e-4 for a LoRA, 5e-6 for the whole UNet, 2e-6 together with the text encoder."""
    return 1e-4 if method == "lora" else 2e-6 if train_text else 5e-6


class Noised(NamedTuple):
    """Latents, and how much of which noise they get."""

    latents: Float[Tensor, "n c h w"]
    timesteps: Int[Tensor, " n"]
    noise: Float[Tensor, "n c h w"]


class Halves(NamedTuple):
    """A batch; prior is None without prior preservation."""

    instance: Noised
    prior: Noised | None


class Draw:
    """`collate` of a `train.Batches` over the numbers of the instance's pictures: draws all that is random in a batch.

    It comes from the batch's own generator, so that batch k is the same in a run that was stopped and continued.

    Args:
        instance, prior: latents of all pictures; prior None for no prior preservation.
        timesteps: of the model, usually 1000.
    """

    def __init__(
        self, instance: Float[Tensor, "n c h w"], prior: Float[Tensor, "m c h w"] | None, *, timesteps: int
    ):  # fmt: skip
        self.instance, self.prior, self.timesteps = instance, prior, timesteps

    def __call__(self, items: Sequence[int], generator: torch.Generator) -> Halves:
        own = self.instance[list(items)]
        if self.prior is None:
            return Halves(self._noised(own, generator), None)
        others = self.prior[torch.randint(len(self.prior), (len(own),), generator=generator)]
        return Halves(self._noised(own, generator), self._noised(others, generator))

    def _noised(self, latents: Tensor, generator: torch.Generator) -> Noised:
        timesteps = torch.randint(self.timesteps, (len(latents),), generator=generator)
        return Noised(latents, timesteps, torch.randn(latents.shape, generator=generator))


class DreamBooth(Objective):
    """Objective on `Halves`.  The model is trained in place; only what is trained is in the objective's state.

    Args:
        identifier: the word of the instance, see `diffusion.identifier`; a new one's row is trained too.
        method: "lora" adds adapters of `rank` to the model (alpha = rank), "full" trains all of the UNet.
        train_text: train the text encoder likewise.
        prior_weight: lambda above.
        min_snr: g above, or None for weights of 1.
        lr: that `fit` is given, so that a new word's row can have TOKEN_LR.
        seed: of the adapters' first weights; the global generator is left alone.

    Raises InputError for a model that has adapters already, or without peft.
    """

    alphas: Tensor

    def __init__(
        self, model: TextToImage, identifier: Identifier, *, method: Method = "lora", rank: int = 4,
        train_text: bool = False, prior_weight: float = 1.0, min_snr: float | None = None, lr: float = 1e-4,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is no part of this module: a LoRA's checkpoint stays small
        self.identifier, self.method, self.train_text = identifier, method, train_text
        self.prior_weight, self.min_snr, self.lr = prior_weight, min_snr, lr
        model.requires_grad_(False)
        nets = {"unet": (model.unet, UNET_LAYERS)} | ({"text": (model.text, TEXT_LAYERS)} if train_text else {})
        for net, layers in nets.values():
            if method == "lora":
                _adapt(net, layers, rank, seed)
            else:
                net.requires_grad_(True)
        table = table_of(model)
        table.requires_grad_(False)
        named = {
            f"{part}/{name.replace('.', '/')}": parameter
            for part, (net, _) in nets.items()
            for name, parameter in net.named_parameters()
            if parameter.requires_grad
        }
        self.trained = nn.ParameterDict(named)
        self.row: nn.Parameter | None = None
        if identifier.new:
            self.row = nn.Parameter(table.weight[identifier.number].detach().clone())
            # A function and not the method, with which a copy of the text encoder would copy all of this.
            table.register_forward_hook(lambda *seen: self._with_row(seen[1][0], seen[2]))
        alphas = model.schedule.alphas_cumprod.float()
        self.register_buffer("alphas", alphas.to(next(model.unet.parameters()).device), persistent=False)
        self.ids = model.ids([identifier.prompt, identifier.class_prompt])
        self._contexts: Tensor | None = None  # while the text encoder and its words stay as they are

    @property
    def model(self) -> TextToImage:
        """The model that is trained."""
        return self._model[0]

    def forward(self, batch: Halves) -> dict[str, Tensor]:
        halves = [half for half in batch if half is not None]
        sizes = [len(half.latents) for half in halves]
        contexts = self.contexts(len(halves)).repeat_interleave(torch.tensor(sizes, device=self.alphas.device), 0)
        errors = self.errors(Noised(*map(torch.cat, zip(*halves))), contexts).split(sizes)
        means = dict(zip(("instance", "prior"), (error.mean() for error in errors)))
        loss = means["instance"] + self.prior_weight * means["prior"] if "prior" in means else means["instance"]
        return {"loss": loss, **means}

    def errors(self, noised: Noised, contexts: Float[Tensor, "n token dim"]) -> Float[Tensor, " n"]:
        """Weighted squared error of each sample, the mean over its values."""
        z, t, noise = noised
        abar, prediction = self.alphas[t].view(-1, 1, 1, 1), self.model.prediction
        said = self.model.unet(mixed(z, noise, abar), t, encoder_hidden_states=contexts).sample.float()
        errors = (said - target(z, noise, abar, prediction)).square().mean((1, 2, 3))
        return errors if self.min_snr is None else errors * snr_weight(self.alphas[t], self.min_snr, prediction)

    def contexts(self, count: int) -> Float[Tensor, "count token dim"]:
        """Of the instance's prompt, and of the class's."""
        if self.train_text or self.row is not None:
            return self._encoded(count)
        if self._contexts is None:
            with torch.no_grad():
                self._contexts = self._encoded(2)
        return self._contexts[:count]

    def _encoded(self, count: int) -> Tensor:
        return self.model.text(self.ids[:count].to(self.alphas.device)).last_hidden_state

    def _with_row(self, ids: Int[Tensor, "n token"], out: Float[Tensor, "n token dim"]) -> Float[Tensor, "n token dim"]:
        """The table's answer, with the row in training in its place."""
        assert self.row is not None
        return torch.where((ids == self.identifier.number)[..., None], self.row.to(out.dtype), out)

    def param_groups(self) -> Groups:
        groups = decay_matrices_only(self.trained)
        if self.row is None:
            return groups
        return [*groups, {"params": [self.row], "weight_decay": 0.0, "lr_scale": TOKEN_LR / self.lr}]

    @torch.no_grad()
    def held_out(
        self, latents: Float[Tensor, "n c h w"], *, levels: int = 8, repeats: int = 2, seed: int = 0
    ) -> float:  # fmt: skip
        """Mean squared error under the instance's prompt at `levels` fixed timesteps and fixed noise, unweighted.

        Each picture meets each timestep `repeats` times, each time with other noise.  With numbers that never change,
        checkpoints can be compared; a training loss jumps about with what was drawn.
        """
        generator = torch.Generator().manual_seed(seed)
        steps = ((torch.arange(levels) + 0.5) / levels * len(self.alphas)).long().repeat(repeats)
        weights, self.min_snr = self.min_snr, None
        try:
            found = []
            for latent in latents.cpu():
                z = latent.expand(len(steps), -1, -1, -1)
                noised = Noised(z, steps, torch.randn(z.shape, generator=generator))
                on = Noised(*(x.to(self.alphas.device) for x in noised))
                found.append(self.errors(on, self.contexts(1).expand(len(steps), -1, -1)).mean())
        finally:
            self.min_snr = weights
        return float(torch.stack(found).mean())

    @torch.no_grad()
    def settle(self) -> None:
        """Put the trained row into the model's table, which is what is saved, and what others read."""
        if self.row is not None:
            table_of(self.model).weight[self.identifier.number] = self.row


def save_lora(objective: DreamBooth, folder: Path) -> list[Path]:
    """LORA that `StableDiffusionPipeline.load_lora_weights` reads, and a new word's embedding as EMBEDDINGS, which
    `load_textual_inversion` reads.

    Raises OutputError when they cannot be written.
    """
    from peft import get_peft_model_state_dict

    objective.settle()
    tensors = {f"unet.{name}": value for name, value in get_peft_model_state_dict(objective.model.unet).items()}
    if objective.train_text:  # some releases of transformers leave out the text_model. that LoRA files are written with
        for name, value in get_peft_model_state_dict(objective.model.text).items():
            tensors[f"text_encoder.text_model.{name.removeprefix('text_model.')}"] = value
    write_tensors(_kept(tensors), folder / LORA, {"format": "pt"})
    written = [folder / LORA]
    if objective.row is not None:
        write_tensors(_kept({objective.identifier.token: objective.row}), folder / EMBEDDINGS, {"format": "pt"})
        written.append(folder / EMBEDDINGS)
    return written


def _adapt(net: Any, layers: Sequence[str], rank: int, seed: int) -> None:
    """Add adapters that change nothing yet: A is drawn, B is 0."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(f"a LoRA needs the extra: {install('diffusion')}") from error
    if getattr(net, "peft_config", None):
        raise InputError("the model has adapters already: merge them first, or load it without --lora")
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, net)  # not `net.add_adapter`, for which transformers may want another peft


def _kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
