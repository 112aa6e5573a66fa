"""The detector: a backbone, its attentive head, and what must be known to use them on the ground.

One file holds all of it: tensors under `backbone.` and `head.`, and in the safetensors metadata, under the key
"negah", a json object with the backbone's and the head's constructor arguments and the `DetectorInfo`.
"""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Num
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from negah.errors import WeightsError
from negah.nn import packed
from negah.nn.vit import Block, ViT
from negah.probe.attentive import AttentiveHead, Reading
from negah.weights.files import bundled_path
from negah.weights.save import write


@dataclass(frozen=True)
class DetectorInfo:
    """What a detector was made for.

    gsd_m: ground sampling distance (metres per pixel) that it was trained at; images are resampled to it.
    gsd_range_m: native distances that it is meant for; outside them a survey warns.
    window_px: side of the square window that it was trained on, in pixels of `gsd_m`.
    threshold: probability from which a window counts as having panels.
    area_ratio: factors on an area estimate between which 90 % of the true areas lay that it was compared with; None
    where it never was.
    """

    name: str
    version: str = "1"
    gsd_m: float = 0.3
    gsd_range_m: tuple[float, float] = (0.1, 0.6)
    window_px: int = 104
    threshold: float = 0.5
    area_ratio: tuple[float, float] | None = None

    @classmethod
    def from_dict(cls, values: dict) -> "DetectorInfo":
        """The reverse of `asdict`, also after it went through JSON, which makes lists of tuples."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


class Detector(nn.Module):
    """Images to `Reading`: probability, attention and evidence of panels."""

    def __init__(self, backbone: ViT, head: AttentiveHead, info: DetectorInfo):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.info = info

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.backbone.patch

    def forward(self, images: Num[Tensor, "batch 3 h w"], *, above: float | None = None) -> Reading:
        """Images as uint8 or float in [0, 1] at `info.gsd_m`; h and w multiples of the patch.

        above: probability below which the patches of an image are not read, see `AttentiveHead.forward`.
        """
        return self.head(self.backbone.tokens(images), above=above)

    @classmethod
    def random(
        cls, *, seed: int = 0, dim: int = 32, depth: int = 1, patch: int = 8, window_px: int = 104
    ) -> "Detector":
        """A detector of random weights in the true layout: for tests and dry runs; its readings mean nothing."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            side = window_px // patch
            backbone = ViT(patch=patch, dim=dim, depth=depth, heads=max(1, dim // 32), grid=(side, side))
            head = AttentiveHead(dim, heads=max(1, dim // 32))
            nn.init.normal_(head.classifier.weight, std=1.0)  # so that readings differ between images
        return cls(backbone, head, DetectorInfo(name="random", window_px=window_px)).eval()


def in_bf16(detector: Detector) -> Detector:
    """A copy whose blocks multiply matrices in bfloat16: faster where hardware has it.

    What the blocks add to stays in fp32, and so do norms, patch embedding and classifier: their cost is small, and
    rounding the sum in every block would move probabilities several times as far.  Converted weights, not autocast,
    which converts every weight again for every batch.  On CPUs the copy is for inference only, see `negah.nn.packed`.
    """
    fast = copy.deepcopy(detector)
    for block in (*fast.backbone.blocks, fast.head.block):
        assert isinstance(block, Block)
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.to(torch.bfloat16)
        if next(block.parameters()).device.type == "cpu" and packed.available():
            packed.pack(block)
    return fast


def save(detector: Detector, path: Path | str, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a detector as one safetensors file, and return its path; `dtype` of the stored tensors (fp16 halves it).

    Raises OutputError when it cannot be written.
    """
    head = detector.head
    meta = {
        "backbone": detector.backbone.config,
        "head": {"dim": head.dim, "heads": head.heads, "mlp_ratio": head.mlp_ratio},
        "info": asdict(detector.info),
    }
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in detector.state_dict().items()}
    told = {"negah": json.dumps(meta, sort_keys=True)}
    write(Path(path), lambda file: save_file(tensors, str(file), metadata=told))
    return Path(path)


def load(name_or_path: str | Path, *, device: torch.device | str = "cpu") -> Detector:
    """A detector from a file, or a bundled one by name ("negah/aerial-tiny"), in eval mode and fp32.

    Raises WeightsError when there is no such file, it is not a detector, or a key is missing, unexpected or misshapen.

    Examples:
        >>> from negah.images.scenes import render
        >>> scene = render(104, 0.3, seed=9, panels="some")
        >>> image = torch.tensor(scene.image).permute(2, 0, 1)[None]  # uint8 [1, 3, 104, 104]
        >>> reading = load("negah/aerial-tiny")(image)
        >>> bool(reading.logit.sigmoid() > 0.5), reading.patch_logits.shape
        (True, torch.Size([1, 169]))
    """
    path = detector_path(name_or_path)
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("negah", "null"))
            state = {key: file.get_tensor(key).float() for key in file.keys()}
    except Exception as error:  # safetensors raises its own, undocumented kinds
        raise WeightsError(
            f"{path} is not a readable safetensors file ({error}): give a file written by negah"
        ) from error
    if not isinstance(meta, dict) or not {"backbone", "head", "info"} <= meta.keys():
        raise WeightsError(
            f"{path} holds no detector (no 'negah' metadata): give a file written by `negah probe train`"
        )
    head = meta["head"]
    detector = Detector(
        ViT(**{**meta["backbone"], "grid": tuple(meta["backbone"]["grid"])}),
        AttentiveHead(head["dim"], heads=head["heads"], mlp_ratio=head["mlp_ratio"]),
        DetectorInfo.from_dict(meta["info"]),
    )
    try:
        detector.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit its own description: {' '.join(str(error).split())}") from error
    return detector.eval().to(device)


def detector_path(name_or_path: str | Path) -> Path:
    """Where a detector's file lies; bundled names start with "negah/". WeightsError where there is none."""
    text = str(name_or_path)
    if text.startswith("negah/"):
        return bundled_path(text)
    path = Path(text)
    if not path.is_file():
        raise WeightsError(
            f"no model file at {path}: give a .safetensors file or a bundled name like negah/aerial-tiny"
        )
    return path
