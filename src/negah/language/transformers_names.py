"""Hugging Face transformers' names of CLIP."""

from collections.abc import Iterator, Mapping
from typing import Any

from negah.language.clip import CLIP
from negah.language.places import CLIPS, MEAN, STD, Place, both, depth_of
from negah.nn.vit import Activation, ViT

# transformers leaves a setting out of config.json where it is CLIPTextConfig's or CLIPVisionConfig's own.
TEXT_DEFAULTS = {"num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407}
VISION_DEFAULTS = {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick-gelu", "gelu": "gelu"}
LEGACY_END = 2  # transformers' first configs named this, and read the highest number instead


def transformers(model: CLIP) -> dict[str, Place]:
    """Hugging Face transformers' CLIPModel."""
    assert isinstance(model.image, ViT)
    return {
        "log_scale": Place(("logit_scale",)),
        "text.tokens.weight": Place(("text_model.embeddings.token_embedding.weight",)),
        "text.positions": Place(("text_model.embeddings.position_embedding.weight",)),
        "text_projection.weight": Place(("text_projection.weight",)),
        **both("text.norm", "text_model.final_layer_norm"),
        **dict(_blocks("text.", "text_model.", model.text.depth)),
        "image_projection.weight": Place(("visual_projection.weight",)),
        "image.patch_embed.proj.weight": Place(("vision_model.embeddings.patch_embedding.weight",)),
        "image.cls_token": Place(("vision_model.embeddings.class_embedding",), lambda x: x[None, None]),
        "image.pos_embed": Place(("vision_model.embeddings.position_embedding.weight",), lambda x: x[None]),
        **both("image.pre_norm", "vision_model.pre_layrnorm"), **both("image.norm", "vision_model.post_layernorm"),
        **dict(_blocks("image.", "vision_model.", model.image.depth)),
    }  # fmt: skip


def _blocks(ours: str, theirs: str, depth: int) -> Iterator[tuple[str, Place]]:
    parts = {
        "norm1": ("layer_norm1",), "attn.qkv": tuple(f"self_attn.{x}_proj" for x in "qkv"),
        "attn.proj": ("self_attn.out_proj",), "norm2": ("layer_norm2",),
        "mlp.fc1": ("mlp.fc1",), "mlp.fc2": ("mlp.fc2",),
    }  # fmt: skip
    for i in range(depth):
        for part, names in parts.items():
            theirs_here = (f"{theirs}encoder.layers.{i}.{name}" for name in names)
            yield from both(f"{ours}blocks.{i}.{part}", *theirs_here).items()


def of_transformers(
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
            "dim": width, "depth": depth_of(state, r"text_model\.encoder\.layers\.(\d+)\."),
            "heads": text["num_attention_heads"], "eps": text["layer_norm_eps"],
            "mlp_ratio": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0] / width,
            "activation": activation or ACTIVATIONS[text["hidden_act"]],
        },
        "image": {
            "patch": patch, "dim": dim, "depth": depth_of(state, r"vision_model\.encoder\.layers\.(\d+)\."),
            "heads": vision["num_attention_heads"], "grid": (side, side),
            "mlp_ratio": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0] / dim,
            "activation": activation or ACTIVATIONS[vision["hidden_act"]],
            "mean": tuple(config.get("image_mean", MEAN)), "std": tuple(config.get("image_std", STD)),
            **CLIPS, "eps": vision["layer_norm_eps"],
        },
    }  # fmt: skip
