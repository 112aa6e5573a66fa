"""An index finds what brute force finds, keeps it, and scores what several answers are right for."""

import pytest
import torch
import torch.nn.functional as F

from negah.errors import InputError
from negah.language import retrieval
from negah.language.retrieval import Index, recall


def vectors(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def test_blocks_find_what_all_at_once_would(monkeypatch):
    entries, queries = vectors(50, 0), 3 * vectors(4, 1)
    expected = (F.normalize(queries) @ F.normalize(entries).T).sort(1, descending=True)
    monkeypatch.setattr(retrieval, "BLOCK", 7)
    found = Index.of([str(i) for i in range(50)], entries).search(queries, best=9)
    assert torch.equal(found.numbers, expected.indices[:, :9])
    torch.testing.assert_close(found.scores, expected.values[:, :9])
    assert Index.of(["a", "b"], entries[:2]).search(queries, best=9).numbers.shape == (4, 2)


def test_equal_scores_keep_the_order_of_the_index(monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", 2)
    index = Index.of(list("abcde"), torch.ones(5, 8))
    assert index.search(torch.ones(1, 8), best=3).numbers.tolist() == [[0, 1, 2]]


def test_save_and_load(tmp_path):
    index = Index.of(["a", "ç🌞"], vectors(2, 0), {"model": "m"})
    index.save(tmp_path / "x.safetensors")
    again = Index.load(tmp_path / "x.safetensors")
    assert again.names == index.names and again.about == {"model": "m"}
    torch.testing.assert_close(again.vectors, index.vectors, rtol=0, atol=1e-3)
    (tmp_path / "bad.safetensors").write_bytes(b"no such thing")
    with pytest.raises(InputError, match="bad.safetensors"):
        Index.load(tmp_path / "bad.safetensors")


def test_recall_counts_any_right_answer():
    index = Index.of(list("abcd"), torch.eye(4, 8))
    queries = torch.tensor([[4.0, 3, 2, 1, 0, 0, 0, 0], [1, 2, 3, 4, 0, 0, 0, 0]])
    right = torch.tensor([[False, True, True, False], [False, False, False, True]])
    assert recall(queries, index, right, best=(1, 2, 4)) == {1: 0.5, 2: 1.0, 4: 1.0}
    with pytest.raises(InputError, match="query 1 has no right answer"):
        recall(queries, index, right & torch.tensor([[True], [False]]), best=(1,))


def test_what_does_not_fit_is_named():
    with pytest.raises(InputError, match="3 names for 2 vectors"):
        Index.of(list("abc"), vectors(2, 0))
    with pytest.raises(InputError, match="vector of b is not finite"):
        Index.of(list("ab"), torch.tensor([[1.0, 0], [float("nan"), 1]]))
    with pytest.raises(InputError, match="another model made it"):
        Index.of(list("ab"), vectors(2, 0)).search(torch.ones(1, 3), best=1)
