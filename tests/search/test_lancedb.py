"""What is LanceDB's own: its table, its index, its refusals; what every store does is in test_stores."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmrec.errors import ArtifactError, MissingExtraError, RequestError
from mmrec.search.index import ExactStore, recall


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    monkeypatch.delitem(sys.modules, "mmrec.search.lancedb", raising=False)
    with pytest.raises(MissingExtraError, match=r"mmrec\[lancedb\]"):
        from mmrec.search.lancedb import LanceStore  # noqa: F401


lancedb = pytest.importorskip("lancedb")
module = pytest.importorskip("mmrec.search.lancedb")

ROWS, DIM = 3000, 9
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
COLUMNS = pa.table(
    {
        "item_id": [f"p{row}" for row in range(ROWS)],
        "caption": [None if row % 2 else f"post {row}" for row in range(ROWS)],
        "kind of": ["a"] * ROWS,
        "tags": [["x", "y"]] * ROWS,
    }
)


def test_the_table_holds_vectors_captions_and_attributes(tmp_path: Path) -> None:
    module.LanceStore.build(tmp_path, VECTORS, COLUMNS)
    table = lancedb.connect(tmp_path).open_table("items").to_arrow()
    assert table.column_names == ["item_id", "caption", "kind of", "tags", "item_row", "vector"]
    assert table.select(COLUMNS.column_names).to_pylist() == COLUMNS.to_pylist()
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), VECTORS)
    assert table["item_row"].to_pylist() == list(range(ROWS))
    assert [path.name for path in tmp_path.iterdir()] == ["items.lance"]


def test_an_index_only_where_one_is_wanted(tmp_path: Path) -> None:
    for name, indexed in (("small", False), ("large", True)):
        store = module.LanceStore.build(tmp_path / name, VECTORS, COLUMNS, indexed=indexed)
        assert store.indexed is indexed
        assert module.LanceStore.open(tmp_path / name).indexed is indexed
    table = lancedb.connect(tmp_path / "large").open_table("items")
    (index,) = table.list_indices()
    about = table.index_stats(index.name)
    assert (about.index_type, about.distance_type, about.num_indexed_rows) == ("IVF_FLAT", "dot", ROWS)


def test_a_large_bias_does_not_mislead_the_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_PROBES", 6)
    generator = np.random.default_rng(1)
    content = generator.normal(size=(30, DIM - 1))[generator.integers(0, 30, ROWS)] + 0.2 * VECTORS[:, :-1]
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    vectors = np.hstack([content, 5 * VECTORS[:, -1:]]).astype(np.float32)
    queries = vectors[:100] * np.append(np.ones(DIM - 1), 0).astype(np.float32)
    exact = ExactStore(vectors).search(queries, k=10)
    for name, scale, least, most in (("plain", 1.0, 0.0, 0.7), ("scaled", 0.005, 0.98, 1.0)):
        module.LanceStore.build(tmp_path / name, vectors, COLUMNS, last_scale=scale, indexed=True)
        found = module.LanceStore.open(tmp_path / name, last_scale=scale).search(queries, k=10)
        assert least <= recall(found.rows, exact.rows) <= most
        products = np.take_along_axis(queries @ vectors.T, found.rows, axis=1)
        np.testing.assert_allclose(found.scores, products, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("share", [0.6, 0.01])
def test_filters_too_long_to_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indexed: bool, share: float) -> None:
    monkeypatch.setattr(module, "_LISTED", 0)
    store = module.LanceStore.build(tmp_path, VECTORS, COLUMNS, indexed=indexed)
    allowed = np.zeros(ROWS, dtype=bool)
    # What is allowed lies opposite to what is asked for, where no list that is probed holds it.
    allowed[ExactStore(VECTORS).search(-VECTORS[:1], k=int(share * ROWS)).rows[0]] = True
    found = store.search(VECTORS[:1], k=20, allowed=allowed)
    exact = ExactStore(VECTORS).search(VECTORS[:1], k=20, allowed=allowed)
    assert allowed[found.rows].all()
    assert recall(found.rows, exact.rows) == 1
    np.testing.assert_allclose(found.scores, exact.scores, atol=1e-5)


@pytest.mark.parametrize("name", ["price.usd", "_distance", "_rowid", "item_row", "vector"])
def test_names_that_it_cannot_hold(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=rf"columns without a dot.*'{name}'.*--store faiss"):
        module.LanceStore.build(tmp_path, VECTORS, COLUMNS.append_column(name, pa.nulls(ROWS)))
    assert not list(tmp_path.iterdir())


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        module.LanceStore.build(tmp_path, VECTORS, COLUMNS)
        return tmp_path

    def test_no_table(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="LanceDB table, got no table.*mmrec index"):
            module.LanceStore.open(tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()
        shutil.rmtree(folder / "items.lance")
        with pytest.raises(ArtifactError, match="got no table"):
            module.LanceStore.open(folder)

    def test_versions_are_gone(self, folder: Path) -> None:
        shutil.rmtree(folder / "items.lance" / "_versions")
        with pytest.raises(ArtifactError, match="LanceDB table"):
            module.LanceStore.open(folder)

    @pytest.mark.parametrize("damage", ["gone", "garbage"])
    def test_data_is_gone_or_garbage(self, folder: Path, damage: str) -> None:
        (data,) = (folder / "items.lance" / "data").iterdir()
        if damage == "gone":
            data.unlink()
        else:
            data.write_bytes(b"\x00" * data.stat().st_size)
        with pytest.raises(ArtifactError, match="LanceDB table.*mmrec index"):
            module.LanceStore.open(folder).search(VECTORS[:1], k=1)

    def test_another_table(self, tmp_path: Path) -> None:
        lancedb.connect(tmp_path).create_table("items", data=COLUMNS)
        with pytest.raises(ArtifactError, match="LanceDB table"):
            module.LanceStore.open(tmp_path)


def test_a_folder_may_move(tmp_path: Path) -> None:
    module.LanceStore.build(tmp_path / "here", VECTORS, COLUMNS, indexed=True)
    (tmp_path / "here").rename(tmp_path / "there")
    found = module.LanceStore.open(tmp_path / "there").search(VECTORS[:3], k=1)
    exact = ExactStore(VECTORS).search(VECTORS[:3], k=1)
    np.testing.assert_array_equal(found.rows, exact.rows)
