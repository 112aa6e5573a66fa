"""`write_town`: a georeferenced town on disk, streamed, with its truth."""

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import geopandas
import numpy as np
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import from_origin

from negah.errors import GeoError, InputError, OutputError
from negah.images.scenes.modules import ModuleArray
from negah.images.scenes.paint import Camera, Window, develop, paint, subdivision
from negah.images.scenes.render import Panel, truth
from negah.images.scenes.town import Town, mix
from negah.progress import Progress, silent

CELL_PX = 512  # painted and written at a time; also the files' tiles, so that each is compressed once

# A clear summer's day, mildly hazy; the scenes of `render` range much further.
CLEAR = Camera(
    blur_px=0.6, sharpen=0.2, gain=(1.0, 1.0, 1.0), level=122, gamma=1.0, contrast=1.0, saturation=0.85,
    black=(45, 64, 70), haze=0.35, noise=1.6, noise_grain_px=0.5, chroma_noise=0.3, shadow=(0.4, 0.42, 0.5), jpeg=None,
)  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What `write_town` wrote, and what is in it."""

    image: Path  # uint8 RGB GeoTIFF
    mask: Path  # uint8 GeoTIFF, value / 255 is the fraction of the pixel that is module
    panels: Path  # GeoPackage: one row per array, clipped to the picture
    arrays: int
    modules: int
    plan_area_m2: float
    module_area_m2: float
    objects: dict[str, int]
    caption: str


def write_town(
    path: str | Path,
    *,
    size_px: int | tuple[int, int],
    gsd_m: float = 0.3,
    seed: int = 0,
    crs: str = "EPSG:32633",
    origin: tuple[float, float] = (320_000.0, 5_400_000.0),
    adoption: float = 0.25,
    clumping: float = 0.0,
    progress: Progress = silent,
) -> Truth:
    """Write a town of `size_px` (or height, width) pixels to `path`, with `*_mask.tif` and `*_panels.gpkg` beside it.

    `origin` is the upper left corner in `crs`, which must be projected, in metres and true to scale (in UTM the default
    lies where the scale is 1); `adoption` is the part of the buildings with modules, and `clumping`, from 0 to below 1,
    how alike those of a street are (see `Town`).  Progress is told of every cell of 512 px.  Memory does not grow with
    the size of the raster; the same arguments give the same pixels.

    Raises InputError (size, gsd_m, adoption, clumping), GeoError (crs) and OutputError (a folder or disk that cannot be
    written).
    """
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    if not (1 <= height <= 200_000 and 1 <= width <= 200_000):
        raise InputError(f"a town is 1 to 200000 px a side, not {height} x {width}")
    if not 0.05 <= gsd_m <= 3:
        raise InputError(f"a town has a ground sampling distance of 0.05 to 3 m, not {gsd_m}")
    if not 0 <= adoption <= 1:
        raise InputError(f"adoption is a part of the buildings, 0 to 1, not {adoption}")
    if not 0 <= clumping < 1:
        raise InputError(f"clumping is a correlation, 0 to below 1, not {clumping}")
    system = projected(crs)
    image_path = Path(path)
    files = [image_path, *(image_path.with_name(image_path.stem + end) for end in ("_mask.tif", "_panels.gpkg"))]
    # Written under other names first, so that a run that dies leaves nothing that looks finished.
    drafts = [file.with_name(f".{file.stem}.part{file.suffix}") for file in files]
    town = Town(mix(seed, 0x70), adoption=adoption, clumping=clumping, angle=Random(mix(seed, 0x71)).uniform(-0.3, 0.3))
    common = {
        "driver": "GTiff", "height": height, "width": width, "dtype": "uint8", "crs": system, "tiled": True,
        "transform": from_origin(*origin, gsd_m, gsd_m), "blockxsize": CELL_PX, "blockysize": CELL_PX,
        "compress": "deflate", "zlevel": 4, "bigtiff": "if_safer",
    }  # fmt: skip
    extent = Window(0.0, 0.0, width, height, gsd_m)
    found: list[Panel] = []
    objects: Counter[str] = Counter()
    rows, cols = math.ceil(height / CELL_PX), math.ceil(width / CELL_PX)
    exposure = CLEAR.level / pilot_mean(town, width * gsd_m, height * gsd_m)
    progress("drawing", 0, rows * cols)
    try:
        image_path.parent.mkdir(parents=True, exist_ok=True)
        # GDAL would keep a twentieth of the machine's memory of written tiles; none is read again.
        with (
            rasterio.Env(GDAL_CACHEMAX=64),
            rasterio.open(
                drafts[0], "w", count=3, interleave="pixel", photometric="rgb", predictor=2, **common
            ) as image,
            rasterio.open(drafts[1], "w", count=1, **common) as mask,
        ):
            mask.update_tags(1, scale="value / 255 = fraction of the pixel that is solar module")
            for row in range(rows):
                for col in range(cols):
                    r0, c0 = row * CELL_PX, col * CELL_PX
                    h, w = min(CELL_PX, height - r0), min(CELL_PX, width - c0)
                    cell = Window(c0 * gsd_m, r0 * gsd_m, w, h, gsd_m)
                    rng = np.random.default_rng(mix(seed, 0x72, row, col))
                    rgb, cover, arrays, names = paint_cell(town, cell, rng, exposure, (width * gsd_m, height * gsd_m))
                    tile = ((r0, r0 + h), (c0, c0 + w))
                    image.write(np.moveaxis(rgb, -1, 0), window=tile)
                    mask.write(np.rint(cover * 255).astype(np.uint8), 1, window=tile)
                    found += truth(arrays, extent)
                    objects.update(names)
                    progress("drawing", row * cols + col + 1, rows * cols)
        table = panel_table(found, origin, system)
        table.to_file(drafts[2], layer="panels", driver="GPKG")
        for draft, file in zip(drafts, files, strict=True):
            os.replace(draft, file)
    except (OSError, RasterioError) as error:
        raise OutputError(f"cannot write the town {image_path}: {error}") from error
    finally:
        for draft in drafts:
            if draft.exists():
                draft.unlink()
    modules = sum(panel.modules for panel in found)
    plan, surface = sum(panel.plan_area_m2 for panel in found), sum(panel.module_area_m2 for panel in found)
    caption = (
        f"An aerial image of a town, {width * gsd_m / 1000:.1f} x {height * gsd_m / 1000:.1f} km, with "
        f"{objects['house']} houses, {objects['hall']} halls and {len(found)} solar arrays of {plan:.0f} m2 in all."
    )
    return Truth(
        files[0], files[1], files[2], len(found), modules, plan, surface, dict(sorted(objects.items())), caption
    )


def projected(crs: str) -> CRS:
    """The reference system, if square metres can be counted in its plane."""
    try:
        system = CRS.from_user_input(crs)
    except CRSError as error:
        raise GeoError(f"unknown coordinate reference system {crs!r}: give one like EPSG:32633") from error
    if not system.is_projected or system.linear_units_factor[1] != 1.0 or system.to_epsg() in (3857, 3395):
        raise GeoError(f"{crs} is not in true metres: a town needs a projected system such as UTM (EPSG:32633)")
    return system


def pilot_mean(town: Town, width_m: float, height_m: float) -> float:
    """Mean grey level of the town before the camera, from a coarse picture of its middle; sets one exposure for all."""
    window = Window(width_m / 2 - 90, height_m / 2 - 90, 90, 90, 2.0)
    colour, _ = paint(town.sketch(window.bounds()), window, CLEAR.shadow, 2)
    return float(colour.mean())


def paint_cell(
    town: Town, cell: Window, rng: np.random.Generator, exposure: float, extent: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, list[ModuleArray], Counter[str]]:
    """One cell: picture, mask, the arrays with their middle in it (or beyond the town's edge beside it), the things."""
    wide = cell.grown(CLEAR.reach)
    sketch = town.sketch(wide.bounds())
    radiance, cover = paint(sketch, wide, CLEAR.shadow, subdivision(cell.gsd_m))
    grain = rng.standard_normal((wide.height, wide.width, 3), dtype=np.float32)
    cut = slice(CLEAR.reach, -CLEAR.reach)
    rgb = develop(radiance, CLEAR, grain, exposure)[cut, cut]
    x0, y0, x1, y1 = cell.bounds()

    def here(x: float, y: float) -> bool:
        # Points beyond the picture belong to the nearest cell: an array cut by the edge has its middle out there.
        x, y = min(max(x, 0.0), math.nextafter(extent[0], 0)), min(max(y, 0.0), math.nextafter(extent[1], 0))
        return x0 <= x < x1 and y0 <= y < y1

    arrays = []
    for array in sketch.arrays:
        ax0, ay0, ax1, ay1 = array.bounds
        if ax1 > 0 and ay1 > 0 and ax0 < extent[0] and ay0 < extent[1] and here((ax0 + ax1) / 2, (ay0 + ay1) / 2):
            arrays.append(array)
    names = Counter(name for name, x, y in sketch.sites if x0 <= x < x1 and y0 <= y < y1)
    return rgb, cover[cut, cut], arrays, names


def panel_table(found: list[Panel], origin: tuple[float, float], system: CRS) -> geopandas.GeoDataFrame:
    """The arrays as a layer in the town's reference system."""
    columns = ("plan_area_m2", "module_area_m2", "modules", "tilt_deg", "azimuth_deg", "mount")
    # Metres from the upper left corner, y down, become eastings and northings.
    shapes = [shapely.transform(p.polygon, lambda c: np.array(origin) + c * (1, -1)) for p in found]
    rows = {"id": np.arange(1, len(found) + 1), **{c: [getattr(p, c) for p in found] for c in columns}}
    return geopandas.GeoDataFrame(rows, geometry=shapes, crs=system.to_wkt())
