"""What a store of vectors can do, and the exact search that every other store is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mmrec.errors import RequestError

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Hits:
    """Best rows of each query, best first; ``-1`` and ``-inf`` where fewer than k rows were allowed.

    Args:
        rows: shape (queries, k), int64.
        scores: shape (queries, k), inner products.
    """

    rows: Rows
    scores: Vectors

    @classmethod
    def none(cls, queries: int, *, k: int) -> Hits:
        """Return what so many queries have before anything is found."""
        return cls(np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32))

    def put(self, query: int, found: Hits) -> None:
        """Note what was found for one query, shape (at most k,)."""
        self.rows[query, : len(found.rows)], self.scores[query, : len(found.rows)] = found.rows, found.scores


@runtime_checkable
class VectorRows(Protocol):
    """Vectors that are read row by row: an array, or something smaller that is decoded to float32 when it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Vectors and coordinates."""
        ...

    def __len__(self) -> int:
        """Return the number of vectors."""
        ...

    def __getitem__(self, rows: slice | Rows, /) -> Vectors:
        """Return some of them, shape (rows, dim)."""
        ...


@runtime_checkable
class Store(Protocol):
    """Vectors that can be searched by inner product."""

    @property
    def kind(self) -> str:
        """What it searches with, such as ``exact`` or ``faiss hnsw``."""
        ...

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        ...

    def __len__(self) -> int:
        """Return the number of vectors."""
        ...

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        """Return the k best rows of each query, of the allowed rows only.

        Args:
            queries: shape (queries, dim).
            k: rows wanted.
            allowed: shape (vectors,), True where a row may be returned; None allows all.
        """
        ...


def check_queries(queries: Vectors, *, dim: int, k: int) -> None:
    """Refuse queries that a store of width ``dim`` cannot answer.

    Raises:
        RequestError: wrong width, or k below 1.
    """
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise RequestError(f"queries of width {dim}", got=f"shape {queries.shape}", fix="Use the vectors' own model.")
    if k < 1:
        raise RequestError("k of at least 1", got=str(k))


def scaled_queries(queries: Vectors, *, dim: int, k: int, last_scale: float) -> Vectors:
    """Return queries for vectors whose last coordinate was made smaller by a factor: theirs makes up for it.

    Raises:
        RequestError: wrong width, or k below 1.
    """
    check_queries(queries, dim=dim, k=k)
    scaled = np.array(queries, dtype=np.float32)
    scaled[:, -1] /= last_scale
    return scaled


def only(allowed: Mask | None, hits: Hits) -> Hits:
    """Return the allowed ones of the hits of one query, shape (hits,)."""
    return hits if allowed is None else Hits(hits.rows[allowed[hits.rows]], hits.scores[allowed[hits.rows]])


class ExactStore:
    """Inner products with every vector, in chunks.

    Args:
        vectors: shape (vectors, dim), float32 where they are read; may be memory-mapped.
    """

    def __init__(self, vectors: VectorRows) -> None:
        self._vectors = vectors

    @property
    def kind(self) -> str:
        """What it searches with."""
        return "exact"

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        """Return the k best rows of each query."""
        check_queries(queries, dim=self.dim, k=k)
        none = Hits.none(len(queries), k=k)
        rows, scores = none.rows, none.scores
        for start in range(0, len(self), _CHUNK):
            part = np.asarray(self._vectors[start : start + _CHUNK], dtype=np.float32)
            product = queries @ part.T
            if allowed is not None:
                product[:, ~allowed[start : start + _CHUNK]] = -np.inf
            index = np.broadcast_to(np.arange(start, start + len(part)), product.shape)
            rows, scores = _best(np.hstack([rows, index]), np.hstack([scores, product]), k)
        rows[np.isneginf(scores)] = -1
        return Hits(rows, scores)


def _best(rows: Rows, scores: Vectors, k: int) -> tuple[Rows, Vectors]:
    if scores.shape[1] > k:
        kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        rows, scores = np.take_along_axis(rows, kept, 1), np.take_along_axis(scores, kept, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def recall(found: Rows, exact: Rows) -> float:
    """Return the share of the exact rows that were found, over all queries."""
    hits = (found[:, :, None] == exact[:, None, :]) & (exact[:, None, :] >= 0)
    return float(hits.any(axis=1).sum() / max((exact >= 0).sum(), 1))
