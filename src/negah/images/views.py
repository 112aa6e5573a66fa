"""Random views of uint8 batches: what self-supervised methods compare, a `View` for each and a recipe for each paper.

    crops = views(images, dino(), generator=generator)          2 of [b, 3, 224, 224], 8 of [b, 3, 96, 96], in [0, 1]

A view is, in this order: random resized crop, mirroring, quarter turns, colour jitter, greying, blur, solarising.  Each
image has parameters of its own, drawn for the whole batch from one generator: the same generator and batch size give
the same views.

What crops, jitter and blur compute is what torchvision's transforms compute (tests hold them against each other).
Departures: all recipes resize by antialiased bicubic interpolation, as SimCLR, BYOL, DINO and DINOv2 do (MoCo:
bilinear); a Gaussian is cut off at
3 times the largest sigma, not at a share of the image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from negah.images.colour import blur, brighten, contrast, luminance, saturate, turn_hue

TRIES = 10  # crops that are tried before the largest one of a permitted shape is taken, as in torchvision
CHUNK = 2**18  # values that are coloured at a time on a CPU: one megabyte of float32, which stays in the cache


@dataclass(frozen=True)
class View:
    """How one random view is made of an image.

    size: side in pixels.  scale: area of the crop as a share of the image's (uniform).  ratio: its width / height
    (uniform in the logarithm).  flip: probability of mirroring left to right.  turns: turn by 0, 90, 180 or 270
    degrees; with `flip` 0.5 these are all eight ways to lay a square, as seen from above there is no up.
    jitter: probability of colour jitter; then brightness, contrast and saturation are multiplied by up to 1 +- theirs,
    and the hue moves by up to +- `hue` of the colour circle, in an order of its own for each image.
    grey, blur, solarise: probabilities.  sigma: of the Gaussian, in pixels of the view (uniform).  Solarising inverts
    what is 0.5 or brighter.

    Raises ValueError for what cannot be drawn.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    turns: bool = False
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"a view is at least 1 px large, not {self.size}")
        for name in ("scale", "ratio", "sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high, not ({low}, {high})")
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise ValueError("brightness, contrast and saturation are 0 or more, and hue lies between 0 and 0.5")


# Recipes


def simclr(size: int = 224, *, strength: float = 1.0) -> list[View]:
    """Chen et al. 2020, arXiv:2002.05709, appendix A: crop, flip, jitter of `strength`, grey, blur."""
    view = View(
        size, scale=(0.08, 1.0), jitter=0.8, brightness=0.8 * strength, contrast=0.8 * strength,
        saturation=0.8 * strength, hue=0.2 * strength, grey=0.2, blur=0.5,
    )  # fmt: skip
    return [view, view]


def simclr_cifar(size: int = 32) -> list[View]:
    """SimCLR on CIFAR-10, appendix B.9: jitter of strength 0.5, no blur."""
    return unblurred(simclr(size, strength=0.5))


def moco_v1(size: int = 224) -> list[View]:
    """He et al. 2019, arXiv:1911.05722, section 3.3, and the authors' code: crops of 0.2 or more, jitter always.

    Theirs greys before it jitters: ours after, as in all other recipes.
    """
    view = View(size, scale=(0.2, 1.0), jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, grey=0.2)
    return [view, view]


def moco_v2(size: int = 224) -> list[View]:
    """Chen et al. 2020, arXiv:2003.04297, section 3, and the authors' code: SimCLR's, milder, crops of 0.2 or more."""
    view = View(
        size, scale=(0.2, 1.0), jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2, blur=0.5
    )
    return [view, view]


def byol(size: int = 224) -> list[View]:
    """Grill et al. 2020, arXiv:2006.07733, appendix B, table 6: one view always blurred, the other at times solarised.

    MoCo v3 (Chen et al. 2021, arXiv:2104.02057) takes the same.
    """
    first = _mild(size, (0.08, 1.0), blur=1.0)
    return [first, replace(first, blur=0.1, solarise=0.2)]


def dino(global_size: int = 224, local_size: int = 96, locals: int = 8) -> list[View]:
    """Caron et al. 2021, arXiv:2104.14294, section 3.1, and the authors' code: two global views as BYOL's,
    then `locals` of small parts."""
    return _crops(global_size, local_size, locals, parting=0.4)


def dinov2(global_size: int = 224, local_size: int = 98, locals: int = 8) -> list[View]:
    """Oquab et al. 2023, arXiv:2304.07193, and the authors' configuration: DINO's, parted at 0.32 of the area."""
    return _crops(global_size, local_size, locals, parting=0.32)


def unblurred(recipe: Sequence[View]) -> list[View]:
    """A recipe without its blur, for pictures of few pixels, as SimCLR does on CIFAR-10 (appendix B.9)."""
    return [replace(view, blur=0.0) for view in recipe]


def aerial(recipe: Sequence[View], *, least: float = 0.4) -> list[View]:
    """A recipe for pictures from above: quarter turns beside mirroring, no crop below `least` of its view's largest.

    What matters there is a few pixels large: a crop of 8 % of a tile seldom holds it, and two of them hardly ever the
    same.  The number is ours, after DINO's global crops, which end at 0.4.
    """
    return [replace(v, turns=True, scale=(max(v.scale[0], least * v.scale[1]), v.scale[1])) for v in recipe]


def _mild(size: int, scale: tuple[float, float], *, blur: float) -> View:
    """BYOL's colours: less saturation than SimCLR's, and a hue that hardly moves."""
    return View(
        size, scale=scale, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, grey=0.2, blur=blur
    )


def _crops(global_size: int, local_size: int, locals: int, *, parting: float) -> list[View]:
    """`parting`: the share of the area up to which crops are local, and from which they are global."""
    first = _mild(global_size, (parting, 1.0), blur=1.0)
    second = replace(first, blur=0.1, solarise=0.2)
    return [first, second, *[_mild(local_size, (0.05, parting), blur=0.5)] * locals]


# Views


def views(
    images: UInt8[Tensor, "batch 3 h w"], recipe: Sequence[View], *, generator: torch.Generator
) -> list[Float[Tensor, "batch 3 side side"]]:
    """One batch of crops for each view of the recipe, in [0, 1], on the images' device.

    Parameters are drawn on the generator's device, so one on the CPU gives the same views wherever the images are, but
    for rounding: on a CPU crops are rounded to 8 bits before they are coloured.

    Examples:
        >>> pictures = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
        >>> crops = views(pictures, simclr_cifar(32), generator=torch.Generator().manual_seed(0))
        >>> [crop.shape for crop in crops]
        [torch.Size([2, 3, 32, 32]), torch.Size([2, 3, 32, 32])]
    """
    return [_make(images, view, draw(len(images), images.shape[-2:], view, generator=generator)) for view in recipe]


@dataclass(frozen=True)
class Views:
    """`collate` of `negah.train.Batches` for a data set of uint8 tiles, such as `Pool`: items to views of them."""

    recipe: tuple[View, ...]

    def __call__(
        self, items: Sequence[UInt8[Tensor, "3 h w"]], generator: torch.Generator
    ) -> list[Float[Tensor, "batch 3 side side"]]:
        return views(torch.stack(list(items)), self.recipe, generator=generator)


@dataclass(frozen=True)
class Draw:
    """The random numbers behind one view of a batch, on the CPU; a value per image."""

    boxes: Int[Tensor, "batch 4"]  # top, left, height, width
    flip: Bool[Tensor, " batch"]
    turns: Int[Tensor, " batch"]
    jitter: Bool[Tensor, " batch"]
    factors: Float[Tensor, "batch 4"]  # brightness, contrast, saturation, hue
    order: Int[Tensor, "batch 4"]
    grey: Bool[Tensor, " batch"]
    blur: Bool[Tensor, " batch"]
    sigma: Float[Tensor, " batch"]
    solarise: Bool[Tensor, " batch"]

    def part(self, rows: slice) -> "Draw":
        return Draw(**{name: value[rows] for name, value in vars(self).items()})


def draw(batch: int, shape: Sequence[int], view: View, *, generator: torch.Generator) -> Draw:
    """Parameters of a view for `batch` images of `shape` (height, width).

    As many numbers are taken from the generator whatever the probabilities are.
    """

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return (low + (high - low) * torch.rand(batch, *more, generator=generator, device=generator.device)).cpu()

    def chance(probability: float) -> Tensor:
        return uniform(0, 1) < probability

    boxes = _boxes(shape[0], shape[1], view, uniform(*view.scale, TRIES), uniform(0, 1, TRIES), uniform(0, 1, 2))
    flip, turns = chance(view.flip), (uniform(0, 4) * view.turns).long()
    gains = [uniform(max(0.0, 1 - s), 1 + s) for s in (view.brightness, view.contrast, view.saturation)]
    factors = torch.stack([*gains, uniform(-view.hue, view.hue)], 1)
    order = uniform(0, 1, 4).argsort(1)
    return Draw(
        boxes, flip, turns, chance(view.jitter), factors, order, chance(view.grey), chance(view.blur),
        uniform(*view.sigma), chance(view.solarise),
    )  # fmt: skip


def _boxes(
    height: int, width: int, view: View,
    areas: Float[Tensor, "batch tries"], shapes: Float[Tensor, "batch tries"], places: Float[Tensor, "batch 2"],
) -> Int[Tensor, "batch 4"]:  # fmt: skip
    """Random resized crops of a picture: the first try that lies inside, else the largest of a permitted ratio."""
    low, high = (math.log(value) for value in view.ratio)
    ratios = (low + (high - low) * shapes).exp()
    across = (height * width * areas * ratios).sqrt().round().long()
    down = (height * width * areas / ratios).sqrt().round().long()
    fits = (across > 0) & (across <= width) & (down > 0) & (down <= height)
    first = fits.int().argmax(1, keepdim=True)
    whole = min(width, round(height * view.ratio[1])), min(height, round(width / view.ratio[0]))
    none = ~fits.any(1)
    across = torch.where(none, whole[0], across.gather(1, first).squeeze(1))
    down = torch.where(none, whole[1], down.gather(1, first).squeeze(1))
    room = torch.stack([height - down, width - across], 1)
    start = torch.minimum((places * (room + 1)).long(), room)  # in half of a bit's breadth below 1, rounding reaches 1
    start = torch.where(none[:, None], room // 2, start)
    return torch.stack([*start.unbind(1), down, across], 1)


def _make(images: UInt8[Tensor, "batch 3 h w"], view: View, params: Draw) -> Float[Tensor, "batch 3 side side"]:
    crops = crop(images, params.boxes, view.size)
    for k in (1, 2, 3):
        rows = (params.turns == k).nonzero().squeeze(1)
        if len(rows):
            crops[rows] = crops[rows].rot90(k, (-2, -1))
    rows = params.flip.nonzero().squeeze(1)
    crops[rows] = crops[rows].flip(-1)
    step = max(1, CHUNK // (3 * view.size**2)) if crops.device.type == "cpu" else max(1, len(crops))
    out = torch.empty_like(crops, dtype=torch.float32)
    for start in range(0, len(crops), step):
        rows = slice(start, start + step)
        pixels = crops[rows]
        out[rows] = _coloured(pixels / 255 if pixels.dtype == torch.uint8 else pixels, view, params.part(rows))
    return out


def _coloured(x: Float[Tensor, "batch 3 h w"], view: View, params: Draw) -> Float[Tensor, "batch 3 h w"]:
    """Jitter, grey, blur and solarise, each of the images that it falls to; `x` may be overwritten."""
    strengths = (view.brightness, view.contrast, view.saturation, view.hue)
    for step in range(4):
        for kind, change in enumerate((brighten, contrast, saturate, turn_hue)):
            if strengths[kind]:
                factors = params.factors[:, kind]
                x = _some(x, params.jitter & (params.order[:, step] == kind), change, factors)
    x = _some(x, params.grey, lambda x: luminance(x).expand_as(x).contiguous())
    reach = math.ceil(3 * view.sigma[1])  # the same for all, so that no image depends on which others are blurred
    x = _some(x, params.blur, lambda x, sigma: blur(x, sigma, reach=reach), params.sigma)
    return _some(x, params.solarise, lambda x: torch.where(x >= 0.5, 1 - x, x))


def _some(x: Tensor, chosen: Bool[Tensor, " batch"], change: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """`x` with the chosen images changed; `change` is told them and their `values`."""
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == len(x):
        return change(x, *(value.to(x.device) for value in values))
    if len(rows):
        x[rows] = change(x[rows], *(value[rows].to(x.device) for value in values))
    return x


# Crops


def crop(
    images: UInt8[Tensor, "batch 3 h w"], boxes: Int[Tensor, "batch 4"], size: int
) -> UInt8[Tensor, "batch 3 size size"] | Float[Tensor, "batch 3 size size"]:
    """Each image's box (top, left, height, width) resized to a square: bicubic, antialiased where it shrinks.

    On a CPU uint8, by PyTorch's 8-bit kernel, image by image; elsewhere float in [0, 1], as two products of matrices
    for the whole batch.  The two are the same but for rounding.
    """
    if images.device.type != "cpu":
        top, left, height, width = boxes.to(images.device).unbind(1)
        down = resizing(images.shape[-2], top, height, size).unsqueeze(1)
        across = resizing(images.shape[-1], left, width, size).unsqueeze(1)
        return (down @ (images.float() / 255) @ across.transpose(-2, -1)).clamp(0, 1)
    out = images.new_empty(len(images), 3, size, size)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        part = images[i : i + 1, :, top : top + height, left : left + width]
        out[i] = F.interpolate(part, size=(size, size), mode="bicubic", antialias=True)[0]
    return out


def resizing(
    length: int, start: Int[Tensor, " batch"], extent: Int[Tensor, " batch"], size: int
) -> Float[Tensor, "batch size length"]:
    """Matrices that resize part of an axis of `length` pixels: Keys' cubic (a = -0.5), widened where it shrinks.

    Keys 1981, "Cubic convolution interpolation for digital image processing"; weights at the part's edges are
    normalised, as PIL and PyTorch do.
    """
    scale = (extent / size)[:, None, None]
    start, end = start[:, None, None], (start + extent)[:, None, None]
    pixel = torch.arange(length, device=extent.device)
    centre = start + scale * (torch.arange(size, device=extent.device)[:, None] + 0.5)
    t = ((pixel + 0.5 - centre) / scale.clamp(min=1)).abs()
    near, far = (1.5 * t - 2.5) * t * t + 1, ((2.5 - 0.5 * t) * t - 4) * t + 2
    weights = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    weights = torch.where((pixel >= start) & (pixel < end), weights, 0.0)
    return weights / weights.sum(-1, keepdim=True)
