"""BYOL: predict what a slower copy of the network says of another view of the same image; no negatives.

Grill et al. 2020, "Bootstrap your own latent", arXiv:2006.07733.

With views v and v', backbone f, projector g, predictor q, and their moving averages f', g',

    loss = regression(q(g(f(v))), g'(f'(v'))) + regression(q(g(f(v'))), g'(f'(v)))
    regression(p, z) = 2 - 2 cos(p, z)                                                    averaged over the images
    f', g'  <- m f', g' + (1 - m) f, g                       after each step, m rising from m0 to 1 by a cosine

A constant output has loss 0, so nothing in the loss forbids it.  What rules it out is the path there: no gradient
reaches the target, so the loss falls only as the predictor learns to say what can be known of the other view, and it
falls further the more the projections tell apart (section 3.2).
How it can still fail: without the predictor both sides only have to come closer to each other, which they do until
nothing is left, fast where the target follows at once, slowly where it lags; with gradients through the target, the
same.  The loss then looks excellent: the doctor's embedding standard deviation tells.

Experiments change it from Python: `predictor=nn.Identity()`; `momentum=0.0` (the target is the network itself, as in
SimSiam); a subclass whose `target(views)` is `self.online(views)`, which lets gradients through.

Departures from the paper: linear layers that a norm follows have no bias.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from negah.errors import InputError
from negah.nn.backbone import Backbone
from negah.nn.norm import globalise
from negah.ssl.heads import projector
from negah.ssl.teacher import Teacher
from negah.train import Objective
from negah.train.objective import Groups
from negah.train.optim import lars_groups
from negah.train.schedules import Schedule, cosine


def regression(p: Float[Tensor, "batch dim"], z: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Mean squared distance of p and z, each scaled to length 1 (eq. 2): 2 - 2 cos, in [0, 4].

    In fp32 at least: close to the end 1 - cos is smaller than half precision can tell from 0.
    """
    wide = torch.promote_types(p.dtype, torch.float32)
    return 2 - 2 * F.cosine_similarity(p.to(wide), z.to(wide), dim=-1).mean()


class BYOL(Objective):
    """Objective on batches of two views.

    The batch norms of `backbone` are changed in place to take the statistics of all processes.

    Args:
        hidden, dim: widths inside, and after, projector and predictor.
        predictor: [batch, dim] to [batch, dim]; by default an MLP as the projector is one.
        momentum: m of the target; the default is the paper's for 1000 epochs, cosine(0.99, 1.0) its for 300.
    """

    def __init__(
        self, backbone: Backbone, *, hidden: int = 4096, dim: int = 256, predictor: nn.Module | None = None,
        momentum: float | Schedule = cosine(0.996, 1.0),
    ):  # fmt: skip
        super().__init__()
        self.backbone = globalise(backbone)
        self.projector = projector(backbone.width, hidden, dim)
        self.predictor = predictor or projector(dim, hidden, dim)
        self.teacher = Teacher(self._student(), momentum)
        self.seen: dict[str, Tensor] = {}

    def forward(self, views: Sequence[Float[Tensor, "batch 3 h w"]]) -> dict[str, Tensor]:
        if len(views) != 2:
            raise InputError(f"BYOL needs two views of each image, got {len(views)}")
        projections = self.online(views)
        first, second = self.target(views)
        loss = regression(self.predictor(projections[0]), second) + regression(self.predictor(projections[1]), first)
        self.seen = {"embedding": torch.stack(projections).detach()}
        return {"loss": loss}

    def online(self, views: Sequence[Float[Tensor, "batch 3 h w"]]) -> list[Float[Tensor, "batch dim"]]:
        """Projections of each view, one at a time as in the paper, so that each has batch statistics of its own."""
        return [self.projector(self.backbone(view)) for view in views]

    def target(self, views: Sequence[Float[Tensor, "batch 3 h w"]]) -> list[Float[Tensor, "batch dim"]]:
        """What is to be predicted: the teacher's projections, without gradients."""
        return [self.teacher(view) for view in views]

    def param_groups(self) -> Groups:
        return lars_groups(self)

    def units(self) -> Sequence[nn.Module]:
        return [self.backbone, self.teacher.model.get_submodule("0")]

    def after_step(self, progress: float) -> None:
        self.teacher.update(self._student(), progress)

    def _student(self) -> nn.Sequential:
        """What the teacher averages."""
        return nn.Sequential(self.backbone, self.projector)
