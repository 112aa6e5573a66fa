"""`load`: from a name or a path to a `CLIP`, `CoCa` or `SimVLM` with those weights, strictly; `save`: back to a file.

load("openai/clip-vit-base-patch32")       transformers' layout, from the hub or a folder
load("open_clip_model.safetensors")        open_clip's, with open_clip_config.json beside it if it has one
load("ViT-B-32.pt")                        OpenAI's own archive
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from negah.errors import WeightsError
from negah.language.coca import CoCa
from negah.language.layouts import REFERENCE, Model, build, describe, fit, recognise
from negah.language.simvlm import SimVLM
from negah.language.tokens import Tokenizer
from negah.nn.vit import Activation, ViT
from negah.weights.files import Checkpoint, folder_of, read
from negah.weights.save import write_tensors

KNOWN = "or a Hugging Face name like openai/clip-vit-base-patch32"


def load(
    name_or_path: str | Path, *, revision: str | None = None, activation: Activation | None = None,
    device: torch.device | str = "cpu",
) -> Model:  # fmt: skip
    """A CLIP, a CoCa or a SimVLM, whichever is there, in eval mode and fp32.

    Args:
        name_or_path, revision: as of `negah.weights.load`.
        activation: of the MLPs, for files that do not say: those of open_clip without their config are taken to have
            "gelu", OpenAI's own archives "quick-gelu".  What was trained with one is worse, unnoticed, with the other.
        device: where it goes.

    Raises WeightsError when there are no such weights, they cannot be fetched or read, are neither, or any tensor is
    missing, unexpected or misshapen (all are named).

    Examples:
        >>> model = load("negah/describe-tiny")
        >>> type(model).__name__, model.images(torch.zeros(1, 3, model.size, model.size)).shape
        ('CoCa', torch.Size([1, 128]))
    """
    return model_of(read(name_or_path, revision=revision, known=KNOWN), activation=activation).to(device)


def load_both(name_or_path: str | Path, *, vocabulary: Path | None = None) -> tuple[Model, Tokenizer]:
    """A model as `load` gives it, with its tokens: its file's own, those beside it, or of the folder `vocabulary`.

    Raises WeightsError where there are no tokens, and where they are another model's.

    Examples:
        >>> model, tokens = load_both("negah/describe-tiny")
        >>> with torch.inference_mode():
        ...     one, same, other = model.texts(tokens(["a tennis court", "tennis court", "a forest"]))
        >>> bool(one @ same > one @ other)
        True
    """
    checkpoint = read(name_or_path, known=KNOWN)
    model = model_of(checkpoint)
    count, length, end = (
        (model.tokens.num_embeddings, model.length, model.end) if isinstance(model, SimVLM)
        else (model.text.vocabulary, model.text.length, model.end)
    )  # fmt: skip
    if vocabulary is not None:
        tokens = Tokenizer.of_folder(vocabulary, length=length)
    elif "tokens" in checkpoint.negah:
        tokens = tokenizer_of(checkpoint)
    elif folder := folder_of(str(name_or_path), ("tokenizer.json", "vocab.json", "merges.txt")):
        tokens = Tokenizer.of_folder(folder, length=length)
    else:
        raise WeightsError(
            f"{name_or_path} does not hold its vocabulary: give --vocabulary the folder of its tokenizer.json, or of "
            "vocab.json and merges.txt"
        )
    if len(tokens) != count or tokens.end != end:
        raise WeightsError(
            f"a vocabulary of {len(tokens)} tokens that end with {tokens.end} is not that of {name_or_path}, which has "
            f"{count} and ends with {end}"
        )
    return model, tokens


def model_of(checkpoint: Checkpoint, *, activation: Activation | None = None) -> Model:
    """What a checkpoint holds; see `load`."""
    origin, state = checkpoint.origin, checkpoint.content
    inner = state.get("state_dict")
    state = inner if isinstance(inner, dict) else state  # open_clip's training files
    state = {key.removeprefix("module."): value for key, value in state.items()}
    layout = recognise(state)
    if layout is None:
        raise WeightsError(f"{origin} holds no CLIP or CoCa, by the names of OpenAI, open_clip, transformers or negah")
    if layout == "negah":
        described = _tupled(checkpoint.negah["language"])
    else:
        described = describe(state, layout, checkpoint.config, activation=activation, origin=origin)
    try:
        with torch.random.fork_rng(devices=[]):
            model = build(described)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{origin} describes a model that this version cannot build: {error}") from error
    model.load_state_dict(fit(state, layout, model, origin=origin))
    return model.eval()


def save(
    model: Model, path: Path | str, *, tokens: Tokenizer | None = None, gsd_m: float | None = None,
    reference: Float[Tensor, "picture dim"] | None = None, dtype: torch.dtype = torch.float16,
) -> Path:  # fmt: skip
    """Write a .safetensors file from which `load` restores the model, and `tokenizer_of` its tokenizer.

    Args:
        gsd_m: metres on the ground of a pixel of the pictures that it learned from, as it takes them; see `gsd_of`.
        reference: vectors of ordinary pictures, see `reference_of`.

    Raises WeightsError for a path that does not end in .safetensors, OutputError when it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"cannot write a model to {path}: give a name ending in .safetensors")
    if isinstance(model, SimVLM):
        described: dict[str, Any] = {"stem": model.stem.config, "simvlm": model.config}
    elif isinstance(model, CoCa):
        described = {"image": model.image.config, "coca": model.config}
    else:
        kind = "image" if isinstance(model.image, ViT) else "resnet"
        described = {kind: model.image.config, "text": model.text.config, "dim": model.dim, "end": model.end}
    tensors = {name: _stored(value, dtype) for name, value in model.state_dict().items()}
    if reference is not None:
        tensors[REFERENCE] = _stored(reference, dtype)
    kept: dict[str, Any] = {"language": described, "gsd_m": gsd_m} | ({"tokens": tokens.to_json()} if tokens else {})
    write_tensors(tensors, path, {"format": "pt", "negah": json.dumps(kept, sort_keys=True)})
    return path


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer in a file that `save` wrote.  Raises WeightsError when there is none."""
    if "tokens" not in checkpoint.negah:
        raise WeightsError(
            f"{checkpoint.origin} holds no tokenizer: give Tokenizer.of_folder the folder of its vocabulary"
        )
    return Tokenizer.of_json(checkpoint.negah["tokens"])


def gsd_of(checkpoint: Checkpoint) -> float | None:
    """Metres on the ground of a pixel of the pictures that the model learned from; None where its file does not say."""
    return checkpoint.negah.get("gsd_m")


def reference_of(checkpoint: Checkpoint) -> Float[Tensor, "picture dim"] | None:
    """Unit vectors of ordinary pictures of many kinds, by which a cosine can be judged; None where its file has none.

    Raises WeightsError for what is no list of vectors.
    """
    vectors = checkpoint.content.get(REFERENCE)
    if vectors is None:
        return None
    if vectors.ndim != 2 or not len(vectors) or not vectors.isfinite().all():
        raise WeightsError(f"{checkpoint.origin} has reference vectors that are none: write it anew")
    return F.normalize(vectors.float(), dim=1)


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu().clone().contiguous()
    return value.to(dtype) if value.is_floating_point() else value


def _tupled(described: dict[str, Any]) -> dict[str, Any]:
    """json knows only lists."""
    image = described.get("image")
    return described if image is None else {**described, "image": {**image, "grid": tuple(image["grid"])}}
