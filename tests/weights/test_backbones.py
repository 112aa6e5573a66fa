import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from negah import weights
from negah.errors import InputError, OutputError, WeightsError
from negah.nn.backbone import Backbone, ConvBackbone, TimmBackbone, ViTBackbone
from negah.nn.resnet import ResNet
from negah.nn.vit import ViT
from negah.weights import backbone, save_backbone


def images(size: int = 32) -> torch.Tensor:
    return torch.randint(256, (2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def trained(net: Backbone) -> Backbone:
    """With values of its own everywhere, the buffers included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5 if "var" in name else -0.1, 1.0 if "var" in name else 0.1, generator=generator)
    return net.eval()


def error(call) -> str:
    with pytest.raises(WeightsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name, kind, width, millions",
    [
        ("vit-micro/8", ViTBackbone, 128, 1.2), ("vit-tiny/8", ViTBackbone, 192, 5.4),
        ("resnet18", ConvBackbone, 512, 11.2), ("resnet18-cifar", ConvBackbone, 512, 11.2),
        ("resnet10-cifar", ConvBackbone, 256, 1.2), ("timm/test_convnext", TimmBackbone, 64, 0.3),
        ("timm/test_vit", TimmBackbone, 64, 0.4),
    ],
)  # fmt: skip
def test_names_mean_what_they_say(name, kind, width, millions):
    before = torch.get_rng_state()
    net = backbone(name, size=32)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(net, kind) and net.width == width and not net.training
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    with torch.no_grad():
        assert net(images()).shape == (2, width)
        assert [len(x) for x in net.many([images(), images(64)])] == [2, 2]


def test_fresh_weights_follow_the_seed():
    a, again, b = (backbone("resnet10-cifar", seed=seed).state_dict()["resnet.conv1.weight"] for seed in (0, 0, 1))
    assert torch.equal(a, again) and not torch.equal(a, b)


def test_a_fresh_transformer_has_positions_for_its_size():
    def vit(name, **more) -> ViT:
        net = backbone(name, **more)
        assert isinstance(net, ViTBackbone)
        return net.vit

    assert vit("vit-micro/8", size=64).grid == (8, 8) and vit("vit-micro").patch == 16
    assert vit("vit-micro").grid == (14, 14)
    assert vit("vit-micro", drop_path=0.2).blocks[-1].drop_path == 0.2
    with pytest.raises(InputError, match="60 px do not divide into the patches of 8 px of vit-micro/8: make it 64"):
        backbone("vit-micro/8", size=60)


@pytest.mark.parametrize("name", ["vit-huge/8", "vit-tiny/0", "resnet34", "alexnet"])
def test_an_unknown_name_is_told_what_is_known(name):
    message = error(lambda: backbone(name))
    assert f"there is no backbone {name}: known are vit-micro" in message
    assert all(word in message for word in ("vit-tiny/8", "resnet18-cifar", "timm/NAME", "negah/aerial-tiny"))
    assert not any(other in message for other in ("refine-neighbours", "describe-tiny"))


def test_whatever_load_reads_is_a_start(tmp_path):
    vit = ViT(patch=4, dim=64, depth=2, heads=1, grid=(3, 3))
    path = weights.save(vit, tmp_path / "vit.safetensors")
    net = backbone(path, drop_path=0.1, size=12)
    assert isinstance(net, ViTBackbone) and net.vit.blocks[1].drop_path == 0.1
    assert torch.equal(net.vit.pos_embed, vit.pos_embed)
    with pytest.raises(InputError, match="13 px do not divide"):
        backbone(path, size=13)
    assert isinstance(backbone(weights.bundled()[0]), ViTBackbone)
    assert "no weights at" in error(lambda: backbone(tmp_path / "absent.safetensors"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: backbone("vit-micro/8", size=32),
        lambda: backbone("resnet10-cifar"),
        lambda: ConvBackbone(
            ResNet(widths=(8, 16), depths=(1, 2), stem="fine"), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 2.0)
        ),
        lambda: ConvBackbone(ResNet(widths=(8, 8, 8), depths=(1, 1, 1), stem="imagenet")),
        lambda: backbone("timm/test_convnext"),
        lambda: backbone("timm/test_vit", size=32),
    ],
)
def test_saved_backbones_come_back_exactly(make, tmp_path):
    net = trained(make())
    path = save_backbone(net, tmp_path / "net.safetensors")
    again = backbone(path)
    assert type(again) is type(net) and again.width == net.width
    with torch.no_grad():
        assert torch.equal(again(images()), net(images()))
    ours, theirs = net.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_loading_is_strict(tmp_path):
    path = save_backbone(ConvBackbone(ResNet(widths=(8,), depths=(1,))), tmp_path / "net.safetensors")
    state = load_file(path)
    meta = {"resnet": {"widths": [8], "depths": [1], "stem": "imagenet", "mean": [0.5] * 3, "std": [0.5] * 3}}

    def message(tensors: dict, about: dict) -> str:
        save_file(tensors, path, metadata={"negah": json.dumps(about)})
        return error(lambda: backbone(path))

    broken = {key: value for key, value in state.items() if key != "bn1.running_var"}
    broken |= {"head.weight": torch.zeros(1), "conv1.weight": torch.zeros(4, 3, 7, 7)}
    found = message(broken, meta)
    assert "missing: bn1.running_var; unexpected: head.weight; misshapen: conv1.weight" in found
    assert "cannot build" in message(state, {"resnet": {"widths": [8], "depths": [1]}})
    assert "cannot build" in message(state, {"resnet": meta["resnet"] | {"stem": "none"}})
    save_file(state, path, metadata={"negah": json.dumps(meta)})
    assert "holds a resnet model, not a ViT: negah.weights.backbone reads it" in error(lambda: weights.load(path))


def test_what_cannot_be_saved_or_made_says_so(tmp_path, monkeypatch):
    net = backbone("resnet10-cifar")
    assert "ending in .safetensors" in error(lambda: save_backbone(net, tmp_path / "net.pth"))
    assert "a Backbone cannot be saved" in error(lambda: save_backbone(Backbone(), tmp_path / "net.safetensors"))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        save_backbone(net, tmp_path / "file" / "net.safetensors")
    assert "resnet18 has no stochastic depth" in error(lambda: backbone("resnet18", drop_path=0.1))
    assert "timm knows no resnet_none: it knows timm/resnet" in error(lambda: backbone("timm/resnet_none"))
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "needs the timm library: pip install timm" in error(lambda: backbone("timm/resnet18"))


def test_files_can_be_read_by_whoever_may_read_files_here(tmp_path):
    (tmp_path / "plain").write_text("")
    save_backbone(backbone("resnet10-cifar"), tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
