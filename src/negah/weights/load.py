"""`load`: from a name or a path to a `ViT` with those weights, strictly."""

from pathlib import Path
from typing import Any

import torch

from negah.errors import WeightsError
from negah.nn.vit import Interpolation, ViT
from negah.weights.files import Checkpoint, read
from negah.weights.layouts import LAYOUTS, Layout, describe, fit, recognise, unwrap


def load(
    name_or_path: str | Path, *, revision: str | None = None, layout: Layout | None = None, heads: int | None = None,
    interpolation: Interpolation | None = None, drop_path: float = 0.0, device: torch.device | str = "cpu",
) -> ViT:  # fmt: skip
    """A ViT in eval mode and fp32 with the weights of a DINOv2-compatible checkpoint.

    Args:
        name_or_path: a file (safetensors or torch), a folder as transformers writes it, a bundled name
            ("negah/aerial-tiny"), or a repository on the Hugging Face hub ("facebook/dinov2-with-registers-small",
            "timm/vit_small_patch14_reg4_dinov2.lvd142m", "owner/name@revision").
        revision: commit, tag or branch on the hub. Without it Meta's DINOv2 names mean one fixed commit each, and
            other names the main branch.
        layout: how the file names its tensors, where recognising it is not enough (a torch-hub file that has lost its
            mask token reads as timm's).
        heads: number of attention heads, for files that do not say and whose heads are not 64 wide.
        interpolation: how position embeddings are resized; without it, as the library that the layout belongs to
            does, so that features equal that library's at every size.
        drop_path: highest stochastic-depth rate, for training on.
        device: where the model goes.

    Raises WeightsError when there are no such weights, they cannot be fetched or read, or any key is missing,
    unexpected or misshapen (all are named).

    Examples:
        >>> vit = load("negah/aerial-tiny")  # the backbone of the bundled detector
        >>> cls, registers, patches = vit(torch.zeros(2, 3, 64, 48, dtype=torch.uint8))
        >>> vit.patch, cls.shape, patches.shape
        (8, torch.Size([2, 192]), torch.Size([2, 48, 192]))
    """
    checkpoint = read(name_or_path, revision=revision)
    return vit_of(
        checkpoint, layout=layout, heads=heads, interpolation=interpolation, drop_path=drop_path, device=device
    )


def vit_of(
    checkpoint: Checkpoint, *, layout: Layout | None = None, heads: int | None = None,
    interpolation: Interpolation | None = None, drop_path: float = 0.0, device: torch.device | str = "cpu",
) -> ViT:  # fmt: skip
    """The ViT that a checkpoint holds; see `load`."""
    origin = checkpoint.origin
    if "language" in checkpoint.negah:
        raise WeightsError(f"{origin} holds a model of pictures and words, no backbone: negah.language.load reads it")
    if "refiner" in checkpoint.negah:
        raise WeightsError(f"{origin} holds what refines a survey, no backbone: negah.graph.refine reads it")
    if kept := [kind for kind in ("resnet", "timm") if kind in checkpoint.negah]:
        raise WeightsError(f"{origin} holds a {kept[0]} model, not a ViT: negah.weights.backbone reads it")
    state = unwrap(checkpoint.content, origin)
    config: dict[str, Any]
    if "backbone" in checkpoint.negah:
        config = dict(checkpoint.negah["backbone"])
        written = checkpoint.negah.get("layout", "negah")
        if written not in LAYOUTS:
            raise WeightsError(f"{origin} is in a layout {written!r} that this version does not know: update negah")
        layout = layout or written
        config |= {"heads": heads} if heads else {}
    else:
        layout = layout or recognise(state)
        config = describe(state, layout, checkpoint.config, heads=heads, origin=origin)
    config |= {"interpolation": interpolation} if interpolation else {}
    if "grid" in config:
        config["grid"] = tuple(config["grid"])  # json knows only lists
    try:
        with torch.device("meta"):  # no memory, and no numbers drawn from the caller's random state
            vit = ViT(**config, drop_path=drop_path)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{origin} describes a ViT that this version cannot build: {error}") from error
    # Buffers made on meta hold nothing; those of a ViT follow from its config.
    vit.mean, vit.std = (torch.tensor(vit.config[name]).view(3, 1, 1) for name in ("mean", "std"))
    vit.load_state_dict(fit(state, layout, vit, origin=origin), assign=True)
    return vit.eval().to(device)
