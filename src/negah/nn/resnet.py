"""Residual network of basic blocks: what convolutions see, for small pictures and few labels.

He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385.  A block computes

    y = relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x))

with a 1x1 convolution and its norm as the shortcut where width or stride change, else the identity; the first block
of every stage but the first halves the grid.  Names are torchvision's: its ResNet-18 and -34 load without renaming.
With `shortcut="padding"` it is instead every second pixel with zeros for the new channels (the paper's option A, as in
its ResNets for CIFAR-10).

Departures: stems for small pictures, any number of stages, and the last norm of each branch starts at zero, so that a
block begins as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Stem = Literal["imagenet", "fine", "cifar"]
Shortcut = Literal["projection", "padding"]


class ResNet(nn.Module):
    """Pictures to a map of features, coarser by the stem's stride and by 2 for each stage after the first.

    Args:
        widths, depths: channels and blocks of each stage; (64, 128, 256, 512) and (2, 2, 2, 2) is ResNet-18.
        shortcut: "projection", or "padding" (option A).
        stem: "imagenet" (7x7, stride 2, max-pool: coarser by 4), "fine" (the same without the pool: by 2), "cifar"
            (3x3, stride 1: not coarser).
    """

    def __init__(
        self, *, widths: Sequence[int] = (64, 128, 256, 512), depths: Sequence[int] = (2, 2, 2, 2),
        stem: Stem = "imagenet", shortcut: Shortcut = "projection",
    ):  # fmt: skip
        super().__init__()
        if len(widths) != len(depths):
            raise ValueError(f"{len(widths)} widths for {len(depths)} depths: each stage has one of both")
        kernel, stride, pooled = {"imagenet": (7, 2, True), "fine": (7, 2, False), "cifar": (3, 1, False)}[stem]
        self.dim = widths[-1]
        self.stride = stride * (2 if pooled else 1) * 2 ** (len(widths) - 1)  # pixels from place to place of the map
        self.config = {"widths": list(widths), "depths": list(depths), "stem": stem, "shortcut": shortcut}
        self.conv1 = nn.Conv2d(3, widths[0], kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pooled else nn.Identity()
        self.stages = len(widths)
        before = widths[0]
        for k, (width, depth) in enumerate(zip(widths, depths)):
            strides = [1 if k == 0 else 2] + [1] * (depth - 1)
            blocks = [
                BasicBlock(before if i == 0 else width, width, stride=s, shortcut=shortcut)
                for i, s in enumerate(strides)
            ]
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))
            before = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, pixels: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim rows columns"]:
        """Pixels already normalised."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(pixels))))
        for k in range(self.stages):
            x = self.get_submodule(f"layer{k + 1}")(x)
        return x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, before: int, width: int, *, stride: int = 1, shortcut: Shortcut = "projection"):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Identity()
        if shortcut == "padding":
            self.downsample = Padding(width - before, stride)
        elif stride != 1 or before != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Float[Tensor, "batch before h w"]) -> Float[Tensor, "batch width rows columns"]:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Padding(nn.Module):
    """Every `stride`-th pixel, and zeros for `more` new channels, half of them before the others."""

    def __init__(self, more: int, stride: int):
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Float[Tensor, "batch before h w"]) -> Float[Tensor, "batch width rows columns"]:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
