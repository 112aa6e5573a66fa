"""`negah generate`: pictures from words, from a picture, or into a hole in one.

Each picture is written as soon as it is made, with all that made it in its file (`made_with` reads it back), so a run
that is stopped keeps what it had.  The same words, seed and options give the same picture whatever is made beside it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, PngImagePlugin
from torch import Tensor

from negah import __version__
from negah.diffusion.classifier import NoisyClassifier
from negah.diffusion.generate import Guide, enough_memory, generate
from negah.diffusion.guidance import APG, classifier, universal
from negah.diffusion.load import found, load
from negah.diffusion.model import TextToImage
from negah.diffusion.sample import SamplerName
from negah.diffusion.schedule import Spacing
from negah.errors import InputError, WeightsError
from negah.images.pool import Drawn, Pool, opened
from negah.probe.detector import load as load_detector
from negah.progress import Progress, silent
from negah.runs import DESCRIBER, IMAGINER
from negah.runs.record import compute_device, hardware, now, versions, writable
from negah.runs.search import described_by
from negah.weights.save import write, write_json

KEY = "negah"  # of the text in a PNG
SKETCH = 16  # side of the latents that a preview is decoded from
LEFT_OUT = ("seed", "count", "batch", "grid", "preview")  # options that do not make a picture, or are told apart
PROJECTED = {"norm": 15.0, "momentum": -0.5}  # of APG beside --apg, as its paper has them for Stable Diffusion XL


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to generate; see `diffusion.generate` and `diffusion.guidance`.

    guidance: scale of classifier-free guidance.  interval: (lo, hi] of sigma in which it acts.  apg: projected guidance
    with this share of the parallel part left.  label, label_scale: class that the model's noise-aware classifier pulls
    to.  towards, towards_scale: words that `describer` is to find in the predicted picture.  panels: scale of the pull
    of the bundled detector's logit.  size: height and width in pixels.  start, strength, mask: see there.  preview:
    steps between previews, 0 for none.
    """

    sampler: SamplerName = "dpmpp-2m"
    steps: int = 20
    spacing: Spacing | None = None
    guidance: float = 6.0
    negative: str = ""
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    plus_plus: bool = False
    apg: float | None = None
    label: str | None = None
    label_scale: float = 1.0
    towards: str | None = None
    towards_scale: float = 20.0
    describer: str = DESCRIBER
    panels: float = 0.0
    size: tuple[int, int] | None = None
    start: str | None = None
    strength: float = 0.75
    mask: str | None = None
    count: int = 1
    seed: int = 0
    batch: int = 4
    precision: Literal["fp32", "bf16"] = "fp32"
    grid: bool = False
    preview: int = 0

    def check(self) -> None:
        """Raises InputError that names the first option which nothing can be made with."""
        for name in ("steps", "count", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: give 1 or more")
        if self.preview < 0:
            raise InputError(f"--preview {self.preview}: give a number of steps, or 0 for none")
        if not 0 <= self.seed < 2**63 - self.count:
            raise InputError(f"--seed {self.seed}: give a number from 0 to 2^63 - 1")
        if not 0 <= self.rescale <= 1:
            raise InputError(f"--rescale {self.rescale}: give a share from 0 to 1")
        if self.interval and not 0 <= self.interval[0] < self.interval[1]:
            raise InputError(f"--interval {self.interval[0]} {self.interval[1]}: give two sigmas, the lower one first")
        if self.plus_plus and (self.apg is not None or not 0 <= self.guidance <= 1):
            raise InputError("--plus-plus wants --guidance from 0 to 1, such as 0.6, and no --apg")


@dataclass(frozen=True)
class Result:
    """pictures: (file, prompt, seed).  grid: a file with all of them."""

    pictures: list[tuple[str, str, int]]
    grid: str | None = None


def imagine(
    prompts: Sequence[str], out: Path, *, model: str = IMAGINER, lora: Path | None = None,
    vocabulary: Path | None = None, options: Options = Options(),
    progress: Progress = silent,
) -> Result:  # fmt: skip
    """`options.count` pictures of each prompt, of consecutive seeds, as PNG files in `out`, with run.json.

    Raises InputError for what cannot be drawn from, WeightsError for a model, OutputError where `out` cannot be
    written, NegahError, with the step, where latents are not finite.
    """
    options.check()
    writable(out)
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise InputError('give words to draw, such as "a house with a red roof"')
    record: dict[str, Any] = {
        "negah": __version__, "verb": "generate", "started": now(),
        "arguments": {"prompts": list(prompts), "model": model, "lora": lora and str(lora), **asdict(options)},
    }  # fmt: skip
    device = compute_device()
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    with enough_memory():
        drawer = load(model, lora=lora, vocabulary=vocabulary, dtype=dtype, device=device)
    start = mask = None
    if options.start:
        start, mask = begun(options, drawer)
    elif options.mask:
        raise InputError("--mask says where a picture may change: give it as --start")
    jobs = [(prompt, options.seed + k) for prompt in prompts for k in range(options.count)]
    guides = guides_of(options, drawer, model, device)
    if options.towards is None and not options.panels:  # these take gradients through the denoiser
        drawer.pack()
    height, width = options.size or (None, None)
    pictures, made, batches = [], [], -(-len(jobs) // options.batch)
    for number in range(batches):
        some = jobs[number * options.batch : (number + 1) * options.batch]

        def each(done: int, total: int, clean: Tensor, number: int = number) -> None:
            progress("steps", number * total + done, batches * total)
            if options.preview and done % options.preview == 0:
                save_picture(sketch(drawer, clean), out / "preview.png", {})

        images = generate(
            drawer, [prompt for prompt, _ in some], [seed for _, seed in some], sampler=options.sampler,
            steps=options.steps, spacing=options.spacing, scale=options.guidance, negative=options.negative,
            interval=options.interval, rescale=options.rescale, plus_plus=options.plus_plus,
            apg=None if options.apg is None else APG(eta=options.apg, **PROJECTED), guides=guides,
            height=height, width=width, start=None if start is None else start.expand(len(some), -1, -1, -1),
            strength=options.strength, mask=None if mask is None else mask.expand(len(some), -1, -1, -1),
            batch=options.batch, each=each,
        )  # fmt: skip
        for (prompt, seed), image in zip(some, images):
            path = out / f"{prompts.index(prompt):03d}-{seed:06d}.png"
            about = {"negah": __version__, "prompt": prompt, "seed": seed, "model": model, "lora": lora and str(lora)}
            save_picture(image, path, {**about, **{k: v for k, v in asdict(options).items() if k not in LEFT_OUT}})
            pictures.append((str(path), prompt, seed))
            made.append(image)
    grid = None
    if options.grid:
        grid = str(out / "grid.png")
        save_picture(sheet(torch.stack(made), options.count), Path(grid), {"prompts": list(prompts)})
    ran_on = {"versions": versions(), "hardware": hardware(device), "finished": now()}
    write_json({**record, **ran_on, "pictures": [list(row) for row in pictures]}, out / "run.json")
    return Result(pictures, grid)


def guides_of(options: Options, drawer: TextToImage, model: str, device: torch.device) -> list[Guide]:
    """Guidance beside that of the words."""
    guides: list[Guide] = []
    if options.label is not None:
        folder = found(model) / "classifier"
        if not folder.is_dir():
            raise WeightsError(f"{model} has no classifier/: `negah pretrain diffusion --labels COLUMN` makes one")
        net = NoisyClassifier.load(folder).to(device)
        if options.label not in net.classes:
            raise InputError(f"--label {options.label!r}: the classifier knows {', '.join(net.classes)}")
        label = torch.tensor([net.classes.index(options.label)], device=device)
        guides.append(lambda denoise, numbers: classifier(
            denoise, lambda x, sigma: net.log_prob(x, sigma, label.expand(len(x))), options.label_scale
        ))  # fmt: skip
    if options.towards is not None:
        like = likeness(options.describer, options.towards, device)
        score = lambda clean: like(drawer.decode(clean))  # noqa: E731
        guides.append(lambda denoise, numbers: universal(denoise, score, options.towards_scale))
    if options.panels:
        detector = load_detector("negah/aerial-tiny", device=device).requires_grad_(False)
        side = detector.info.window_px

        def panels(clean: Tensor) -> Tensor:
            return detector(sized(drawer.decode(clean), side)).logit

        guides.append(lambda denoise, numbers: universal(denoise, panels, options.panels))
    return guides


def likeness(describer: str, words: str, device: torch.device) -> Callable[[Float[Tensor, "n 3 h w"]], Tensor]:
    """Cosine of pictures in [0, 1] with words, by a CLIP or a CoCa.  Raises WeightsError for another model."""
    model, tokens = described_by(describer, None)
    model = model.to(device).requires_grad_(False)
    with torch.no_grad():
        text = model.texts(tokens([words]).to(device))[0]
    return lambda images: model.images(sized(images, model.size)) @ text


def sized(images: Float[Tensor, "n 3 h w"], side: int) -> Float[Tensor, "n 3 side side"]:
    """Resampled, with gradients."""
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def begun(options: Options, drawer: TextToImage) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"] | None]:
    """The picture to begin with, as a square of the model's size or as large as asked, and the mask.

    Raises InputError where one cannot be read, or the mask has another shape or nothing in it.
    """
    height, width = options.size or (drawer.size, drawer.size)
    if height != width:
        raise InputError("--start is cut to its middle square: give --size two equal numbers")
    assert options.start is not None
    start, (long, high) = square("start", options.start, height)
    if options.mask is None:
        return start, None
    mask, (mask_long, mask_high) = square("mask", options.mask, height)
    if abs(mask_long * high - mask_high * long) > max(mask_long, mask_high, long, high):  # a pixel, for rounding
        raise InputError(
            f"--mask {options.mask} is {mask_long} x {mask_high} px and --start {long} x {high}: give a mask of the"
            " same proportions"
        )
    mask = (mask.mean(1, keepdim=True) > 0.5).float()
    if not mask.any():
        raise InputError(f"--mask {options.mask} is black all over: paint white where the picture may change")
    return start, mask


def square(option: str, path: str, side: int) -> tuple[Float[Tensor, "1 3 side side"], tuple[int, int]]:
    """The middle of the one picture at a path, in [0, 1], and how wide and high the whole of it is."""
    pool = Pool([path], side, cut="none")
    if len(pool) != 1:
        raise InputError(f"--{option} {path}: one picture is needed, these are {len(pool)}")
    tile = pool.tiles[0]
    if isinstance(tile, Drawn):  # a scene, which has no size of its own
        return pool[0].float()[None] / 255, (side, side)
    raster = opened(tile.source)
    return pool[0].float()[None] / 255, (raster.width, raster.height)


@torch.no_grad()
def sketch(drawer: TextToImage, clean: Float[Tensor, "n c h w"]) -> Float[Tensor, "3 H W"]:
    """What the pictures of a batch come to, side by side; large ones are decoded from smaller latents."""
    step = max(1, clean.shape[-1] // SKETCH)
    images = torch.cat([drawer.decode(F.avg_pool2d(latent[None], step)) for latent in clean])
    return torch.cat(list(images), 2).cpu()


def sheet(images: Float[Tensor, "n 3 h w"], columns: int) -> Float[Tensor, "3 H W"]:
    """Pictures in rows of so many; where there is one a row, as square as possible."""
    columns = columns if columns > 1 else max(1, round(len(images) ** 0.5))
    missing = -len(images) % columns
    images = torch.cat([images, torch.ones(missing, *images.shape[1:])])
    return torch.cat([torch.cat(list(row), 2) for row in images.split(columns)], 1)


def save_picture(image: Float[Tensor, "3 h w"], path: Path, about: dict[str, Any]) -> None:
    """As an 8-bit PNG with `about` in it.  Raises OutputError when it cannot be written."""
    pixels = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    told = PngImagePlugin.PngInfo()
    told.add_itxt(KEY, json.dumps(about))
    write(path, lambda part: Image.fromarray(np.ascontiguousarray(pixels)).save(part, "PNG", pnginfo=told))


def made_with(path: Path) -> dict[str, Any]:
    """What `save_picture` wrote down.  Raises InputError for a file that is not there or has no such text."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return json.loads(getattr(picture, "text", {})[KEY])
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there: give a PNG of `negah generate`") from error
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} does not tell how it was made: it is no PNG of `negah generate`") from error
