"""Every store answers like the exact one, filters included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmrec.errors import ArtifactError, RequestError
from mmrec.search.faiss import FaissStore
from mmrec.search.index import ExactStore, Store, recall
from mmrec.search.where import where_mask


def clustered(rows: int = 600, dim: int = 16) -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(20, dim))
    vectors = centres[generator.integers(0, 20, rows)] + 0.3 * generator.normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS = clustered()


def stores(tmp_path: Path) -> dict[str, Store]:
    made: dict[str, Store] = {"exact": ExactStore(VECTORS)}
    for kind in ("flat", "hnsw"):
        path = tmp_path / f"{kind}.faiss"
        FaissStore.build(VECTORS, kind=kind).save(path)
        made[kind] = FaissStore.open(path)
    return made


@pytest.mark.parametrize("name", ["exact", "flat", "hnsw"])
class TestStoreContract:
    def test_equals_a_full_sort(self, name: str, tmp_path: Path) -> None:
        store = stores(tmp_path)[name]
        hits = store.search(VECTORS[:50], k=10)
        expected = np.argsort(-(VECTORS[:50] @ VECTORS.T), axis=1)[:, :10]
        assert recall(hits.rows, expected) >= 0.99
        np.testing.assert_allclose(hits.scores[:, 0], 1.0, rtol=1e-5)

    def test_filter_returns_k_allowed_rows(self, name: str, tmp_path: Path) -> None:
        allowed = np.zeros(len(VECTORS), dtype=bool)
        allowed[::50] = True
        hits = stores(tmp_path)[name].search(VECTORS[:5], k=10, allowed=allowed)
        assert allowed[hits.rows].all()
        assert all(len(set(row)) == 10 for row in hits.rows)

    def test_k_larger_than_the_allowed_rows(self, name: str, tmp_path: Path) -> None:
        allowed = np.zeros(len(VECTORS), dtype=bool)
        allowed[[3, 4]] = True
        hits = stores(tmp_path)[name].search(VECTORS[:1], k=5, allowed=allowed)
        assert set(hits.rows[0][:2]) == {3, 4}
        assert hits.rows[0][2:].tolist() == [-1, -1, -1]
        assert np.isneginf(hits.scores[0][2:]).all()

    def test_wrong_width_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="width 16"):
            stores(tmp_path)[name].search(np.zeros((1, 3), np.float32), k=1)


def test_a_large_bias_does_not_hide_content_from_the_graph(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    content = generator.normal(size=(2000, 16))
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    bias = 5 * generator.normal(size=(2000, 1))
    vectors = np.hstack([content, bias]).astype(np.float32)
    asked = vectors[:200] * np.append(np.ones(16), 0).astype(np.float32)
    user = vectors[200:400].copy()
    user[:, -1] = 0.05  # a user's content over a temperature of 0.05 beside a bias of one
    for queries in (asked, user):
        exact = ExactStore(vectors).search(queries, k=10)
        FaissStore.build(vectors, kind="hnsw", last_scale=0.01).save(tmp_path / "scaled.faiss")
        scaled = FaissStore.open(tmp_path / "scaled.faiss", last_scale=0.01).search(queries, k=10)
        assert recall(scaled.rows, exact.rows) > 0.98
        products = np.take_along_axis(queries @ vectors.T, scaled.rows, axis=1)
        np.testing.assert_allclose(scaled.scores, products, rtol=1e-4, atol=1e-5)
    plain = FaissStore.build(vectors, kind="hnsw").search(asked, k=10)
    assert recall(plain.rows, ExactStore(vectors).search(asked, k=10).rows) < 0.9


def test_exact_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ExactStore(VECTORS).search(VECTORS[:7], k=9)
    monkeypatch.setattr("mmrec.search.index._CHUNK", 100)
    pieces = ExactStore(VECTORS).search(VECTORS[:7], k=9)
    assert (whole.rows == pieces.rows).all()


def test_missing_and_damaged_index(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file"):
        FaissStore.open(tmp_path / "none.faiss")
    (tmp_path / "bad.faiss").write_bytes(b"not an index")
    with pytest.raises(ArtifactError, match="FAISS index"):
        FaissStore.open(tmp_path / "bad.faiss")


TABLE = pd.DataFrame(
    {"colour": ["Black", "White", None, "Dark Blue"], "price": ["5", "20", "7.5", "x"], "kind of": ["a", "b", "a", "b"]}
)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("colour=Black", [1, 0, 0, 0]),
        ("colour != Black", [0, 1, 1, 1]),
        ("colour='Dark Blue' and price=x", [0, 0, 0, 1]),
        ("price<=7.5", [1, 0, 1, 0]),
        ("price>5 and `kind of`=b", [0, 1, 0, 0]),
        ("colour in (White, 'Dark Blue')", [0, 1, 0, 1]),
        ("colour~BLUE", [0, 0, 0, 1]),
        ("", [1, 1, 1, 1]),
    ],
)
def test_where(expression: str, expected: list[int]) -> None:
    assert where_mask(TABLE, expression).astype(int).tolist() == expected


def test_where_names_near_columns() -> None:
    with pytest.raises(RequestError, match="did you mean 'colour'"):
        where_mask(TABLE, "color=Black")
    with pytest.raises(RequestError, match="conditions such as"):
        where_mask(TABLE, "__import__('os')")
