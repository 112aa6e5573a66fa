"""What every run writes down beside its results: with which model, which releases, and on what it ran."""

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import rasterio
import torch
from torch import nn

from negah.errors import OutputError
from negah.probe.detector import Detector
from negah.progress import Say


def compute_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def fingerprint_of(detector: Detector) -> str:
    """SHA-256 of a detector's weights and info."""
    return digest(detector, json.dumps(asdict(detector.info), sort_keys=True))


def digest(model: nn.Module, about: str = "") -> str:
    """SHA-256 of a model's weights, and of what else makes it what it is."""
    found = hashlib.sha256(about.encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


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


def writable(out: Path) -> None:
    """Raises OutputError where `out` cannot be a folder to write to.

    It is not made: a run that is refused later, for its inputs, leaves no trace.
    """
    nearest = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise OutputError(f"cannot write to {out}: {nearest} is a file; give another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {out}: {nearest} is not open to you; give another --out")


def claim(
    out: Path, record: dict[str, Any], *, holds: Sequence[str], free: Sequence[str] = (), say: Say
) -> dict[str, Any]:
    """The record of a run that goes on where it was stopped, to be written as run.json once the run may begin.

    Args:
        record: with "arguments" and "started", which remains that of the run that goes on.
        holds: files of which one shows that a run has been here.
        free: arguments that may change while a run is continued.
        say: told when a run goes on.

    Raises OutputError when the folder holds a run of other arguments, or cannot be written.
    """
    writable(out)
    path = out / "run.json"
    if path.exists() and any((out / name).exists() for name in holds):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            held, started = before["arguments"], before["started"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} cannot be read ({error}): give another --out") from error
        now = json.loads(json.dumps(record["arguments"]))
        differ = [name for name in now if name not in free and held.get(name) != now[name]]
        if differ:
            said = ", ".join(f"{name} {held.get(name)} (now {now[name]})" for name in differ)
            raise OutputError(f"{out} holds another run: {said}; give another --out, or remove it")
        record = record | {"started": started}
        say(f"going on with the run in {out}")
    return record


def now() -> str:
    """The time, as it is written down."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
