"""A search in which some rows of each query count differently: what a user had, or the post that asks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmrec.search.index import Hits, Mask, Rows, Store, VectorRows, Vectors


def search_with_repeats(
    store: Store,
    vectors: VectorRows,
    queries: Vectors,
    *,
    had: Sequence[Rows],
    bonus: npt.NDArray[np.float32],
    k: int,
    allowed: Mask | None = None,
) -> Hits:
    """Return the k best rows of each query, some of which gain a bonus; a negative one may push them out of the first.

    Args:
        store: finds the rows.
        vectors: what it holds, shape (vectors, dim).
        queries: shape (queries, dim).
        had: of each query, the distinct rows that gain.
        bonus: shape (queries,), what they gain; ``-inf`` keeps them out.
        k: rows wanted, at most all there are.
        allowed: shape (vectors,), True where a row may be returned; None allows all.
    """
    found = min(k + max((len(rows) for rows in had), default=0), len(vectors))
    hits = store.search(queries, k=found, allowed=allowed)
    repeated = Hits.none(len(queries), k=k)
    for index, (query, gaining, gain) in enumerate(zip(queries, had, bonus, strict=True)):
        gaining = gaining if allowed is None else gaining[allowed[gaining]]
        others = ~np.isin(hits.rows[index], gaining)
        every = np.concatenate([hits.rows[index][others], gaining])
        score = np.concatenate([hits.scores[index][others], vectors[gaining] @ query + gain])
        best = np.argsort(-score, kind="stable")[:k]
        repeated.put(index, Hits(np.where(np.isneginf(score[best]), -1, every[best]), score[best]))
    return repeated
