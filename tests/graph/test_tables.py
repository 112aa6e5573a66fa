"""Graphs in tables: csv, Parquet and GeoParquet give the same graph, and what does not fit names its row."""

import geopandas as gpd
import pandas as pd
import pytest
import shapely

from negah.errors import GeoError, InputError
from negah.graph.tables import read_graph

NODES = pd.DataFrame({
    "id": ["a", "b", "c", "d"], "label": ["house", None, "barn", "house"], "split": ["train", None, "val", "test"],
    "age": [1, 2, 3, 4], "height": [0.5, 1.5, 2.5, 3.5],
})  # fmt: skip
EDGES = pd.DataFrame({"source": ["a", "c"], "target": ["b", "a"], "weight": [2.0, 3.0]})


def written(folder, nodes=NODES, edges=EDGES, ending="csv"):
    files = folder / f"nodes.{ending}", folder / f"edges.{ending}"
    for table, file in zip((nodes, edges), files):
        table.to_csv(file, index=False) if ending == "csv" else table.to_parquet(file)
    return files


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_graph_of_two_tables(tmp_path, ending):
    data, ids, classes = read_graph(*written(tmp_path, ending=ending))
    assert ids == ["a", "b", "c", "d"] and classes == ["barn", "house"]
    assert data.labels.tolist() == [1, -1, 0, 1]
    assert (data.train.tolist(), data.val.tolist(), data.test.tolist()) == ([0], [2], [3])
    assert data.features.tolist() == [[1, 0.5], [2, 1.5], [3, 2.5], [4, 3.5]]
    assert data.edges.sum.dense().tolist() == [[0, 2, 3, 0], [2, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]]
    one_way = read_graph(*written(tmp_path, ending=ending), undirected=False, features=["age"]).data
    assert one_way.edges.index.tolist() == [[2, 0], [0, 1]] and one_way.width == 1


def test_a_graph_over_space(tmp_path):
    boxes = [shapely.box(x, 0, x + 1, 1) for x in (0, 1, 2, 9)]
    frame = gpd.GeoDataFrame(NODES, geometry=boxes, crs="EPSG:32632")
    frame.to_parquet(tmp_path / "parcels.parquet")
    frame.to_file(tmp_path / "parcels.gpkg")
    for name in ("parcels.parquet", "parcels.gpkg"):
        data, _, _ = read_graph(tmp_path / name)
        assert {tuple(pair) for pair in data.edges.index.T.tolist()} == {(0, 1), (1, 0), (1, 2), (2, 1)}
        assert data.width == 2
    near, _, _ = read_graph(tmp_path / "parcels.parquet", k=1)
    assert (2, 3) in {tuple(pair) for pair in near.edges.index.T.tolist()}
    assert len(read_graph(tmp_path / "parcels.parquet", k=1, reach=2).data.edges) == 4
    frame.to_crs("EPSG:4326").to_parquet(tmp_path / "degrees.parquet")
    with pytest.raises(GeoError, match="coordinates in degrees, in which distances mean nothing"):
        read_graph(tmp_path / "degrees.parquet")
    frame.set_geometry(frame.centroid).to_parquet(tmp_path / "points.parquet")
    with pytest.raises(InputError, match="only polygons have borders to share: say with k"):
        read_graph(tmp_path / "points.parquet")


@pytest.mark.parametrize("change, message", [
    ({"nodes": NODES.drop(columns="id")}, r"has no column id \(it has label, split"),
    ({"nodes": NODES.assign(id=["a", "b", "c", "a"])}, "row 5: id 'a' is there already"),
    ({"nodes": NODES.assign(id=["a", None, "c", "d"])}, "row 3: the id is empty"),
    ({"nodes": NODES.assign(age=[1, 2, None, 4])}, "row 4: age is 'nan': numbers are needed"),
    ({"nodes": NODES.assign(age=["1", "tall", "3", "4"])}, "row 3: age is 'tall': numbers are needed"),
    ({"nodes": NODES.assign(split=["train", "dev", "val", None])}, "row 3: split 'dev' is not one of train, val, test"),
    ({"nodes": NODES.assign(split=["train", "val", None, None])}, "nodes have no label, the first is node 1"),
    ({"nodes": NODES.assign(split=None)}, "no node is for training"),
    ({"nodes": NODES.drop(columns=["age", "height"])}, "has no columns of features"),
    ({"nodes": NODES[:0]}, "has no rows"),
    ({"edges": EDGES.drop(columns="target")}, "has no column target: each row is an edge"),
    ({"edges": EDGES.assign(source=["a", "z"])}, "row 3: source 'z' is not the id of a node"),
    ({"edges": EDGES.assign(target=["b", "c"])}, r"node to itself, the first is edge 1 \(node 2\)"),
    ({"edges": EDGES.assign(weight=[1, None])}, "row 3: weight is 'nan'"),
])  # fmt: skip
def test_what_does_not_fit_is_said(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_graph(*written(tmp_path, **change))


def test_a_file_that_is_none_is_said(tmp_path):
    for name in ("absent.csv", "absent.parquet", "absent.gpkg"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            read_graph(tmp_path / name)
    nodes, _ = written(tmp_path)
    with pytest.raises(InputError, match="no geometry to find neighbours by"):
        read_graph(nodes)
