"""FAISS indexes: flat (exact), HNSW (graph) or IVF-PQ (lists of product-quantised codes), opened by memory map."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import faiss
import numpy as np

from mmrec.errors import ArtifactError, RequestError
from mmrec.search.index import ExactStore, Hits, Mask, Vectors, check_queries

Kind = Literal["flat", "hnsw", "ivfpq"]
CODEBOOK = 256
"""Entries of one codebook of a product quantiser, and the fewest vectors that can train it."""
_POINTS_PER_LIST = 39
_LEAST_PROBES = 16


class FaissStore:
    """A FAISS index of inner products.

    Args:
        index: the index; flat, HNSW or IVF-PQ.
        last_scale: factor by which the last coordinate is smaller in the index; queries make up for it.
        effort: candidates an HNSW search keeps; more is slower and more exact.
    """

    def __init__(self, index: faiss.Index, *, last_scale: float = 1.0, effort: int = 128) -> None:
        self._index, self._last_scale, self._effort = index, last_scale, effort

    @property
    def kind(self) -> str:
        """What it searches with."""
        if isinstance(self._index, faiss.IndexHNSW):
            return "faiss hnsw"
        return "faiss flat" if _lists(self._index) is None else "faiss ivfpq"

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
            kind: ``flat``, ``hnsw`` or ``ivfpq``.
            last_scale: factor for the last coordinate.  Where it is a bias, left large, a graph links every vector to
                the few with the highest bias, lists are told apart by bias alone, and a query that knows no bias is
                lost among them.
            neighbours: links of each vector in the HNSW graph.

        Raises:
            RequestError: too few vectors to train ``ivfpq``.
        """
        dim = vectors.shape[1]
        if kind == "flat":
            index = faiss.IndexFlatIP(dim)
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, neighbours, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 200
        else:
            index = _trained(vectors, last_scale)
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
        fix = "Make it again: mmrec index EXPORT --store faiss."
        if not path.is_file():
            raise ArtifactError("an index file", got="no file", where=str(path), fix=fix)
        try:
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), last_scale=last_scale)
        except RuntimeError as error:
            raise ArtifactError("a FAISS index", got=str(error)[:200], where=str(path), fix=fix) from error

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        """Return the k best rows of each query; a filter that starves the index makes it look at every vector."""
        check_queries(queries, dim=self.dim, k=k)
        queries = _scaled(queries, 1 / self._last_scale)
        selector = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        hits = self._ask(queries, k, self._parameters(selector, k))
        wanted = min(k, len(self) if allowed is None else int(allowed.sum()))
        if (hits.rows >= 0).sum(axis=1).min(initial=wanted) >= wanted:
            return hits
        lists = _lists(self._index)
        if lists is not None:
            return self._ask(queries, k, _probing(selector, lists.nlist))
        return ExactStore(self._index.reconstruct_n(0, len(self))).search(queries, k=k, allowed=allowed)

    def _ask(self, queries: Vectors, k: int, parameters: faiss.SearchParameters) -> Hits:
        scores, rows = self._index.search(queries, k, params=parameters)
        rows = np.asarray(rows, dtype=np.int64)
        return Hits(rows, np.where(rows >= 0, scores, -np.inf).astype(np.float32))

    def _parameters(self, selector: faiss.IDSelector | None, k: int) -> faiss.SearchParameters:
        if isinstance(self._index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(sel=selector, efSearch=max(self._effort, 2 * k))
        lists = _lists(self._index)
        return faiss.SearchParameters(sel=selector) if lists is None else _probing(selector, lists.nprobe)


def check_count(count: int) -> None:
    """Refuse to train product quantisation on too few vectors.

    Raises:
        RequestError: there are too few.
    """
    if count < CODEBOOK:
        raise RequestError(
            f"at least {CODEBOOK} vectors to train product quantisation",
            got=str(count),
            where="--index ivfpq",
            fix="Take --index hnsw or flat.",
        )


def _trained(vectors: Vectors, last_scale: float) -> faiss.Index:
    """Return an empty IVF-PQ index, trained on a sample.

    Content is cut into sub-vectors of equal width, one byte each.  The last coordinate, which may be a bias, has a
    sub-vector and so a codebook of 256 numbers to itself: quantised beside content, it would be lost in it.

    Raises:
        RequestError: too few vectors.
    """
    count, dim = vectors.shape
    check_count(count)
    content = dim - 1
    width = max(1, -(-content // min(max(content // 4, 8), 64)))
    codes = -(-content // width)
    places = np.full((codes + 1) * width, -1, dtype=np.int32)
    places[:content], places[codes * width] = np.arange(content), content
    layout = faiss.RemapDimensionsTransform(dim, len(places), False)
    faiss.copy_array_to_vector(places, layout.map)
    # 4 sqrt(n) lists, but not so many that their centres would be trained on a handful of vectors each.
    lists = max(1, min(round(4 * count**0.5), count // _POINTS_PER_LIST))
    coarse = faiss.IndexFlatIP(len(places))
    index = faiss.IndexIVFPQ(coarse, len(places), lists, codes + 1, 8, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(lists, max(_LEAST_PROBES, lists // 8))
    # Small catalogues are allowed; FAISS would print a warning for each codebook.
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.cp.seed = index.pq.cp.seed = 0
    whole = faiss.IndexPreTransform(layout, index)
    chosen = np.random.default_rng(0).permutation(count)[: CODEBOOK * max(lists, CODEBOOK)]
    whole.train(_scaled(vectors[np.sort(chosen)], last_scale))
    return whole


def _lists(index: faiss.Index) -> faiss.IndexIVF | None:
    """Return the inverted lists behind an index, None where it has none."""
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    return inner if isinstance(inner, faiss.IndexIVF) else None


def _probing(selector: faiss.IDSelector | None, probes: int) -> faiss.SearchParameters:
    lists = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
    return faiss.SearchParametersPreTransform(index_params=lists)


def _scaled(vectors: Vectors, last: float) -> Vectors:
    """Return a contiguous copy with the last coordinate multiplied."""
    copy = np.array(vectors, dtype=np.float32, order="C")
    copy[:, -1] *= last
    return copy
