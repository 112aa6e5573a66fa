"""CLIP: a picture and its text point the same way, and away from all others of the batch.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.  With
unit vectors x_i of pictures and y_i of texts, and a learned scale s,

    loss = (mean_i CE(s <x_i, y_:>, i) + mean_i CE(s <x_:, y_i>, i)) / 2                                     figure 3

by `losses.contrast`, which never holds the matrix of all pairs.  A text's vector is that of its end token, the only one
that has seen all of it; the mask is causal, so padding behind the end changes nothing.

What rules out the constant solution: equal vectors leave a loss of log N.  How it can still fail: the scale runs away,
so it is kept at 100 or less (section 2.5); several pictures of a batch share a text, which then pushes its own pictures
away (give their numbers as groups).

Departures: none; the picture's network may be any `ViT`, or CLIP's own residual network.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from negah.losses.contrast import contrast
from negah.nn.clip_resnet import ClipResNet
from negah.nn.norm import globalise
from negah.nn.text import TextTransformer
from negah.nn.vit import ViT
from negah.train import Objective

START, MOST = 1 / 0.07, 100.0  # of the scale


class CLIP(Objective):
    """Objective on batches of (images, token numbers), or with numbers of texts that mean the same as a third.

    Args:
        image: a ViT, of which the CLS token is read, or CLIP's residual network, whose own width must be `dim`.
        dim: of the space that both share.
        end: number of the end token; a text's first one is read.
    """

    def __init__(self, image: ViT | ClipResNet, text: TextTransformer, *, dim: int, end: int):
        super().__init__()
        if isinstance(image, ClipResNet) and image.dim != dim:
            raise ValueError(f"a residual network of dim {image.dim} for a space of {dim}: they must be equal")
        if not 0 <= end < text.vocabulary:
            raise ValueError(f"end token {end} is not one of the {text.vocabulary} tokens")
        self.image, self.text, self.dim, self.end = image, text, dim, end
        globalise(image)  # batch norms of each process alone would betray which pairs are its own
        self.image_projection = (
            nn.Identity() if isinstance(image, ClipResNet) else nn.Linear(image.dim, dim, bias=False)
        )
        self.text_projection = nn.Linear(text.dim, dim, bias=False)
        for projection in (self.image_projection, self.text_projection):
            if isinstance(projection, nn.Linear):
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(START)))

    @property
    def size(self) -> int:
        """Side of the pictures that it was made for, in pixels."""
        return self.image.size if isinstance(self.image, ClipResNet) else self.image.grid[0] * self.image.patch

    def images(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of images as uint8, or float in [0, 1]."""
        seen = self.image(images)
        return F.normalize(self.image_projection(seen if isinstance(seen, Tensor) else seen.cls), dim=-1)

    def texts(self, ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of texts.  Raises ValueError for a text without an end token."""
        at = ids == self.end
        if not at.any(1).all():
            raise ValueError(f"text {int(at.any(1).int().argmin())} has no end token ({self.end})")
        read = self.text(ids)[torch.arange(len(ids), device=ids.device), at.int().argmax(1)]
        return F.normalize(self.text_projection(read), dim=-1)

    def logits(self, images: Num[Tensor, "image 3 h w"], ids: Int[Tensor, "text token"]) -> Float[Tensor, "image text"]:
        """Scaled cosines of all images with all texts."""
        return self.log_scale.exp() * self.images(images) @ self.texts(ids).T

    def forward(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        images, ids, *same = batch
        groups = (same[0], same[0]) if same else None
        scale = self.log_scale.exp()
        loss = contrast(self.images(images), self.texts(ids), temperature=1 / scale, groups=groups, symmetric=True)
        return {"loss": loss, "scale": scale.detach()}

    def after_step(self, progress: float) -> None:
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MOST))

    def units(self) -> Sequence[nn.Module]:
        return [self.image, self.text]
