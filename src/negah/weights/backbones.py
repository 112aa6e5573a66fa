"""`backbone`: from a name to what training without labels starts from, fresh or trained; `save_backbone`: to a file.

    backbone("vit-tiny/8", size=64)     a fresh vision transformer with patches of 8 px
    backbone("resnet18-cifar")          a fresh residual network for small pictures
    backbone("timm/convnext_atto")      a fresh model of the timm library
    backbone("negah/aerial-tiny")       whatever `load` reads, to train on
    backbone("run/backbone.safetensors")

A vision transformer is saved as `save` does it.  Convolutional networks and timm's are saved as their state dict, with
what it takes to build them in the metadata; they too are loaded strictly.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from negah.errors import InputError, WeightsError
from negah.nn.backbone import Backbone, ConvBackbone, TimmBackbone, ViTBackbone
from negah.nn.resnet import ResNet
from negah.nn.vit import ViT
from negah.weights.files import HUB_NAME, Checkpoint, bundled_backbones, read
from negah.weights.load import vit_of
from negah.weights.save import save, write_tensors

# Width, depth, heads: tiny, small and base of DeiT (Touvron et al. 2020, arXiv:2012.12877, table 1); micro for laptops.
VITS = {"micro": (128, 6, 4), "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
VIT_NAME = re.compile(r"vit-(\w+)(?:/(\d+))?")
PATCH = 16
GRID = 14  # patches along a side, as in pictures of 224 px, where no size is given

# ResNet-10 for small pictures is half as wide as ResNet-18: a ninth of its work.
RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet18-cifar": {"stem": "cifar"},
    "resnet10-cifar": {"stem": "cifar", "widths": (32, 64, 128, 256), "depths": (1, 1, 1, 1)},
}


def backbone(
    name_or_path: str | Path, *, size: int | None = None, drop_path: float = 0.0, seed: int = 0,
    device: torch.device | str = "cpu",
) -> Backbone:  # fmt: skip
    """A backbone by its name, in eval mode and fp32.

    Args:
        name_or_path: "vit-micro", "vit-tiny", "vit-small", "vit-base", all with or without "/PATCH" (16 px);
            "resnet18", "resnet18-cifar", "resnet10-cifar"; "timm/NAME" for a fresh model of timm; a file that
            `save_backbone` wrote; or whatever `load` takes. A name of timm's with a tag
            ("timm/vit_small_patch14_dinov2.lvd142m") is a repository on the hub, and so for `load`.
        size: side of the pictures it is meant for, in pixels: a fresh transformer has positions for it (others are
            interpolated), and any transformer must be able to divide it into patches.
        drop_path: highest stochastic-depth rate; not for our residual networks.
        seed: of fresh weights; the global generator is left alone.
        device: where it goes.

    Raises WeightsError when there is no such backbone or it cannot be read, InputError for a size that is no multiple
    of the patch.

    Examples:
        >>> net = backbone("vit-micro/8", size=32, seed=0)  # fresh weights
        >>> net(torch.zeros(2, 3, 32, 32)).shape == (2, net.width)
        True
    """
    text = str(name_or_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if match := VIT_NAME.fullmatch(text):
            made = _fresh_vit(text, match[1], int(match[2] or PATCH), size, drop_path)
        elif text in RESNETS:
            made = ConvBackbone(ResNet(**RESNETS[text]))
        elif text.startswith("timm/") and "." not in text:
            made = _timm(text.removeprefix("timm/"), (size, size) if size else None, drop_path)
        elif not Path(name_or_path).exists() and not HUB_NAME.fullmatch(text) and Path(text).suffix == "":
            raise WeightsError(_unknown(text))
        else:
            made = _stored(read(name_or_path), size, drop_path)
    if drop_path and isinstance(made, ConvBackbone):
        raise WeightsError(f"{text} has no stochastic depth: leave drop_path at 0")
    return made.eval().to(device)


def save_backbone(backbone: Backbone, path: str | Path) -> Path:
    """Write a backbone to a .safetensors file from which `backbone(path)` restores it; returns the path.

    Of timm's models name, size and normalisation are kept; other options they were created with are not, and such a
    file is then refused when it is loaded.

    Raises WeightsError for a backbone of another class or a path that does not end in .safetensors, OutputError when
    it cannot be written.
    """
    path = Path(path)
    if isinstance(backbone, ViTBackbone):
        return save(backbone.vit, path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"cannot write a backbone to {path}: give a name ending in .safetensors")
    if isinstance(backbone, ConvBackbone):
        kind, net, config = "resnet", backbone.resnet, dict(backbone.resnet.config)
    elif isinstance(backbone, TimmBackbone):
        kind, net = "timm", backbone.model
        config = {"name": getattr(net, "pretrained_cfg", {}).get("architecture"), "size": _image_size(net)}
    else:
        raise WeightsError(
            f"a {type(backbone).__name__} cannot be saved: only ViTs, residual networks and timm's models"
        )
    config |= {"mean": backbone.mean.flatten().tolist(), "std": backbone.std.flatten().tolist()}
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in net.state_dict().items()}
    write_tensors(tensors, path, {"format": "pt", "negah": json.dumps({kind: config}, sort_keys=True)})
    return path


def _unknown(name: str) -> str:
    vits = ", ".join(f"vit-{size}" for size in VITS)
    return (
        f"there is no backbone {name}: known are {vits} (each also with its patch, as in vit-tiny/8), "
        f"{', '.join(RESNETS)}, timm/NAME, {', '.join(bundled_backbones())}, files, and Hugging Face names like "
        "facebook/dinov2-small"
    )


def _fresh_vit(name: str, kind: str, patch: int, size: int | None, drop_path: float) -> ViTBackbone:
    """Without layer scale, which starts so small that a short training hardly leaves it."""
    if kind not in VITS or patch == 0:
        raise WeightsError(_unknown(name))
    _check_size(name, size, patch)
    dim, depth, heads = VITS[kind]
    side = size // patch if size else GRID
    return ViTBackbone(
        ViT(
            patch=patch, dim=dim, depth=depth, heads=heads, grid=(side, side), layer_scale=None, drop_path=drop_path,
            interpolation="size",
        )
    )  # fmt: skip


def _check_size(name: str, size: int | None, patch: int) -> None:
    if size is not None and (size < patch or size % patch):
        near = patch * max(1, round(size / patch))
        raise InputError(
            f"pictures of {size} px do not divide into the patches of {patch} px of {name}: make it {near}"
        )


def _stored(checkpoint: Checkpoint, size: int | None, drop_path: float) -> Backbone:
    """What a checkpoint holds: a residual network or timm's model of ours, else a ViT in any layout."""
    if not {"resnet", "timm"} & checkpoint.negah.keys():
        vit = vit_of(checkpoint, drop_path=drop_path)
        _check_size(checkpoint.origin, size, vit.patch)
        return ViTBackbone(vit)
    try:
        if config := checkpoint.negah.get("resnet"):
            resnet = ResNet(**{key: config[key] for key in ("widths", "depths", "stem", "shortcut") if key in config})
            made, net = ConvBackbone(resnet, mean=config["mean"], std=config["std"]), resnet
        else:
            config = checkpoint.negah["timm"]
            made = _timm(config["name"], config["size"], drop_path, mean=config["mean"], std=config["std"])
            net = made.model
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{checkpoint.origin} describes a network that this version cannot build: {error!r}"
        ) from error
    net.load_state_dict(fitting(checkpoint, net))
    return made


def fitting(checkpoint: Checkpoint, net: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file. Raises WeightsError that names those that are missing, unexpected or misshapen."""
    found, expected = checkpoint.content, net.state_dict()
    faults = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "misshapen": [key for key in expected if key in found and found[key].shape != expected[key].shape],
    }
    if any(faults.values()):
        named = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys)
        raise WeightsError(f"{checkpoint.origin} does not fit the network that it describes; {named}")
    return found


def _timm(
    name: str, size: Sequence[int] | None, drop_path: float, *,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
) -> TimmBackbone:  # fmt: skip
    """A fresh model of timm; those that have positions are told the size, and take others as well."""
    try:
        import timm
    except ImportError as error:
        raise WeightsError(f"timm/{name} needs the timm library: pip install timm") from error
    options: dict[str, Any] = {"num_classes": 0} | ({"drop_path_rate": drop_path} if drop_path else {})
    of_size: dict[str, Any] = {"dynamic_img_size": True} | ({"img_size": tuple(size)} if size else {})
    if name not in timm.list_models():
        near = ", ".join(f"timm/{near}" for near in timm.list_models(f"{name.split('_')[0]}*")[:5])
        raise WeightsError(f"timm knows no {name}" + (f": it knows {near}, ..." if near else ""))
    try:
        model = timm.create_model(name, pretrained=False, **options, **of_size)
    except TypeError:  # a model without positions
        try:
            model = timm.create_model(name, pretrained=False, **options)
        except TypeError as error:
            raise WeightsError(f"timm/{name} cannot be made with {options}: {error}") from error
    return TimmBackbone(model, mean=mean, std=std)


def _image_size(model: nn.Module) -> list[int] | None:
    """Height and width that the positions of a timm model are for; None without positions."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return list(size) if size else None
