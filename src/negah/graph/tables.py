"""Graphs in tables: a file of nodes, and a file of edges or none where the nodes lie next to each other in space.

    nodes.csv      id,label,split,age,height        edges.csv      source,target[,weight]
    nodes.parquet  the same                         edges.parquet  the same
    parcels.parquet (GeoParquet), .gpkg, .geojson: the same columns and a geometry

    data, ids, classes = read_graph("nodes.csv", "edges.csv")
    data, ids, classes = read_graph("parcels.parquet", k=6, reach=100)     # points: the 6 nearest within 100 m
    data, ids, classes = read_graph("parcels.parquet")                     # polygons: shared borders

Nodes are what the column `id` calls them, numbers or words; `source` and `target` name them.  A label is a class by any
name, and none where the cell is empty; `split` is train, val, test or empty.  All other columns are features and hold
numbers.  Nothing is guessed or dropped: what does not fit is an error that names the row.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from pyarrow.lib import ArrowException
from pyogrio.errors import DataSourceError
from torch import Tensor

from negah.errors import GeoError, InputError
from negah.graph.edges import Duplicates, Edges, Loops
from negah.graph.near import borders, nearest
from negah.graph.nodes import NodeData

SPLIT = ("train", "val", "test")


class GraphTable(NamedTuple):
    """What `read_graph` gives: the data, the name of each node, and the name of each class."""

    data: NodeData
    ids: list
    classes: list[str]


def read_graph(
    nodes: Path | str, edges: Path | str | None = None, *, undirected: bool = True, loops: Loops = "refuse",
    duplicates: Duplicates = "refuse", features: Sequence[str] | None = None, k: int | None = None,
    reach: float | None = None,
) -> GraphTable:  # fmt: skip
    """Nodes, and edges from a second file or from the nodes' geometries.

    Args:
        undirected: each row of `edges` goes both ways.
        loops, duplicates: see `Edges.of`.
        features: columns to use; by default all that have no other meaning.
        k: without `edges`, how many nearest points each is joined to; polygons need none and are joined by borders.
        reach: largest distance of those points, in the units of the coordinate system.

    Raises InputError for files that cannot be read, columns that are missing or hold something else than numbers, names
    that are twice or not among the nodes; GeoError for coordinates in degrees.
    """
    path = Path(nodes)
    table = read_table(path)
    if "id" not in table.columns:
        raise InputError(f"{path} has no column id (it has {', '.join(map(str, table.columns))}): it names each node")
    ids = pd.Series(table["id"])
    unnamed = np.flatnonzero(ids.isna())
    if len(unnamed):
        raise InputError(f"{path}, {_row(unnamed[0])}: the id is empty: every node needs a name")
    twice = np.flatnonzero(ids.duplicated())
    if len(twice):
        raise InputError(f"{path}, {_row(twice[0])}: id {ids.iloc[twice[0]]!r} is there already: one row for each node")
    geometry = table.geometry if isinstance(table, gpd.GeoDataFrame) else None
    if edges is not None:
        joined = _read_edges(Path(edges), ids, undirected=undirected, loops=loops, duplicates=duplicates)
    elif geometry is None:
        raise InputError(f"{path} has no geometry to find neighbours by: give a file of edges with source,target")
    else:
        joined = _in_space(path, geometry, k, reach)
    labels, classes = _labels(table)
    parts = _split(path, table, labels)
    wanted = list(features) if features is not None else [
        name for name in table.columns if name not in ("id", "label", "split", getattr(geometry, "name", None))
    ]  # fmt: skip
    data = NodeData(_numbers(path, table, wanted), joined, labels, len(classes), *parts)
    return GraphTable(data, ids.tolist(), classes)


def read_table(path: Path) -> pd.DataFrame | gpd.GeoDataFrame:
    """A csv, a Parquet file, or anything with geometries that geopandas reads.  Raises InputError where it cannot."""
    reader: Callable[[Path], pd.DataFrame]
    if path.suffix.lower() == ".csv":
        reader = pd.read_csv
    elif path.suffix.lower() in (".parquet", ".geoparquet"):
        reader = _read_parquet
    else:
        reader = gpd.read_file
    try:
        table = reader(path)
    except (OSError, ValueError, ArrowException, DataSourceError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): give a csv in UTF-8, a Parquet file, or a file with geometries"
        ) from error
    if not len(table):
        raise InputError(f"{path} has no rows")
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    return gpd.read_parquet(path) if b"geo" in (pq.read_schema(path).metadata or {}) else pd.read_parquet(path)


def _read_edges(path: Path, ids: pd.Series, *, undirected: bool, loops: Loops, duplicates: Duplicates) -> Edges:
    table = read_table(path)
    missing = [name for name in ("source", "target") if name not in table.columns]
    if missing:
        raise InputError(
            f"{path} has no column {' and no '.join(missing)}: each row is an edge, source,target[,weight]"
        )
    number = pd.Series(np.arange(len(ids)), index=ids)
    ends = []
    for side in ("source", "target"):
        found = number.reindex(table[side])
        unknown = np.flatnonzero(found.isna())
        if len(unknown):
            name = table[side].iloc[unknown[0]]
            raise InputError(f"{path}, {_row(unknown[0])}: {side} {name!r} is not the id of a node")
        ends.append(torch.tensor(found.to_numpy(np.int64)))
    weights = _numbers(path, table, ["weight"])[:, 0] if "weight" in table.columns else None
    return Edges.of(torch.stack(ends), len(ids), weights, undirected=undirected, loops=loops, duplicates=duplicates)


def _in_space(path: Path, geometry: gpd.GeoSeries, k: int | None, reach: float | None) -> Edges:
    if geometry.crs is None or geometry.crs.is_geographic:
        what = "no coordinate system" if geometry.crs is None else "coordinates in degrees"
        raise GeoError(f"{path} has {what}, in which distances mean nothing: project it, as with to_crs(a UTM zone)")
    if k is None:
        if not geometry.geom_type.isin(("Polygon", "MultiPolygon")).all():
            raise InputError(f"{path}: only polygons have borders to share: say with k how many nearest to join")
        return borders(list(geometry))
    centres = geometry.centroid
    return nearest(np.stack([centres.x, centres.y], 1), k, reach=reach)


def _labels(table: pd.DataFrame) -> tuple[Tensor, list[str]]:
    """-1 where there is none; classes in the order of their names, numbers as numbers."""
    column = table["label"] if "label" in table.columns else pd.Series(np.nan, index=table.index)
    known = column.dropna()
    classes = sorted(known.unique())
    place = {name: number for number, name in enumerate(classes)}
    labels = [place.get(name, -1) if pd.notna(name) else -1 for name in column]
    return torch.tensor(labels), [str(name) for name in classes]


def _split(path: Path, table: pd.DataFrame, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes of each part; without a column, everything that has a label is for training."""
    if "split" not in table.columns:
        return (labels >= 0).nonzero()[:, 0], torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long)
    column = table["split"]
    wrong = np.flatnonzero(column.notna() & ~column.isin(SPLIT))
    if len(wrong):
        found = column.iloc[wrong[0]]
        raise InputError(f"{path}, {_row(wrong[0])}: split {found!r} is not one of {', '.join(SPLIT)} or empty")
    train, val, test = (torch.from_numpy(np.flatnonzero(column == part)) for part in SPLIT)
    return train, val, test


def _numbers(path: Path, table: pd.DataFrame, columns: Sequence[str]) -> Float[Tensor, "row column"]:
    if not columns:
        raise InputError(f"{path} has no columns of features: give each node at least one number")
    values = np.empty((len(table), len(columns)), dtype=np.float32)
    for place, name in enumerate(columns):
        if name not in table.columns:
            raise InputError(f"{path} has no column {name} (it has {', '.join(map(str, table.columns))})")
        numbers = np.asarray(pd.to_numeric(pd.Series(table[name]), errors="coerce"), dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            found = str(table[name].iloc[bad[0]])
            raise InputError(
                f"{path}, {_row(bad[0])}: {name} is {found!r}: numbers are needed, fill it or leave it out"
            )
        values[:, place] = numbers
    return torch.from_numpy(values)


def _row(place: int | np.integer) -> str:
    """As an editor counts the lines of a csv, after the header."""
    return f"row {place + 2}"
