"""Maps show what is in the features, by colours that do not change from one call to the next."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from negah.errors import InputError
from negah.nn.backbone import ConvBackbone, ViTBackbone
from negah.nn.resnet import ResNet
from negah.nn.vit import ViT
from negah.probe.maps import CELL, attention_maps, foreground, patch_features, principal_colours, sheet


def vit(registers: int = 0) -> ViTBackbone:
    torch.manual_seed(0)
    return ViTBackbone(ViT(patch=4, dim=16, depth=2, heads=2, grid=(4, 4), registers=registers, layer_scale=None))


def resnet() -> ConvBackbone:
    torch.manual_seed(0)
    return ConvBackbone(ResNet(widths=(8, 16), depths=(1, 1), stem="cifar"))


def images(n: int = 3, side: int = 32) -> Tensor:
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def planted(*, sign: int = 1, n: int = 2, side: int = 8, width: int = 12) -> tuple[Tensor, Tensor]:
    """Features of a thing of two halves in the middle of each picture, on an even ground, with a little noise."""
    generator = torch.Generator().manual_seed(2)
    thing = torch.zeros(n, side, side, dtype=torch.bool)
    thing[:, 2:6, 2:6] = True
    right = torch.zeros_like(thing)
    right[:, :, 4:] = True
    axes = torch.linalg.qr(torch.randn(width, 2, generator=generator))[0].T
    x = sign * 10 * thing[..., None] * axes[0] + 3 * (thing & right)[..., None] * axes[1]
    return x + 0.1 * torch.randn(n, side, side, width, generator=generator), thing


@pytest.mark.parametrize("registers", [0, 3])
def test_attention_is_the_cls_tokens_to_the_patches(registers):
    backbone = vit(registers)
    weights = backbone.vit.attention(images())
    maps = attention_maps(backbone, images())
    assert maps.shape == (3, 2, 8, 8)
    assert torch.equal(maps[1, 0, 2, 5], weights[1, 0, 0, 1 + registers + 2 * 8 + 5])
    assert maps.sum((2, 3)).max() < 1


def test_features_stand_where_they_are_in_the_picture():
    backbone, blank = vit(), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    changed = blank.clone()
    changed[:, :, 4:8, 20:24] = 255  # row 1, column 5 of patches
    for net, place in ((backbone, (1, 5)), (resnet(), (3, 11))):  # the residual network's map is half as fine as pixels
        net.eval()
        moved = (patch_features(net, changed) - patch_features(net, blank)).norm(dim=3)[0]
        assert divmod(int(moved.argmax()), moved.shape[1])[0] in (place[0] - 1, place[0])
    with pytest.raises(InputError, match="no maps of a Linear"):
        patch_features(nn.Linear(2, 2), blank)


def test_the_foreground_is_what_differs_from_the_border_whatever_the_sign():
    for sign in (1, -1):
        features, thing = planted(sign=sign)
        assert torch.equal(foreground(features), thing)


def test_like_places_have_like_colours():
    features, thing = planted()
    colours = principal_colours(features, thing).float()
    assert not colours[~thing].any()
    halves = [colours[:, 2:6, 2:4].flatten(0, 2), colours[:, 2:6, 4:6].flatten(0, 2)]
    apart = abs(halves[0][:, 0].mean() - halves[1][:, 0].mean())  # the first component of the thing: left and right
    assert apart > 150 and max(half[:, 0].std() for half in halves) < 40


def test_signs_do_not_depend_on_the_order_of_pictures_nor_on_a_negligible_change():
    features, _ = planted()
    once = principal_colours(features)
    assert torch.equal(principal_colours(features.flip(0)).flip(0), once)
    nudged = principal_colours(
        features + 1e-6 * torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
    )
    assert (nudged.float() - once.float()).abs().max() <= 1


def test_features_that_are_all_the_same_give_an_even_picture():
    colours = principal_colours(torch.ones(2, 4, 4, 8))
    assert len(colours.flatten(0, 2).unique(dim=0)) == 1
    assert principal_colours(torch.randn(1, 1, 2, 2)).shape == (1, 1, 2, 3)  # fewer places than components


@pytest.mark.parametrize(("make", "columns"), [(vit, {4, 5}), (resnet, {2, 3})])
def test_a_sheet_has_a_row_for_each_picture_and_the_pictures_first(make, columns):
    backbone = make().train()
    before = torch.get_rng_state()
    page = sheet(backbone, images())
    assert page.dtype == np.uint8 and page.shape[0] == 16 + 3 * (CELL + 2) and page.shape[1] // (CELL + 2) in columns
    first = Image.fromarray(images()[0].permute(1, 2, 0).numpy()).resize((CELL, CELL), Image.Resampling.BICUBIC)
    assert np.array_equal(page[16 : 16 + CELL, :CELL], np.asarray(first))
    assert np.array_equal(page, sheet(backbone, images()))
    assert backbone.training and torch.equal(torch.get_rng_state(), before)
