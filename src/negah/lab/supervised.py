"""What the experiments about attacks share: labelled pictures, networks that are trained on them, what these say.

The protocol is that of a well-known exercise on CIFAR-10: a ResNet-18 as torchvision has it, with its stem for
ImageNet, on pixels in [0, 1] without augmentation; batches of 128, SGD with rate 0.01 and momentum 0.9, 100 epochs.
Without `Effort.full` it is reduced to minutes on a CPU: half as wide, on fewer pictures, for as many steps as asked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import SGD

from negah.adversarial.harden import Craft, Hardening
from negah.adversarial.target import Model, logits_of, still
from negah.errors import InputError
from negah.lab.training import Effort, Pictures
from negah.nn.resnet import BasicBlock, ResNet, Stem
from negah.runs.record import compute_device
from negah.train import Batches, FitResult, fit
from negah.train.schedules import constant

EPOCHS, BATCH, LR, MOMENTUM = 100, 128, 0.01, 0.9
FULL_TRAIN, FULL_TEST = 50_000, 10_000  # pictures at most: all of CIFAR-10
TRAIN, TEST = 8000, 1000  # when reduced
WIDTHS, REDUCED_WIDTHS = (64, 128, 256, 512), (32, 64, 128, 256)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Network(nn.Module):
    """A residual network, from images in [0, 1] to logits: by default ResNet-18."""

    def __init__(
        self, classes: int, *, widths: Sequence[int] = WIDTHS, depths: Sequence[int] = (2, 2, 2, 2),
        stem: Stem = "imagenet",
    ):  # fmt: skip
        super().__init__()
        self.resnet, self.linear = ResNet(widths=widths, depths=depths, stem=stem), nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, BasicBlock):
                nn.init.ones_(module.bn2.weight)  # as torchvision begins; ours begins at 0

    def forward(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch classes"]:
        return self.linear(self.resnet(images).mean((2, 3)))


@dataclass(frozen=True)
class Bench:
    """Pictures and size of an experiment.  images, labels: the test pictures, in [0, 1], on the device."""

    pictures: Pictures
    effort: Effort
    images: Float[Tensor, "n 3 side side"]
    labels: Int[Tensor, " n"]

    @classmethod
    def of(cls, effort: Effort) -> "Bench":
        """Raises InputError where all of the protocol is asked for without pictures, or the data have no classes."""
        if not effort.full:
            pictures, device = Pictures.of(effort, train=TRAIN, test=TEST), torch.device("cpu")
        elif effort.data:
            pictures, device = Pictures.of(effort, train=FULL_TRAIN, test=FULL_TEST), compute_device()
            effort = replace(effort, batch=BATCH, steps=-(-EPOCHS * len(pictures.train) // BATCH))
        else:
            raise InputError("--full is for real pictures: give --data cifar10/train.zip cifar10/test.zip")
        images, labels = pictures.test.to(device).float() / 255, pictures.test_labels.to(device)
        return cls(pictures, effort, images, labels)

    @property
    def protocol(self) -> bool:
        """Whether all of it is run: on CIFAR-10, and nothing reduced."""
        sizes = len(self.pictures.train), len(self.images)
        return self.effort.full and sizes == (FULL_TRAIN, FULL_TEST) and tuple(self.pictures.classes) == CIFAR10

    @property
    def size(self) -> str:
        """For the page: what was run, and whether it is less than the protocol."""
        told = (
            f"{len(self.pictures.train)} pictures to train on and {len(self.images)} to measure on,"
            f" {self.effort.steps} steps of {self.effort.batch} pictures"
        )
        if self.protocol:
            return f"The whole protocol on CIFAR-10: ResNet-18, {told}"
        if self.effort.full:
            return f"In full, but not on CIFAR-10: ResNet-18, {told}"
        return f"REDUCED, to minutes on a CPU: a ResNet-18 half as wide, {told}"

    def settings(self) -> dict[str, Any]:
        """What a page says of it."""
        return self.effort.settings() | {"size": "full" if self.effort.full else "reduced"}

    def network(self, seed: int, **options: Any) -> Network:
        """Before training.  options: as for `Network`; its widths are those of the bench's size by default."""
        options = {"widths": WIDTHS if self.effort.full else REDUCED_WIDTHS} | options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Network(len(self.pictures.classes), **options).to(self.images.device)

    def train(
        self, network: Network, *, craft: Craft, eps: float = 0.0, seed: int = 0,
        scores: Mapping[str, Callable[[], float]] | None = None, checks: int = 8,
    ) -> FitResult:  # fmt: skip
        """Train in place on what `craft` makes of the pictures; it is left in evaluation mode.

        scores: taken on the way, at so many equal distances.
        """
        items = list(zip(self.pictures.train, self.pictures.train_labels))
        done = fit(
            Hardening(network, eps=eps, craft=craft), Batches(items, self.effort.batch, seed=seed, collate=_stacked),
            steps=self.effort.steps, lr=LR, schedule=constant(), optimizer=partial(SGD, momentum=MOMENTUM), seed=seed,
            scores=scores, score_every=max(1, self.effort.steps // checks), log_every=max(1, self.effort.steps // 60),
        )  # fmt: skip
        network.eval()
        return done


def untouched(model: Model, images: Tensor, *_: object) -> Tensor:
    """A `Craft` for plain training: the images as they are."""
    return images


def right(model: Model, images: Float[Tensor, "n 3 h w"], labels: Int[Tensor, " n"]) -> float:
    """Share of the images that the model classifies rightly."""
    return (said(model, images) == labels).double().mean().item()


@torch.no_grad()
def said(model: Model, images: Float[Tensor, "n 3 h w"]) -> Int[Tensor, " n"]:
    """The class that the model names for each image."""
    with still(model):
        return torch.cat([logits_of(model, part).argmax(1) for part in images.split(256)])


def _stacked(items: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.stack([image for image, _ in items]).float() / 255, torch.stack([label for _, label in items])


def show(axis: Any, image: Float[Tensor, "3 h w"], title: str) -> None:
    """A picture in [0, 1] on matplotlib's axis."""
    axis.imshow(image.permute(1, 2, 0).clamp(0, 1).cpu().numpy())
    axis.set_title(title, fontsize=8)
    axis.axis("off")
