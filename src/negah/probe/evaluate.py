"""What a backbone has learned, in two figures: accuracy of its nearest neighbours, and of a linear probe on it.

    train, test = embed(backbone, train_images), embed(backbone, test_images)
    knn_accuracy(train, train_labels, test, test_labels, k=20)
    linear_accuracy(train, train_labels, test, test_labels)

The protocol of DINO (arXiv:2104.14294) and DINOv2 (arXiv:2304.07193): frozen features of images without augmentation.
Take them at steps fixed beforehand and report the last: the best of many on the test set is a choice made by it.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from negah.errors import InputError
from negah.probe.knn import TEMPERATURE, knn_probability
from negah.probe.linear import fit_linear
from negah.train.surroundings import mode

STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4)


@torch.no_grad()
def embed(
    backbone: nn.Module, images: UInt8[Tensor, "n 3 h w"] | Iterable[UInt8[Tensor, "3 h w"]], *, batch: int = 256
) -> Float[Tensor, "n width"]:
    """Features of all images, on the CPU and in fp32; the backbone is left in the mode and where it was.

    backbone: images to [batch, width], owning its normalisation (`negah.nn.backbone`).  images: of one size, in a
    tensor or one at a time.  Raises InputError when there are none.
    """
    where = next((t.device for t in chain(backbone.parameters(), backbone.buffers())), torch.device("cpu"))
    with mode(backbone, training=False):
        features = [backbone(part.to(where)).float().cpu() for part in _parts(images, batch)]
    if not features:
        raise InputError("no images to embed")
    return torch.cat(features)


def knn_accuracy(
    train: Float[Tensor, "train width"],
    train_labels: Int[Tensor, " train"],
    test: Float[Tensor, "test width"],
    test_labels: Int[Tensor, " test"],
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> float:
    """Share of the test samples whose class their k nearest training samples name; usual k are 20 and 200."""
    _check(test, test_labels)
    named = knn_probability(train, train_labels, test, k=k, temperature=temperature).argmax(1)
    return (named == test_labels.to(named.device)).double().mean().item()


def linear_accuracy(
    train: Float[Tensor, "train width"],
    train_labels: Int[Tensor, " train"],
    test: Float[Tensor, "test width"],
    test_labels: Int[Tensor, " test"],
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> float:
    """Share of the test samples that a linear probe names rightly.

    Its l2 is chosen from `strengths` on a fifth of the training samples, and the test samples are never looked at.
    Labels are 0 to classes - 1.  Training samples that belong together (overlapping tiles) need `fit_linear` with
    groups instead.
    """
    _check(test, test_labels)
    probe = fit_linear(train.numpy(), train_labels.numpy(), strengths=strengths, inner_folds=5, held_out=1)
    said = probe.probability(test.numpy())
    named = said.argmax(1) if said.ndim == 2 else said > 0.5
    return float(np.mean(named == test_labels.numpy()))


def _check(test: Tensor, labels: Tensor) -> None:
    if not len(test) or len(test) != len(labels):
        raise InputError(f"an accuracy needs test samples and a label for each: got {len(test)} and {len(labels)}")


def _parts(images: Tensor | Iterable[Tensor], batch: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield from images.split(batch) if len(images) else ()
        return
    waiting: list[Tensor] = []
    for image in images:
        waiting.append(image)
        if len(waiting) == batch:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)
