"""`negah scene`: a generated town as a GeoTIFF, with its truth beside it."""

from dataclasses import dataclass
from pathlib import Path

from negah.errors import InputError
from negah.images.scenes import write_town


@dataclass(frozen=True)
class Drawn:
    """The files of a generated town, and the panels in it; areas in m2 as seen from above."""

    image: Path
    mask: Path
    panels: Path
    size_px: int
    gsd_m: float
    seed: int
    count: int
    plan_area_m2: float


def draw(path: Path, *, size_px: int, gsd_m: float = 0.3, seed: int = 0) -> Drawn:
    """Write a square town of `size_px` pixels of `gsd_m` metres to `path`, and its truth beside it.

    Raises InputError where `path` is no .tif, or is there already and was not written by this: a real picture is worth
    more than a drawn one.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{path} is no name for a GeoTIFF: let it end in .tif")
    mask, panels = path.with_name(f"{path.stem}_mask.tif"), path.with_name(f"{path.stem}_panels.gpkg")
    if path.exists() and not panels.exists():
        raise InputError(f"{path} is there already, and was not drawn by negah: choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    truth = write_town(path, size_px=size_px, gsd_m=gsd_m, seed=seed)
    return Drawn(path, mask, panels, size_px, gsd_m, seed, len(truth.panels), truth.plan_area_m2)
