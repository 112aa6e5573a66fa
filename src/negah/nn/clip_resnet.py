"""CLIP's residual network: picture to one vector.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020, section
2.4: bottlenecks as in He et al. 2015, arXiv:1512.03385, but

    stem      three 3x3 convolutions and an average pool, instead of a 7x7 convolution and a max-pool
    strides   an average pool in front of a convolution, instead of a convolution that skips pixels (Zhang 2019,
              arXiv:1904.11486)
    at last   attention: the mean of the map asks all its places, instead of the mean itself

Names are those of OpenAI's files.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from negah.nn.backbone import normalised, own_statistics
from negah.nn.vit import IMAGENET_MEAN, IMAGENET_STD, attend

EXPANSION = 4  # of a bottleneck's width at its end


class ClipResNet(nn.Module):
    """Args:
    depths: blocks of the four stages; (3, 4, 6, 3) is RN50.
    width: of the first stage's bottlenecks; the last stage's end is 32 times as wide.
    size: side of the pictures in pixels, a multiple of 32; the attention at the end has positions for it alone.
    dim: of the vector.
    mean, std: per-channel normalisation of pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, depths: Sequence[int] = (3, 4, 6, 3), width: int = 64, size: int = 224, dim: int = 1024,
        mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD,
    ):  # fmt: skip
        super().__init__()
        self.config = {
            "depths": list(depths), "width": width, "size": size, "dim": dim, "mean": list(mean), "std": list(std)
        }  # fmt: skip
        self.size, self.dim = size, dim
        own_statistics(self, mean, std)
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        before = width
        for k, depth in enumerate(depths):
            inner = width * 2**k
            blocks = [Bottleneck(before, inner, stride=1 if k == 0 else 2)]
            blocks += [Bottleneck(inner * EXPANSION, inner) for _ in range(depth - 1)]
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))
            before = inner * EXPANSION
        self.stages = len(depths)
        self.attnpool = AttentionPool(before, dim, places=(size // 32) ** 2, heads=max(1, before // 64))

    def forward(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        """Images as uint8, or float in [0, 1]; raises ValueError when they are of another size."""
        if images.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"image of {images.shape[-2]} x {images.shape[-1]} px: this model sees {self.size} px only"
            )
        x = normalised(images, self.mean, self.std).to(self.conv1.weight.dtype)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for k in range(self.stages):
            x = self.get_submodule(f"layer{k + 1}")(x)
        return self.attnpool(x)


class Bottleneck(nn.Module):
    """1x1, 3x3, average pool, 1x1, and a shortcut."""

    def __init__(self, before: int, inner: int, *, stride: int = 1):
        super().__init__()
        out = inner * EXPANSION
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = nn.Identity()
        if stride > 1 or before != out:
            parts = {"-1": nn.AvgPool2d(stride), "0": nn.Conv2d(before, out, 1, bias=False), "1": nn.BatchNorm2d(out)}
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Float[Tensor, "batch before h w"]) -> Float[Tensor, "batch out rows columns"]:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.pool(F.relu(self.bn2(self.conv2(y))))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class AttentionPool(nn.Module):
    """One query, the mean of the map, over the mean and all places of the map."""

    def __init__(self, before: int, dim: int, *, places: int, heads: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(places + 1, before) / before**0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(before, before) for _ in range(3))
        self.c_proj = nn.Linear(before, dim)

    def forward(self, x: Float[Tensor, "batch before h w"]) -> Float[Tensor, "batch dim"]:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        q, k, v = (
            layer(part).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, part in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        return self.c_proj(attend(q, k, v).transpose(1, 2).flatten(2).squeeze(1))
