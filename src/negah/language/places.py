"""Where a checkpoint keeps the tensors of a model of ours."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's

CLIPS: dict[str, Any] = {"layer_scale": None, "pre_norm": True, "eps": 1e-5, "interpolation": "size-antialias"}
"""What sets the vision transformer of a CLIP apart from ours."""


@dataclass(frozen=True)
class Place:
    """Where a file keeps one of our tensors: several are stacked; `change` makes of them what we have."""

    keys: tuple[str, ...]
    change: Callable[[Tensor], Tensor] = lambda x: x


def both(ours: str, *theirs: str) -> dict[str, Place]:
    """Weight and bias."""
    return {f"{ours}.{kind}": Place(tuple(f"{name}.{kind}" for name in theirs)) for kind in ("weight", "bias")}


def depth_of(state: Mapping[str, Any], block: str) -> int:
    """Number of blocks; `block` is a pattern whose group is a block's number."""
    return 1 + max(int(match[1]) for key in state if (match := re.match(block, key)))
