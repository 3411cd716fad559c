"""Vectors in a table of Postgres, found through pgvector's HNSW index of inner products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from mmrec.errors import ArtifactError, MissingExtraError
from mmrec.search.index import Hits, Mask, VectorRows, Vectors, scaled_queries
from mmrec.search.postgres import Connection, Pool, first_line

try:
    import psycopg
    from pgvector import Vector
except ImportError as error:
    raise MissingExtraError("psycopg", "postgres") from error

SCHEMA = "mmrec_index"
WIDEST_INDEXED = 2000
"""Widest vector that pgvector indexes; wider ones are searched exactly."""
_EFFORT, _MOST_EFFORT = 128, 1000
_LISTED = 10_000
"""Most allowed rows that are sooner looked at one by one than sought in the graph."""
_ROWS = 1 << 14
_ALL_TUPLES, _MEMORY = 2_147_483_647, 1000


class PgVectorStore:
    """A table of vectors, whole or not there: it is made in one transaction.

    Args:
        pool: connections to the database.
        name: of the table.
        count: vectors in it.
        dim: their width.
        last_scale: factor by which the last coordinate is smaller in the table; queries make up for it.
    """

    def __init__(self, pool: Pool, name: str, count: int, dim: int, *, last_scale: float = 1.0) -> None:
        self._pool, self._table, self._last_scale = pool, f"{SCHEMA}.{name}", last_scale
        self._count, self._dim = count, dim

    @property
    def kind(self) -> str:
        """What it searches with."""
        return "postgres"

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._dim

    def __len__(self) -> int:
        return self._count

    @classmethod
    def load(cls, pool: Pool, name: str, vectors: VectorRows, *, last_scale: float = 1.0) -> tuple[PgVectorStore, bool]:
        """Open the table of some vectors; make it where there is none, or one of other size.

        Args:
            pool: connections to the database.
            name: tells these vectors from all others, such as their hash.
            vectors: shape (vectors, dim).
            last_scale: factor for the last coordinate, for an index that a large bias would mislead.

        Returns:
            The table, and whether it had to be made.

        Raises:
            ArtifactError: Postgres refuses it.
        """
        assert name.isidentifier()
        count, dim = vectors.shape
        table = f"{SCHEMA}.{name}"
        with _calling(pool) as connection, connection.transaction():
            # Of several processes one makes it, the others wait.
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (table,))
            made = not _is_whole(connection, table, count, dim)
            if made:
                _make(connection, table, vectors, last_scale)
        return cls(pool, name, count, dim, last_scale=last_scale), made

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        """Return the k best rows of each query.

        Raises:
            RequestError: queries of another width.
            ArtifactError: Postgres does not answer.
        """
        scaled = scaled_queries(queries, dim=self.dim, k=k, last_scale=self._last_scale)
        hits = Hits.none(len(queries), k=k)
        with _calling(self._pool) as connection, connection.transaction():
            # The graph is walked until enough rows are allowed, however many are not.
            for setting, value in (
                ("hnsw.iterative_scan", "strict_order"),
                ("hnsw.max_scan_tuples", _ALL_TUPLES),
                ("hnsw.scan_mem_multiplier", _MEMORY),
                ("hnsw.ef_search", min(_MOST_EFFORT, max(_EFFORT, 2 * k))),
            ):
                connection.execute(f"SET LOCAL {setting} = {value}")
            for number, query in enumerate(scaled):
                hits.put(number, self._best(connection, Vector(query), k, allowed))
        return hits

    def _best(self, connection: Connection, query: Vector, k: int, allowed: Mask | None) -> Hits:
        count = len(self) if allowed is None else int(allowed.sum())
        wanted = min(k, count)
        if wanted == 0:
            return Hits(np.zeros(0, np.int64), np.zeros(0, np.float32))
        order = f"SELECT row, vector <#> %(query)s AS distance FROM {self._table}"
        values: dict[str, object] = {"query": query, "wanted": wanted}
        if allowed is not None and count <= _LISTED:
            order = (
                f"WITH listed AS MATERIALIZED (SELECT row, vector FROM {self._table} WHERE row = ANY(%(rows)s))"
                " SELECT row, vector <#> %(query)s AS distance FROM listed"
            )
            values["rows"] = np.flatnonzero(allowed).tolist()
        elif allowed is not None:
            order += " WHERE get_bit(%(bits)s, row) = 1"
            values["bits"] = np.packbits(allowed, bitorder="little").tobytes()
        order += " ORDER BY distance LIMIT %(wanted)s"
        found = connection.execute(order, values, binary=True).fetchall()
        if len(found) < wanted:
            # The graph does not reach every vector; the table does.
            connection.execute("SET LOCAL enable_indexscan = off")
            found = connection.execute(order, values, binary=True).fetchall()
            connection.execute("SET LOCAL enable_indexscan = on")
        # pgvector's distance is the negative product.
        return Hits(np.array([row for row, _ in found]), -np.array([distance for _, distance in found], np.float32))


def _is_whole(connection: Connection, table: str, count: int, dim: int) -> bool:
    """Return whether a table of so many vectors of a width is there."""
    if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
        return False
    query = f"SELECT count(*), coalesce(min(vector_dims(vector)), 0), coalesce(max(row), -1) FROM {table}"
    return connection.execute(query).fetchone() == (count, dim, count - 1)


def _make(connection: Connection, table: str, vectors: VectorRows, last_scale: float) -> None:
    count, dim = vectors.shape
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    connection.execute(f"DROP TABLE IF EXISTS {table}")
    connection.execute(f"CREATE TABLE {table} (row integer PRIMARY KEY, vector vector({dim}) NOT NULL)")
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} (row, vector) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector"])
        for start in range(0, count, _ROWS):
            piece = np.array(vectors[start : start + _ROWS], dtype=np.float32)
            piece[:, -1] *= last_scale
            for row, vector in enumerate(piece, start):
                copy.write_row((row, Vector(vector)))
    if dim <= WIDEST_INDEXED:
        options = "m = 32, ef_construction = 200"
        connection.execute(f"CREATE INDEX ON {table} USING hnsw (vector vector_ip_ops) WITH ({options})")
    connection.execute(f"ANALYZE {table}")


@contextmanager
def _calling(pool: Pool) -> Iterator[Connection]:
    try:
        with pool.connection() as connection:
            yield connection
    except psycopg.Error as error:
        raise ArtifactError(
            "a Postgres that keeps and searches vectors", got=first_line(error), where=SCHEMA, fix="See its log."
        ) from error
