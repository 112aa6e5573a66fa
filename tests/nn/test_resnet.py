import pytest
import torch
import torchvision
from torch import nn

from negah.nn.resnet import BasicBlock, ResNet


def randomised(module: nn.Module) -> nn.Module:
    """Norms with statistics and gains of their own, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (norm.bias.data, norm.running_mean):
                tensor.normal_(0, 0.1, generator=generator)
    return module


@pytest.mark.parametrize("name, depths", [("resnet18", (2, 2, 2, 2)), ("resnet34", (3, 4, 6, 3))])
def test_torchvision_weights_load_by_name_and_give_the_same_map(name, depths):
    peer = randomised(getattr(torchvision.models, name)(weights=None)).eval()
    state = {key: value for key, value in peer.state_dict().items() if not key.startswith("fc.")}
    ours = ResNet(depths=depths).eval()
    ours.load_state_dict(state, strict=True)
    pixels = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = peer.maxpool(peer.relu(peer.bn1(peer.conv1(pixels))))
        theirs = peer.layer4(peer.layer3(peer.layer2(peer.layer1(theirs))))
        torch.testing.assert_close(ours(pixels), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stem, side", [("imagenet", 4), ("fine", 8), ("cifar", 16)])
def test_each_stem_has_the_grid_it_promises(stem, side):
    net = ResNet(widths=(8, 16, 24), depths=(1, 1, 1), stem=stem).eval()
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 24, side, side)
    assert net.dim == 24


def test_a_new_block_is_the_identity_on_what_is_positive():
    x = torch.rand(2, 8, 5, 5)
    net = ResNet(widths=(8,), depths=(1,), stem="cifar").train()
    block = net.get_submodule("layer1.0")
    assert isinstance(block, BasicBlock)
    assert torch.equal(block(x), x)


def test_stages_without_a_depth_are_refused():
    with pytest.raises(ValueError, match="3 widths for 2 depths"):
        ResNet(widths=(8, 8, 8), depths=(1, 1))
