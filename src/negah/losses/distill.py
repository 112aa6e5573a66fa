"""Self-distillation: what a teacher makes of its logits, and how far a student is from it.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers" (DINO), arXiv:2104.14294; Zhou et al.
2021, iBOT, arXiv:2111.07832; Sinkhorn-Knopp as in Caron et al. 2020, SwAV, arXiv:2006.09882.

Logits l over K prototypes become a target t, by either of

    t = softmax((l - c) / tau)            c <- m c + (1 - m) mean(l)         centring and sharpening
    t = diag(r) exp(l / tau) diag(s)      r, s such that each row sums to 1 and each prototype gets the same share

and the student pays -sum_k t_k log softmax(l' / tau')_k.  Two ways to collapse can be read from the targets: an entropy
of ln K is the uniform answer (the loss is ln K as well), an entropy of 0 together with a mean target that is far from
uniform is one prototype for everything.

At K = 65,536 the rows of logits are what takes memory.  Nothing of their size is made but targets and gradients: the
cross-entropy keeps logits and targets for a backward pass in closed form, and works on a few rows at a time.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah import ranks

CHUNK = 2**20  # numbers of a temporary tensor


def pairs_cross_entropy(
    student: Float[Tensor, "view batch prototype"],
    teacher: Float[Tensor, "global batch prototype"],
    *,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross-entropy of student logits to teacher targets, averaged over images and all pairs of two different views.

    The student's first views are the teacher's.  A view's cross-entropies are linear in the targets, so one with the
    sum of its targets stands for all of them.  Raises ValueError where there is no pair.
    """
    views, targets = len(student), list(teacher)
    if not targets or views < max(2, len(targets)):
        raise ValueError(f"no pairs: {views} views of the student, {len(targets)} of the teacher")
    others = [targets[:v] + targets[v + 1 :] for v in range(len(targets))]
    sums = [reduce(torch.add, some) if some else torch.zeros_like(targets[0]) for some in others]
    if views > len(targets):
        sums += [reduce(torch.add, targets)] * (views - len(targets))  # one tensor, for all local views
    pairs = len(targets) * (views - 1)
    return _cross_entropy(student, sums, temperature).sum() / (pairs * student.shape[1])


def masked_cross_entropy(
    student: Float[Tensor, "masked prototype"],
    teacher: Float[Tensor, "masked prototype"],
    counts: Int[Tensor, " image"],
    *,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """iBOT: cross-entropy of student logits to teacher targets, averaged over each image's masked patches, then images.

    `counts`: masked patches of each image; the rows are theirs, image after image.  An image without any adds 0 and is
    counted, as in DINOv2, so uniform answers give ln K times the share of images with a mask.  Raises ValueError where
    the rows are not as many as `counts` says.
    """
    weights = counts.clamp(min=1).to(_wide(student)).reciprocal().repeat_interleave(counts)
    if len(weights) != len(student):
        raise ValueError(f"{len(student)} rows for {len(weights)} masked patches")
    rows = _cross_entropy(student.unsqueeze(0), [teacher], temperature)[0]
    return (rows * weights.to(rows.device)).sum() / len(counts)


@torch.no_grad()
def sharpened(
    logits: Float[Tensor, "*row prototype"],
    temperature: float,
    center: Float[Tensor, " prototype"] | float = 0.0,
) -> Float[Tensor, "*row prototype"]:
    """softmax((logits - center) / temperature), in fp32 at least, whatever comes in."""
    flat = logits.flatten(0, -2)
    found = torch.empty_like(flat, dtype=_wide(logits))
    for rows in _chunks(flat):
        torch.softmax(flat[rows].to(found.dtype).sub(center).div_(temperature), -1, out=found[rows])
    return found.view(logits.shape)


class Center(nn.Module):
    """Moving average of the teacher's logits, over the rows of all processes.

    Args:
        momentum: m above; 1 leaves the center at 0, which is no centring.
    """

    center: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(prototypes))

    def forward(self, logits: Float[Tensor, "*row prototype"], temperature: float) -> Float[Tensor, "*row prototype"]:
        """Targets by the center as it is."""
        return sharpened(logits, temperature, self.center)

    @torch.no_grad()
    def update(self, logits: Float[Tensor, "*row prototype"]) -> None:
        """Take up one more batch of raw logits; the processes may have different numbers of rows."""
        flat = logits.flatten(0, -2)
        sums = flat.sum(0, dtype=_wide(logits))
        sums = ranks.total(torch.cat([sums, sums.new_tensor([len(flat)])]))  # one exchange for sums and count
        self.center.lerp_((sums[:-1] / sums[-1]).to(self.center.dtype), 1 - self.momentum)


@torch.no_grad()
def sinkhorn(
    logits: Float[Tensor, "row prototype"], temperature: float, *, iterations: int = 3
) -> Float[Tensor, "row prototype"]:
    """Targets by Sinkhorn-Knopp over the rows of all processes; each process gets its own rows, which sum to 1.

    The largest logit of each prototype is taken off first, then the largest that is left of each row, so exp() lies in
    [0, 1] with a 1 in every row at any temperature.  The first changes nothing, since the first iteration scales
    prototypes; the second is what the rows' scales start from.  What follows are products with vectors.
    """
    with torch.autocast(logits.device.type, enabled=False):  # which would make those products in half precision
        x = logits.to(_wide(logits)) / temperature
        x -= ranks.all_gather(x.amax(0, keepdim=True)).amax(0)
        highest = x.amax(1, keepdim=True)
        x = x.sub_(highest).exp_()
        r, s = highest.squeeze(1).exp(), x.new_ones(x.shape[1])
        for _ in range(iterations):
            s = 1 / ranks.total(x.T @ r)
            r = 1 / (x @ s)
        return x.mul_(r.unsqueeze(1)).mul_(s)


def entropy(probabilities: Float[Tensor, "*row prototype"]) -> Float[Tensor, "*row"]:
    """-sum_k p_k ln p_k of each row, from 0 (one prototype) to ln K (uniform)."""
    return torch.special.entr(probabilities).sum(-1)


def kl_uniform(probabilities: Float[Tensor, "*row prototype"]) -> Float[Tensor, "*row"]:
    """Divergence KL(p || uniform) of each row, ln K - entropy: from 0 (uniform) to ln K (one prototype)."""
    return math.log(probabilities.shape[-1]) - entropy(probabilities)


def _cross_entropy(
    logits: Float[Tensor, "view row prototype"], targets: Sequence[Float[Tensor, "row prototype"]], temperature: float
) -> Float[Tensor, "view row"]:
    """Of each view's rows, with gradients to the logits only."""
    return _CrossEntropy.apply(logits, temperature, *targets)  # pyright: ignore[reportReturnType]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, temperature: float, *targets: Tensor) -> Tensor:
        ctx.temperature = temperature
        ctx.save_for_backward(logits, *targets)
        found = torch.empty(logits.shape[:2], dtype=_wide(logits), device=logits.device)
        for view, target in enumerate(targets):
            for rows in _chunks(target):
                logs = torch.log_softmax(logits[view, rows].to(found.dtype) / temperature, -1)
                torch.sum(logs.mul_(target[rows]), -1, out=found[view, rows])
        return found.neg_()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):
        logits, *targets = ctx.saved_tensors
        found = torch.empty_like(logits)
        scale = grads[0].unsqueeze(-1) / ctx.temperature
        for view, target in enumerate(targets):
            for rows in _chunks(target):
                q = torch.softmax(logits[view, rows].to(scale.dtype) / ctx.temperature, -1)
                q.mul_(target[rows].sum(-1, keepdim=True)).sub_(target[rows])
                found[view, rows] = q.mul_(scale[view, rows])
        return found, *[None] * (1 + len(targets))


def _chunks(flat: Float[Tensor, "row prototype"]) -> Iterator[slice]:
    step = max(1, CHUNK // flat.shape[1])
    return (slice(start, start + step) for start in range(0, len(flat), step))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
