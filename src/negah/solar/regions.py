"""Polygons that users bring: an area of interest that the survey stays inside, parcels that it is summed up by.

A panel that crosses a border is divided by the share of its outline on either side, so the parcels of a full partition
sum to the survey; it is counted once, in the parcel that holds most of it.
"""

from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyproj
import shapely
from affine import Affine
from jaxtyping import Float
from numpy import ndarray
from shapely.geometry.base import BaseGeometry

from negah.errors import InputError

SUMS = {"area_m2": "panel_area_m2", "area_low": "panel_area_low", "area_high": "panel_area_high", "kw": "panel_kw"}


class Region:
    """Polygons in a CRS, as one geometry."""

    def __init__(self, geometry: BaseGeometry, crs: pyproj.CRS):
        self.geometry = geometry
        self.crs = crs

    def in_pixels(self, crs: str, affine: Affine) -> BaseGeometry:
        """The polygons in the pixels of a raster; edges are densified, since straight lines bend between CRSs."""
        minx, miny, maxx, maxy = self.geometry.bounds
        dense = shapely.segmentize(self.geometry, max(maxx - minx, maxy - miny, 1e-9) / 64)
        move = pyproj.Transformer.from_crs(self.crs, crs, always_xy=True)
        inverse = ~affine

        def to_pixels(xy: ndarray) -> ndarray:
            x, y = move.transform(xy[:, 0], xy[:, 1])
            # a point that the raster's CRS cannot express is far away from the raster
            at = apply(inverse, np.stack([x, y], axis=1))
            return np.clip(np.nan_to_num(at, posinf=1e12, neginf=-1e12), -1e12, 1e12)

        pixels = shapely.make_valid(shapely.transform(dense, to_pixels))
        shapely.prepare(pixels)
        return pixels


def apply(affine: Affine, xy: Float[ndarray, "n 2"]) -> Float[ndarray, "n 2"]:
    """Points moved by an affine transform (written out: the operator for it differs between releases of affine)."""
    x, y = xy[:, 0], xy[:, 1]
    return np.stack([affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f], axis=1)


def read_polygons(path: Path, *, option: str) -> geopandas.GeoDataFrame:
    """Polygons of a GeoJSON, GeoPackage or GeoParquet file, with their CRS and columns.

    option: the argument that named the file, for messages.  Raises InputError when the file cannot be read, has no CRS,
    or holds anything but polygons.
    """
    if not path.is_file():
        raise InputError(f"{option} {path}: there is no such file; give a GeoJSON, GeoPackage or GeoParquet file")
    try:
        if path.suffix.lower() in (".parquet", ".geoparquet"):
            frame = geopandas.read_parquet(path)
        else:
            frame = geopandas.read_file(path)
    except Exception as error:  # pyogrio, pyarrow and GDAL each raise their own
        reason = " ".join(str(error).split()).partition("; It might help")[0]  # what follows is for programmers
        raise InputError(f"{option} {path} cannot be read as GeoJSON, GeoPackage or GeoParquet ({reason})") from error
    if not isinstance(frame, geopandas.GeoDataFrame) or not len(frame):
        raise InputError(f"{option} {path} holds no geometries: it needs at least one polygon")
    if frame.crs is None:
        raise InputError(f"{option} {path} does not say its CRS: write it again with one")
    frame = frame[~frame.geometry.isna() & ~frame.geometry.is_empty]
    kinds = set(frame.geom_type) - {"Polygon", "MultiPolygon"}
    if kinds or not len(frame):
        raise InputError(f"{option} {path} holds {', '.join(sorted(kinds)) or 'only empty geometries'}: give polygons")
    return frame.set_geometry(frame.geometry.make_valid()).reset_index(drop=True)


def read_region(path: Path) -> Region:
    """All polygons of a file as one region (`--aoi`)."""
    frame = read_polygons(path, option="--aoi")
    return Region(frame.geometry.union_all(), pyproj.CRS(frame.crs))


def join(parcels: geopandas.GeoDataFrame, panels: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Parcels with what lies on each: panels, panel_area_m2, _low, _high, panel_kw, panel_probability (the highest).

    A column of the parcels that has one of these names keeps its values under the name with "_given" appended.
    """
    assert panels.crs is not None
    here = parcels.geometry.to_crs(panels.crs).to_numpy()
    outlines = panels.geometry.to_numpy()
    j, i = shapely.STRtree(here).query(outlines, predicate="intersects")  # panel, parcel
    overlap = shapely.area(shapely.intersection(here[i], outlines[j]))
    share = overlap / shapely.area(outlines[j])
    out = pd.DataFrame(index=parcels.index)
    best = np.lexsort((i, -overlap, j))  # by panel, the largest overlap first
    best = best[np.append(True, np.diff(j[best]) != 0)[: len(best)]]
    out["panels"] = np.bincount(i[best], minlength=len(parcels))
    for column, name in SUMS.items():
        out[name] = np.bincount(i, weights=share * panels[column].to_numpy()[j], minlength=len(parcels))
    probability = np.full(len(parcels), np.nan)
    np.fmax.at(probability, i, panels["probability"].to_numpy()[j])
    out["panel_probability"] = probability
    kept = parcels.rename(columns={name: f"{name}_given" for name in out.columns if name in parcels.columns})
    columns = pd.concat([kept.drop(columns=kept.geometry.name), out], axis=1)
    return geopandas.GeoDataFrame(columns, geometry=kept.geometry)
