"""The layouts that checkpoints of CLIP and CoCa are written in, and how each becomes a `CLIP` or a `CoCa`.

A `SimVLM` is only known as negah writes it: nobody has published one.

| part | negah | openai (also open_clip) | transformers |
|---|---|---|---|
| pictures | image | visual | vision_model |
| a block | blocks.0 | transformer.resblocks.0 | encoder.layers.0 |
| query, key, value | attn.qkv | attn.in_proj | self_attn.{q,k,v}_proj |
| MLP | mlp.fc1, fc2 | mlp.c_fc, c_proj | mlp.fc1, fc2 |
| to the common space | image_projection | visual.proj, transposed | visual_projection |
| texts | text | (no prefix; CoCa: text) | text_model |
| CoCa's second half | decoder | text_decoder | |

CLIP's patches have no bias and no patch is ever hidden: ours are zero then.  What files do not say is taken as OpenAI
has it: heads 64 wide.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from negah.errors import WeightsError
from negah.language.clip import CLIP
from negah.language.coca import CoCa
from negah.language.openai_names import coca, of_coca, of_openai, openai
from negah.language.places import Place
from negah.language.simvlm import SimVLM
from negah.language.transformers_names import of_transformers, transformers
from negah.nn.clip_resnet import ClipResNet
from negah.nn.resnet import ResNet
from negah.nn.text import TextTransformer
from negah.nn.vit import Activation, ViT

Model = CLIP | CoCa | SimVLM
Layout = Literal["negah", "openai", "transformers", "coca"]

# Beside the model in a file: what OpenAI's archives say of themselves, numbers that follow from the model, and vectors
# of reference pictures.
REFERENCE = "reference"
BESIDE = re.compile(
    r"input_resolution|context_length|vocab_size|attn_mask|.*num_batches_tracked|.*embeddings\.position_ids|"
    + REFERENCE
)


def recognise(state: Mapping[str, Any]) -> Layout | None:
    """By the names of a file; None when it is none of these."""
    if ("log_scale" in state and "text.positions" in state) or "stem.conv1.weight" in state:
        return "negah"
    if "text_decoder.ln_final.weight" in state and "text.cls_emb" in state:
        return "coca"
    if "vision_model.embeddings.class_embedding" in state and "text_projection.weight" in state:
        return "transformers"
    return "openai" if "visual.conv1.weight" in state and "text_projection" in state else None


def negah(model: Model) -> dict[str, Place]:
    """Our own: the state dict."""
    return {name: Place((name,)) for name in model.state_dict() if not BESIDE.fullmatch(name)}


NAMES: dict[Layout, Callable[[Any], dict[str, Place]]] = {
    "negah": negah, "openai": openai, "transformers": transformers, "coca": coca
}  # fmt: skip


def describe(
    state: Mapping[str, Any], layout: Layout, config: Mapping[str, Any], *, activation: Activation | None, origin: str
) -> dict[str, Any]:
    """Arguments of the model in a file of others.

    Of a `CLIP`: {"image" or "resnet": ..., "text": ..., "dim": ..., "end": ...}.
    Of a `CoCa`: {"image": ..., "coca": ...}.

    Raises WeightsError on shapes that neither has.
    """
    try:
        if layout == "coca":
            return of_coca(state, config, activation)
        if layout == "transformers":
            return of_transformers(state, config, activation)
        return of_openai(state, config, activation)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{origin} is not a complete CLIP of the {layout} layout: {error!r}") from error


def build(described: Mapping[str, Any]) -> Model:
    """A fresh model with these arguments."""
    if "simvlm" in described:
        return SimVLM(ResNet(**described["stem"]), **described["simvlm"])
    if "coca" in described:
        return CoCa(ViT(**described["image"]), **described["coca"])
    image = ClipResNet(**described["resnet"]) if "resnet" in described else ViT(**described["image"])
    return CLIP(image, TextTransformer(**described["text"]), dim=described["dim"], end=described["end"])


def fit(state: Mapping[str, Any], layout: Layout, model: Model, *, origin: str) -> dict[str, Tensor]:
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
        raise WeightsError(f"{origin} does not fit the {layout} layout of a {type(model).__name__}; {'; '.join(told)}")
    for name, shape in expected.items():
        if name not in ours:  # patches' bias, the mask token; how many batches norms have seen
            ours[name] = torch.zeros(shape, dtype=torch.long if name.endswith("num_batches_tracked") else torch.float32)
    return ours
