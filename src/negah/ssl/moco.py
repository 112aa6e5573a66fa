"""MoCo: contrast against keys of a slowly moving copy of the network; a queue of them (v1, v2), or the batch's (v3).

He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv:1911.05722 (v1); Chen et al.
2020, arXiv:2003.04297 (v2); Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers",
arXiv:2104.02057 (v3).

With queries q of one view by the network, keys k of the other by its moving average, cosines c, temperature t,

    MoCo      loss = mean_i -log(exp(c(q_i, k_i) / t) / (exp(c(q_i, k_i) / t) + sum_{n in queue} exp(c(q_i, n) / t)))
              queue <- the newest `queue` keys, after each batch
              symmetric: the mean of this and of the same with the views exchanged
    MoCoV3    loss = 2 t (contrast(q1, k2) + contrast(q2, k1))        with a predictor on the queries, keys of the batch
    average <- m average + (1 - m) network                            after each step

What rules out the constant solution: the negatives, as in SimCLR; equal outputs leave log(1 + queue).  The slow copy
keeps keys of different batches comparable.
How it can still fail: a fast copy (m 0.9) makes the keys of the queue contradict each other.  And batch norms betray
which key belongs to a query, since both were normalised beside the same images: so the keys of MoCo are computed in
another order, on other processes and in other parts of the batch, than the queries.  MoCoV3's norms have no parts.

Departures from the papers: on one process the norms work on parts of the batch as if on `parts` devices; the moving
average follows the optimiser instead of opening the next step, which is the same but for the last step.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah import ranks
from negah.errors import InputError
from negah.losses.contrast import contrast, contrast_queue
from negah.nn.backbone import Backbone
from negah.nn.norm import SplitBatchNorm1d, SplitBatchNorm2d, globalise, split
from negah.ssl.heads import projector
from negah.ssl.teacher import Teacher
from negah.train import Objective
from negah.train.schedules import Schedule, cosine


class MoCo(Objective):
    """Objective of v1 and v2 on batches of two views: queries of the first, keys of the second.

    The defaults are v2's; v1 has layers=1 and temperature=0.07 (and weaker views).  `symmetric` is the authors' own
    variant for CIFAR (colab-notebook in github.com/facebookresearch/moco): each view is query and key once, which
    learns more of an image, and takes twice the time for it.

    Args:
        layers: of the projector: 1 is linear, 2 an MLP whose hidden width is the backbone's.
        dim: width after the projector.
        queue: keys to contrast with, a multiple of the batch over all processes; 4096 is right for CIFAR.
        momentum: m of the moving average.
        parts: of the batch over all processes, each with batch statistics of its own (the paper's 8 devices): a process
            of p takes parts / p of them, and the norms of `backbone` are changed in place to do so; its share of the
            batch must be a multiple of that.  1 leaves the norms alone.
        symmetric: both views are queries, and the keys of both go into the queue.
    """

    queue: Float[Tensor, "negative dim"]
    oldest: Int[Tensor, ""]

    def __init__(
        self, backbone: Backbone, *, layers: int = 2, dim: int = 128, queue: int = 65536, temperature: float = 0.2,
        momentum: float | Schedule = 0.999, parts: int = 8, symmetric: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.backbone = split(backbone, parts) if parts > 1 else backbone
        self.projector = projector(backbone.width, backbone.width, dim, layers=layers, norm=False)
        self.teacher = Teacher(self._student(), momentum)
        self.temperature, self.parts, self.symmetric = temperature, parts, symmetric
        # Random directions at first, which any key is far from.
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim), dim=1))
        self.register_buffer("oldest", torch.tensor(0))
        self.seen: dict[str, Tensor] = {}

    def forward(self, views: Sequence[Float[Tensor, "batch 3 h w"]]) -> dict[str, Tensor]:
        """Raises InputError where the queue is not a multiple of the batch over all processes."""
        first, second = _two(views)
        if len(self.queue) % (len(first) * ranks.world()):
            raise InputError(
                f"MoCo's queue of {len(self.queue)} keys is not a multiple of the batch of"
                f" {len(first) * ranks.world()}: change one of the two"
            )
        for norm in self.modules():
            if isinstance(norm, (SplitBatchNorm1d, SplitBatchNorm2d)):
                norm.parts = max(1, self.parts // ranks.world())  # only now are the processes sure to be known
        ways = [(first, second), (second, first)] if self.symmetric else [(first, second)]
        pairs = [(self.projector(self.backbone(a)), self.keys(b)) for a, b in ways]
        losses = [contrast_queue(queries, keys, self.queue, temperature=self.temperature) for queries, keys in pairs]
        if self.training:
            for _, keys in pairs:  # only now: a view of the same image is no negative
                self.enqueue(keys)
        queries, keys = pairs[0]
        self.seen = {"embedding": torch.stack([queries.detach(), keys])}
        return {"loss": torch.stack(losses).mean()}

    @torch.no_grad()
    def keys(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        """The teacher's projections, computed in a random order over the images of all processes (shuffled BN)."""
        everything, batch = ranks.all_gather(images), len(images)
        mine = slice(ranks.rank() * batch, (ranks.rank() + 1) * batch)
        order = torch.randperm(len(everything), device=images.device)
        order = ranks.all_gather(order)[: len(order)]  # process 0's, for all
        keys = ranks.all_gather(self.teacher(everything[order[mine]]))
        return keys[order.argsort()[mine]]

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, "batch dim"]) -> None:
        """Put the keys of all processes in place of the oldest."""
        keys = F.normalize(ranks.all_gather(keys).to(self.queue.dtype), dim=1)
        rows = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[rows] = keys
        self.oldest.copy_((self.oldest + len(keys)) % len(self.queue))

    def units(self) -> Sequence[nn.Module]:
        return [self.backbone, self.teacher.model.get_submodule("0")]

    def after_step(self, progress: float) -> None:
        self.teacher.update(self._student(), progress)

    def _student(self) -> nn.Sequential:
        """What the teacher averages."""
        return nn.Sequential(self.backbone, self.projector)


class MoCoV3(Objective):
    """Objective of v3 on batches of two views; each is query and key once.

    The batch norms of `backbone` are changed in place to take the statistics of all processes.  The patch embedding of
    a vision transformer stays as it was initialised: its gradients are what makes such training unstable (section 4.2).

    Args:
        hidden, dim: widths inside and after the projector (3 layers) and the predictor (2 layers).
        momentum: m of the moving average.
    """

    def __init__(
        self, backbone: Backbone, *, hidden: int = 4096, dim: int = 256, temperature: float = 0.2,
        momentum: float | Schedule = cosine(0.99, 1.0),
    ):  # fmt: skip
        super().__init__()
        for name, module in backbone.named_modules():
            if name.endswith("patch_embed"):
                module.requires_grad_(False)
        self.backbone = globalise(backbone)
        self.projector = projector(backbone.width, hidden, dim, layers=3, last_norm=True, last_affine=False)
        self.predictor = projector(dim, hidden, dim, last_norm=True, last_affine=False)
        self.teacher = Teacher(self._student(), momentum)
        self.temperature = temperature
        self.seen: dict[str, Tensor] = {}

    def forward(self, views: Sequence[Float[Tensor, "batch 3 h w"]]) -> dict[str, Tensor]:
        """Raises InputError on fewer than 2 images over all processes: they have no negatives."""
        first, second = _two(views)
        if len(first) * ranks.world() < 2:
            raise InputError("MoCo v3 needs at least 2 images in a batch, one to push away: raise the batch size")
        q1, q2 = (self.predictor(self.projector(self.backbone(view))) for view in (first, second))
        k1, k2 = self.teacher(first), self.teacher(second)
        both = contrast(q1, k2, temperature=self.temperature) + contrast(q2, k1, temperature=self.temperature)
        self.seen = {"embedding": torch.stack([q1, q2]).detach()}
        return {"loss": 2 * self.temperature * both}

    def units(self) -> Sequence[nn.Module]:
        return [self.backbone, self.teacher.model.get_submodule("0")]

    def after_step(self, progress: float) -> None:
        self.teacher.update(self._student(), progress)

    def _student(self) -> nn.Sequential:
        """What the teacher averages."""
        return nn.Sequential(self.backbone, self.projector)


def _two(views: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(views) != 2:
        raise InputError(f"MoCo needs two views of each image, got {len(views)}")
    return views
