"""The detector that a user asks for."""

import json
from pathlib import Path

from safetensors import safe_open

from negah import probe, weights
from negah.errors import InputError, WeightsError
from negah.nn.vit import ViT
from negah.probe.attentive import AttentiveHead
from negah.probe.detector import Detector, DetectorInfo


def detector_of(model: str, *, backbone: str | None = None, head: Path | None = None) -> Detector:
    """The detector that a user asks for: by name or file, or a backbone and a head that was trained on it.

    Raises InputError on half a pair, WeightsError on weights that are missing or do not fit.
    """
    if backbone is None and head is None:
        return probe.load(model)
    if backbone is None or head is None:
        raise InputError("--backbone and --head belong together: give both, or neither to use --model")
    return with_head(weights.load(backbone), head)


def with_head(backbone: ViT, path: Path) -> Detector:
    """A backbone under the head (and with the info) of a detector's file, whose own backbone is not looked at."""
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("negah", "null"))
            names = [name for name in file.keys() if name.startswith("head.")]
            state = {name.removeprefix("head."): file.get_tensor(name).float() for name in names}
    except Exception as error:  # safetensors raises its own, undocumented kinds
        raise WeightsError(f"{path} is not a readable safetensors file ({error}): give one by `negah probe`") from error
    if not isinstance(meta, dict) or not {"head", "info"} <= meta.keys() or not state:
        raise WeightsError(f"{path} holds no head: give a file written by `negah probe train`")
    shape, info = meta["head"], meta["info"]
    if shape["dim"] != backbone.dim:
        raise WeightsError(
            f"{path} is a head for tokens {shape['dim']} wide, and this backbone's are {backbone.dim} wide: give the "
            "backbone that it was trained on"
        )
    head = AttentiveHead(shape["dim"], heads=shape["heads"], mlp_ratio=shape["mlp_ratio"])
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit its own description: {' '.join(str(error).split())}") from error
    return Detector(backbone, head, DetectorInfo.from_dict(info)).eval()
