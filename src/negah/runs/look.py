"""What a backbone sees of one picture, layer by layer and head by head."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from negah import weights
from negah.errors import InputError
from negah.images.pool import Picture
from negah.images.sources import find_source
from negah.nn.backbone import ViTBackbone
from negah.probe.maps import attention_maps, can_map, patch_features, principal_colours
from negah.progress import Progress, silent
from negah.runs.record import compute_device

SIDE = 224  # px of the picture that a backbone sees, or as many whole patches as come near
LARGEST = 1024  # side in pixels, beyond which maps take more memory than anybody has


@dataclass(frozen=True)
class Looked:
    """Maps of one picture.

    picture: as the backbone saw it.  attention: of the CLS token to each patch, with what CLS and registers get, 1;
    none for residual networks.  colours: first three principal components of the patch features after each layer.
    """

    picture: UInt8[ndarray, "side side 3"]
    attention: Float[Tensor, "layer head rows columns"] | None
    colours: UInt8[Tensor, "layer rows columns 3"]


def look(
    path: str | Path, backbone: str, *, side: int = SIDE,
    progress: Progress = silent,
) -> Looked:  # fmt: skip
    """Maps of the middle square of a picture, resized to `side` (rounded to whole patches).

    backbone: whatever `weights.backbone` takes.  Raises InputError for a picture that cannot be read, more than one, or
    a side that is too large or too small, WeightsError for a backbone that cannot be had.
    """
    source = find_source(path)
    if not 16 <= side <= LARGEST:
        raise InputError(f"a side of {side} px: give one from 16 to {LARGEST}")
    net = weights.backbone(backbone, device=compute_device())
    if not can_map(net):
        raise InputError(f"no maps of {backbone}: vision transformers and residual networks have them")
    patch = net.vit.patch if isinstance(net, ViTBackbone) else 1
    pixels = Picture(source).pixels(max(1, round(side / patch)) * patch)
    image = torch.from_numpy(pixels.rgb.copy()).permute(2, 0, 1)[None]
    layers = range(net.vit.depth) if isinstance(net, ViTBackbone) else (-1,)
    attention, colours = [], []
    for layer in layers:
        progress("layers", layer, len(layers))
        if isinstance(net, ViTBackbone):
            attention.append(attention_maps(net, image, layer=layer)[0])
        colours.append(principal_colours(patch_features(net, image, layer=layer))[0])
    progress("layers", len(layers), len(layers))
    return Looked(pixels.rgb, torch.stack(attention) if attention else None, torch.stack(colours))
