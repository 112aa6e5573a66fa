"""What is attacked: any callable from images in [0, 1] to logits, held still while an attack looks at it.

    model = Classifier(resnet, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))

An attack sees [0, 1] and nothing else.  A model that wants normalised pixels is wrapped together with its
normalisation, so that eps always means the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah.errors import InputError
from negah.train.surroundings import mode

Model = Callable[[Float[Tensor, "batch 3 h w"]], Float[Tensor, "batch classes"]]
Loss = Callable[[Float[Tensor, "batch classes"], Int[Tensor, "batch *aim"]], Float[Tensor, " batch"]]
Attack = Callable[..., Float[Tensor, "batch channel h w"]]  # (model, images, labels, *, eps, norm, generator)


class Classifier(nn.Module):
    """A model with the normalisation that it wants, and its logits out of whatever it returns.

    Args:
        model: a module on normalised pixels that returns logits [batch, classes], or an object with `.logits`
            (Hugging Face).  Logits of one class, [batch] or [batch, 1], become two: (0, logit).
        mean, std: per channel, of pixels in [0, 1]; none for a model that owns its normalisation.
    """

    def __init__(
        self, model: nn.Module, *, mean: Sequence[float] = (0.0, 0.0, 0.0), std: Sequence[float] = (1.0, 1.0, 1.0)
    ):  # fmt: skip
        super().__init__()
        if any(value <= 0 for value in std):
            raise ValueError(f"std divides pixels, so it must be above 0, not {tuple(std)}")
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.train(model.training)

    def forward(self, images: Float[Tensor, "batch channel h w"]) -> Float[Tensor, "batch classes"]:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        said: Any = self.model((images - mean) / std)
        logits: Tensor = getattr(said, "logits", said)
        if logits.dim() == 1:
            logits = logits.unsqueeze(1)
        return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


@contextmanager
def still(model: Model) -> Iterator[None]:
    """Evaluation mode, no gradients of parameters; modes, buffers, `.grad` and torch's random state put back after."""
    if not isinstance(model, nn.Module):
        with torch.random.fork_rng():
            yield
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(), mode(model, training=False):
        try:
            for p in learning:
                p.requires_grad_(False)  # less is kept for the backward pass
            yield
        finally:
            for p in learning:
                p.requires_grad_(True)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def logits_of(model: Model, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch classes"]:
    """In fp32 at least.  Raises InputError where the model returns something else than finite logits of each image."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the model returns {shape} for {len(images)} images, not logits [batch, classes]: wrap it in Classifier"
        )
    if not logits.detach().isfinite().all():
        bad = int((~logits.detach().isfinite()).any(1).nonzero()[0])
        raise InputError(f"the model's logits of image {bad} of a batch are not finite: no attack can judge it")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def gradient(
    model: Model, images: Float[Tensor, "batch 3 h w"], aim: Int[Tensor, "batch *aim"], loss: Loss
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, " batch"], Float[Tensor, "batch 3 h w"]]:
    """Logits, each image's loss, and its gradient by the image alone; zero where the model does not look."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = logits_of(model, images)
        losses = loss(logits, aim)
        found = torch.autograd.grad(losses.sum(), images, allow_unused=True)[0] if losses.requires_grad else None
    return logits.detach(), losses.detach(), torch.zeros_like(images) if found is None else found.detach()


def check(model: Model, images: Tensor, labels: Tensor, eps: float | Tensor) -> None:
    """Raise InputError for what cannot be attacked: it says what and where."""
    if images.dim() != 4 or not len(images) or not images.is_floating_point():
        raise InputError(
            f"an attack takes images [batch, channel, h, w] as floats, not {images.dtype} {tuple(images.shape)}"
        )
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # also for NaN
        raise InputError(
            f"images lie in {low:.4g} to {high:.4g}, not in 0 to 1: undo their normalisation, and give it to Classifier"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"labels are one class number for each of {len(images)} images, not {labels.dtype} {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0:
        raise InputError(f"label {int(labels.min())} is negative: classes are numbered from 0")
    least = float(eps.min()) if isinstance(eps, Tensor) else eps
    if not least >= 0:
        raise InputError(f"eps is the radius of a ball, 0 or more, not {least}")
    with torch.no_grad():
        classes = logits_of(model, images[:1]).shape[1]
    if int(labels.max()) >= classes:
        raise InputError(f"label {int(labels.max())} is out of range: the model has {classes} classes")
