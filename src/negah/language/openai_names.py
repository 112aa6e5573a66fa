"""OpenAI's names, which open_clip shares, of CLIP and of open_clip's CoCa; what they do not say is as OpenAI has it."""

from collections.abc import Iterator, Mapping
from typing import Any

from negah.language.clip import CLIP
from negah.language.coca import CoCa
from negah.language.places import CLIPS, MEAN, STD, Place, both, depth_of
from negah.nn.clip_resnet import ClipResNet
from negah.nn.pooling import AttentionPooler
from negah.nn.vit import Activation, ViT

HEAD = 64  # width of a head where nothing says otherwise


def openai(model: CLIP) -> dict[str, Place]:
    """OpenAI's own files, and those of open_clip."""
    found = {
        "log_scale": Place(("logit_scale",)),
        "text.tokens.weight": Place(("token_embedding.weight",)),
        "text.positions": Place(("positional_embedding",)),
        "text_projection.weight": Place(("text_projection",), lambda x: x.T),
        **both("text.norm", "ln_final"),
        **dict(_blocks("text.", "transformer.", model.text.depth)),
    }
    if isinstance(model.image, ClipResNet):
        names = (f"image.{name}" for name in model.image.state_dict())
        own = (name for name in names if not name.endswith("num_batches_tracked"))
        return found | {name: Place((name.replace("image.", "visual.", 1),)) for name in own}
    return found | {
        "image_projection.weight": Place(("visual.proj",), lambda x: x.T),
        **both("image.norm", "visual.ln_post"),
        **_image(model.image),
    }


def coca(model: CoCa) -> dict[str, Place]:
    """open_clip's CoCa."""
    count = model.config["depth"]
    found = {
        "log_scale": Place(("logit_scale",)),
        "text.tokens.weight": Place(("text.token_embedding.weight",)),
        "text.positions": Place(("text.positional_embedding",)),
        "text.cls": Place(("text.cls_emb",)),
        "text_projection.weight": Place(("text.text_projection",), lambda x: x.T),
        "output.weight": Place(("text_decoder.text_projection",), lambda x: x.T),
        "image_projection.weight": Place(("visual.proj",), lambda x: x.T),
        **both("text.norm", "text.ln_final"), **both("decoder.norm", "text_decoder.ln_final"),
        **both("image_norm", "visual.ln_post"),
        **_image(model.image),
        **dict(_blocks("text.", "text.transformer.", count)),
        **dict(_blocks("decoder.", "text_decoder.", count)),
        **_pooler("caption_pooler", "visual.attn_pool", model.caption_pooler),
    }  # fmt: skip
    if model.contrast_pooler is not None:
        found |= _pooler("contrast_pooler", "visual.attn_pool_contrastive", model.contrast_pooler)
    names = {"norm1": "ln_1", "norm_memory": "ln_1_kv", "proj": "attn.out_proj", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj"}  # fmt: skip
    width = model.config["width"]
    for i in range(count):
        ours, theirs = f"decoder.cross.{i}", f"text_decoder.cross_attn.{i}"
        for part, name in names.items():
            found |= both(f"{ours}.{part}", f"{theirs}.{name}")
        for kind in ("weight", "bias"):
            key = (f"{theirs}.attn.in_proj_{kind}",)
            found[f"{ours}.q.{kind}"] = Place(key, lambda x: x[:width])
            found[f"{ours}.kv.{kind}"] = Place(key, lambda x: x[width:])
    return found


def _pooler(ours: str, theirs: str, pooler: AttentionPooler) -> dict[str, Place]:
    """torch's attention keeps its three matrices as one where both sides are equally wide."""
    dim = pooler.query.shape[1]
    one = pooler.k.in_features == dim
    found = {
        f"{ours}.query": Place((f"{theirs}.query",)),
        **both(f"{ours}.norm_query", f"{theirs}.ln_q"), **both(f"{ours}.norm", f"{theirs}.ln_k"),
        **both(f"{ours}.proj", f"{theirs}.attn.out_proj"),
    }  # fmt: skip
    for i, part in enumerate("qkv"):
        third = slice(i * dim, (i + 1) * dim)
        found[f"{ours}.{part}.bias"] = Place((f"{theirs}.attn.in_proj_bias",), lambda x, third=third: x[third])
        found[f"{ours}.{part}.weight"] = (
            Place((f"{theirs}.attn.in_proj_weight",), lambda x, third=third: x[third])
            if one
            else Place((f"{theirs}.attn.{part}_proj_weight",))
        )
    return found


def _image(vit: ViT) -> dict[str, Place]:
    return {
        "image.patch_embed.proj.weight": Place(("visual.conv1.weight",)),
        "image.cls_token": Place(("visual.class_embedding",), lambda x: x[None, None]),
        "image.pos_embed": Place(("visual.positional_embedding",), lambda x: x[None]),
        **both("image.pre_norm", "visual.ln_pre"),
        **dict(_blocks("image.", "visual.transformer.", vit.depth)),
    }


def _blocks(ours: str, theirs: str, depth: int) -> Iterator[tuple[str, Place]]:
    parts = {
        "norm1": "ln_1",
        "attn.proj": "attn.out_proj",
        "norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for i in range(depth):
        block = f"{theirs}resblocks.{i}"
        for part, name in parts.items():
            yield from both(f"{ours}blocks.{i}.{part}", f"{block}.{name}").items()
        for kind in ("weight", "bias"):
            yield f"{ours}blocks.{i}.attn.qkv.{kind}", Place((f"{block}.attn.in_proj_{kind}",))


def of_openai(state: Mapping[str, Any], config: Mapping[str, Any], activation: Activation | None) -> dict[str, Any]:
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
            "depth": depth_of(state, r"transformer\.resblocks\.(\d+)\."), "heads": text.get("heads", width // HEAD),
            "mlp_ratio": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width, "activation": activation,
        },
    }  # fmt: skip
    first = state["visual.conv1.weight"]
    if "visual.layer1.0.conv1.weight" in state:
        places = state["visual.attnpool.positional_embedding"].shape[0] - 1
        depths = [depth_of(state, rf"visual\.layer{k}\.(\d+)\.") for k in (1, 2, 3, 4)]
        resnet = {"depths": depths, "width": 2 * first.shape[0], "size": 32 * round(places**0.5), "dim": found["dim"]}
        return found | {"resnet": resnet | statistics}
    dim, _, patch, _ = first.shape
    side = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return found | {
        "image": {
            "patch": patch, "dim": dim, "depth": depth_of(state, r"visual\.transformer\.resblocks\.(\d+)\."),
            "heads": dim // vision.get("head_width", HEAD), "grid": (side, side),
            "mlp_ratio": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / dim,
            "activation": activation, **CLIPS, **statistics,
        }
    }  # fmt: skip


def of_coca(state: Mapping[str, Any], config: Mapping[str, Any], activation: Activation | None) -> dict[str, Any]:
    stated = config.get("model_cfg", {})
    vision, second = stated.get("vision_cfg", {}), stated.get("multimodal_cfg", {})
    vocabulary, width = state["text.token_embedding.weight"].shape
    if vision.get("attentional_pool") in ("cascade", "parallel"):
        poolers = vision["attentional_pool"]
    else:
        poolers = "shared"
    activation = activation or ("quick-gelu" if stated.get("quick_gelu") else "gelu")
    first = {name.removeprefix("text."): x for name, x in state.items()}
    image = of_openai({**first, "text_projection": state["text.text_projection"]}, config, activation)["image"]
    coca = {
        "dim": state["visual.attn_pool.query"].shape[1], "queries": state["visual.attn_pool.query"].shape[0],
        "pooler_heads": vision.get("attn_pooler_heads", 8), "poolers": poolers, "activation": activation,
        "vocabulary": vocabulary, "length": state["text.positional_embedding"].shape[0] - 1,
        "start": vocabulary - 2, "end": vocabulary - 1, "width": width,
        "depth": depth_of(state, r"text\.transformer\.resblocks\.(\d+)\."),
        "heads": second.get("heads", width // HEAD), "legacy": True,  # nothing that is published was trained otherwise

    }  # fmt: skip
    if depth_of(state, r"text_decoder\.resblocks\.(\d+)\.") != coca["depth"]:
        raise ValueError("its halves differ in depth")
    return {"image": image, "coca": coca}
