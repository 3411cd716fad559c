"""The index of an export: chosen, built from the export's own files, measured, and opened again.

Nothing but the folder is needed, so that an index can be made again without the run that exported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from mmrec import columns
from mmrec.errors import ArtifactError, RequestError
from mmrec.inference.export import MANIFEST, SAMPLE, STORED, VectorFolder, read_vectors
from mmrec.search.index import ExactStore, Hits, Store, VectorRows, recall
from mmrec.search.rescored import RescoredStore
from mmrec.storage import file_hash

StoreKind = Literal["none", "faiss", "lancedb"]
IndexKind = Literal["flat", "hnsw", "ivfpq"]
_Kind = Literal["flat", "hnsw", "ivfpq", "exact", "ivf_flat"]
Vectors = npt.NDArray[np.float32]

LAST_SCALE = "last_scale"
BIAS_IN_INDEX = 0.1
"""Largest bias in a graph or in lists, beside content of length one."""
CONTENT_HASH = "content_hash"
_INDEX_FILE = "items.faiss"
INDEX_FILES = (_INDEX_FILE, "items.lance")
_FAISS_KINDS: tuple[IndexKind, ...] = ("flat", "hnsw", "ivfpq")
_LANCE_KINDS = ("exact", "ivf_flat")
_ROWS = 1 << 16
_NOT_BESIDE = {*STORED, CONTENT_HASH}


@dataclass(frozen=True)
class IndexChoice:
    """An index that is wanted.

    Args:
        store: who keeps it.
        index: its kind, of FAISS only; by default HNSW.

    Raises:
        RequestError: a kind beside a store that has none to choose.
    """

    store: StoreKind = "none"
    index: IndexKind | None = None

    def __post_init__(self) -> None:
        if self.index is not None and self.store != "faiss":
            raise RequestError(
                "--index beside --store faiss",
                got=f"--index {self.index} beside --store {self.store}",
                fix="Leave --index out, or give --store faiss.",
            )

    def check(self, items: int, names: list[str]) -> None:
        """Refuse, before anything is encoded, what could not be built.

        Args:
            items: vectors there will be.
            names: columns beside them.

        Raises:
            MissingExtraError: the store's library is not installed.
            RequestError: too few vectors, or a column that the store cannot hold.
        """
        if self.index == "ivfpq":
            from mmrec.search.faiss import check_count

            check_count(items)
        if self.store == "lancedb":
            from mmrec.search.lancedb import check_columns

            check_columns([name for name in names if name not in _NOT_BESIDE])

    def kind(self, items: int) -> _Kind:
        """Return what is built of so many vectors."""
        if self.store != "lancedb":
            return self.index or "hnsw"
        from mmrec.search.lancedb import EXACT_ROWS

        return "exact" if items <= EXACT_ROWS else "ivf_flat"


def build_index(folder: Path, choice: IndexChoice, *, temperature: float | None) -> dict[str, object] | None:
    """Index the vectors of an export, and measure the index against exact search.

    Args:
        folder: holds ``items.parquet``; the index is written beside it.
        choice: what to build.
        temperature: by what a user's content is divided beside a bias of 1; None where vectors hold no bias.

    Returns:
        What the manifest says of the index; None without one.

    Raises:
        MissingExtraError: the store's library is not installed.
        RequestError: too few vectors, or a column that the store cannot hold.
    """
    if choice.store == "none":
        return None
    table = folder / "items.parquet"
    _, vectors = read_vectors(table, id_column=columns.ITEM_ID)
    choice.check(len(vectors), pq.read_schema(table).names)
    kind = choice.kind(len(vectors))
    scale = last_scale(vectors) if temperature is not None and kind not in {"flat", "exact"} else 1.0
    if choice.store == "faiss":
        from mmrec.search.faiss import FaissStore

        FaissStore.build(vectors, kind=choice.index or "hnsw", last_scale=scale).save(folder / _INDEX_FILE)
    else:
        from mmrec.search.lancedb import LanceStore

        names = [name for name in pq.read_schema(table).names if name not in _NOT_BESIDE]
        beside = pq.read_table(table, columns=names)
        LanceStore.build(folder, vectors, beside, last_scale=scale, indexed=kind == "ivf_flat")
    store = _open(folder, choice.store, kind, scale)
    return {"kind": kind, **_measured(store, kind, vectors, temperature), LAST_SCALE: scale}


def last_scale(vectors: VectorRows) -> float:
    """Return the factor for the bias of vectors, shape (items, dim), that end in one, in a graph or in lists."""
    pieces = (vectors[start : start + _ROWS][:, -1] for start in range(0, len(vectors), _ROWS))
    bias = max((float(np.abs(piece).max()) for piece in pieces), default=0.0)
    return min(1.0, BIAS_IN_INDEX / bias) if bias else 1.0


def open_store(folder: VectorFolder, vectors: VectorRows) -> Store:
    """Open what the manifest of an export names.

    Args:
        folder: the export.
        vectors: its vectors, shape (items, dim).

    Raises:
        ArtifactError: a store or an index that this version does not know, a damaged one, or one of other vectors.
        MissingExtraError: the store's library is not installed.
    """
    name, about = folder.manifest.get("store"), folder.manifest.get("index")
    if name == "none":
        return ExactStore(vectors)
    entry = cast("dict[str, object]", about) if isinstance(about, dict) else {}
    kind = entry.get("kind")
    store = _open(folder.folder, name, kind, float(str(entry.get(LAST_SCALE, 1.0))))
    if (len(store), store.dim) != vectors.shape:
        raise ArtifactError(
            f"an index of {len(vectors)} vectors of width {vectors.shape[1]}",
            got=f"one of {len(store)} vectors of width {store.dim}",
            where=str(folder.folder),
            fix=f"Make it again: mmrec index {folder.folder} --store {name}.",
        )
    return _answering(store, kind, vectors)


def is_index(name: str) -> bool:
    """Return whether a file of an export, by its name within the folder, is part of an index."""
    return name.split("/")[0] in INDEX_FILES


def hash_index(folder: Path) -> dict[str, str]:
    """Return the hash of every file of an index, by its name within the folder."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: file_hash(path) for name, path in names.items() if is_index(name)}


def shown(about: Mapping[str, object] | None) -> dict[str, object]:
    """Return what a user is told of an index."""
    return {"index" if name == "kind" else name: value for name, value in (about or {}).items() if name != LAST_SCALE}


def _open(folder: Path, name: object, kind: object, scale: float) -> Store:
    if name == "faiss" and kind in _FAISS_KINDS:
        from mmrec.search.faiss import FaissStore

        return FaissStore.open(folder / _INDEX_FILE, last_scale=scale)
    if name == "lancedb" and kind in _LANCE_KINDS:
        from mmrec.search.lancedb import LanceStore

        return LanceStore.open(folder, last_scale=scale)
    raise ArtifactError(
        f"a store that this version knows: none, faiss ({', '.join(_FAISS_KINDS)}), lancedb ({', '.join(_LANCE_KINDS)})",
        got=f"{name} ({kind})",
        where=str(folder / MANIFEST),
        fix=f"Make another index: mmrec index {folder}.",
    )


def _answering(store: Store, kind: object, vectors: VectorRows) -> Store:
    """Return the store as questions are put to it: scores of codes are made exact with the vectors themselves."""
    return RescoredStore(store, vectors) if kind == "ivfpq" else store


def _measured(store: Store, kind: _Kind, vectors: Vectors, temperature: float | None) -> dict[str, object]:
    """Measure a store against exact search on a sample of questions.

    Half of them ask for content alone, half as a user does, who counts the bias.
    """
    chosen = np.random.default_rng(0).choice(len(vectors), min(SAMPLE, len(vectors)), replace=False)
    queries, k = np.array(vectors[chosen]), min(10, len(vectors))
    if temperature is not None:
        queries[:, -1] = np.arange(len(queries)) % 2 * temperature
    answering = _answering(store, kind, vectors)
    start = time.perf_counter()
    found = answering.search(queries, k=k)
    middle = time.perf_counter()
    exact = ExactStore(vectors).search(queries, k=k)
    end = time.perf_counter()
    report: dict[str, object] = {
        "recall@10": round(recall(found.rows, exact.rows), 4),
        "recall@10, ties counted": round(_as_good(found, exact), 4),
    }
    if answering is not store:
        alone = store.search(queries, k=k)
        report["recall@10 of the index alone"] = round(recall(alone.rows, exact.rows), 4)
    report["queries a second over exact"] = round((end - middle) / max(middle - start, 1e-9), 2)
    return report


def _as_good(found: Hits, exact: Hits) -> float:
    """Return the share of rows as good as the exact last one: equal scores may come in any order."""
    return float((found.scores >= exact.scores[:, -1:] - 1e-5).mean())
