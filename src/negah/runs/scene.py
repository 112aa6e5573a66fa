"""`negah scene`: a generated town as a GeoTIFF, with its truth beside it."""

from pathlib import Path

from negah.errors import InputError
from negah.images.scenes import Truth, write_town
from negah.progress import Progress, silent


def draw(
    path: Path,
    *,
    size_px: int,
    gsd_m: float = 0.3,
    seed: int = 0,
    progress: Progress = silent,
) -> Truth:
    """Write a square town of `size_px` pixels of `gsd_m` metres to `path`, and its truth beside it.

    Raises InputError where `path` is no .tif, or is there already and was not written by this: a real picture is worth
    more than a drawn one.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{path} is no name for a GeoTIFF: let it end in .tif")
    if path.exists() and not path.with_name(f"{path.stem}_panels.gpkg").exists():
        raise InputError(f"{path} is there already, and was not drawn by negah: choose another name")
    return write_town(path, size_px=size_px, gsd_m=gsd_m, seed=seed, progress=progress)
