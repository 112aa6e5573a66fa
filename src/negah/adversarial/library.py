"""Attacks of other libraries in ours' place: the same evaluation, the same verdicts.

attacks = {"PGD of torchattacks": of_torchattacks(lambda model, eps: torchattacks.PGD(model, eps=eps, steps=20))}
attacked(model, images, labels, eps=8 / 255, attacks=attacks)
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from negah.adversarial.norms import LINF, Norm
from negah.adversarial.target import Attack, still


def of_torchattacks(make: Callable[[nn.Module, float], Any]) -> Attack:
    """An attack out of what `make(model, eps)` returns: a callable of images and labels, as torchattacks' objects are.

    They draw from torch's global generators, which are seeded from `generator` and put back.
    """

    def attack(
        model: nn.Module, images: Float[Tensor, "batch channel h w"], labels: Int[Tensor, " batch"], *, eps: float,
        norm: Norm = LINF, generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channel h w"]:  # fmt: skip
        with still(model):
            torch.manual_seed(0 if generator is None else int(torch.randint(2**31, (), generator=generator)))
            return make(model, eps)(images, labels).detach()

    return attack
