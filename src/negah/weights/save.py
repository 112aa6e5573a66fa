"""`save`: a `ViT` into a file or folder that others read: transformers, timm, torch-hub code, or negah itself."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from negah.errors import OutputError, WeightsError
from negah.nn.vit import ViT
from negah.weights.layouts import Layout, fold, names_in


def save(vit: ViT, path: Path | str, *, layout: Layout = "negah", dtype: torch.dtype = torch.float32) -> Path:
    """Write a backbone in a layout; returns `path`.

    Args:
        path: for "transformers" a folder, made if need be, that `AutoModel.from_pretrained` loads. Otherwise a file:
            .safetensors, or, for "hub" and "timm", also .pth (a torch file of plain tensors).
        layout: "negah" (ours, with all that `load` needs), "hub", "transformers" or "timm".
        dtype: of the stored tensors.

    Safetensors files also carry the ViT's arguments as metadata, so that `load` restores it exactly; other readers
    ignore them. What a layout cannot hold is written as its equal: a model without layer scale gets one of ones (hub,
    transformers). transformers and timm resize position embeddings in their own ways: at the size that the embeddings
    were made for features are the same, at other sizes only if `interpolation` is theirs.

    Raises WeightsError when the layout cannot hold this model, OutputError when it cannot be written.
    """
    path = Path(path)
    config = dict(vit.config)
    if layout != "negah" and (config["pre_norm"] or config["activation"] != "gelu" or config["eps"] != 1e-6):
        raise WeightsError(f"a ViT with CLIP's norms or activation does not fit the {layout} layout: save it as negah")
    state = {name: parameter.detach().cpu() for name, parameter in vit.named_parameters()}
    if config["layer_scale"] is None and layout in ("hub", "transformers"):
        config["layer_scale"] = 1.0
        for i in range(vit.depth):
            state |= {f"blocks.{i}.{part}.gamma": torch.ones(vit.dim) for part in ("ls1", "ls2")}
    if layout == "timm":
        state = fold(state, config)
    tensors: dict[str, Tensor] = {}
    for name, keys in names_in(layout, config).items():
        for key, part in zip(keys, state[name].to(dtype).chunk(len(keys))):
            tensors[key] = part.clone().contiguous()
    metadata = {"format": "pt", "negah": json.dumps({"backbone": config, "layout": layout}, sort_keys=True)}
    if layout == "transformers":
        described = transformers_config(vit, dtype)  # raises before anything is written
        write_tensors(tensors, path / "model.safetensors", metadata)
        write_json(described, path / "config.json")
        write_json(preprocessor_config(vit), path / "preprocessor_config.json")
    elif path.suffix == ".safetensors" or (path.suffix in (".pth", ".pt") and layout in ("hub", "timm")):
        write_tensors(tensors, path, metadata)
    else:
        raise WeightsError(f"cannot write the {layout} layout to {path}: give a name ending in .safetensors")
    return path


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    if path.suffix == ".safetensors":
        write(path, lambda file: save_file(tensors, str(file), metadata=metadata))
    else:
        write(path, lambda file: torch.save(tensors, file))


def write_json(content: dict[str, Any], path: Path) -> None:
    write(path, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Write beside the target and move into place, so that no half-written file ever bears the name."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer(part)
            os.umask(mask := os.umask(0))  # there is no other way to ask for it
            part.chmod(0o666 & ~mask)  # safetensors makes files that their owner alone can read
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says in an error of its own
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def transformers_config(vit: ViT, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of the equivalent Dinov2Model or Dinov2WithRegistersModel."""
    config = vit.config
    if config["mlp_ratio"] != int(config["mlp_ratio"]):
        raise WeightsError(f"transformers knows only whole mlp ratios, not {config['mlp_ratio']}: use another layout")
    rows, columns = (side * vit.patch for side in vit.grid)
    registers = config["registers"]
    return {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": vit.dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "mlp_ratio": int(config["mlp_ratio"]),
        "use_swiglu_ffn": config["ffn"] == "swiglu",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0 if config["layer_scale"] is None else config["layer_scale"],
        "qkv_bias": True,
        "num_channels": 3,
        "patch_size": vit.patch,
        "image_size": rows if rows == columns else [rows, columns],
        "torch_dtype": str(dtype).removeprefix("torch."),
        **({"num_register_tokens": registers} if registers else {}),
    }


def preprocessor_config(vit: ViT) -> dict[str, Any]:
    """preprocessor_config.json: the model's normalisation, and no resizing of its inputs."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": False,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vit.config["mean"]),
        "image_std": list(vit.config["std"]),
    }
