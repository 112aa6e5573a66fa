"""The files of a survey, all derived from its ledger: written in a corner of the output folder, then put in place.

tiles.csv                  a row per window
failures.csv               a row per input that failed, whole or in part
panels.parquet .gpkg       a feature per panel, in the sources' CRS if they share one, else in EPSG:4326
panels.geojson             the same in EPSG:4326; only where a source has a CRS
panels-pixel.parquet .gpkg panels of sources without a CRS, in pixels, where other sources have one
heatmap.tif                cells of the raster: panel fraction and probability, a cloud-optimised GeoTIFF;
                           heatmaps/NAME.tif for each source of more than one window where there are several
parcels.parquet .csv       the given parcels with what lies on each
also.csv, also.* as panels windows by how well the user's words fit them (see `negah.solar.also`)
report.html, run.json      for people, for machines
"""

import csv
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import geopandas
import numpy as np
import pandas as pd
import pyproj
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from jaxtyping import Float
from numpy import ndarray
from rasterio.windows import Window as RasterWindow
from shapely.geometry.base import BaseGeometry

from negah.errors import NegahError, OutputError
from negah.images.windows import Box
from negah.solar.ledger import FILE as LEDGER
from negah.solar.ledger import Ledger
from negah.solar.merge import Component, Strip
from negah.solar.plan import Failure, Plan, PlannedSource
from negah.solar.regions import SUMS, apply

CORNER = ".assembling"
NAMES = (
    "tiles.csv", "failures.csv", "panels.parquet", "panels.gpkg", "panels.geojson", "panels-pixel.parquet",
    "panels-pixel.gpkg", "heatmap.tif", "heatmaps", "parcels.parquet", "parcels.csv", "also.csv", "also.parquet",
    "also.gpkg", "also.geojson", "also-pixel.parquet", "also-pixel.gpkg", "report.html", "run.json",
)  # fmt: skip
"""All that a survey may write beside its ledger."""
LEDGER_FILES = (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", f"{LEDGER}-journal")

TILE_COLUMNS = (
    "source", "window", "bounds", "probability", "area_m2", "area_low", "area_high", "status", "abstained",
)  # fmt: skip
REFINED = "refined"  # the column of tiles.csv and panels.* where the survey is refined
WGS84 = "EPSG:4326"
ROUNDED = {**dict.fromkeys(SUMS.values(), 3), "panel_probability": 6}  # decimals in parcels.csv
BLOCK = 256  # pixels along a block of a heat map


class Assembly:
    """A corner of the output folder in which files are written before they take their names, all in one go.

    Use as a context manager: on success the files replace those of an earlier assembly, and what an earlier one wrote
    and this one did not is removed; on an error nothing changes.
    """

    def __init__(self, out: Path):
        self.out = out
        self.corner = out / CORNER

    def __enter__(self) -> "Assembly":
        shutil.rmtree(self.corner, ignore_errors=True)
        self.corner.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for name in NAMES:
                new, old = self.corner / name, self.out / name
                if old.is_dir():
                    shutil.rmtree(old)
                if new.exists():
                    os.replace(new, old)
                else:
                    old.unlink(missing_ok=True)
        shutil.rmtree(self.corner, ignore_errors=True)

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """The path to write a file at.  Whatever goes wrong becomes an OutputError that names the file."""
        path = self.corner / name
        path.parent.mkdir(exist_ok=True)
        try:
            yield path
        except NegahError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise self._unwritten(name, error.__cause__) from error
        except Exception as error:  # rasterio, pyogrio, pyarrow, csv: each has its own for a full disk
            raise self._unwritten(name, error) from error

    def _unwritten(self, name: str, error: Exception) -> OutputError:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        return OutputError(
            f"{self.out / name} cannot be written ({reason}): make sure that there is space and that the folder is "
            "writable, then give the same command again, which continues from the ledger"
        )


def discard(out: Path) -> None:
    """Remove a survey from a folder; files that no survey writes stay."""
    shutil.rmtree(out / CORNER, ignore_errors=True)
    for name in (*LEDGER_FILES, *NAMES):
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_tiles(ledger: Ledger, plan: Plan, path: Path, *, refined: bool = False) -> None:
    """tiles.csv: every window of every source; one that could not be opened has one row, without figures.

    refined: with a last column of that name, the probability in the light of the neighbours.
    """
    failed = {f.position: f for f in plan.failures}
    planned = {s.position: s for s in plan.sources}
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow((*TILE_COLUMNS, REFINED) if refined else TILE_COLUMNS)
        for position in range(len(failed) + len(planned)):
            if position in failed:
                out.writerow((failed[position].source, "", "", "", "", "", "", "failed", "", *[""] * refined))
                continue
            source = planned[position]
            for window in ledger.windows(source.first, source.first + len(source.layout)):
                index = window.id - source.first
                figures = ("", "", "", "")
                if window.probability is not None:
                    areas = window.area_m2, window.area_low, window.area_high
                    figures = f"{window.probability:.6f}", *("" if area is None else f"{area:.3f}" for area in areas)
                place = source.name, window_name(source, index), bounds_of(source, source.layout.box(index))
                after = [] if not refined else [""] if window.refined is None else [f"{window.refined:.6f}"]
                out.writerow((*place, *figures, window.status, window.abstained or "", *after))


def window_name(source: PlannedSource, index: int) -> str:
    """What a window is called: its upper left corner in pixels of the source."""
    box = source.layout.box(index)
    return f"c{box.col}_r{box.row}"


def bounds_of(source: PlannedSource, box: Box) -> str:
    """minx miny maxx maxy of a rectangle in the source's CRS, or in its pixels where it has none."""
    col, row, width, height = box
    corners = np.array([[col, row], [col + width, row], [col, row + height], [col + width, row + height]])
    xy = apply(source.affine, corners.astype(float))
    return " ".join(format(v, ".12g") for v in (*xy.min(0).tolist(), *xy.max(0).tolist()))


def write_failures(failures: list[Failure], path: Path) -> None:
    """failures.csv: source, how many of its windows failed ("all" where it could not be opened), why."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("source", "windows", "reason"))
        out.writerows((f.source, f.windows or "all", f.reason) for f in failures)


class Heatmap:
    """A heat map that is written strip by strip; `close` turns it into a cloud-optimised GeoTIFF.

    Band 1 is the panel fraction of each cell, band 2 the probability of the windows over it, NaN where nothing was
    looked at.  Raises OutputError when what lies on the disk in the end is not what was written.
    """

    def __init__(self, path: Path, source: PlannedSource):
        x, y = source.layout.x, source.layout.y
        a = source.affine
        self._path = path
        self._raw = path.with_suffix(".raw.tif")
        self._file = rasterio.open(
            self._raw, "w", driver="GTiff", width=x.cell_count, height=y.cell_count, count=2, dtype="float32",
            crs=source.crs, nodata=np.nan, tiled=True, blockxsize=BLOCK, blockysize=BLOCK, compress="deflate",
            transform=Affine(a.a * x.cell, a.b * y.cell, a.c, a.d * x.cell, a.e * y.cell, a.f), BIGTIFF="IF_SAFER",
        )  # fmt: skip
        self._file.set_band_description(1, "panel fraction")
        self._file.set_band_description(2, "probability of panels")
        self._sum = 0

    def write(self, strip: Strip) -> None:
        """The next rows of cells."""
        rows, width = strip.fraction.shape
        bands = np.stack([strip.fraction, strip.probability])
        bands[:, np.isnan(strip.fraction)] = np.nan  # one bit pattern for all NaN
        self._sum += _checksum(bands)
        self._file.write(bands, window=RasterWindow(0, strip.row, width, rows))  # pyright: ignore[reportCallIssue]

    def through(self, strips: Iterable[Strip]) -> Iterator[Strip]:
        """Write strips as they pass by."""
        for strip in strips:
            self.write(strip)
            yield strip

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
        rasterio.shutil.copy(
            self._raw, self._path, driver="COG", compress="DEFLATE", blocksize=BLOCK,  # a predictor makes it larger
            overview_resampling="AVERAGE", bigtiff="IF_SAFER",
        )  # fmt: skip
        self._raw.unlink()
        with rasterio.open(self._path) as file:  # GDAL does not always say that a disk was full
            total = sum(_checksum(file.read(window=window)) for _, window in file.block_windows(1))
        if total != self._sum:
            raise OSError("what was read back differs from what was written; is the disk full?")


def read_heat(path: Path, *, band: int, longest: int) -> Float[ndarray, "gh gw"]:
    """A heat map made small: the highest value in each square of cells, at most `longest` squares along a side."""
    with rasterio.open(path) as file:
        k = -(-max(file.width, file.height) // longest)
        lines = []
        for row in range(0, file.height, k):
            rows = min(k, file.height - row)
            values = file.read(band, window=RasterWindow(0, row, file.width, rows))  # pyright: ignore[reportCallIssue]
            line = np.fmax.reduce(values, axis=0)
            lines.append(np.fmax.reduceat(line, np.arange(0, file.width, k)))
    return np.stack(lines)


class Drawn(NamedTuple):
    """Panels of one source as the report draws them, the largest first."""

    outlines: list[BaseGeometry]  # in source pixels
    area_m2: Float[ndarray, " panel"]
    probability: Float[ndarray, " panel"]


Interval = Callable[[Float[ndarray, " n"], Float[ndarray, " n"]], tuple[Float[ndarray, " n"], Float[ndarray, " n"]]]
"""From areas, and the pixel size of their pictures, to their bounds."""


class Panels:
    """The panels of a survey, gathered source by source (about 2 kB each), then written.

    refined: with the refined probability beside the detector's.
    """

    def __init__(
        self, plan: Plan, *, kw: Callable[[ndarray], ndarray], interval: Interval, refined: bool = False
    ):  # fmt: skip
        self._kw = kw
        self._interval = interval
        self._refined = refined
        self._groups: dict[str | None, list[tuple[ndarray, dict[str, ndarray]]]] = {
            source.crs: [] for source in plan.sources
        }

    def add(
        self, source: PlannedSource, found: Iterable[Component], clip: BaseGeometry | None, *, draw: int = 0
    ) -> Drawn:
        """The panels of one source; `clip`, in its pixels, cuts them off.  Returns the `draw` largest.

        The area of a panel that is cut is scaled by the share of its outline that remains.
        """
        layout = source.layout
        # Outlined as they come: their cells need not be kept.
        rows = [(p.rows[0], p.cols[0], p.area_px(layout), p.probability, p.refined, p.outline(layout)) for p in found]
        rows.sort(key=lambda row: row[:2])
        px, probability, refined = (np.array([row[k] for row in rows], dtype=float) for k in (2, 3, 4))
        shapes = np.array([row[5] for row in rows], dtype=object)
        del rows
        if clip is not None and len(shapes):
            cut = np.array([_polygons(s) for s in shapely.intersection(shapes, clip)], dtype=object)
            px = px * shapely.area(cut) / shapely.area(shapes)
            keep = ~shapely.is_empty(cut)
            shapes, px, probability, refined = cut[keep], px[keep], probability[keep], refined[keep]
        if not len(shapes):
            return Drawn([], px, probability)
        centres = shapely.get_coordinates(shapely.centroid(shapes))
        area = px * source.ground.pixel_m2(centres[:, 0], centres[:, 1])
        moved = shapely.transform(shapes, lambda xy: apply(source.affine, xy)) if source.crs else shapes
        columns = {
            "source": np.full(len(area), source.name, dtype=object), "area_m2": area, "probability": probability,
            REFINED: refined, "gsd_m": np.full(len(area), source.gsd_m),
        }  # fmt: skip
        self._groups[source.crs].append((moved, columns))
        largest = np.argsort(-area, kind="stable")[:draw]
        return Drawn(shapes[largest].tolist(), area[largest], probability[largest])

    def frames(self) -> tuple[geopandas.GeoDataFrame | None, geopandas.GeoDataFrame | None]:
        """Panels of sources with a CRS (in their own, or EPSG:4326 where it differs), and of those without one.

        None where there is no such source.
        """
        georeferenced = [self._frame(crs) for crs in self._groups if crs is not None]
        if len(georeferenced) > 1:
            georeferenced = [frame.to_crs(WGS84) for frame in georeferenced]
        on_earth = pd.concat(georeferenced, ignore_index=True) if georeferenced else None
        in_pixels = self._frame(None) if None in self._groups else None
        start = 1
        for frame in (on_earth, in_pixels):
            if frame is not None:
                frame.insert(0, "id", [f"p{k:06d}" for k in range(start, start + len(frame))])
                start += len(frame)
        return on_earth, in_pixels  # pyright: ignore[reportReturnType]

    def _frame(self, crs: str | None) -> geopandas.GeoDataFrame:
        parts = self._groups[crs]
        shapes = np.concatenate([np.empty(0, dtype=object), *(moved for moved, _ in parts)])

        def column(name: str) -> ndarray:
            values = [columns[name] for _, columns in parts]
            return np.concatenate(values) if values else np.zeros(0)

        area = column("area_m2")
        low, high = self._interval(area, column("gsd_m"))
        data = {
            "source": pd.Series(column("source"), dtype="str"),
            "area_m2": area,
            "area_low": low,
            "area_high": high,
            "kw": self._kw(area),
            "probability": column("probability"),
            **({REFINED: column(REFINED)} if self._refined else {}),
        }
        if crs is not None:
            centres = shapely.get_coordinates(shapely.centroid(shapes))
            move = pyproj.Transformer.from_crs(crs, WGS84, always_xy=True)
            lon, lat = move.transform(centres[:, 0], centres[:, 1])
            data |= {"lat": np.asarray(lat, float), "lon": np.asarray(lon, float)}
        return geopandas.GeoDataFrame(data, geometry=geopandas.GeoSeries(shapes, crs=crs))


def write_layer(
    assembly: Assembly, name: str, on_earth: geopandas.GeoDataFrame | None, in_pixels: geopandas.GeoDataFrame | None
) -> None:
    """NAME.* and, where sources with and without a CRS are mixed, NAME-pixel.*"""
    if on_earth is not None:
        _write_frame(assembly, name, on_earth)
        with assembly.file(f"{name}.geojson") as path:
            on_earth.to_crs(WGS84).to_file(path, driver="GeoJSON", engine="pyogrio", RFC7946="YES")
    if in_pixels is not None:
        _write_frame(assembly, name if on_earth is None else f"{name}-pixel", in_pixels)


def write_parcels(assembly: Assembly, parcels: geopandas.GeoDataFrame) -> None:
    """parcels.parquet with the outlines, parcels.csv without, its figures rounded as in tiles.csv."""
    with assembly.file("parcels.parquet") as path:
        parcels.to_parquet(path)
    with assembly.file("parcels.csv") as path:
        pd.DataFrame(parcels.drop(columns=parcels.geometry.name)).round(pd.Series(ROUNDED)).to_csv(path, index=False)


def write_json(content: object, path: Path) -> None:
    """run.json."""
    path.write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="surrogateescape"
    )


def heatmap_names(plan: Plan) -> dict[int, str]:
    """Which sources get a heat map, by position, and under which name."""
    if len(plan.sources) == 1:
        return {plan.sources[0].position: "heatmap.tif"}
    names: dict[int, str] = {}
    taken: set[str] = set()
    for source in plan.sources:
        if len(source.layout) == 1:
            continue
        stem = re.sub(r"[^\w.-]+", "_", re.sub(r"\.\w{1,5}$", "", source.name)).strip("._")[-100:] or "source"
        name, k = stem, 1
        while name.lower() in taken:  # lower: some file systems do not tell A from a
            k += 1
            name = f"{stem}_{k}"
        taken.add(name.lower())
        names[source.position] = f"heatmaps/{name}.tif"
    return names


def _write_frame(assembly: Assembly, name: str, frame: geopandas.GeoDataFrame) -> None:
    with assembly.file(f"{name}.parquet") as path:
        frame.to_parquet(path)
    with assembly.file(f"{name}.gpkg") as path, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # pixels have none, as the notes say
        kind = {"geometry_type": "MultiPolygon", "promote_to_multi": True}  # parts of both kinds, or none
        frame.to_file(path, driver="GPKG", layer=name.removesuffix("-pixel"), engine="pyogrio", **kind)


def _polygons(shape: BaseGeometry) -> BaseGeometry:
    """The polygons among what an intersection left: it may touch in points and lines, too."""
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    parts = [p for p in shapely.get_parts(shape) if p.geom_type == "Polygon"]
    return shapely.MultiPolygon(parts) if parts else shapely.Polygon()


def _checksum(bands: Float[ndarray, "band row col"]) -> int:
    """Sum of the values' bits: whole, so that it does not depend on the order."""
    return int(np.ascontiguousarray(bands, np.float32).view(np.uint32).sum(dtype=np.uint64))
