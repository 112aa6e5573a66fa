"""The layouts that DINOv2-compatible checkpoints are written in, and how each becomes the parameters of a `ViT`.

A layout is one function from a ViT's arguments to names: for each parameter of ours, where the file keeps it, as one
tensor or as several that are stacked along their first axis (query, key, value).  The same table reads and writes.

| part | negah, hub (torch-hub, Meta's own) | transformers | timm |
|---|---|---|---|
| patches | patch_embed.proj | embeddings.patch_embeddings.projection | as hub |
| query, key, value | attn.qkv | attention.attention.{query,key,value}; newer: attention.{q,k,v}_proj | as hub |
| attention's output | attn.proj | attention.output.dense; newer: attention.o_proj | as hub |
| SwiGLU | mlp.w12, w3 | mlp.weights_in, weights_out; newer: mlp.gate_proj, up_proj, down_proj | mlp.fc1, fc2 |
| layer scale | ls1.gamma | layer_scale1.lambda1 | as hub |
| registers | register_tokens | embeddings.register_tokens | reg_token |

timm keeps no mask token, and with registers adds the position of CLS to the CLS token itself.

Everything else about a file is wrapping, which `unwrap` takes off: dicts of a training file (teacher, model, ...),
prefixes (module., backbone., dinov2., ...), heads beside the backbone, FSDP's chunks of blocks.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from negah.errors import WeightsError
from negah.nn.vit import ViT, swiglu_width

Layout = Literal["negah", "hub", "transformers", "timm"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

Names = dict[str, tuple[str, ...]]  # a parameter of ours: the tensors of the file that it is stacked from

PATCH = {"hub": "patch_embed.proj.weight", "transformers": "embeddings.patch_embeddings.projection.weight"}

REGISTERS = {"hub": "register_tokens", "negah": "register_tokens", "timm": "reg_token"}
OUT = ("mlp.fc2.weight", "mlp.w3.weight", "mlp.weights_out.weight", "mlp.down_proj.weight")

# What a backbone may be wrapped in, and what may stand beside it under the same wrapper.  Anything else is an error:
# a loader that skips what it does not know has lost a layer scale before.
WRAPPERS = (
    "teacher", "student", "model", "state_dict", "module", "_orig_mod", "_fsdp_wrapped_module", "backbone", "dinov2",
    "dinov2_with_registers",
)  # fmt: skip
DICTS = ("teacher", "model", "state_dict", "student")  # the EMA teacher is the model that DINO and DINOv2 publish
BESIDE = ("head", "heads", "dino_head", "ibot_head", "classifier", "student", "dino_loss", "ibot_patch_loss")


# The layouts


def negah(config: Mapping[str, Any]) -> Names:
    """Our own: the state dict of a `ViT`, whose names are those of the torch-hub files."""
    names = ["cls_token", "mask_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    names += ["register_tokens"] if config["registers"] else []
    names += ["pre_norm.weight", "pre_norm.bias"] if config.get("pre_norm") else []  # files of 0.1 do not say
    ffn = ("mlp.fc1", "mlp.fc2") if config["ffn"] == "mlp" else ("mlp.w12", "mlp.w3")
    for i in range(config["depth"]):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", *ffn):
            names += [f"blocks.{i}.{part}.weight", f"blocks.{i}.{part}.bias"]
        if config["layer_scale"] is not None:
            names += [f"blocks.{i}.ls1.gamma", f"blocks.{i}.ls2.gamma"]
    return {name: (name,) for name in [*names, "norm.weight", "norm.bias"]}


def hub(config: Mapping[str, Any]) -> Names:
    """Meta's torch-hub files, and the backbone of DINO and DINOv2 training files."""
    return negah(config)


def transformers(config: Mapping[str, Any], keys: Iterable[str] = ()) -> Names:
    """Hugging Face transformers' Dinov2Model and Dinov2WithRegistersModel.

    keys: those of the file to be read, which show the generation of names it was written in; without them the older
    one, which every release reads.
    """
    keys = list(keys)
    newer_attention = any(".q_proj." in key for key in keys)
    newer_ffn = any(".gate_proj." in key for key in keys)
    stem = {
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "pos_embed": "embeddings.position_embeddings",
        "register_tokens": "embeddings.register_tokens",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    block = {
        "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj")
        if newer_attention
        else ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attn.proj": ("attention.o_proj",) if newer_attention else ("attention.output.dense",),
        "mlp.w12": ("mlp.gate_proj", "mlp.up_proj") if newer_ffn else ("mlp.weights_in",),
        "mlp.w3": ("mlp.down_proj",) if newer_ffn else ("mlp.weights_out",),
        "ls1": ("layer_scale1",),
        "ls2": ("layer_scale2",),
    }

    def theirs(name: str) -> tuple[str, ...]:
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias|gamma)", name):
            i, part, kind = match.groups()
            kind = "lambda1" if kind == "gamma" else kind
            return tuple(f"encoder.layer.{i}.{their}.{kind}" for their in block.get(part, (part,)))
        part, dot, kind = name.rpartition(".")
        return (f"{stem[part]}.{kind}" if dot else stem[name],)

    return {name: theirs(name) for name in negah(config)}


def timm(config: Mapping[str, Any]) -> Names:
    """timm's VisionTransformer. The mask token is not kept; `fold` and `unfold` say what registers change."""
    renamed = {"register_tokens": "reg_token"}
    swap = {"mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2"}

    def theirs(name: str) -> str:
        part = re.sub(r"mlp\.(w12|w3)", lambda match: swap[match[0]], name)
        return renamed.get(part, part)

    return {name: (theirs(name),) for name in negah(config) if name != "mask_token"}


def fold(state: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """To timm's conventions: no mask token; with registers, CLS carries its own position."""
    state = {name: tensor for name, tensor in state.items() if name != "mask_token"}
    if config["registers"]:
        cls, positions = state["cls_token"], state["pos_embed"]
        state |= {"cls_token": cls + positions[:, :1], "pos_embed": positions[:, 1:]}
    return state


def unfold(state: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """From timm's conventions: the mask token is zero; with registers, so is the position of CLS."""
    dim = config["dim"]
    state = {**state, "mask_token": torch.zeros(1, dim)}
    if config["registers"]:
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, dim), state["pos_embed"]], dim=1)
    return state


# From a file to a ViT


def unwrap(content: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    """The backbone's tensors under bare names, whatever they are wrapped in.

    Raises WeightsError when there is no backbone, it is wrapped in something unknown, or two names fall together.
    """
    while inner := next((content[name] for name in DICTS if isinstance(content.get(name), Mapping)), None):
        content = inner
    found = {key.removesuffix(name) for key in content for name in PATCH.values() if key.endswith(name)}
    if not found:
        raise WeightsError(
            f"{origin} is no checkpoint that a ViT can be read from: it has neither {PATCH['hub']} (torch-hub, timm, "
            f"negah) nor {PATCH['transformers']} (transformers) among its {len(content)} entries"
        )
    # Of several backbones in one file, the teacher's; otherwise the choice would be a guess.
    teachers = [prefix for prefix in found if "teacher." in prefix]
    if len(found) > 1 and len(teachers) != 1:
        raise WeightsError(f"{origin} holds several backbones ({', '.join(sorted(found))}): save one alone")
    prefix = teachers[0] if teachers else found.pop()
    parts = prefix.split(".")[:-1]
    if prefix and (not prefix.endswith(".") or any(part not in WRAPPERS for part in parts)):
        raise WeightsError(
            f"{origin} keeps its backbone under {prefix!r}, which is not a known wrapper ({', '.join(WRAPPERS)}): save "
            "the backbone alone"
        )
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not key.startswith(prefix):
            beside = next((part for part in key.split(".") if part not in WRAPPERS or part == "student"), key)
            if beside in BESIDE:
                continue
        # FSDP training chunks: the second number is the block's own.
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key.removeprefix(prefix))
        if name in state:
            raise WeightsError(f"{origin} has two tensors for {name} (one is {key}): save the model without chunks")
        state[name] = value
    return state


def recognise(state: Mapping[str, Any]) -> Layout:
    """The layout that a file of others is written in, by its names."""
    if PATCH["transformers"] in state:
        return "transformers"
    # The only tensors that tell them apart; a plain DINO or timm ViT fits both but for the mask token.
    return "hub" if "mask_token" in state or "register_tokens" in state else "timm"


def describe(
    state: Mapping[str, Any], layout: Layout, config: Mapping[str, Any], *, heads: int | None, origin: str
) -> dict[str, Any]:
    """A ViT's arguments, read from the shapes of a file of others and from its config.json where there is one.

    A tensor that is missing or misshapen here is not the end: `fit` names them all at once. Therefore widths are what
    most tensors agree on.
    """
    of_transformers = layout == "transformers"
    if of_transformers:
        check_transformers(config, origin)
    shapes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    key = PATCH["transformers" if of_transformers else "hub"]
    patch = shapes.get(key, ())
    if len(patch) != 4 or patch[1] != 3 or patch[2] != patch[3]:
        raise WeightsError(f"{origin}: {key} is {list(patch)}, in the {layout} layout it is [dim, 3, patch, patch]")
    blocks = [
        (int(match[1]), match[2], shape)
        for key, shape in shapes.items()
        if (match := re.fullmatch(r"(?:encoder\.layer|blocks)\.(\d+)\.(.+)", key))
    ]
    dim = most_common([shape[0] for shape in shapes.values() if len(shape) == 1], patch[0])
    parts = {part for _, part, _ in blocks}
    swiglu = any(
        re.match(r"mlp\.(w12|w3|weights_in|weights_out|gate_proj|up_proj|down_proj)\.", part) for part in parts
    )
    into = most_common([s[0] for _, part, s in blocks if part in ("mlp.fc1.weight", "mlp.fc1.bias")], 0)
    hidden = most_common([s[-1] for _, part, s in blocks if part in OUT and len(s) == 2], into or 4 * dim)
    swiglu = swiglu or (layout == "timm" and into == 2 * hidden)
    registers = shapes.get("embeddings.register_tokens" if of_transformers else REGISTERS[layout], ())
    count = config.get("num_register_tokens", registers[1] if len(registers) == 3 else 0)
    positions = shapes.get("embeddings.position_embeddings" if of_transformers else "pos_embed", ())
    places = positions[1] - (layout != "timm" or not count) if len(positions) == 3 else 0  # without CLS
    described = {
        "patch": patch[2],
        "dim": dim,
        "depth": config.get("num_hidden_layers", 1 + max((i for i, _, _ in blocks), default=0)),
        "heads": heads or config.get("num_attention_heads") or heads_of(dim, origin),
        "ffn": "swiglu" if swiglu else "mlp",
        "mlp_ratio": mlp_ratio(dim, hidden, swiglu=swiglu),
        "registers": count,
        # Meta's and transformers' models always have it, so that a file without is incomplete; timm's may not.
        "layer_scale": 1.0 if layout != "timm" or any(part.startswith(("ls1.", "ls2.")) for part in parts) else None,
        "grid": grid_of(places, config.get("image_size"), patch[2]),
        "interpolation": interpolation_of(layout, count),
    }
    trained = config.get("pretrained_cfg", config)  # timm nests what transformers keeps in preprocessor_config.json
    for ours, theirs in (("mean", ("image_mean", "mean")), ("std", ("image_std", "std"))):
        if value := next((trained[key] for key in theirs if trained.get(key)), None):
            described[ours] = tuple(value)
    return described


def most_common(widths: list[int], otherwise: int) -> int:
    return Counter(widths).most_common(1)[0][0] if widths else otherwise


def check_transformers(config: Mapping[str, Any], origin: str) -> None:
    """Raise WeightsError on a config.json whose model computes something that a `ViT` does not."""
    fixed = {
        "model_type": ("dinov2", "dinov2_with_registers"), "hidden_act": ("gelu",), "layer_norm_eps": (1e-6,),
        "qkv_bias": (True,), "num_channels": (3,),
    }  # fmt: skip
    for key, allowed in fixed.items():
        if config.get(key, allowed[0]) not in allowed:
            raise WeightsError(
                f"{origin}: config.json says {key} = {config[key]!r}, but a ViT is only "
                f"{' or '.join(map(repr, allowed))}: this model cannot be loaded"
            )


def interpolation_of(layout: Layout, registers: int) -> str:
    """How the library that a layout belongs to resizes position embeddings, as `ViT` names it."""
    if layout == "timm" or registers:
        return "size-antialias"
    return "size" if layout == "transformers" else "hub"


def heads_of(dim: int, origin: str) -> int:
    """DINOv2 heads are 64 wide at every size; shapes alone do not show it."""
    if dim % 64:
        raise WeightsError(f"{origin} does not say how many attention heads share its width of {dim}: give heads=")
    return dim // 64


def mlp_ratio(dim: int, hidden: int, *, swiglu: bool) -> float:
    """A ratio that makes a `ViT` of this hidden width; 4 where that does, as rounding leaves a choice."""
    wanted = round(hidden * 1.5) if swiglu else hidden
    exact = wanted / dim
    candidates = (4.0, exact, math.nextafter(exact, math.inf))
    return next((r for r in candidates if (swiglu_width if swiglu else int)(int(dim * r)) == hidden), exact)


def grid_of(count: int, image_size: Any, patch: int) -> tuple[int, int]:
    """Rows and columns of the position embedding; square unless config.json says otherwise."""
    if isinstance(image_size, (list, tuple)) and len(image_size) == 2:
        return int(image_size[0]) // patch, int(image_size[1]) // patch
    side = math.isqrt(max(count, 1))
    return side, side


def names_in(layout: Layout, config: Mapping[str, Any], keys: Iterable[str] = ()) -> Names:
    """Where a layout keeps the parameters of a ViT with these arguments."""
    if layout == "transformers":
        return transformers(config, keys)
    return {"negah": negah, "hub": hub, "timm": timm}[layout](config)


def fit(state: Mapping[str, Any], layout: Layout, vit: ViT, *, origin: str) -> dict[str, Tensor]:
    """The state dict (fp32) of `vit`, whose own values are not looked at, from the tensors of a file.

    Raises WeightsError that names every tensor that is missing, unexpected or misshapen, as the file would call it.
    """
    config = vit.config
    expected = {name: tuple(parameter.shape) for name, parameter in vit.named_parameters()}
    if layout == "timm" and config["registers"]:
        _, count, dim = expected["pos_embed"]
        expected["pos_embed"] = (1, count - 1, dim)
    names = names_in(layout, config, state)

    missing = [key for keys in names.values() for key in keys if key not in state]
    known = {key for keys in names.values() for key in keys}
    unexpected = [key for key in state if key not in known]
    misshapen = []
    for name, keys in names.items():
        first, *rest = expected[name]
        shape = (first // len(keys), *rest)
        for key in keys:
            value = state.get(key)
            if value is not None and not isinstance(value, Tensor):
                misshapen.append(f"{key} is a {type(value).__name__}")
            elif value is not None and tuple(value.shape) != shape:
                misshapen.append(f"{key} is {list(value.shape)} instead of {list(shape)}")
    if faults := [
        f"{kind}: {', '.join(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if keys
    ]:
        raise WeightsError(f"{origin} does not fit the {layout} layout of a ViT; {'; '.join(faults)}")
    ours = {name: torch.cat([state[key].float() for key in keys]) for name, keys in names.items()}
    return unfold(ours, config) if layout == "timm" else ours
