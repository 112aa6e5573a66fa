"""SimCLR: two views of an image are each other's only positive; all other views of the batch push away.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv:2002.05709.

With projections z_i = g(f(view_i)) of the 2N views of N images, cosines c_ij, and the other view p(i) of i's image,

    loss = mean_i -log(exp(c_ip(i) / temperature) / sum_{j != i} exp(c_ij / temperature))                eq. 1, NT-Xent

What rules out the constant solution: equal projections leave a loss of log(2N - 1), the value of knowing nothing.
How it can still fail: few negatives (small batches) make the task easy; batch norms with the statistics of one process
betray which views came together, so all norms here take those of all processes; and views that share too much (colour)
let f learn that alone.

Departures from the paper: its LARS leaves out norms and biases, as here, but the optimiser is `fit`'s argument.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from negah import ranks
from negah.errors import InputError
from negah.losses.contrast import contrast_self
from negah.nn.backbone import Backbone
from negah.nn.norm import globalise
from negah.ssl.heads import projector
from negah.train import Objective
from negah.train.objective import Groups
from negah.train.optim import lars_groups


def nt_xent(projections: Float[Tensor, "view batch dim"], *, temperature: float) -> Float[Tensor, ""]:
    """Eq. 1 over the views of all processes; with more than two views, the mean over a view's positives.

    Raises InputError on fewer than 2 images over all processes: they have no negatives.
    """
    views, batch, _ = projections.shape
    if batch * ranks.world() < 2:
        raise InputError("SimCLR needs at least 2 images in a batch, one to push away: raise the batch size")
    image = ranks.rank() * batch + torch.arange(batch, device=projections.device)
    return contrast_self(projections.flatten(0, 1), image.repeat(views), temperature=temperature)


class SimCLR(Objective):
    """Objective on batches of two (or more) views.

    The batch norms of `backbone` are changed in place to take the statistics of all processes.

    Args:
        hidden, dim: widths inside and after the projector, an MLP of two layers.
        temperature: 0.1 for ImageNet, 0.5 for CIFAR.
    """

    def __init__(self, backbone: Backbone, *, hidden: int = 2048, dim: int = 128, temperature: float = 0.1):
        super().__init__()
        self.backbone = globalise(backbone)
        self.projector = projector(backbone.width, hidden, dim, last_norm=True)
        self.temperature = temperature
        self.seen: dict[str, Tensor] = {}

    def forward(self, views: Sequence[Float[Tensor, "batch 3 h w"]]) -> dict[str, Tensor]:
        if len(views) < 2:
            raise InputError(f"SimCLR needs at least two views of each image, got {len(views)}")
        projections = self.projector(self.backbone(torch.cat(list(views)))).unflatten(0, (len(views), -1))
        self.seen = {"embedding": projections.detach()}
        return {"loss": nt_xent(projections, temperature=self.temperature)}

    def param_groups(self) -> Groups:
        return lars_groups(self)

    def units(self) -> Sequence[nn.Module]:
        return [self.backbone]
