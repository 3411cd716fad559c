"""Vectors in a collection of Qdrant, found through its graph of inner products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from mmrec.errors import ArtifactError, MissingExtraError
from mmrec.search.index import Hits, Mask, VectorRows, Vectors, only, scaled_queries
from mmrec.search.qdrant_server import Qdrant, QdrantFailureError

try:
    from qdrant_client import QdrantClient, models
except ImportError as error:
    raise MissingExtraError("qdrant_client", "qdrant") from error

_EFFORT = 128
_LISTED = 10_000
"""Longest list of allowed rows that a request carries."""
_BATCH = 512


class QdrantVectors:
    """A collection of vectors, one point a row.

    Args:
        qdrant: the server.
        name: of the collection.
        count: vectors in it.
        dim: their width.
        last_scale: factor by which the last coordinate is smaller in the collection; queries make up for it.
    """

    def __init__(self, qdrant: Qdrant, name: str, count: int, dim: int, *, last_scale: float = 1.0) -> None:
        self._qdrant, self._name, self._last_scale = qdrant, name, last_scale
        self._count, self._dim = count, dim

    @property
    def kind(self) -> str:
        """What it searches with."""
        return "qdrant"

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._dim

    def __len__(self) -> int:
        return self._count

    @classmethod
    def load(
        cls, qdrant: Qdrant, name: str, vectors: VectorRows, *, last_scale: float = 1.0
    ) -> tuple[QdrantVectors, bool]:
        """Open the collection of some vectors; make it, or complete it, where there is none or a part.

        Args:
            qdrant: the server.
            name: tells these vectors from all others, such as their hash.
            vectors: shape (vectors, dim).
            last_scale: factor for the last coordinate, for an index that a large bias would mislead.

        Returns:
            The collection, and whether anything had to be written.

        Raises:
            ArtifactError: Qdrant refuses it.
        """
        count, dim = vectors.shape
        with _calling(qdrant) as client:
            if not client.collection_exists(name):
                try:
                    client.create_collection(name, models.VectorParams(size=dim, distance=models.Distance.DOT))
                except Exception:  # another process made it meanwhile
                    if not client.collection_exists(name):
                        raise
            there = client.count(name, exact=True).count
            if there != count:
                # The same points under the same ids, whoever else writes them at the moment.
                _upload(client, name, vectors, last_scale)
        return cls(qdrant, name, count, dim, last_scale=last_scale), there != count

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        """Return the k best rows of each query.

        Raises:
            RequestError: queries of another width.
            ArtifactError: Qdrant does not answer.
        """
        scaled = scaled_queries(queries, dim=self.dim, k=k, last_scale=self._last_scale)
        hits = Hits.none(len(queries), k=k)
        count = len(self) if allowed is None else int(allowed.sum())
        if count == 0:
            return hits
        for number, query in enumerate(scaled):
            hits.put(number, self._best(query, min(k, count), count, allowed))
        return hits

    def _best(self, query: Vectors, wanted: int, count: int, allowed: Mask | None) -> Hits:
        if allowed is not None and count <= _LISTED:
            return self._ask(query, wanted, models.Filter(must=[models.HasIdCondition(has_id=_ids(allowed))]))
        if allowed is not None and len(self) - count <= _LISTED:
            return self._ask(query, wanted, models.Filter(must_not=[models.HasIdCondition(has_id=_ids(~allowed))]))
        # A longer list takes longer to send than to search: take more, and throw away what is not allowed.
        reach = wanted if allowed is None else min(len(self), 2 * wanted * len(self) // count)
        while True:
            found = self._ask(query, reach, None)
            kept = only(allowed, found)
            if len(kept.rows) >= wanted or reach == len(self):
                return Hits(kept.rows[:wanted], kept.scores[:wanted])
            reach = min(len(self), 4 * reach)

    def _ask(self, query: Vectors, limit: int, condition: models.Filter | None) -> Hits:
        parameters = models.SearchParams(hnsw_ef=max(_EFFORT, 2 * limit))
        with _calling(self._qdrant) as client:
            points = client.query_points(
                self._name,
                query.tolist(),
                query_filter=condition,
                search_params=parameters,
                limit=limit,
                with_payload=False,
            ).points
        return Hits(
            np.array([point.id for point in points], dtype=np.int64),
            np.array([point.score for point in points], dtype=np.float32),
        )


def _upload(client: QdrantClient, name: str, vectors: VectorRows, last_scale: float) -> None:
    for start in range(0, len(vectors), _BATCH):
        piece = np.array(vectors[start : start + _BATCH], dtype=np.float32)
        piece[:, -1] *= last_scale
        batch = models.Batch(ids=list(range(start, start + len(piece))), vectors=piece.tolist())
        # The last is waited for: then all are there.
        client.upsert(name, batch, wait=start + _BATCH >= len(vectors))


def _ids(mask: Mask) -> list[models.ExtendedPointId]:
    return list(np.flatnonzero(mask).tolist())


@contextmanager
def _calling(qdrant: Qdrant) -> Iterator[QdrantClient]:
    try:
        with qdrant.calling() as client:
            yield client
    except QdrantFailureError as error:
        raise ArtifactError(
            "a Qdrant that keeps and searches vectors", got=str(error), where="--index store", fix="See its log."
        ) from error
