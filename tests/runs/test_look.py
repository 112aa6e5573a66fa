"""What a backbone sees of one picture: maps of every layer and head."""

import numpy as np
import pytest
import torch
from PIL import Image

from negah import weights
from negah.errors import InputError
from negah.nn.backbone import ViTBackbone
from negah.probe.maps import attention_maps, principal_colours
from negah.runs.look import look


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def test_maps_of_every_layer_are_those_of_the_network(picture):
    steps = []
    found = look(picture, "vit-micro/8", side=50, progress=lambda *step: steps.append(step))
    net = weights.backbone("vit-micro/8")
    assert isinstance(net, ViTBackbone) and found.attention is not None
    assert found.picture.shape == (48, 48, 3)  # whole patches
    assert found.attention.shape == (6, 4, 6, 6) and found.colours.shape == (6, 6, 6, 3)
    image = torch.from_numpy(found.picture.copy()).permute(2, 0, 1)[None]
    for layer in (0, 5):
        assert torch.equal(found.attention[layer], attention_maps(net, image, layer=layer)[0])
    tokens = net.vit.intermediate(image, [2])[0].patches.detach().unflatten(1, (6, 6))
    assert torch.equal(found.colours[2], principal_colours(tokens)[0])
    assert steps[-1] == ("layers", 6, 6)


def test_a_residual_network_has_one_map_and_no_attention(picture):
    found = look(picture, "resnet10-cifar", side=32)
    assert found.attention is None and len(found.colours) == 1


def test_what_cannot_be_looked_at_is_said(picture, tmp_path):
    with pytest.raises(InputError, match="16 to 1024"):
        look(picture, "vit-micro/8", side=5000)
    Image.new("RGB", (8, 8)).save(tmp_path / "another.png")
    with pytest.raises(InputError, match="holds 2 pictures"):
        look(tmp_path, "vit-micro/8")
