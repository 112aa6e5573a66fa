"""Universal perturbations: one and the same delta that fools a model on most images.

    v = universal(model, images, eps=10 / 255, generator=generator)
    fooling_rate(model, other_images, v)                    beside: fooling_rate(model, other_images, random_signs(...))

Fooling is to change what the model says, whatever was true: pred(x + v) != pred(x).  Two ways:

`universal_deepfool`, Moosavi-Dezfooli et al. 2016, "Universal adversarial perturbations", arXiv:1610.08401, algorithm
1: go through the images; where x + v is not fooled yet, add the shortest step that fools it, and project:

    v <- project(v + deepfool(x + v))                        until the rate on the images is 1 - miss

`universal`, by optimisation: argmax_v mean_x min(loss(model(x + v), pred(x)), cap) over ||v|| <= eps, by steps along
the steepest direction of batches (Shafahi et al. 2018, arXiv:1811.11304).  The cap keeps images that are fooled
already from drawing the step to themselves.

What a rate means: on the images that v was made of it is a training score; report it on others, beside that of random
signs of the same eps, which is what noise alone does.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from negah.adversarial.deepfool import minimal
from negah.adversarial.losses import cross_entropy
from negah.adversarial.norms import L2, LINF, Norm, uniform
from negah.adversarial.target import Loss, Model, check, gradient, logits_of, still
from negah.errors import InputError

Images = Float[Tensor, "n channel h w"]
Delta = Float[Tensor, "1 channel h w"]


def universal(
    model: Model, images: Images, *, eps: float, norm: Norm = LINF, epochs: int = 10, batch: int = 128,
    step_size: float | None = None, cap: float = 9.0, loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
) -> Delta:  # fmt: skip
    """By ascent over batches in random order.

    Args:
        step_size: by default eps / 10, falling linearly to a tenth of that.
        cap: of each image's loss.

    Raises InputError as other attacks do.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> images = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> delta = universal(model, images, eps=0.5, generator=torch.Generator().manual_seed(0))
        >>> delta.shape, bool(delta.abs().max() <= 0.5), 0 <= fooling_rate(model, images, delta) <= 1
        (torch.Size([1, 3, 2, 2]), True, True)
    """
    delta = torch.zeros_like(images[:1])
    with still(model):
        labels = _said(model, images, eps)
        steps = epochs * -(-len(images) // batch)
        done = 0
        for _ in range(epochs):
            for part in torch.randperm(len(images), generator=generator).split(batch):
                x, y = images[part], labels[part]
                size = (eps / 10 if step_size is None else step_size) * (1 - 0.9 * done / steps)
                _, _, slopes = gradient(model, (x + delta).clamp(0, 1), y, lambda z, y: loss(z, y).clamp(max=cap))
                delta = norm.project(delta + size * norm.direction(slopes.sum(0, keepdim=True)), eps)
                done += 1
    return delta


def universal_deepfool(
    model: Model, images: Images, *, eps: float, norm: Norm = LINF, miss: float = 0.2, epochs: int = 10,
    classes: int = 10, overshoot: float = 0.02, steps: int = 50, generator: torch.Generator | None = None,
) -> Delta:  # fmt: skip
    """Algorithm 1: image by image, with DeepFool's steps in L2, until a share 1 - `miss` of the images is fooled."""
    delta = torch.zeros_like(images[:1])
    with still(model):
        labels = _said(model, images, eps)
        for _ in range(epochs):
            for i in torch.randperm(len(images), generator=generator).tolist():
                x, y = (images[i : i + 1] + delta).clamp(0, 1), labels[i : i + 1]
                step = minimal(model, x, y, L2(), steps, classes, overshoot)  # zero where it is fooled already
                delta = norm.project(delta + step, eps)
            if _rate(model, images, delta, labels) >= 1 - miss:
                break
    return delta


def fooling_rate(model: Model, images: Images, delta: Delta) -> float:
    """Share of the images of which the model says something else with delta added, clipped to [0, 1]."""
    with still(model):
        return _rate(model, images, delta, _said(model, images, 0.0))


def random_signs(like: Delta, eps: float, generator: torch.Generator | None = None) -> Delta:
    """Every value at +eps or -eps: what a universal perturbation must be better than."""
    return eps * (2.0 * (uniform(like, generator) < 0.5).to(like) - 1)


@torch.no_grad()
def _rate(model: Model, images: Images, delta: Delta, labels: Tensor) -> float:
    changed = [
        logits_of(model, (x + delta).clamp(0, 1)).argmax(1) != y for x, y in zip(images.split(256), labels.split(256))
    ]
    return torch.cat(changed).double().mean().item()


@torch.no_grad()
def _said(model: Model, images: Images, eps: float) -> Tensor:
    """The class that the model names for each image."""
    if not len(images):
        raise InputError("a universal perturbation needs images to be made of")
    check(model, images[:1], torch.zeros(1, dtype=torch.long, device=images.device), eps)
    return torch.cat([logits_of(model, part).argmax(1) for part in images.split(256)])
