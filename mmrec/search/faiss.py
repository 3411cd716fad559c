"""FAISS indexes: flat (exact) or HNSW (graph), opened by memory map."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import faiss
import numpy as np

from mmrec.errors import ArtifactError
from mmrec.search.index import ExactStore, Hits, Mask, Vectors, check_queries

Kind = Literal["flat", "hnsw"]


class FaissStore:
    """A FAISS index of inner products.

    Args:
        index: the index; HNSW or flat.
        last_scale: factor by which the last coordinate is smaller in the index; queries make up for it.
        effort: candidates an HNSW search keeps; more is slower and more exact.
    """

    def __init__(self, index: faiss.Index, *, last_scale: float = 1.0, effort: int = 128) -> None:
        self._index, self._last_scale, self._effort = index, last_scale, effort

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._index.d)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @classmethod
    def build(cls, vectors: Vectors, *, kind: Kind, last_scale: float = 1.0, neighbours: int = 32) -> FaissStore:
        """Index vectors.

        Args:
            vectors: shape (vectors, dim).
            kind: ``flat`` or ``hnsw``.
            last_scale: factor for the last coordinate.  Where it is a bias, left large, a graph links every vector to
                the few with the highest bias, and a query that knows no bias is lost among them.
            neighbours: links of each vector in the HNSW graph.
        """
        dim = vectors.shape[1]
        if kind == "flat":
            index = faiss.IndexFlatIP(dim)
        else:
            index = faiss.IndexHNSWFlat(dim, neighbours, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 200
        for start in range(0, len(vectors), 1 << 16):
            index.add(_scaled(vectors[start : start + (1 << 16)], last_scale))
        return cls(index, last_scale=last_scale)

    def save(self, path: Path) -> None:
        """Write the index to a file."""
        faiss.write_index(self._index, str(path))

    @classmethod
    def open(cls, path: Path, *, last_scale: float = 1.0) -> FaissStore:
        """Open an index file by memory map.

        Args:
            path: what ``save`` wrote.
            last_scale: as it was built with.

        Raises:
            ArtifactError: no such file, or not an index.
        """
        if not path.is_file():
            raise ArtifactError("an index file", got="no file", where=str(path), fix="Export again with --store faiss.")
        try:
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), last_scale=last_scale)
        except RuntimeError as error:
            raise ArtifactError("a FAISS index", got=str(error)[:200], where=str(path)) from error

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        """Return the k best rows of each query; a filter that starves the graph is answered exactly."""
        check_queries(queries, dim=self.dim, k=k)
        queries = _scaled(queries, 1 / self._last_scale)
        selector = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        scores, rows = self._index.search(queries, k, params=self._parameters(selector, k))
        wanted = min(k, len(self) if allowed is None else int(allowed.sum()))
        rows = np.asarray(rows, dtype=np.int64)
        if (rows >= 0).sum(axis=1).min(initial=wanted) < wanted:
            return self._exact(queries, k=k, allowed=allowed)
        scores = np.where(rows >= 0, scores, -np.inf).astype(np.float32)
        return Hits(rows, scores)

    def _parameters(self, selector: faiss.IDSelector | None, k: int) -> faiss.SearchParameters:
        if isinstance(self._index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(sel=selector, efSearch=max(self._effort, 2 * k))
        return faiss.SearchParameters(sel=selector)

    def _exact(self, queries: Vectors, *, k: int, allowed: Mask | None) -> Hits:
        return ExactStore(self._index.reconstruct_n(0, len(self))).search(queries, k=k, allowed=allowed)


def _scaled(vectors: Vectors, last: float) -> Vectors:
    """Return a contiguous copy with the last coordinate multiplied."""
    copy = np.array(vectors, dtype=np.float32, order="C")
    copy[:, -1] *= last
    return copy
