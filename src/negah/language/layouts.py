"""The layouts that CLIP's checkpoints are written in, and how each becomes a `CLIP`.

| part | negah | openai (also open_clip) | transformers |
|---|---|---|---|
| pictures | image | visual | vision_model |
| a block | blocks.0 | transformer.resblocks.0 | encoder.layers.0 |
| query, key, value | attn.qkv | attn.in_proj | self_attn.{q,k,v}_proj |
| MLP | mlp.fc1, fc2 | mlp.c_fc, c_proj | mlp.fc1, fc2 |
| to the common space | image_projection | visual.proj, transposed | visual_projection |
| texts | text | (no prefix) | text_model |

CLIP's patches have no bias and no patch is ever hidden: ours are zero then.  What files do not say is taken as OpenAI
has it: heads 64 wide.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from negah.errors import WeightsError
from negah.language.clip import CLIP
from negah.nn.clip_resnet import ClipResNet
from negah.nn.text import TextTransformer
from negah.nn.vit import Activation, ViT

Layout = Literal["negah", "openai", "transformers"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
HEAD = 64  # width of a head where nothing says otherwise
# Beside the model in a file: what OpenAI's archives say of themselves, and numbers that follow from the model.
BESIDE = re.compile(
    r"input_resolution|context_length|vocab_size|attn_mask|.*num_batches_tracked|.*embeddings\.position_ids"
)
# transformers leaves a setting out of config.json where it is CLIPTextConfig's or CLIPVisionConfig's own.
TEXT_DEFAULTS = {"num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407}
VISION_DEFAULTS = {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick-gelu", "gelu": "gelu"}
LEGACY_END = 2  # transformers' first configs named this, and read the highest number instead


@dataclass(frozen=True)
class Place:
    """Where a file keeps one of our tensors: several are stacked; `change` makes of them what we have."""

    keys: tuple[str, ...]
    change: Callable[[Tensor], Tensor] = lambda x: x


def recognise(state: Mapping[str, Any]) -> Layout | None:
    """By the names of a file; None when it is no CLIP."""
    if "log_scale" in state and "text.positions" in state:
        return "negah"
    if "vision_model.embeddings.class_embedding" in state and "text_projection.weight" in state:
        return "transformers"
    return "openai" if "visual.conv1.weight" in state and "text_projection" in state else None


# Names


def openai(model: CLIP) -> dict[str, Place]:
    """OpenAI's own files, and those of open_clip."""
    found = {
        "log_scale": Place(("logit_scale",)),
        "text.tokens.weight": Place(("token_embedding.weight",)),
        "text.positions": Place(("positional_embedding",)),
        "text_projection.weight": Place(("text_projection",), lambda x: x.T),
        **_both("text.norm", "ln_final"),
        **dict(_openai_blocks("text.", "", model.text.depth)),
    }
    if isinstance(model.image, ClipResNet):
        names = (f"image.{name}" for name in model.image.state_dict())
        own = (name for name in names if not BESIDE.fullmatch(name))
        return found | {name: Place((name.replace("image.", "visual.", 1),)) for name in own}
    return found | {
        "image_projection.weight": Place(("visual.proj",), lambda x: x.T),
        "image.patch_embed.proj.weight": Place(("visual.conv1.weight",)),
        "image.cls_token": Place(("visual.class_embedding",), lambda x: x[None, None]),
        "image.pos_embed": Place(("visual.positional_embedding",), lambda x: x[None]),
        **_both("image.pre_norm", "visual.ln_pre"), **_both("image.norm", "visual.ln_post"),
        **dict(_openai_blocks("image.", "visual.", model.image.depth)),
    }  # fmt: skip


def transformers(model: CLIP) -> dict[str, Place]:
    """Hugging Face transformers' CLIPModel."""
    assert isinstance(model.image, ViT)
    return {
        "log_scale": Place(("logit_scale",)),
        "text.tokens.weight": Place(("text_model.embeddings.token_embedding.weight",)),
        "text.positions": Place(("text_model.embeddings.position_embedding.weight",)),
        "text_projection.weight": Place(("text_projection.weight",)),
        **_both("text.norm", "text_model.final_layer_norm"),
        **dict(_transformers_blocks("text.", "text_model.", model.text.depth)),
        "image_projection.weight": Place(("visual_projection.weight",)),
        "image.patch_embed.proj.weight": Place(("vision_model.embeddings.patch_embedding.weight",)),
        "image.cls_token": Place(("vision_model.embeddings.class_embedding",), lambda x: x[None, None]),
        "image.pos_embed": Place(("vision_model.embeddings.position_embedding.weight",), lambda x: x[None]),
        **_both("image.pre_norm", "vision_model.pre_layrnorm"), **_both("image.norm", "vision_model.post_layernorm"),
        **dict(_transformers_blocks("image.", "vision_model.", model.image.depth)),
    }  # fmt: skip


def negah(model: CLIP) -> dict[str, Place]:
    """Our own: the state dict."""
    return {name: Place((name,)) for name in model.state_dict() if not BESIDE.fullmatch(name)}


NAMES: dict[Layout, Callable[[CLIP], dict[str, Place]]] = {
    "negah": negah, "openai": openai, "transformers": transformers
}  # fmt: skip


def _both(ours: str, *theirs: str) -> dict[str, Place]:
    return {f"{ours}.{kind}": Place(tuple(f"{name}.{kind}" for name in theirs)) for kind in ("weight", "bias")}


def _openai_blocks(ours: str, theirs: str, depth: int) -> Iterator[tuple[str, Place]]:
    parts = {
        "norm1": "ln_1",
        "attn.proj": "attn.out_proj",
        "norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for i in range(depth):
        block = f"{theirs}transformer.resblocks.{i}"
        for part, name in parts.items():
            yield from _both(f"{ours}blocks.{i}.{part}", f"{block}.{name}").items()
        for kind in ("weight", "bias"):
            yield f"{ours}blocks.{i}.attn.qkv.{kind}", Place((f"{block}.attn.in_proj_{kind}",))


def _transformers_blocks(ours: str, theirs: str, depth: int) -> Iterator[tuple[str, Place]]:
    parts = {
        "norm1": ("layer_norm1",), "attn.qkv": tuple(f"self_attn.{x}_proj" for x in "qkv"),
        "attn.proj": ("self_attn.out_proj",), "norm2": ("layer_norm2",),
        "mlp.fc1": ("mlp.fc1",), "mlp.fc2": ("mlp.fc2",),
    }  # fmt: skip
    for i in range(depth):
        for part, names in parts.items():
            theirs_here = (f"{theirs}encoder.layers.{i}.{name}" for name in names)
            yield from _both(f"{ours}blocks.{i}.{part}", *theirs_here).items()


# Arguments


def describe(
    state: Mapping[str, Any], layout: Layout, config: Mapping[str, Any], *, activation: Activation | None, origin: str
) -> dict[str, Any]:
    """Arguments of the `CLIP` in a file of others: {"image" or "resnet": ..., "text": ..., "dim": ..., "end": ...}.

    Raises WeightsError on shapes that no CLIP has.
    """
    try:
        if layout == "transformers":
            return _of_transformers(state, config, activation)
        return _of_openai(state, config, activation)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{origin} is not a complete CLIP of the {layout} layout: {error!r}") from error


def _of_openai(state: Mapping[str, Any], config: Mapping[str, Any], activation: Activation | None) -> dict[str, Any]:
    stated = config.get("model_cfg", {})
    vision, text, seen = stated.get("vision_cfg", {}), stated.get("text_cfg", {}), config.get("preprocess_cfg", {})
    quick = stated.get(
        "quick_gelu", "input_resolution" in state
    )  # in OpenAI's own archives; open_clip trained with GELU
    activation = activation or ("quick-gelu" if quick else "gelu")
    width, vocabulary = state["ln_final.weight"].shape[0], state["token_embedding.weight"].shape[0]
    statistics = {"mean": tuple(seen.get("mean", MEAN)), "std": tuple(seen.get("std", STD))}
    found: dict[str, Any] = {
        "dim": state["text_projection"].shape[1],
        "end": vocabulary - 1,
        "text": {
            "vocabulary": vocabulary, "length": state["positional_embedding"].shape[0], "dim": width,
            "depth": _depth(state, r"transformer\.resblocks\.(\d+)\."), "heads": text.get("heads", width // HEAD),
            "mlp_ratio": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width, "activation": activation,
        },
    }  # fmt: skip
    first = state["visual.conv1.weight"]
    if "visual.layer1.0.conv1.weight" in state:
        places = state["visual.attnpool.positional_embedding"].shape[0] - 1
        depths = [_depth(state, rf"visual\.layer{k}\.(\d+)\.") for k in (1, 2, 3, 4)]
        resnet = {"depths": depths, "width": 2 * first.shape[0], "size": 32 * round(places**0.5), "dim": found["dim"]}
        return found | {"resnet": resnet | statistics}
    dim, _, patch, _ = first.shape
    side = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return found | {
        "image": {
            "patch": patch, "dim": dim, "depth": _depth(state, r"visual\.transformer\.resblocks\.(\d+)\."),
            "heads": dim // vision.get("head_width", HEAD), "grid": (side, side),
            "mlp_ratio": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / dim,
            "activation": activation, **CLIPS, **statistics,
        }
    }  # fmt: skip


def _of_transformers(
    state: Mapping[str, Any], config: Mapping[str, Any], activation: Activation | None
) -> dict[str, Any]:
    text = TEXT_DEFAULTS | config.get("text_config", {})
    vision = VISION_DEFAULTS | config.get("vision_config", {})
    vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
    dim, _, patch, _ = state["vision_model.embeddings.patch_embedding.weight"].shape
    side = round((state["vision_model.embeddings.position_embedding.weight"].shape[0] - 1) ** 0.5)
    end = text["eos_token_id"]
    return {
        "dim": state["text_projection.weight"].shape[0],
        "end": vocabulary - 1 if end == LEGACY_END else end,
        "text": {
            "vocabulary": vocabulary, "length": state["text_model.embeddings.position_embedding.weight"].shape[0],
            "dim": width, "depth": _depth(state, r"text_model\.encoder\.layers\.(\d+)\."),
            "heads": text["num_attention_heads"], "eps": text["layer_norm_eps"],
            "mlp_ratio": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0] / width,
            "activation": activation or ACTIVATIONS[text["hidden_act"]],
        },
        "image": {
            "patch": patch, "dim": dim, "depth": _depth(state, r"vision_model\.encoder\.layers\.(\d+)\."),
            "heads": vision["num_attention_heads"], "grid": (side, side),
            "mlp_ratio": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0] / dim,
            "activation": activation or ACTIVATIONS[vision["hidden_act"]],
            "mean": tuple(config.get("image_mean", MEAN)), "std": tuple(config.get("image_std", STD)),
            **CLIPS, "eps": vision["layer_norm_eps"],
        },
    }  # fmt: skip


CLIPS: dict[str, Any] = {"layer_scale": None, "pre_norm": True, "eps": 1e-5, "interpolation": "size-antialias"}
"""What sets the vision transformer of a CLIP apart from ours."""


def _depth(state: Mapping[str, Any], block: str) -> int:
    return 1 + max(int(match[1]) for key in state if (match := re.match(block, key)))


def build(described: Mapping[str, Any]) -> CLIP:
    """A fresh CLIP with these arguments."""
    image = ClipResNet(**described["resnet"]) if "resnet" in described else ViT(**described["image"])
    return CLIP(image, TextTransformer(**described["text"]), dim=described["dim"], end=described["end"])


def fit(state: Mapping[str, Any], layout: Layout, model: CLIP, *, origin: str) -> dict[str, Tensor]:
    """The state dict (fp32) of `model` from the tensors of a file.

    Raises WeightsError that names every tensor that is missing, unexpected or misshapen, as the file would call it.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    places = NAMES[layout](model)
    wanted = {key for place in places.values() for key in place.keys}
    missing = [key for key in wanted if not isinstance(state.get(key), Tensor)]
    unexpected = [key for key in state if key not in wanted and not BESIDE.fullmatch(key)]
    ours, misshapen = {}, []
    for name, place in places.items():
        if any(key in missing for key in place.keys):
            continue
        parts = [state[key].float() for key in place.keys]
        try:
            ours[name] = place.change(torch.cat(parts) if len(parts) > 1 else parts[0]).contiguous()
        except (IndexError, RuntimeError):
            ours[name] = parts[0]
        if ours[name].shape != expected[name]:
            misshapen.append(f"{', '.join(place.keys)} is {list(parts[0].shape)}, for {list(expected[name])} of {name}")
    faults = (("missing", sorted(missing)), ("unexpected", unexpected), ("misshapen", misshapen))
    if told := [f"{kind}: {', '.join(names)}" for kind, names in faults if names]:
        raise WeightsError(f"{origin} does not fit the {layout} layout of a CLIP; {'; '.join(told)}")
    for name, shape in expected.items():
        if name not in ours:  # patches' bias, the mask token; how many batches norms have seen
            ours[name] = torch.zeros(shape, dtype=torch.long if name.endswith("num_batches_tracked") else torch.float32)
    return ours
