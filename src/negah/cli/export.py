"""`negah export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from negah.cli import show


@dataclass
class Export(show.Verb):
    """Write a detector, backbone and head, as one ONNX file, checked against the original.

    The file takes uint8 RGB windows of one size, in batches of any, and gives the logit, the attention and the patch
    logits of each; what else one must know to use it stands in its metadata. It is written only if onnxruntime, reading
    it back, agrees with PyTorch. Needs the extra `onnx`.

    Example:
        negah export panels.onnx
        negah export mine.onnx --model head.safetensors --window-px 208
    """

    path: Positional[Path]
    """ONNX file to write."""
    model: Annotated[str, arg(metavar="NAME")] = "negah/aerial-tiny"
    """Detector: a bundled name or a .safetensors file."""
    backbone: Annotated[str | None, arg(metavar="NAME")] = None
    """Use this backbone (a name or a file) with --head, not --model."""
    head: Annotated[Path | None, arg(metavar="FILE")] = None
    """Head trained on --backbone by `negah probe train`."""
    window_px: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the windows in pixels (default: the size that the detector was trained on)."""

    def run(self) -> int:
        """Export, then print what was written and how far its outputs are from ours."""
        from negah.runs.detectors import detector_of
        from negah.runs.export import export

        detector = detector_of(self.model, backbone=self.backbone, head=self.head)
        made = export(detector, self.path, self.window_px)
        if self.json:
            show.as_json(made._asdict())
            return 0
        show.table(
            [
                ("file", made.path),
                ("size", show.size(made.path.stat().st_size)),
                ("input", f"images, uint8 [batch, 3, {made.window_px}, {made.window_px}]"),
                ("opset", made.opset),
                *((f"{name} differs by", f"{gap:.1e} at most") for name, gap in made.difference.items()),
            ],
            title=f"{detector.info.name} as ONNX",
        )
        return 0
