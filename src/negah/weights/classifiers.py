"""A backbone with a linear layer, as a classifier that is saved and loads again.

A folder holds backbone.safetensors, as `save_backbone` writes it, and classes.safetensors: the linear layer, with the
names of the classes in the metadata under "negah".
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from negah.errors import WeightsError
from negah.nn.backbone import Backbone
from negah.weights.backbones import backbone, save_backbone
from negah.weights.files import read
from negah.weights.save import write_tensors

BACKBONE, CLASSES = "backbone.safetensors", "classes.safetensors"


class BackboneClassifier(nn.Module):
    """Logits by a linear layer on a backbone's features; images as the backbone takes them."""

    def __init__(self, backbone: Backbone, classes: Sequence[str]):
        super().__init__()
        self.backbone, self.classes = backbone, tuple(classes)
        self.linear = nn.Linear(backbone.width, len(self.classes))

    def forward(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch classes"]:
        return self.linear(self.backbone(images))

    @classmethod
    def fresh(cls, backbone: Backbone, classes: Sequence[str], *, seed: int) -> "BackboneClassifier":
        """With a linear layer drawn from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(backbone, classes)


def save_classifier(model: BackboneClassifier, folder: Path | str) -> Path:
    """Write a classifier from which `load_classifier(folder)` restores it; returns the folder.

    Raises WeightsError for a backbone that cannot be saved, OutputError when the folder cannot be written.
    """
    folder = Path(folder)
    save_backbone(model.backbone, folder / BACKBONE)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.linear.state_dict().items()}
    metadata = {"format": "pt", "negah": json.dumps({"classes": list(model.classes)})}
    write_tensors(tensors, folder / CLASSES, metadata)
    return folder


def load_classifier(folder: Path | str, *, device: torch.device | str = "cpu") -> BackboneClassifier:
    """A classifier from its folder, in evaluation mode and fp32: images, uint8 or in [0, 1], to logits of `classes`.

    Raises WeightsError when there is none, or its parts do not fit each other.
    """
    folder = Path(folder)
    layer = read(folder / CLASSES)
    classes = layer.negah.get("classes")
    if not isinstance(classes, list):
        raise WeightsError(f"{layer.origin} names no classes: give a folder written by `negah harden --backbone`")
    model = BackboneClassifier(backbone(folder / BACKBONE), classes)
    try:
        model.linear.load_state_dict(layer.content)
    except RuntimeError as error:
        raise WeightsError(f"{layer.origin} does not fit its backbone: {' '.join(str(error).split())}") from error
    return model.eval().to(device)
