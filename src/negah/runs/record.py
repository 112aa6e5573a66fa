"""What every run writes down beside its results: with which model, which releases, and on what it ran."""

import hashlib
import json
import os
import platform
from dataclasses import asdict
from importlib import metadata

import rasterio
import torch

from negah.probe.detector import Detector


def compute_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def fingerprint_of(detector: Detector) -> str:
    """SHA-256 of a detector's weights and info."""
    digest = hashlib.sha256(json.dumps(asdict(detector.info), sort_keys=True).encode())
    for name, tensor in sorted(detector.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Releases of what the figures and files come from."""
    names = "torch torchvision numpy scipy rasterio pyproj shapely geopandas pyogrio pyarrow".split()
    found = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), "gdal": rasterio.__gdal_version__, **found}


def hardware(device: torch.device) -> dict[str, str | int]:
    """What it ran on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "system": platform.platform(),
        "device": f"{device.type}: {name}",
        "cores": os.cpu_count() or 0,
        "torch threads": torch.get_num_threads(),
    }
