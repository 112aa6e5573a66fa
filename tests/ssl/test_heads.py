"""Projectors and predictors: the layers that the papers describe."""

import pytest
import torch
from torch import nn

from negah.nn.norm import GlobalBatchNorm1d
from negah.ssl.heads import projector


def layout(head: nn.Sequential) -> str:
    """L linear with bias, l without; N norm with affine, n without; R ReLU."""
    letters = []
    for part in head:
        if isinstance(part, nn.Linear):
            letters.append("l" if part.bias is None else "L")
        elif isinstance(part, GlobalBatchNorm1d):
            letters.append("N" if part.affine else "n")
        else:
            assert isinstance(part, nn.ReLU)
            letters.append("R")
    return "".join(letters)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "lNRL"),  # BYOL
        ({"norm": False}, "LRL"),  # MoCo v2
        ({"last_norm": True}, "lNRlN"),  # SimCLR
        ({"layers": 3, "last_norm": True, "last_affine": False}, "lNRlNRln"),  # MoCo v3
        ({"layers": 1}, "L"),
    ],
)
def test_layers_are_those_of_the_paper(options, expected):
    head = projector(6, 10, 4, **options)
    assert layout(head) == expected
    assert head(torch.randn(8, 6)).shape == (8, 4)
    widths = [(p.in_features, p.out_features) for p in head if isinstance(p, nn.Linear)]
    assert widths == {1: [(6, 4)], 2: [(6, 10), (10, 4)], 3: [(6, 10), (10, 10), (10, 4)]}[options.get("layers", 2)]


def test_heads_are_lightlys():
    from lightly.models.modules import heads as lightly

    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    for theirs, ours in (
        (lightly.BYOLProjectionHead(6, 10, 4), projector(6, 10, 4)),
        (lightly.MoCoProjectionHead(6, 10, 4), projector(6, 10, 4, norm=False)),
        (lightly.SimCLRProjectionHead(6, 10, 4), projector(6, 10, 4, last_norm=True)),
    ):
        theirs.layers.load_state_dict(ours.state_dict())
        assert torch.equal(ours(x), theirs(x))
