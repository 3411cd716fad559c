"""Every store answers like the exact one, filters included."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mmrec.errors import ArtifactError, RequestError
from mmrec.search.faiss import CODEBOOK, FaissStore
from mmrec.search.index import ExactStore, Hits, Mask, Store, Vectors, recall
from mmrec.search.rescored import RescoredStore
from mmrec.search.spare import SpareStore
from mmrec.search.where import where_mask
from tests.databases import WITHOUT_POSTGRES, WITHOUT_QDRANT, PostgresServer, local_qdrant

FAISS = ("flat", "hnsw", "ivfpq")
WITHOUT_LANCEDB = pytest.mark.skipif(importlib.util.find_spec("lancedb") is None, reason="lancedb is not installed")
LANCE = [pytest.param(name, marks=WITHOUT_LANCEDB) for name in ("lancedb", "lancedb-ivf")]
DATABASES = [pytest.param("pgvector", marks=WITHOUT_POSTGRES), pytest.param("qdrant", marks=WITHOUT_QDRANT)]
KINDS = {"exact": "exact", "lancedb": "lancedb", "lancedb-ivf": "lancedb", "pgvector": "postgres", "qdrant": "qdrant"}
KINDS |= {name: f"faiss {name}" for name in FAISS}
TEMPERATURE = 0.05


def clustered(rows: int = 600, dim: int = 16) -> np.ndarray:
    """Content of length one around a few centres, then a bias as large."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(20, dim))
    content = centres[generator.integers(0, 20, rows)] + 0.3 * generator.normal(size=(rows, dim))
    bias = generator.normal(size=(rows, 1))
    return np.hstack([content / np.linalg.norm(content, axis=1, keepdims=True), bias]).astype(np.float32)


VECTORS = clustered()
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")
POOLS: dict[str, Any] = {}
SCALE = 0.1 / float(np.abs(VECTORS[:, -1]).max())


def asked(count: int = 50) -> np.ndarray:
    """Every other question leaves the bias out, the rest count it as a user does."""
    queries = VECTORS[:count].copy()
    queries[:, -1] = np.arange(count) % 2 * TEMPERATURE
    return queries


def made(name: str, vectors: np.ndarray, folder: Path, postgres: PostgresServer | None = None) -> Store:
    """Build a store, and open what it wrote."""
    if name == "pgvector":
        assert postgres is not None
        return in_postgres(postgres, vectors)[0]
    if name == "qdrant":
        from mmrec.search.qdrant import QdrantVectors

        return QdrantVectors.load(local_qdrant(), "items", vectors, last_scale=SCALE)[0]
    if name == "exact":
        return ExactStore(vectors)
    if name.startswith("lancedb"):
        from mmrec.search.lancedb import LanceStore

        ids = pa.table({"item_id": [f"p{row}" for row in range(len(vectors))]})
        scale = SCALE if name == "lancedb-ivf" else 1.0
        LanceStore.build(folder, vectors, ids, last_scale=scale, indexed=name == "lancedb-ivf")
        return LanceStore.open(folder, last_scale=scale)
    scale = 1.0 if name == "flat" else SCALE
    FaissStore.build(vectors, kind=name, last_scale=scale).save(folder / "index")  # type: ignore[arg-type]
    store = FaissStore.open(folder / "index", last_scale=scale)
    return RescoredStore(store, vectors) if name == "ivfpq" else store


def in_postgres(postgres: PostgresServer, vectors: np.ndarray, name: str = "") -> tuple[Store, bool]:
    """Open a table of its own for these vectors, and whether it was made."""
    from mmrec.search.pgvector import PgVectorStore
    from mmrec.search.postgres import open_pool

    pool = POOLS.setdefault(postgres.url, open_pool(postgres.url))
    name = name or f"t{hashlib.sha256(vectors.tobytes()).hexdigest()[:8]}"
    return PgVectorStore.load(pool, name, vectors, last_scale=SCALE)


@pytest.mark.parametrize("name", ["exact", *FAISS, *LANCE, *DATABASES])
class TestStoreContract:
    @pytest.fixture
    def store(self, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Store:
        postgres = request.getfixturevalue("postgres") if name == "pgvector" else None
        return made(name, VECTORS, tmp_path, postgres)

    def test_equals_a_full_sort(self, name: str, store: Store) -> None:
        assert isinstance(store, Store)
        assert (len(store), store.dim) == (600, 17)
        assert store.kind == KINDS[name]
        queries = asked()
        hits = store.search(queries, k=10)
        products = queries @ VECTORS.T
        assert recall(hits.rows, np.argsort(-products, axis=1)[:, :10]) >= 0.99
        assert hits.rows.dtype == np.int64
        np.testing.assert_allclose(hits.scores, np.take_along_axis(products, hits.rows, 1), rtol=1e-5, atol=1e-5)
        assert (np.diff(hits.scores, axis=1) <= 0).all()

    @pytest.mark.parametrize("step", [50, 2])
    def test_filter_returns_the_k_best_allowed_rows(self, store: Store, step: int) -> None:
        allowed = np.zeros(len(VECTORS), dtype=bool)
        allowed[::step] = True
        hits = store.search(asked(), k=10, allowed=allowed)
        assert allowed[hits.rows].all()
        assert all(len(set(row)) == 10 for row in hits.rows.tolist())
        assert recall(hits.rows, ExactStore(VECTORS).search(asked(), k=10, allowed=allowed).rows) >= 0.99

    def test_k_larger_than_the_allowed_rows(self, store: Store) -> None:
        allowed = np.zeros(len(VECTORS), dtype=bool)
        allowed[[3, 4]] = True
        hits = store.search(asked(1), k=5, allowed=allowed)
        assert set(hits.rows[0][:2]) == {3, 4}
        assert hits.rows[0][2:].tolist() == [-1, -1, -1]
        assert np.isneginf(hits.scores[0][2:]).all()

    def test_nothing_is_allowed(self, store: Store) -> None:
        hits = store.search(asked(2), k=3, allowed=np.zeros(len(VECTORS), dtype=bool))
        assert hits.rows.tolist() == [[-1] * 3] * 2
        assert np.isneginf(hits.scores).all()

    def test_k_larger_than_the_store(self, store: Store) -> None:
        hits = store.search(asked(2), k=603)
        for rows, scores in zip(hits.rows, hits.scores, strict=True):
            assert sorted(rows[:600].tolist()) == list(range(600))
            assert rows[600:].tolist() == [-1, -1, -1]
            assert np.isneginf(scores[600:]).all()

    def test_wrong_width_is_refused(self, store: Store) -> None:
        with pytest.raises(RequestError, match="width 17"):
            store.search(np.zeros((1, 3), np.float32), k=1)

    def test_no_row_is_no_answer(self, store: Store) -> None:
        with pytest.raises(RequestError, match="k of at least 1"):
            store.search(asked(1), k=0)


@pytest.mark.parametrize("name", ["exact", "flat", "hnsw", *LANCE])
def test_one_vector(name: str, tmp_path: Path) -> None:
    hits = made(name, VECTORS[:1], tmp_path).search(VECTORS[:1], k=2)
    assert hits.rows.tolist() == [[0, -1]]
    assert hits.scores[0, 0] == pytest.approx(float(VECTORS[0] @ VECTORS[0]), rel=1e-5)


class TestProductQuantisation:
    def test_too_few_vectors_are_refused(self, tmp_path: Path) -> None:
        for few in (1, CODEBOOK - 1):
            with pytest.raises(RequestError, match=rf"at least 256 vectors .* got {few}, in --index ivfpq"):
                FaissStore.build(VECTORS[:few], kind="ivfpq")
        hits = made("ivfpq", VECTORS[:CODEBOOK], tmp_path).search(asked(20), k=10)
        assert recall(hits.rows, ExactStore(VECTORS[:CODEBOOK]).search(asked(20), k=10).rows) >= 0.99

    def test_the_same_vectors_give_the_same_file(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            FaissStore.build(VECTORS, kind="ivfpq", last_scale=SCALE).save(tmp_path / name)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

    def test_codes_are_smaller_than_vectors(self, tmp_path: Path) -> None:
        vectors = clustered(2000, 64)
        for kind in FAISS:
            FaissStore.build(vectors, kind=kind).save(tmp_path / kind)  # type: ignore[arg-type]
        sizes = {kind: (tmp_path / kind).stat().st_size for kind in FAISS}
        # 17 codes and an id of 8 bytes a vector instead of 65 numbers; centres and codebooks are 256 + 51 vectors.
        assert sizes["flat"] >= 2000 * 65 * 4
        assert sizes["ivfpq"] <= 2000 * (17 + 8) + (256 + 60) * 68 * 4

    @pytest.mark.parametrize("dim", [1, 7, 16, 129])
    def test_the_last_coordinate_is_not_lost(self, dim: int, tmp_path: Path) -> None:
        vectors = clustered(600, dim)
        FaissStore.build(vectors, kind="ivfpq", last_scale=SCALE).save(tmp_path / "index")
        store = FaissStore.open(tmp_path / "index", last_scale=SCALE)
        question = np.zeros((1, dim + 1), np.float32)
        question[0, -1] = 1
        hits = store.search(question, k=600)
        bias = vectors[hits.rows[0], -1]
        # In one code with content it is off by .009 of its range (two numbers a code) to .08 (seventeen).
        assert np.abs(hits.scores[0] - bias).mean() < 0.002 * np.ptp(bias)

    def test_a_filter_that_starves_the_probed_lists(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(2)
        vectors = generator.normal(size=(3000, 9)).astype(np.float32)
        far = ExactStore(vectors).search(-vectors[:1], k=20).rows[0]
        allowed = np.zeros(3000, dtype=bool)
        allowed[far] = True
        FaissStore.build(vectors, kind="ivfpq").save(tmp_path / "index")
        hits = FaissStore.open(tmp_path / "index").search(vectors[:1], k=20, allowed=allowed)
        assert sorted(hits.rows[0].tolist()) == sorted(far.tolist())


@pytest.fixture(scope="module", autouse=True)
def closed_pools() -> Iterator[None]:
    yield
    for pool in POOLS.values():
        pool.close()


@WITHOUT_POSTGRES
class TestPgVector:
    def test_the_graph_answers_and_a_filter_does_not_starve_it(
        self, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mmrec.search.pgvector._LISTED", 0)
        vectors = np.random.default_rng(2).normal(size=(3000, 9)).astype(np.float32)
        store, made = in_postgres(postgres, vectors)
        assert made
        query = vectors[:1] * np.append(np.ones(8), SCALE).astype(np.float32)
        with POOLS[postgres.url].connection() as connection:
            order = f"EXPLAIN SELECT row FROM {store._table} ORDER BY vector <#> %s LIMIT 10"  # type: ignore[attr-defined]
            plan = str(connection.execute(order, (query[0],)).fetchall())
        assert "Index Scan" in plan
        far = ExactStore(vectors).search(-vectors[:1], k=20).rows[0]
        allowed = np.zeros(3000, dtype=bool)
        allowed[far] = True
        hits = store.search(vectors[:1], k=20, allowed=allowed)
        assert sorted(hits.rows[0].tolist()) == sorted(far.tolist())

    def test_a_table_is_made_once_and_again_when_it_is_not_whole(self, postgres: PostgresServer) -> None:
        name = "t_once"
        assert in_postgres(postgres, VECTORS, name)[1]
        assert not in_postgres(postgres, VECTORS, name)[1]
        with POOLS[postgres.url].connection() as connection:
            connection.execute(f"DELETE FROM mmrec_index.{name} WHERE row = 5")
        store, made = in_postgres(postgres, VECTORS, name)
        assert made
        assert recall(store.search(asked(), k=10).rows, ExactStore(VECTORS).search(asked(), k=10).rows) >= 0.99


@WITHOUT_QDRANT
def test_a_collection_is_completed() -> None:
    from mmrec.search.qdrant import QdrantVectors

    qdrant = local_qdrant()
    assert QdrantVectors.load(qdrant, "items", VECTORS)[1]
    with qdrant.calling() as client:
        client.delete("items", [3, 4, 5])
    store, written = QdrantVectors.load(qdrant, "items", VECTORS)
    assert written
    assert not QdrantVectors.load(qdrant, "items", VECTORS)[1]
    assert recall(store.search(asked(), k=10).rows, ExactStore(VECTORS).search(asked(), k=10).rows) >= 0.99
    qdrant.close()


@WITHOUT_QDRANT
def test_a_long_filter_is_not_sent_to_qdrant(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrec.search.qdrant import QdrantVectors

    monkeypatch.setattr("mmrec.search.qdrant._LISTED", 0)
    qdrant = local_qdrant()
    store = QdrantVectors.load(qdrant, "items", VECTORS)[0]
    far = ExactStore(VECTORS).search(-VECTORS[:1], k=20).rows[0]
    allowed = np.zeros(len(VECTORS), dtype=bool)
    allowed[far] = True
    assert sorted(store.search(VECTORS[:1], k=20, allowed=allowed).rows[0].tolist()) == sorted(far.tolist())
    qdrant.close()


class FailingStore(ExactStore):
    """Answers only while it is well."""

    well = False
    kind = "failing"

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        if not self.well:
            raise ArtifactError("an index that answers", got="none")
        return super().search(queries, k=k, allowed=allowed)


def test_a_spare_store_answers_for_one_that_fails() -> None:
    said: list[str] = []
    first = FailingStore(VECTORS)
    store = SpareStore(first, ExactStore(VECTORS), notify=said.append)
    exact = ExactStore(VECTORS).search(asked(), k=10)
    for well in (False, False, True, True):
        first.well = well
        assert (store.search(asked(), k=10).rows == exact.rows).all()
        assert store.kind == ("failing" if well else "exact, while failing fails")
    assert len(said) == 2, "once when it begins to fail, once when it is well again"
    with pytest.raises(RequestError, match="width 17"):
        store.search(np.zeros((1, 3), np.float32), k=1)


class RoughStore:
    """Knows its vectors to one digit."""

    def __init__(self, vectors: Vectors) -> None:
        self._rough = ExactStore(np.round(vectors, 1))

    @property
    def kind(self) -> str:
        return "rough"

    @property
    def dim(self) -> int:
        return self._rough.dim

    def __len__(self) -> int:
        return len(self._rough)

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        return self._rough.search(queries, k=k, allowed=allowed)


def test_rescoring_makes_candidates_exact() -> None:
    rough, exact = RoughStore(VECTORS), ExactStore(VECTORS).search(asked(), k=10)
    assert recall(rough.search(asked(), k=10).rows, exact.rows) < 0.95
    few = RescoredStore(rough, VECTORS, factor=1, least=1).search(asked(), k=10)
    assert recall(few.rows, exact.rows) < 0.95
    many = RescoredStore(rough, VECTORS).search(asked(), k=10)
    np.testing.assert_array_equal(many.rows, exact.rows)
    np.testing.assert_allclose(many.scores, exact.scores, rtol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="this system does not show its maps")
@pytest.mark.parametrize("kind", FAISS)
def test_an_index_is_mapped_not_read(kind: str, tmp_path: Path) -> None:
    path = (tmp_path / f"{kind}.faiss").resolve()
    FaissStore.build(VECTORS, kind=kind).save(path)  # type: ignore[arg-type]
    assert str(path) not in Path("/proc/self/maps").read_text()
    store = FaissStore.open(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert len(store) == 600


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


@pytest.mark.parametrize("kind", FAISS)
def test_missing_and_damaged_index(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file.*mmrec index"):
        FaissStore.open(tmp_path / "none.faiss")
    (tmp_path / "bad.faiss").write_bytes(b"not an index")
    path = tmp_path / "half.faiss"
    FaissStore.build(VECTORS, kind=kind).save(path)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for name in ("bad", "half"):
        with pytest.raises(ArtifactError, match="FAISS index.*mmrec index"):
            FaissStore.open(tmp_path / f"{name}.faiss")


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
        ("colour in ('Dark Blue',Black) and price!=x", [1, 0, 0, 0]),
        ("colour in (it's, White) and colour!='x'", [0, 1, 0, 0]),
        ("colour in ()", [0, 0, 0, 0]),
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


@pytest.mark.parametrize("entries", ["'" * 60, "'a'" * 300, "\"'" * 300, "'a, " * 200, " " * 900, "," * 900])
def test_a_list_that_does_not_end_is_refused_and_not_pondered(entries: str) -> None:
    with pytest.raises(RequestError, match="conditions such as"):
        where_mask(TABLE, f"colour in ({entries}")
