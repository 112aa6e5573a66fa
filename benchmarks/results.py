"""Where a measurement is written down: one json file a claim, with what is needed to measure it again.

Imported by the scripts beside it, which are run from the repository's root: `python benchmarks/NAME.py`.
"""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "results"


def data_folder() -> Path:
    """The folder of real data: $NEGAH_DATA, or ../shared/data beside the repository. SystemExit where it is absent."""
    folder = Path(os.environ.get("NEGAH_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"no data at {folder}: set NEGAH_DATA to the folder that holds duke-solar, pv-masks, ucmerced")
    return folder


def hardware() -> dict[str, Any]:
    """Processor, threads and accelerator of this machine."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, torch and the named packages, as installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write(
    name: str, *, claim: str, rows: list[dict[str, Any]], headline: dict[str, Any], seeds: list[int],
    packages: tuple[str, ...] = (), **more: Any,
) -> Path:  # fmt: skip
    """Write results/NAME.json; `headline` has value, unit, target and better ("higher" or "lower")."""
    assert headline.keys() >= {"value", "unit", "target", "better"}, "a headline needs value, unit, target, better"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "src"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    record = {
        "claim": claim,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit + ("+changes" if dirty else ""),
        "versions": versions(*packages),
        "hardware": hardware(),
        "seeds": seeds,
        "headline": headline,
        "rows": rows,
        **more,
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return path
