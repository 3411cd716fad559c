"""Candidates of a store that keeps approximate vectors, put in order by the vectors themselves."""

from __future__ import annotations

import numpy as np

from mmrec.search.index import Hits, Mask, Store, VectorRows, Vectors, check_queries

FACTOR, LEAST = 10, 200
"""Candidates for each row wanted, and at the least."""


class RescoredStore:
    """A store whose first candidates are scored again, exactly.

    Args:
        store: finds the candidates.
        vectors: what it indexed, shape (vectors, dim).
        factor: candidates for each row wanted.
        least: candidates at the least.
    """

    def __init__(self, store: Store, vectors: VectorRows, *, factor: int = FACTOR, least: int = LEAST) -> None:
        self._store, self._vectors, self._factor, self._least = store, vectors, factor, least

    @property
    def kind(self) -> str:
        """What it searches with."""
        return self._store.kind

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._store.dim

    def __len__(self) -> int:
        return len(self._store)

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        """Return the k best of the candidates of each query, with exact scores."""
        check_queries(queries, dim=self.dim, k=k)
        candidates = num_candidates(k, items=len(self), factor=self._factor, least=self._least)
        rows = self._store.search(queries, k=candidates, allowed=allowed).rows
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        for query, found, score in zip(queries, rows, scores, strict=True):
            real = found >= 0
            score[real] = self._vectors[found[real]] @ query
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Hits(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))


def num_candidates(k: int, *, items: int, factor: int = FACTOR, least: int = LEAST) -> int:
    """Return how many candidates are scored again, exactly, for the best k of so many items."""
    return max(k, min(items, max(factor * k, least)))
