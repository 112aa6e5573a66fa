"""Guidance: make a denoiser tell pictures that are more of what is asked for.

Each takes a denoiser (or the network behind it) and gives one, so they nest, and every sampler works with all of them:
the prediction is changed before the step.  With score = grad_x log p(x) = (x_0 - x) / sigma^2, adding s times another
score to it is adding sigma^2 s times that score to x_0:

    classifier       x_0 + sigma^2 s grad_x log p(y | x, sigma)    of a classifier that sees noise (Dhariwal & Nichol
                                                                   2021, arXiv:2105.05233, alg. 2)
    universal        x_0 + sigma^2 s grad_x f(x_0(x))              of any score of clean pictures, through the denoiser
                                                                   (Bansal et al. 2023, arXiv:2302.07121, eq. 6, f = -l)
    classifier_free  u + s (c - u)                                 of one network with (c) and without (u) the words
                                                                   (Ho & Salimans 2022, arXiv:2207.12598, eq. 6)

and variants of the last, which combine:

    interval   guided for lo < sigma <= hi only; elsewhere c, and u is not computed (Kynkaanniemi et al. 2024,
               arXiv:2404.07724)
    rescale    the guided prediction is given the spread of c again, by a share phi (Lin et al. 2023, arXiv:2305.08891,
               section 3.4), which large s inflates
    plus_plus  CFG++: the picture is u + s (c - u) with s in [0, 1], but the noise is that of u (Chung et al. 2024,
               arXiv:2406.08070, alg. 2): guidance moves along what the network holds for pictures
    apg        c + (s - 1) d, with c - u less its part along c, which saturates colours (Sadat et al. 2024,
               arXiv:2410.02416, alg. 1)

What rules out strength that depends on the batch: values are summed over it, never averaged, and norms, spreads and
projections are of each sample.  What rules out side effects: gradients are taken of x alone, so no parameter's `.grad`
is touched; nothing is switched to train or eval.
How it can fail: a classifier of clean pictures is blind to noisy ones; give it to `universal`.  Gradients need a
sampler under `torch.no_grad`, as ours are, not under `torch.inference_mode`.
Departures: rescale is done on v, whose spread Lin et al. restore, whatever the network tells (diffusers: on what it
tells).  Universal guidance has neither the recurrence nor the backward guidance of the paper.  A guidance around
`classifier` or `universal` takes what these add as constant, or each layer would need one more order of derivatives.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from negah.diffusion.sample import Denoiser, Prediction

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Scale = float | Tensor


def classifier(denoise: Denoiser, log_prob: Callable[[Tensor, Tensor], Tensor], scale: Scale) -> Denoiser:
    """Classifier guidance.

    log_prob: of the wanted class, log_prob(x, sigma) -> [batch].
    scale: s above, a number or [batch].
    Raises ValueError at the first step where log_prob gives another shape or does not depend on x.
    """

    def guided(x: Tensor, sigma: Tensor) -> Tensor | Prediction:
        with torch.enable_grad():
            free = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(summed(log_prob(free, sigma), x, "log_prob"), free)
        return shifted(denoise(x, sigma), sigma**2 * per_sample(scale, x) * gradient)

    return guided


def universal(denoise: Denoiser, score: Callable[[Tensor], Tensor], scale: Scale) -> Denoiser:
    """Universal guidance: the gradient passes the score, the decoder that it may hold, and the denoiser.

    score: of predicted clean pictures, higher for better ones, score(x_0) -> [batch].
    scale: s above, a number or [batch].
    Raises ValueError at the first step where score gives another shape or does not depend on x.
    """

    def guided(x: Tensor, sigma: Tensor) -> Tensor | Prediction:
        # A guidance around this one wants the graph from its own x to x_0; else nobody does.
        inner = x.requires_grad
        with torch.enable_grad():
            free = x if inner else x.detach().requires_grad_()
            told = denoise(free, sigma)
            clean = told.clean if isinstance(told, Prediction) else told
            (gradient,) = torch.autograd.grad(summed(score(clean), x, "score"), free, retain_graph=inner)
        if not inner:
            told = Prediction(*(part.detach() for part in told)) if isinstance(told, Prediction) else told.detach()
        return shifted(told, sigma**2 * per_sample(scale, x) * gradient)

    return guided


@dataclass(frozen=True)
class APG:
    """Adaptive projected guidance.

    eta: share of the part along c that is left (1: all of it).
    norm: the most that |c - u| of a sample may be; None leaves it.
    momentum: of a running sum of c - u over the steps; the paper's are negative, which stresses what is new.
    """

    eta: float = 0.0
    norm: float | None = None
    momentum: float = 0.0

    def direction(self, c: Tensor, difference: Tensor) -> Tensor:
        """d above, from c and the running sum of c - u."""
        axes = tuple(range(1, c.ndim))
        if self.norm is not None:
            length = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
            difference = difference * (self.norm / length.clamp(min=1e-12)).clamp(max=1)
        unit = c / torch.linalg.vector_norm(c, dim=axes, keepdim=True).clamp(min=1e-12)
        along = (difference * unit).sum(axes, keepdim=True) * unit
        return difference - along + self.eta * along


def classifier_free(
    network: Network, context: Tensor, unconditional: Tensor, *,
    scale: Scale, interval: tuple[float, float] | None = None, rescale: float = 0.0, plus_plus: bool = False,
    apg: APG | None = None,
) -> Denoiser:  # fmt: skip
    """Classifier-free guidance, for one sampling run: the momentum of `apg` starts anew where sigma rises.

    network: network(x, sigma, context) -> x_0; called once a step with both halves, u first, in one batch; with c alone
        outside of the interval, and throughout at scale 1 without `plus_plus`.
    context, unconditional: [batch, ...], or [1, ...] for all.
    scale: s above, a number or [batch].
    interval: (lo, hi) of sigma.
    rescale: phi above; 0 leaves the prediction, 1 gives it the spread of c.

    Raises ValueError for an interval without length.
    """
    lo, hi = interval or (0.0, float("inf"))
    if not 0 <= lo < hi:
        raise ValueError(f"the interval of guidance must be (lo, hi] with 0 <= lo < hi, got ({lo}, {hi}]")
    past = Momentum(apg.momentum if apg else 0.0)

    def guided(x: Tensor, sigma: Tensor) -> Tensor | Prediction:
        with_words = context.expand(len(x), *context.shape[1:])
        unit = not isinstance(scale, Tensor) and scale == 1 and not plus_plus
        if unit or not lo < float(sigma) <= hi:
            return network(x, sigma, with_words)
        without = unconditional.expand_as(with_words)
        u, c = network(torch.cat([x, x]), sigma, torch.cat([without, with_words])).chunk(2)
        s = per_sample(scale, x)
        clean = u + s * (c - u) if apg is None else c + (s - 1) * apg.direction(c, past.add(c - u, float(sigma)))
        if rescale:
            clean = rescaled(clean, c, x, sigma, rescale)
        return Prediction(clean, u) if plus_plus else clean

    return guided


class Momentum:
    """A running sum of one sampling run: sum = new + momentum * sum."""

    def __init__(self, momentum: float):
        self.momentum, self.sum, self.sigma = momentum, None, 0.0

    def add(self, new: Tensor, sigma: float) -> Tensor:
        if self.sum is not None and sigma <= self.sigma:
            new = new + self.momentum * self.sum
        self.sum, self.sigma = new.detach(), sigma  # else `universal` would keep the graphs of all steps
        return new


def rescaled(clean: Tensor, c: Tensor, x: Tensor, sigma: Tensor, share: float) -> Tensor:
    """x_0 whose v has the spread (standard deviation of each sample) of c's v, by a share of the way.

    v is (x / (1 + sigma^2) - x_0) times a number that is the same for both.
    """
    middle, axes = x / (1 + sigma**2), tuple(range(1, x.ndim))
    v, v_c = middle - clean, middle - c
    ratio = v_c.std(axes, keepdim=True) / v.std(axes, keepdim=True)
    return middle - (share * ratio + 1 - share) * v


def shifted(told: Tensor | Prediction, shift: Tensor) -> Tensor | Prediction:
    """Both what is seen and what the noise is seen against: the score itself has changed."""
    return Prediction(told.clean + shift, told.renoise + shift) if isinstance(told, Prediction) else told + shift


def per_sample(scale: Scale, x: Tensor) -> Scale:
    """Scales [batch] beside x [batch, ...]."""
    return scale.to(x).view(-1, *[1] * (x.ndim - 1)) if isinstance(scale, Tensor) and scale.ndim else scale


def summed(values: Tensor, x: Tensor, name: str) -> Tensor:
    """The sum over the batch, whose gradient by each sample is that of its own value alone."""
    if values.shape != (len(x),):
        raise ValueError(f"{name} must give one value for each sample, [{len(x)}], got {list(values.shape)}")
    if not values.requires_grad:
        raise ValueError(f"{name} does not depend on x: is it computed under no_grad, or of detached tensors?")
    return values.sum()
