"""What a backbone sees, as pictures: where its heads look, and which places it takes for the same.

    Image.fromarray(sheet(backbone, images)).save("maps.png")       a row for each picture

Attention maps (Caron et al. 2021, arXiv:2104.14294, figure 1): of the last block, how much the CLS token takes from
each patch, head by head.  PCA maps (Oquab et al. 2023, arXiv:2304.07193, figure 1): the first three principal
components of the patch features of all the pictures together, as red, green and blue: like colours are like features,
also across pictures.  Once over all patches; and once over the foreground alone, where the first component is positive.

The sign of a principal component is arbitrary.  Here it is set by a rule, so that the same features give the same
picture: the first component, where it parts the foreground, is negative on the pictures' borders, any other is positive
in the direction that weighs most in it.  The rule for the border fits photographs of things; seen from above nothing is
background, and the foreground is then just the other half.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from negah.errors import InputError
from negah.nn.backbone import ConvBackbone, ViTBackbone, normalised
from negah.train.surroundings import mode

CELL = 112  # side of a picture on the sheet, in pixels
HEADING = 16  # height of the line above the columns
FEWEST = 8  # patches of a foreground: fewer have no three components worth showing
TAILS = 0.02  # of the values that are cut off where a map is stretched to 0..255: a few outliers would darken the rest


def can_map(backbone: nn.Module) -> bool:
    """Whether there are maps of such a backbone: vision transformers and residual networks of ours."""
    return isinstance(backbone, ViTBackbone | ConvBackbone)


@torch.no_grad()
def attention_maps(
    backbone: ViTBackbone, images: UInt8[Tensor, "n 3 h w"], *, layer: int = -1
) -> Float[Tensor, "n head rows columns"]:  # fmt: skip
    """Attention of the CLS token to each patch in a block (the last), on the CPU; with CLS and registers, 1."""
    vit = backbone.vit
    with mode(backbone, training=False):
        weights = vit.attention(images.to(vit.pos_embed.device), layer)[:, :, 0]
    rows, columns = images.shape[2] // vit.patch, images.shape[3] // vit.patch
    return weights[:, :, -rows * columns :].unflatten(2, (rows, columns)).float().cpu()


@torch.no_grad()
def patch_features(
    backbone: nn.Module, images: UInt8[Tensor, "n 3 h w"], *, layer: int = -1
) -> Float[Tensor, "n rows columns width"]:
    """Features place by place, on the CPU: patch tokens after a block (the last) and the last norm, or the last map of
    a residual network, whatever the layer.

    Raises InputError for another backbone.
    """
    with mode(backbone, training=False):
        if isinstance(backbone, ViTBackbone):
            vit = backbone.vit
            grid = images.shape[2] // vit.patch, images.shape[3] // vit.patch
            tokens = vit.intermediate(images.to(vit.pos_embed.device), [layer])[0]
            return tokens.patches.unflatten(1, grid).float().cpu()
        if isinstance(backbone, ConvBackbone):
            pixels = normalised(images.to(backbone.mean.device), backbone.mean, backbone.std)
            return backbone.resnet(pixels).permute(0, 2, 3, 1).float().cpu()
    raise InputError(f"no maps of a {type(backbone).__name__}: vision transformers and residual networks have them")


def foreground(features: Float[Tensor, "n rows columns width"]) -> Bool[Tensor, "n rows columns"]:
    """Where the first principal component is positive; its sign is such that borders are negative on average."""
    score = _components(features.flatten(0, 2), 1)[:, 0].view(features.shape[:3])
    border = torch.ones(features.shape[1:3], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return score * (-1 if score[:, border].mean() > 0 else 1) > 0


def principal_colours(
    features: Float[Tensor, "n rows columns width"], where: Bool[Tensor, "n rows columns"] | None = None
) -> UInt8[Tensor, "n rows columns 3"]:
    """The first three principal components of all places (or of those `where` says; the others are black), as RGB."""
    where = torch.ones(features.shape[:3], dtype=torch.bool) if where is None else where
    scores = _components(features[where], 3)
    low, high = torch.quantile(scores, torch.tensor([TAILS, 1 - TAILS], dtype=scores.dtype), dim=0)
    wide = high - low > 1e-6
    shares = torch.where(wide, (scores - low) / torch.where(wide, high - low, 1), 0.5).clamp(0, 1)
    out = torch.zeros(*features.shape[:3], 3, dtype=torch.uint8)
    out[where] = (255 * shares).round().to(torch.uint8)
    return out


def sheet(backbone: nn.Module, images: UInt8[Tensor, "n 3 side side"]) -> UInt8[ndarray, "height width 3"]:
    """A row for each picture: itself, PCA of all places, PCA of the foreground, and a transformer's attention by head.

    An attention map is black at 0 and white where it is among its largest.  The backbone is left in the mode and
    where it was.  Raises InputError for a backbone that has no maps.
    """
    features = patch_features(backbone, images)
    columns: dict[str, Tensor] = {"picture": images.permute(0, 2, 3, 1), "PCA": principal_colours(features)}
    ahead = foreground(features)
    if ahead.sum() >= FEWEST:
        columns["foreground"] = principal_colours(features, ahead)
    if isinstance(backbone, ViTBackbone):
        attention = attention_maps(backbone, images)
        white = attention.flatten(2).quantile(1 - TAILS, dim=2)[:, :, None, None]
        grey = (255 * (attention / white).clamp(max=1)).round().to(torch.uint8)
        columns |= {f"head {i + 1}": grey[:, i, :, :, None].expand(-1, -1, -1, 3) for i in range(grey.shape[1])}
    return _laid_out(columns)


def _components(x: Float[Tensor, "place width"], count: int) -> Float[Tensor, "place component"]:
    """The first principal components of the rows, in float64; zeros beyond as many as there are."""
    centred = x.double() - x.double().mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    directions = vectors.flip(1)[:, :count]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    scores = centred @ (directions * largest.sign())
    return F.pad(scores, (0, count - scores.shape[1]))


def _laid_out(columns: dict[str, UInt8[Tensor, "n rows columns 3"]]) -> UInt8[ndarray, "height width 3"]:
    """The columns beside each other under their names, every picture CELL pixels wide, with a line between."""
    count, step = len(next(iter(columns.values()))), CELL + 2
    page = Image.new("RGB", (step * len(columns), HEADING + step * count), "white")
    draw = ImageDraw.Draw(page)
    for x, (name, cells) in enumerate(columns.items()):
        draw.text((x * step + 2, 2), name, fill="black")
        for y, cell in enumerate(cells.numpy()):
            kind = Image.Resampling.BICUBIC if name == "picture" else Image.Resampling.NEAREST
            picture = Image.fromarray(np.ascontiguousarray(cell)).resize((CELL, CELL), kind)
            page.paste(picture, (x * step, HEADING + y * step))
    return np.asarray(page)
