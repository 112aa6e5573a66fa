"""One contract for everything that turns pictures into vectors: `backbone(images)` is [batch, width].

Images are uint8, or float in [0, 1]; a backbone owns its normalisation.  `many` takes crops of several sizes, as
methods with many crops need it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from negah.nn.resnet import ResNet
from negah.nn.vit import IMAGENET_MEAN, IMAGENET_STD, ViT


class Backbone(nn.Module):
    """Base: a subclass sets `width` and writes `forward`."""

    width: int

    def forward(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch width"]:
        raise NotImplementedError(f"{type(self).__name__} must define forward(images) -> [batch, width]")

    def many(self, crops: Sequence[Num[Tensor, "_ 3 _ _"]]) -> list[Float[Tensor, "_ width"]]:
        """Features of each of several batches; those of one size go through together (and share batch statistics)."""
        found: dict[int, Tensor] = {}
        for same in by_size(crops):
            together = self(torch.cat([crops[i] for i in same]))
            found |= zip(same, together.split([len(crops[i]) for i in same]))
        return [found[i] for i in range(len(crops))]


class ViTBackbone(Backbone):
    """The CLS token of a vision transformer; `many` packs the crops of all sizes."""

    def __init__(self, vit: ViT):
        super().__init__()
        self.vit, self.width = vit, vit.dim

    def forward(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch width"]:
        return self.vit(images).cls

    def many(self, crops: Sequence[Num[Tensor, "_ 3 _ _"]]) -> list[Float[Tensor, "_ width"]]:
        return [tokens.cls for tokens in self.vit.many(crops)]


class ConvBackbone(Backbone):
    """The mean over the map of a residual network (global average pooling).

    Args:
        mean, std: per-channel normalisation of pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, resnet: ResNet, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ):  # fmt: skip
        super().__init__()
        self.resnet, self.width = resnet, resnet.dim
        own_statistics(self, mean, std)

    def forward(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch width"]:
        return self.resnet(normalised(images, self.mean, self.std)).mean((2, 3))


class TimmBackbone(Backbone):
    """A model of the timm library, created with `num_classes=0`, so that it returns its pooled features.

    Args:
        mean, std: per-channel normalisation of pixels in [0, 1]; by default what the model's weights were made with.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ):  # fmt: skip
        super().__init__()
        if getattr(model, "num_classes", 0):
            raise ValueError(
                f"{type(model).__name__} ends in {model.num_classes} classes: create it with num_classes=0"
            )
        made_with = getattr(model, "pretrained_cfg", {})
        self.model, self.width = model, int(model.num_features)  # pyright: ignore[reportArgumentType]
        own_statistics(self, mean or made_with.get("mean", IMAGENET_MEAN), std or made_with.get("std", IMAGENET_STD))

    def forward(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch width"]:
        return self.model(normalised(images, self.mean, self.std))


def by_size(crops: Sequence[Num[Tensor, "_ 3 _ _"]]) -> list[list[int]]:
    """Which of the batches have pictures of one size (and type), in order of first appearance."""
    groups: dict[object, list[int]] = {}
    for i, images in enumerate(crops):
        groups.setdefault((images.shape[1:], images.dtype), []).append(i)
    return list(groups.values())


def own_statistics(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Give a module the buffers that `normalised` takes; they are settings, and so not in its state."""
    module.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
    module.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)


def normalised(
    images: Num[Tensor, "batch 3 h w"], mean: Float[Tensor, "3 1 1"], std: Float[Tensor, "3 1 1"]
) -> Float[Tensor, "batch 3 h w"]:
    """(pixels - mean) / std of images as uint8, or float in [0, 1]."""
    pixels = images / 255 if images.dtype == torch.uint8 else images
    return (pixels - mean) / std
