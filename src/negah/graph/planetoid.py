"""Citation graphs with Planetoid's split: the files as they were published, and one small npz.

Yang et al. 2016, "Revisiting Semi-Supervised Learning with Graph Embeddings", arXiv:1603.08861.  Published are, for a
NAME such as cora,

    ind.NAME.x, .tx, .allx        features (scipy matrices) of training, test and all nodes that are not for tests
    ind.NAME.y, .ty, .ally        their classes, a 1 in a row for each
    ind.NAME.graph                node to a list of its neighbours
    ind.NAME.test.index           numbers of the test nodes, as text

all but the last as pickles of Python 2.  A pickle may run any program as it is opened, so they are read by a reader of
our own that knows the few names which these files need and refuses everything else.  Self-loops in them are dropped and
edges given twice are merged, as everybody's results have it; test nodes that no file describes (there are some in
citeseer) get no features and no label, and are left out of the tests.

The npz holds plain arrays: feat_row, feat_col (places of ones), num_features, labels, edges [edge, 2] (each once),
train_idx, val_idx, test_idx.

Training nodes are the first of all, 20 of each class; the 500 after them are for validation, 1,000 for tests.
"""

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from negah.errors import InputError
from negah.graph.csr import CSR, Pattern
from negah.graph.edges import Edges
from negah.graph.nodes import NodeData

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
ARRAYS = ("feat_row", "feat_col", "num_features", "labels", "edges", "train_idx", "val_idx", "test_idx")
VALIDATION = 500


def read_planetoid(path: Path | str, name: str | None = None) -> NodeData:
    """The data of a folder or of an npz.  Features are sparse and as in the file, not normalised.

    Args:
        path: an npz, or a folder that holds one, or that holds ind.NAME.* files.
        name: which of several in a folder.

    Raises InputError for files that are missing, damaged, or hold something else.
    """
    path = Path(path)
    if path.is_file():
        return _from_npz(path)
    if not path.is_dir():
        raise InputError(f"{path} is not there: give a folder of ind.NAME.* files, or an npz")
    named = sorted({file.name.split(".")[1] for file in path.glob("ind.*.graph")})
    found = dict.fromkeys(named, path) | {file.stem: file for file in sorted(path.glob("*.npz"))}
    if name is None and len(found) == 1:
        (name,) = found
    if name not in found:
        if not found:
            raise InputError(f"{path} has neither ind.NAME.* files nor an npz")
        asked = f"no graph {name} in this folder" if name else "several graphs in this folder, say which"
        raise InputError(f"{path}: {asked}: it has {', '.join(found)}")
    return _from_npz(found[name]) if found[name].is_file() else _from_pickles(path, name)


def _from_npz(path: Path) -> NodeData:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ARRAYS if key not in file]
            if missing:
                raise InputError(f"{path} has no {', '.join(missing)}: it needs {', '.join(ARRAYS)}")
            arrays = {key: file[key] for key in ARRAYS}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as an npz of plain arrays ({error}): fetch it anew") from error
    bad = [key for key, array in arrays.items() if array.dtype.kind not in "iu"]
    if bad or arrays["num_features"].ndim != 0 or arrays["edges"].ndim != 2 or arrays["edges"].shape[1] != 2:
        raise InputError(f"{path}: {', '.join(bad) or 'num_features or edges'} is not of the kind that belongs there")
    whole = {key: torch.from_numpy(array.astype(np.int64)) for key, array in arrays.items()}
    labels, width = whole["labels"], int(whole["num_features"])
    rows, columns = whole["feat_row"], whole["feat_col"]
    if len(rows) != len(columns) or (len(rows) and not _inside(rows, len(labels)) & _inside(columns, width)):
        raise InputError(f"{path}: features lie outside of {len(labels)} nodes x {width}: fetch it anew")
    pattern, _ = Pattern.of(rows, columns, (len(labels), width))
    return NodeData(
        CSR(pattern, torch.ones(len(rows))), Edges.of(whole["edges"].T, len(labels), undirected=True), labels,
        int(labels.max()) + 1, whole["train_idx"], whole["val_idx"], whole["test_idx"],
    )  # fmt: skip


def _inside(places: Tensor, count: int) -> bool:
    return bool(places.min() >= 0 and places.max() < count)


def _from_pickles(folder: Path, name: str) -> NodeData:
    files = {part: folder / f"ind.{name}.{part}" for part in PARTS}
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}: all of ind.{name}.{{{','.join(PARTS)}}} are needed")
    read = {part: _unpickled(file) for part, file in files.items() if part != "test.index"}
    try:
        test = np.loadtxt(files["test.index"], dtype=np.int64, ndmin=1)
        features = {part: _matrix(read[part]) for part in ("tx", "allx")}
        classes = {part: np.asarray(read[part], dtype=np.int64) for part in ("ty", "ally")}
        trained = len(read["y"])
        order = np.argsort(test, kind="stable")
        first, count = len(features["allx"]), max(int(test.max()) + 1, len(features["allx"]))
        x = np.zeros((count, features["allx"].shape[1]), dtype=np.float32)
        x[:first], x[test[order]] = features["allx"], features["tx"][order]
        labels = np.full(count, -1)
        labels[:first], labels[test[order]] = _numbered(classes["ally"]), _numbered(classes["ty"])[order]
        graph = read["graph"]
        pairs = np.array([(int(a), int(b)) for a, others in graph.items() for b in others], dtype=np.int64)
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise InputError(
            f"{folder}: the ind.{name}.* files do not fit each other ({error}): fetch them anew"
        ) from error
    index = torch.from_numpy(np.unique(np.sort(pairs.reshape(-1, 2), 1), axis=0)).T
    return NodeData(
        CSR.of_dense(torch.from_numpy(x)), Edges.of(index, count, undirected=True, loops="drop"),
        torch.from_numpy(labels), classes["ally"].shape[1], torch.arange(trained),
        torch.arange(trained, min(trained + VALIDATION, first)), torch.from_numpy(test[labels[test] >= 0]),
    )  # fmt: skip


def _numbered(hot: Int[ndarray, "row class"]) -> Int[ndarray, " row"]:
    """The column of the 1 in each row, -1 where there is none."""
    return np.where(hot.any(1), hot.argmax(1), -1)


class _Stored:
    """A scipy matrix as its pickle describes it, without any of scipy's code."""


class _Reader(pickle.Unpickler):
    """Knows arrays, sparse matrices by rows and dictionaries of lists; everything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "csr_matrix" and module.startswith("scipy.sparse"):
            return _Stored
        known = {
            ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _as_bytes,
        }  # fmt: skip
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if name == "defaultdict" and module == "collections":
            return lambda *_: {}
        if name == "list" and module in ("builtins", "__builtin__"):
            return list
        if (module, name) in known:
            return known[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no such file needs")


def _as_bytes(text: str, encoding: str) -> bytes:
    """How pickles of Python 3 in the old protocol write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding}")
    return text.encode("latin1")


def _empty_array(kind: Any, shape: Any, dtype: Any) -> ndarray:
    """An array whose content comes next; numpy's own asks for memory of any shape."""
    return np.ndarray.__new__(np.ndarray, (0,), np.int8)


def _unpickled(path: Path) -> Any:
    try:
        return _Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # what a damaged pickle raises is anything
        raise InputError(
            f"{path} is not one of Planetoid's files ({error}): fetch it anew, or save plain arrays as an npz"
        ) from error


def _matrix(stored: Any) -> Float[ndarray, "row column"]:
    """Dense form of a matrix by rows; ValueError where its parts do not fit."""
    content = vars(stored)
    values, columns, offsets = (np.asarray(content[part]) for part in ("data", "indices", "indptr"))
    rows, width = (int(n) for n in content.get("_shape", content.get("shape")))
    if values.dtype.kind not in "fiu" or columns.dtype.kind not in "iu" or offsets.dtype.kind not in "iu":
        raise ValueError("a matrix holds something else than numbers")
    whole = offsets.shape == (rows + 1,) and offsets[0] == 0 and len(values) == len(columns) == offsets[-1]
    if not whole or (np.diff(offsets) < 0).any():
        raise ValueError("a matrix is damaged")
    if len(columns) and not 0 <= columns.min() <= columns.max() < width:
        raise ValueError("a matrix has entries outside of itself")
    dense = np.zeros((rows, width), dtype=np.float32)
    dense[np.repeat(np.arange(rows), np.diff(offsets)), columns] = values
    return dense
