"""Planetoid's files: both layouts give the same graph, a pickle runs nothing, and damage is said."""

import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from negah.errors import InputError
from negah.graph import CSR, GCN
from negah.graph.nodes import Network, accuracy, row_normalised, train
from negah.graph.planetoid import read_planetoid

# Eight nodes: 0 to 4 described by allx, the tests 6, 5 and 7 by tx, in that order.
WORDS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]], np.float32)
LABELS = np.array([0, 1, 0, 1, 0, 1, 1, 0])
TEST = [6, 5, 7]
GRAPH = {0: [1, 2], 1: [0], 2: [0, 2], 3: [4, 4], 4: [3, 5], 5: [4], 6: [7], 7: [6]}


def content() -> dict:
    hot = np.eye(2, dtype=np.int32)[LABELS]
    return {
        "x": sp.csr_matrix(WORDS[:2]), "y": hot[:2], "allx": sp.csr_matrix(WORDS[:5]), "ally": hot[:5],
        "tx": sp.csr_matrix(WORDS[TEST]), "ty": hot[TEST], "graph": defaultdict(list, GRAPH),
    }  # fmt: skip


def published(folder: Path, **changes) -> Path:
    """The files as they are published: protocol 2, scipy matrices, and the test nodes as text."""
    for part, value in (content() | changes).items():
        (folder / f"ind.tiny.{part}").write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, 2))
    (folder / "ind.tiny.test.index").write_text("\n".join(map(str, TEST)))
    return folder


def test_the_published_files_are_put_together(tmp_path):
    data = read_planetoid(published(tmp_path))
    assert isinstance(data.features, CSR)
    np.testing.assert_array_equal(data.features.dense(), WORDS)
    assert data.labels.tolist() == LABELS.tolist() and data.classes == 2
    pairs = {(a, b) for a, b in data.edges.index.T.tolist() if a < b}
    assert pairs == {(0, 1), (0, 2), (3, 4), (4, 5), (6, 7)}, "the self-loop is dropped and the double edge merged"
    assert (data.train.tolist(), data.val.tolist(), data.test.tolist()) == ([0, 1], [2, 3, 4], TEST)


def test_the_npz_gives_the_same(tmp_path):
    rows, columns = WORDS.nonzero()
    np.savez(
        tmp_path / "tiny.npz", feat_row=rows, feat_col=columns, num_features=3, labels=LABELS,
        edges=np.array([(0, 1), (0, 2), (3, 4), (4, 5), (6, 7)]), train_idx=[0, 1], val_idx=[2, 3, 4], test_idx=TEST,
    )  # fmt: skip
    data, other = read_planetoid(tmp_path), read_planetoid(published(tmp_path), "tiny")
    assert isinstance(data.features, CSR) and isinstance(other.features, CSR)
    assert data.features.dense().equal(other.features.dense()) and data.labels.equal(other.labels)
    assert data.edges.index.equal(other.edges.index) and data.test.equal(other.test)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("was-here"),))


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path, graph=pickle.dumps(Evil(), 2))
    with pytest.raises(InputError, match=r"ind\.tiny\.graph is not one of Planetoid's files \(it asks for .*npz"):
        read_planetoid(tmp_path)
    assert not (tmp_path / "was-here").exists()
    with pytest.raises(InputError, match="not one of Planetoid's files"):
        read_planetoid(published(tmp_path, graph=pickle.dumps(eval, 2)))


def broken(**changes) -> sp.csr_matrix:
    matrix = content()["allx"]
    for name, value in changes.items():
        setattr(matrix, name, value)
    return matrix


@pytest.mark.parametrize("changes, message", [
    ({"allx": b"\x80\x02"}, "allx is not one of Planetoid's files"),
    ({"allx": broken(indices=np.full(7, 9, np.int32))}, "a matrix has entries outside of itself"),
    ({"allx": broken(indptr=np.zeros(6, np.int32))}, "a matrix is damaged"),
    ({"allx": [1, 2]}, "do not fit each other"),
    ({"graph": {0: ["b"]}}, "do not fit each other"),
    ({"ty": content()["ty"][:1]}, "do not fit each other"),
    ({"graph": {0: [99]}}, "name a node that is not there"),
])  # fmt: skip
def test_damage_is_said(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_planetoid(published(tmp_path, **changes))


def test_absent_files_are_said(tmp_path):
    with pytest.raises(InputError, match=r"has neither ind.NAME.\* files nor an npz"):
        read_planetoid(tmp_path)
    with pytest.raises(InputError, match="cora is not there: give a folder"):
        read_planetoid(tmp_path / "cora")
    published(tmp_path)
    (tmp_path / "ind.tiny.tx").unlink()
    with pytest.raises(InputError, match="lacks ind.tiny.tx"):
        read_planetoid(tmp_path)
    with pytest.raises(InputError, match="no graph cora in this folder: it has tiny"):
        read_planetoid(tmp_path, "cora")
    np.savez(tmp_path / "other.npz", labels=LABELS)
    with pytest.raises(InputError, match="has no feat_row, feat_col"):
        read_planetoid(tmp_path / "other.npz")
    np.savez(tmp_path / "objects.npz", **{key: np.array([{}], dtype=object) for key in ("labels", "edges")})
    with pytest.raises(InputError, match=r"objects.npz (has no|cannot be read)"):
        read_planetoid(tmp_path / "objects.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="cannot be read as an npz of plain arrays"):
        read_planetoid(tmp_path / "broken.npz")


def test_cora_is_read_and_learnt(data_dir):
    data = read_planetoid(data_dir / "cora")
    assert (data.edges.nodes, len(data.edges), data.width, data.classes) == (2708, 2 * 5278, 1433, 7)
    assert [len(part) for part in (data.train, data.val, data.test)] == [140, 500, 1000]
    data = type(data)(**{**vars(data), "features": row_normalised(data.features)})
    torch.manual_seed(0)
    network = Network([GCN(1433, 16), GCN(16, 7)])
    train(network, data, steps=60, keep="loss", score_every=5)
    network.eval()
    assert accuracy(network, data, data.test) > 0.78
