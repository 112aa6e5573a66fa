"""DeepFool: the shortest way across the nearest decision boundary, by linear models of it.

Moosavi-Dezfooli et al. 2015, "DeepFool: a simple and accurate method to fool deep neural networks", arXiv:1511.04599,
algorithm 2.  With f the logits and k0 the class that the model names, for each other class k

    w_k = grad f_k(x) - grad f_k0(x),    f'_k = f_k(x) - f_k0(x)
    l = the k of smallest |f'_k| / ||w_k||_q,    r = |f'_l| / ||w_l||_q * direction(w_l)         q: the dual norm
    x <- x + r,   until the class changes;   x = image + (1 + overshoot) * sum of r

The result is a minimal perturbation, not one of a given size: `eps` only says where to give up.
Departures: classes are the `classes` likeliest, as in the authors' code; from the true label, so an image that is
misclassified stays as it is.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from negah.adversarial.climb import Ball
from negah.adversarial.norms import L2, Eps, Norm, per_image
from negah.adversarial.target import Model, check, logits_of, still


def deepfool(
    model: Model, images: Float[Tensor, "batch channel h w"], labels: Int[Tensor, " batch"], *,
    eps: Eps = float("inf"), norm: Norm = L2(), steps: int = 50, classes: int = 10, overshoot: float = 0.02,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channel h w"]:  # fmt: skip
    """At most `steps` linear models; nothing is random.  Raises InputError as other attacks do."""
    with still(model):
        check(model, images, labels, eps)
        return Ball(images, eps, norm).clip(images + minimal(model, images, labels, norm, steps, classes, overshoot))


def minimal(
    model: Model, images: Float[Tensor, "batch channel h w"], labels: Int[Tensor, " batch"], norm: Norm, steps: int,
    classes: int, overshoot: float,
) -> Float[Tensor, "batch channel h w"]:  # fmt: skip
    """The perturbations, of a model that is held `still`; zero for images that are misclassified as they are."""
    total, index = torch.zeros_like(images), torch.arange(len(images), device=images.device)
    for _ in range(steps + 1):
        with torch.enable_grad():
            x = (images[index] + (1 + overshoot) * total[index]).clamp(0, 1).requires_grad_()
            logits = logits_of(model, x)
            left = (logits.argmax(1) == labels[index]).nonzero().squeeze(1)
            if not len(left) or not logits.requires_grad:
                break
            own = logits.gather(1, labels[index].unsqueeze(1))
            others = logits.detach().scatter(1, labels[index].unsqueeze(1), -torch.inf)
            ranked = others.topk(min(classes, logits.shape[1]) - 1, dim=1).indices
            gaps = logits.gather(1, ranked) - own  # [batch, class], below 0 for the rightly classified
            slopes = [torch.autograd.grad(gap.sum(), x, retain_graph=True)[0] for gap in gaps.unbind(1)]
        slope = torch.stack([s.detach() for s in slopes], 1)[left]
        gap = gaps.detach()[left]
        rows = torch.arange(len(gap), device=gap.device)
        directions = norm.direction(slope.flatten(0, 1)).view_as(slope)
        steep = (slope * directions).flatten(2).sum(2)  # the dual norm
        distance = gap.abs() / steep.clamp(min=1e-12)
        nearest = distance.argmin(1)
        step = distance[rows, nearest] + 1e-4  # just across, as in the authors' code
        index = index[left]
        total[index] += per_image(step, slope[:, 0]) * directions[rows, nearest]
    return (1 + overshoot) * total
