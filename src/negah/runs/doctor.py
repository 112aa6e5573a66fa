"""A check-up of an install: what there is, what it can run on, what is bundled, what is missing and how to add it."""

import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from negah import __version__
from negah.errors import install

LIBRARIES = (
    "torch", "torchvision", "numpy", "timm", "transformers", "safetensors", "huggingface-hub",
    "rasterio", "pyproj", "shapely", "geopandas", "pyogrio", "pyarrow", "scikit-learn", "pillow", "tyro", "rich",
)  # fmt: skip
"""Libraries whose versions decide what a survey gives, or that change what negah can do."""
DRIVERS = ("GTiff", "COG", "VRT", "GPKG", "GeoJSON")
"""GDAL's formats that a survey reads or writes. (GeoParquet is written by pyarrow, not by GDAL.)"""


@dataclass(frozen=True)
class Device:
    """Something that models run on. Memory in bytes; `bf16`: whether it computes in bfloat16 natively."""

    name: str
    kind: str
    memory: int
    bf16: bool
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundled:
    """A file of weights that came with negah. Size in bytes."""

    name: str
    size: int
    card: bool


@dataclass(frozen=True)
class Extra:
    """A part of negah that is installed on request, and which of its packages are missing."""

    name: str
    missing: tuple[str, ...]
    add: str


@dataclass(frozen=True)
class Place:
    """A folder that negah writes to. Free space in bytes."""

    what: str
    path: str
    free: int


@dataclass(frozen=True)
class Checkup:
    """All of it. `problems` are what stops a survey from running here, a line each; none on a sound install."""

    negah: str
    python: str
    system: str
    libraries: dict[str, str | None]
    gdal: dict[str, str]
    drivers: dict[str, bool]
    devices: tuple[Device, ...]
    threads: int
    bundled: tuple[Bundled, ...]
    places: tuple[Place, ...]
    extras: tuple[Extra, ...]
    problems: tuple[str, ...]


def checkup() -> Checkup:
    """Look at everything once. Nothing is downloaded, and what cannot be found out is left empty."""
    requirements = _requirements()
    gdal, drivers, broken = _gdal()
    bundled = _bundled()
    lacking = [name for name in requirements.get("", ()) if _version(name) is None]
    problems = [f"{name} is not installed: `pip install {name}`" for name in lacking]
    problems += broken
    problems += [
        f"GDAL cannot handle {name}: install rasterio from PyPI" for name, there in drivers.items() if not there
    ]
    problems += [f"the bundled {b.name} is empty: install negah again" for b in bundled if b.size == 0]
    if not bundled:
        problems.append("no model is bundled: install negah again, or give a model's file with --backbone")
    places = _places()
    problems += [f"less than 1 GB is free in {p.path} ({p.what}): free some space" for p in places if p.free < 10**9]
    return Checkup(
        negah=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        libraries={name: _version(name) for name in LIBRARIES},
        gdal=gdal,
        drivers=drivers,
        devices=_devices(),
        threads=_threads(),
        bundled=bundled,
        places=places,
        extras=tuple(_extra(name, packages) for name, packages in requirements.items() if name and packages),
        problems=tuple(problems),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> dict[str, tuple[str, ...]]:
    """Packages that each extra names, the plain install's under ""; nothing where negah runs from a source folder."""
    try:
        lines = metadata.requires("negah") or []
    except metadata.PackageNotFoundError:
        lines = []
    found: dict[str, list[str]] = {}
    for line in lines:
        package = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        if package and package[0] != "negah":  # extras made of other extras ("all") add nothing of their own
            found.setdefault(extra[1] if extra else "", []).append(package[0])
    return {extra: tuple(packages) for extra, packages in found.items()}


def _extra(name: str, packages: tuple[str, ...]) -> Extra:
    missing = tuple(package for package in packages if _version(package) is None)
    return Extra(name, missing, install(name))


def _gdal() -> tuple[dict[str, str], dict[str, bool], list[str]]:
    """Versions of the geo libraries' C parts, the formats they know, and what does not even import."""
    try:
        import pyogrio
        import pyproj
        import rasterio
    except Exception as problem:  # a broken C library shows up as anything from ImportError to OSError
        return (
            {},
            {},
            [f"the geo libraries do not import ({problem}): `pip install --force-reinstall rasterio pyogrio`"],
        )
    with rasterio.Env() as env:
        raster = set(env.drivers())
    vector = {name for name, mode in pyogrio.list_drivers().items() if "w" in mode}
    versions = {
        "GDAL (rasterio)": rasterio.__gdal_version__,
        "GDAL (pyogrio)": ".".join(map(str, pyogrio.__gdal_version__)),
        "PROJ": pyproj.proj_version_str,
    }
    return versions, {name: name in raster | vector for name in DRIVERS}, []


def _devices() -> tuple[Device, ...]:
    import torch

    able = getattr(torch.cpu, "get_capabilities", dict)()
    features = tuple(name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "bf16", "sve") if able.get(name))
    pages, size = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE")) if hasattr(os, "sysconf") else (0, 0)
    found = [Device(_cpu_name(), "cpu", pages * size, any("bf16" in name for name in features), features)]
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        bf16 = card.major >= 8 or torch.version.hip is not None
        found.append(Device(card.name, f"cuda:{i}", card.total_memory, bf16))
    if torch.backends.mps.is_available():
        found.append(Device("Apple GPU", "mps", torch.mps.recommended_max_memory(), True))
    return tuple(found)


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        name = re.search(r"^model name\s*:\s*(.+)$", listing.read_text(errors="replace"), re.MULTILINE)
        if name:
            return name[1].strip()
    return platform.processor() or platform.machine()


def _threads() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bundled() -> tuple[Bundled, ...]:
    folder = Path(__file__).parent.parent / "weights" / "bundled"
    models = sorted(path for path in folder.iterdir() if path.suffix != ".md")  # files, and a folder in parts
    size = {path: sum(f.stat().st_size for f in (path, *path.rglob("*")) if f.is_file()) for path in models}
    return tuple(Bundled(f"negah/{m.stem}", size[m], m.with_suffix(".md").is_file()) for m in models)


def _places() -> tuple[Place, ...]:
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub")
    named = {"this folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir()), "downloaded models": cache}
    return tuple(Place(what, str(path.expanduser()), _free(path.expanduser())) for what, path in named.items())


def _free(path: Path) -> int:
    """Bytes that can be written at a path, which need not exist yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free
