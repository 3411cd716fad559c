"""A LanceDB table: vectors beside captions and attributes; searched exactly while small, through an IVF index above."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmrec.errors import ArtifactError, MissingExtraError, RequestError
from mmrec.search.index import Hits, Mask, Vectors, only, scaled_queries

try:
    import lancedb
    from lancedb.index import IvfFlat
except ImportError as error:
    raise MissingExtraError("lancedb", "lancedb") from error

TABLE = "items"
VECTOR = "vector"
ROW = "item_row"
"""Column that holds the number of a vector."""
EXACT_ROWS = 100_000
"""Largest table that is best left without an index: LanceDB reads that many vectors in tens of milliseconds."""
_METRIC = "dot"
_DISTANCE = "_distance"
_LEAST_PROBES = 20
_LISTED = 10_000


class LanceStore:
    """The table ``items`` of a LanceDB database on disk.

    Args:
        table: a table that ``build`` wrote.
        last_scale: factor by which the last coordinate is smaller in the table; queries make up for it.
    """

    def __init__(self, table: lancedb.table.Table, *, last_scale: float = 1.0) -> None:
        self._table, self._last_scale = table, last_scale
        self._dim, self._count = int(table.schema.field(VECTOR).type.list_size), int(table.count_rows())

    @property
    def kind(self) -> str:
        """What it searches with."""
        return "lancedb"

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._dim

    def __len__(self) -> int:
        return self._count

    @property
    def indexed(self) -> bool:
        """Whether an index finds the candidates; without one every search is exact."""
        return bool(self._table.list_indices())

    @classmethod
    def build(
        cls,
        folder: Path,
        vectors: Vectors,
        columns: pa.Table,
        *,
        last_scale: float = 1.0,
        indexed: bool = False,
    ) -> LanceStore:
        """Write the table ``items`` into a folder that has none.

        Args:
            folder: becomes, or is, a LanceDB database.
            vectors: shape (vectors, dim).
            columns: one row a vector; kept beside ``vector`` and ``item_row``.
            last_scale: factor for the last coordinate, for an index that a large bias would mislead.
            indexed: whether to build an IVF index; without one every search is exact.

        Raises:
            RequestError: a column that LanceDB cannot hold.
        """
        check_columns(columns.column_names)
        flat = np.array(vectors, dtype=np.float32, order="C")
        flat[:, -1] *= last_scale
        rows = pa.array(np.arange(len(flat), dtype=np.int64))
        vector = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
        whole = columns.append_column(ROW, rows).append_column(VECTOR, vector)
        table = lancedb.connect(folder).create_table(TABLE, data=whole)
        if indexed:
            # Lists of whole vectors: product quantisation would blur the bias, scalar quantisation the content.
            table.create_index(VECTOR, config=IvfFlat(distance_type=_METRIC, num_partitions=_partitions(len(flat))))
        return cls(table, last_scale=last_scale)

    @classmethod
    def open(cls, folder: Path, *, last_scale: float = 1.0) -> LanceStore:
        """Open the table of a folder.

        Args:
            folder: what ``build`` wrote to.
            last_scale: as it was built with.

        Raises:
            ArtifactError: no such table, or a damaged one.
        """
        if not (folder / f"{TABLE}.lance").is_dir():
            raise _damaged(folder, "no table")
        try:
            return cls(lancedb.connect(folder).open_table(TABLE), last_scale=last_scale)
        except (ValueError, RuntimeError, OSError, KeyError, AttributeError) as error:
            raise _damaged(folder, str(error)) from error

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        """Return the k best rows of each query.

        Raises:
            RequestError: queries of another width.
            ArtifactError: the table turns out to be damaged.
        """
        scaled = scaled_queries(queries, dim=self.dim, k=k, last_scale=self._last_scale)
        hits = Hits.none(len(queries), k=k)
        for number, query in enumerate(scaled):
            try:
                found = self._best(query, k, allowed)
            except (ValueError, RuntimeError, OSError) as error:
                raise _damaged(Path(self._table.name), str(error)) from error
            hits.put(number, found)
        return hits

    def _best(self, query: Vectors, k: int, allowed: Mask | None) -> Hits:
        """Return the best allowed rows of one query, shape (at most k,)."""
        count = len(self) if allowed is None else int(allowed.sum())
        wanted = min(k, count)
        if wanted == 0:
            return _NOTHING
        if allowed is not None and count <= _LISTED:
            listed = ",".join(map(str, np.flatnonzero(allowed)))
            return self._ask(query, limit=wanted, where=f"{ROW} IN ({listed})", exact=True)
        # A longer list takes longer to read than to search: take more, and throw away what is not allowed.
        reach = wanted if allowed is None else min(len(self), 2 * wanted * len(self) // count)
        found = only(allowed, self._ask(query, limit=reach))
        if len(found.rows) < wanted:
            found = only(allowed, self._ask(query, limit=len(self), exact=True))
        return Hits(found.rows[:wanted], found.scores[:wanted])

    def _ask(self, query: Vectors, *, limit: int, where: str = "", exact: bool = False) -> Hits:
        """Return at most ``limit`` rows of one query, best first; an index may find fewer unless ``exact``."""
        asked = self._table.search(query, vector_column_name=VECTOR).distance_type(_METRIC).limit(limit)
        # The least and the most lists at once: with no upper bound LanceDB reads them all.
        asked = asked.select([ROW, _DISTANCE]).nprobes(_probes(len(self)))
        if where:
            asked = asked.where(where, prefilter=True)
        if exact:
            asked = asked.bypass_vector_index()
        found = asked.to_arrow()
        rows = found.column(ROW).to_numpy().astype(np.int64)
        # LanceDB's distance of inner products is one less the product.
        return Hits(rows, (1 - found.column(_DISTANCE).to_numpy()).astype(np.float32))


_NOTHING = Hits(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


def check_columns(names: list[str]) -> None:
    """Refuse names that LanceDB cannot hold or keeps for itself.

    Raises:
        RequestError: there is such a name.
    """
    bad = [name for name in names if "." in name or name.startswith("_") or name in {ROW, VECTOR}]
    if bad:
        raise RequestError(
            f"columns without a dot or a leading underscore, none called {ROW} or {VECTOR}",
            got=", ".join(map(repr, bad)),
            where="--store lancedb",
            fix="Rename them in the feed's table of items, or take --store faiss.",
        )


def _partitions(count: int) -> int:
    return max(1, math.isqrt(count))


def _probes(count: int) -> int:
    return min(_partitions(count), max(_LEAST_PROBES, _partitions(count) // 8))


def _damaged(where: Path, got: str) -> ArtifactError:
    fix = "Make it again: mmrec index EXPORT --store lancedb."
    return ArtifactError("a whole LanceDB table", got=got[:200], where=str(where), fix=fix)
