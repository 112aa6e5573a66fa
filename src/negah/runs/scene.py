"""`negah scene`: a generated town as a GeoTIFF, with its truth beside it."""

from pathlib import Path

from rasterio.errors import RasterioError

from negah.errors import InputError, OutputError
from negah.images.scenes import Truth, write_town
from negah.progress import Progress, silent


def draw(
    path: Path,
    *,
    size_px: int,
    gsd_m: float = 0.3,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Truth:
    """Write a square town of `size_px` pixels of `gsd_m` metres to `path`, and its truth beside it.

    overwrite: draw over a town that is there already, but never over what was not written by this: a real picture is
    worth more than a drawn one.  Raises InputError for these and where `path` is no .tif, OutputError where there is no
    room.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{path} is no name for a GeoTIFF: let it end in .tif")
    if path.exists() and not path.with_name(f"{path.stem}_panels.gpkg").exists():
        raise InputError(f"{path} is there already, and was not drawn by negah: choose another name")
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already: survey it, choose another name, or --overwrite to draw it anew")
    try:
        return write_town(path, size_px=size_px, gsd_m=gsd_m, seed=seed, progress=progress)
    except (OSError, RasterioError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error.__cause__ or error).split())
        raise OutputError(f"{path} cannot be written ({why}): make room, or choose another place") from error
