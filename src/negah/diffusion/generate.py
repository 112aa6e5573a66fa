"""From prompts and seeds to pictures: text to image, image to image, inpainting.

The contract of seeds: the picture of (seed, prompt) depends on neither the size of the batch nor its place in it.  All
random numbers of a picture come from a generator of its own, on the CPU: first the noise that it begins with, then, of
stochastic samplers, the fresh noise of each step.

Image to image (Meng et al. 2022, arXiv:2108.01073) begins at a level below the highest, from the picture's latents
with that much noise.  Inpainting tells the sampler what it knows: outside of the mask the expected clean picture is the
given one, whatever the network says, so that part follows its own noise down to itself, with every sampler.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from negah.diffusion.guidance import APG, classifier_free
from negah.diffusion.model import TextToImage
from negah.diffusion.sample import SAMPLERS, Denoiser, Prediction, SamplerName, check_finite
from negah.diffusion.schedule import Spacing
from negah.errors import InputError
from negah.nn.heap import give_back

Guide = Callable[[Denoiser, Sequence[int]], Denoiser]
Each = Callable[[int, int, Tensor], None]
MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


def generate(
    model: TextToImage, prompts: Sequence[str], seeds: Sequence[int], *,
    sampler: SamplerName = "dpmpp-2m", steps: int = 20, spacing: Spacing | None = None,
    scale: float | Float[Tensor, " n"] = 6.0, negative: str = "", interval: tuple[float, float] | None = None,
    rescale: float = 0.0, plus_plus: bool = False, apg: APG | None = None, guides: Sequence[Guide] = (),
    height: int | None = None, width: int | None = None, start: Float[Tensor, "n 3 h w"] | None = None,
    strength: float = 0.75, mask: Float[Tensor, "n_masks 1 rows columns"] | None = None, batch: int = 4,
    each: Each = lambda done, total, clean: None,
) -> Float[Tensor, "n 3 h w"]:  # fmt: skip
    """A picture in [0, 1], on the CPU, for each prompt and its seed.

    Args:
        scale, interval, rescale, plus_plus, apg: of classifier-free guidance, see `guidance.classifier_free`; at scale
            1 the words are followed as they are.
        negative: what is guided away from, in the place of no words.
        guides: further guidance, each called with a denoiser and the numbers of a batch's pictures.
        height, width: in pixels; by default those of `start`, else the model's.
        start: pictures in [0, 1] to begin with; strength: share of the steps that change them, 1 keeping
            next to nothing.
        mask: where `start` may change (1), and where it stays as it is (0).
        batch: pictures at a time.
        each: called behind each step with how many were done, how many there are over all batches, and the predicted
            clean latents of the batch.

    Raises InputError for arguments that do not go together, and where memory does not suffice; NegahError, with the
    step, where latents are not finite.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise InputError(f"{len(prompts)} prompts and {len(seeds)} seeds: give as many of each, at least one")
    if sampler not in SAMPLERS:
        raise InputError(f"no sampler {sampler!r}: there are {', '.join(SAMPLERS)}")
    if not 0 < strength <= 1:
        raise InputError(f"strength {strength}: give a share of the steps above 0, at most 1")
    if mask is not None and start is None:
        raise InputError("a mask says where a picture may change: give the picture to begin with as well")
    if start is not None:
        height, width = start.shape[-2:]
        shapes = [(len(prompts), height, width), *([] if mask is None else [(len(mask), *mask.shape[-2:])])]
        if any(shape != (len(start), height, width) for shape in shapes):
            raise InputError("give a picture to begin with, and a mask of its size if any, for each prompt")
    shape = model.latent_shape(*(model.size if side is None else side for side in (height, width)))
    sigmas = model.schedule.levels(steps, spacing, sampler=sampler)
    first = 0 if start is None else min(steps - 1, steps - int(steps * strength))
    sigmas, done = sigmas[first:], 0
    total = (len(sigmas) - 1) * -(-len(prompts) // batch)
    with enough_memory():
        contexts = model.encode_prompts([*prompts, negative])  # all at once: what repeats is read once
        pictures = []
        for numbers in torch.arange(len(prompts)).split(batch):
            generators = [torch.Generator().manual_seed(seeds[int(i)]) for i in numbers]

            def fresh(generators: Sequence[torch.Generator] = generators) -> Tensor:
                drawn = [torch.randn(shape, generator=generator) for generator in generators]
                return torch.stack(drawn).to(model.device)

            x, denoise = fresh(), _guided(model, contexts[numbers], contexts[-1:], scale, numbers, interval=interval,
                                          rescale=rescale, plus_plus=plus_plus, apg=apg)  # fmt: skip
            for guide in guides:
                denoise = guide(denoise, numbers.tolist())
            if start is None:
                x = model.schedule.start(sigmas[0], spacing, sampler=sampler) * x
            else:
                known = _latents(model, start[numbers])
                x = known + float(sigmas[0]) * x
                if mask is not None:
                    denoise = _inpainted(denoise, known, _reduced(mask[numbers], known))

            sums = []

            def told(step: int, x: Tensor, clean: Tensor, sums: list[Tensor] = sums) -> None:
                nonlocal done
                sums.append(x.flatten(1).sum(1, keepdim=True))  # not finite where x is not
                if x.device.type == "cpu" or step == len(sigmas) - 2:  # elsewhere a look waits for the device
                    for k, summed in enumerate(sums):
                        check_finite(summed, first + k, steps, sigmas[k])
                done += 1
                each(done, total, clean)

            x = SAMPLERS[sampler](denoise, x, sigmas, noise=fresh, each=told)
            give_back()  # the decoder's numbers are too large for what the denoiser has left free
            pictures += [_picture(model, latent[None], float(sigmas[-1])) for latent in x]
        images = torch.cat(pictures)
    if mask is not None and start is not None:
        images = mask * images + (1 - mask) * start  # to the pixel, which no autoencoder does
    return images


@torch.no_grad()
def _picture(model: TextToImage, latent: Tensor, sigma: float) -> Tensor:
    """Decoded by itself: the decoder needs more memory than all else.  x at a last sigma above 0 is scaled as the
    variance-preserving samplers leave it."""
    return model.decode(latent / (1 + sigma**2) ** 0.5).cpu()


@torch.no_grad()
def _latents(model: TextToImage, images: Tensor) -> Tensor:
    return torch.cat([model.encode(image[None]) for image in images])


def _guided(
    model: TextToImage, context: Tensor, without: Tensor, scale: float | Tensor, numbers: Tensor, **how: Any
) -> Denoiser:  # fmt: skip
    s = scale[numbers].to(model.device) if isinstance(scale, Tensor) and scale.ndim else scale
    return classifier_free(model.denoise, context, without, scale=s, **how)


def _reduced(mask: Float[Tensor, "n 1 h w"], latents: Tensor) -> Tensor:
    """At the latents' size: one is to change where any of its pixels is."""
    factor = mask.shape[-1] // latents.shape[-1]
    return F.max_pool2d(mask, factor).to(latents)


def _inpainted(denoise: Denoiser, known: Tensor, mask: Tensor) -> Denoiser:
    """A denoiser that knows the clean picture where the mask is 0."""

    def told(x: Tensor, sigma: Tensor) -> Tensor | Prediction:
        said = denoise(x, sigma)
        if isinstance(said, Prediction):
            return Prediction(*(mask * part + (1 - mask) * known for part in said))
        return mask * said + (1 - mask) * known

    return told


@contextmanager
def enough_memory():
    """Turns what torch says where memory is not enough into one line of advice."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in MEMORY):
            raise InputError("out of memory: take smaller batches, smaller pictures, or bf16") from error
        raise
