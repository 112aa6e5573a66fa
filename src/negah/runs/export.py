"""`negah export`: a detector as one ONNX file, checked against the model that it came from.

The file holds backbone and head with their normalisation, for windows of one size and batches of any:

    images        uint8   [batch, 3, window_px, window_px]   RGB at the detector's ground sampling distance
    logit         float32 [batch]                            sigmoid gives the probability of panels
    attention     float32 [batch, head, patch]               CLS query over the patches, row-major
    patch_logits  float32 [batch, patch]                     evidence of panels in each patch

What else a reader must know (distance, threshold, patch) stands as json under "negah" in the file's metadata.
"""

import contextlib
import copy
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from negah.errors import InputError, NegahError, OutputError, install
from negah.probe.attentive import Reading
from negah.probe.detector import Detector

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the extra `onnx`

# Both runtimes compute in fp32 and differ in the order of sums: 1e-6 to 1e-4 is usual, more is a wrong graph.
OUTPUTS = Reading._fields[:3]  # without what only a calibration reads
TOLERANCE = 1e-3


class Exported(NamedTuple):
    """An ONNX file that was written and checked."""

    path: Path
    window_px: int
    opset: int
    difference: dict[str, float]  # largest absolute difference to ours, per output


class Window(nn.Module):
    """A detector for windows of one size, whose position embeddings are therefore constants."""

    def __init__(self, detector: Detector, window_px: int):
        super().__init__()
        self.detector = copy.deepcopy(detector).cpu().float().eval()
        backbone, side = self.detector.backbone, window_px // detector.patch
        with torch.no_grad():
            backbone.pos_embed = nn.Parameter(backbone.positions(side, side))
        backbone.grid = (side, side)

    def forward(self, images: UInt8[Tensor, "batch 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        reading = self.detector(images)
        return reading.logit, reading.attention, reading.patch_logits


def export(detector: Detector, path: Path | str, window_px: int | None = None) -> Exported:
    """Write `detector` to `path` as ONNX, for square windows of `window_px` pixels (its training window without).

    The file appears only after onnxruntime has read it back and agreed with ours within `TOLERANCE`.

    Raises NegahError when the extra `onnx` is not installed, InputError when the window does not divide into patches,
    OutputError when the file cannot be written or its outputs differ.
    """
    if lacking := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise NegahError(f"ONNX export needs {', '.join(lacking)}, which this install lacks: {install('onnx')}")
    import onnx

    path, size = Path(path), window_px or detector.info.window_px
    if size <= 0 or size % detector.patch:
        raise InputError(
            f"a window of {size} px does not divide into patches of {detector.patch} px: give a multiple of it"
        )
    window = Window(detector, size)
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    part = path.with_name(f".{path.name}.part")
    with quiet():
        program = torch.onnx.export(
            window, (example,), input_names=["images"], output_names=list(OUTPUTS), dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}}, verbose=False,
        )  # fmt: skip
    assert program is not None  # None is what the old exporter returned
    proto = program.model_proto
    about = {"info": asdict(detector.info), "patch": detector.patch, "window_px": size}
    onnx.helper.set_model_props(proto, {"negah": json.dumps(about, sort_keys=True)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            onnx.save(proto, str(part))
            difference = compare(detector, part, size)
            if (worst := max(difference.values())) > TOLERANCE:
                raise OutputError(f"{path} not written: its outputs differ from ours by {worst:.2g}; please report it")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return Exported(path, size, max(entry.version for entry in proto.opset_import if not entry.domain), difference)


def compare(detector: Detector, path: Path, window_px: int, *, seed: int = 0) -> dict[str, float]:
    """Largest absolute difference between onnxruntime's outputs and ours, per output.

    Over black, white and seeded random windows, in batches of one and of several.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (3, 3, window_px, window_px), generator=generator, dtype=torch.uint8)
    flat = torch.stack([torch.zeros_like(noise[0]), torch.full_like(noise[0], 255)])
    difference = dict.fromkeys(OUTPUTS, 0.0)
    ours = copy.deepcopy(detector).cpu().float().eval()
    for images in (torch.cat([noise, flat]), noise[:1]):
        with torch.inference_mode():
            reading = ours(images)
        for name, theirs in zip(OUTPUTS, session.run(list(OUTPUTS), {"images": images.numpy()})):
            difference[name] = max(difference[name], gap(getattr(reading, name), np.asarray(theirs)))
    return difference


def gap(ours: Float[Tensor, "*shape"], theirs: np.ndarray) -> float:
    """Largest absolute difference; infinite where shapes differ or either is not finite."""
    if tuple(ours.shape) != theirs.shape:
        return float("inf")
    largest = float(np.abs(ours.numpy() - theirs).max())
    return largest if np.isfinite(largest) else float("inf")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's progress lines, which are about its own inside; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
