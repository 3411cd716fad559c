"""A store in Postgres: one schema, made on first start, that any number of services share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from mmrec.errors import ArtifactError, ConfigError, MissingExtraError
from mmrec.search.postgres import Connection, Pool, address, first_line, open_pool
from mmrec.serving.stores.rows import (
    EVENT,
    POST,
    SERVED,
    VECTOR,
    Row,
    event_of,
    event_values,
    post_of,
    post_values,
    served_of,
    served_values,
)
from mmrec.serving.stores.served_queue import ServedQueue
from mmrec.serving.stores.store import Event, Served, StoredPost, StoreFailureError

try:
    import psycopg
    from pgvector import Vector
except ImportError as error:
    raise MissingExtraError("psycopg", "postgres") from error

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.about (name text PRIMARY KEY, value bytea NOT NULL);
CREATE TABLE IF NOT EXISTS {schema}.settings (name text PRIMARY KEY, value text NOT NULL);
CREATE SEQUENCE IF NOT EXISTS {schema}.posts_number;
CREATE TABLE IF NOT EXISTS {schema}.posts (
    item_id text PRIMARY KEY, number bigint NOT NULL UNIQUE, caption text, attributes text NOT NULL,
    content_hash text NOT NULL, model_hash text NOT NULL, present text NOT NULL, vector vector,
    published_at bigint NOT NULL, deleted boolean NOT NULL
);
CREATE TABLE IF NOT EXISTS {schema}.pictures (
    item_id text NOT NULL, position integer NOT NULL, data bytea NOT NULL, PRIMARY KEY (item_id, position)
);
CREATE TABLE IF NOT EXISTS {schema}.feedback (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id text NOT NULL, item_id text NOT NULL,
    timestamp bigint NOT NULL, event text, value double precision, chosen boolean NOT NULL, request_id text
);
CREATE INDEX IF NOT EXISTS feedback_of_user ON {schema}.feedback (user_id, number);
CREATE TABLE IF NOT EXISTS {schema}.served (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, request_id text NOT NULL UNIQUE, route text NOT NULL,
    user_id text, timestamp bigint NOT NULL, model_hash text NOT NULL, shown text NOT NULL
);
"""
_PAGE = 1000

_Log = Literal["posts", "feedback", "served"]


class PostgresStore:
    """Posts, feedback and what was served, in a database with pgvector.

    Numbers are drawn before a transaction commits, so a greater one may be seen before a lesser.  Writers therefore share
    a lock for the time of their transaction, and who reads a log after a number waits for those under way.

    Args:
        url: of the database.
        schema: where its tables lie.
        make: make the tables where there are none; else nothing is written.

    Raises:
        ArtifactError: tables of another version, or none where none are to be made.
        ConfigError: no such database, or one without pgvector.
    """

    def __init__(self, url: str, *, schema: str = "mmrec", make: bool = True) -> None:
        assert schema.isidentifier()
        self._schema = schema
        if not make:
            self._check(url)
        self._pool = open_pool(url, make=make)
        try:
            self._secret = self._prepare(address(url), make=make)
        except BaseException:
            self._pool.close()
            raise
        self._served = ServedQueue(self._keep_served)

    @property
    def pool(self) -> Pool:
        """Connections to the database."""
        return self._pool

    def put_post(self, post: StoredPost, pictures: Sequence[bytes]) -> int:
        """Keep a post and its encoded pictures in place of an earlier one of that id; return its number."""
        values = post_values(post, _vector(post))
        names = POST.split(", ")
        changed = ", ".join(f"{name} = excluded.{name}" for name in names if name != "item_id")
        # A second number is drawn where the row was there: then this transaction has the row, and no other is later.
        number = f"nextval('{self._schema}.posts_number')"
        statement = (
            f"INSERT INTO {self._schema}.posts (number, {POST}) VALUES ({number}, {_marks(values)})"
            f" ON CONFLICT (item_id) DO UPDATE SET number = {number}, {changed} RETURNING number"
        )
        insert = f"INSERT INTO {self._schema}.pictures (item_id, position, data) VALUES (%s, %s, %s)"
        with self._writing("posts") as connection:
            row = connection.execute(statement, _clean(values)).fetchone()
            connection.execute(f"DELETE FROM {self._schema}.pictures WHERE item_id = %s", (post.item_id,))
            with connection.cursor() as cursor:
                cursor.executemany(insert, [(post.item_id, place, data) for place, data in enumerate(pictures)])
        assert row is not None
        return int(row[0])

    def set_vector(self, number: int, post: StoredPost) -> None:
        """Keep vector, model and modalities of a post that has a number."""
        update = f"UPDATE {self._schema}.posts SET model_hash = %s, present = %s, vector = %s WHERE number = %s"
        with self._calling() as connection:
            connection.execute(update, (post.model_hash, " ".join(post.present), _vector(post), number))

    def posts(self) -> Iterator[StoredPost]:
        """Yield every post, the deleted among them, in the order they were last put."""
        return (post for _, post in self.changes(0))

    def changes(self, after: int) -> Iterator[tuple[int, StoredPost]]:
        """Yield number and post of what was put after a number, in the order of the numbers."""
        while rows := self._log("posts", POST, after, _PAGE):
            for after, *row in rows:
                vector = row[VECTOR]
                yield after, post_of(row, np.zeros(0, np.float32) if vector is None else vector.to_numpy())

    def pictures(self, item_id: str) -> tuple[bytes, ...]:
        """Return the pictures of a post."""
        statement = f"SELECT data FROM {self._schema}.pictures WHERE item_id = %s ORDER BY position"
        return tuple(data for (data,) in self._read(statement, item_id))

    def add_feedback(self, events: Sequence[Event]) -> None:
        """Append events, all or none of them."""
        self._served.flush()
        rows = [_clean(event_values(event)) for event in events]
        with self._writing("feedback") as connection, connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO {self._schema}.feedback ({EVENT}) VALUES ({_marks(EVENT.split())})", rows)

    def feedback_of(self, user_id: str, *, limit: int) -> list[Event]:
        """Return the last events of a user, in the order in which they came."""
        statement = f"SELECT {EVENT} FROM {self._schema}.feedback WHERE user_id = %s ORDER BY number DESC LIMIT %s"
        return [event_of(row) for row in reversed(self._read(statement, user_id, limit))]

    def feedback_log(self, after: int, *, limit: int) -> list[tuple[int, Event]]:
        """Return number and event of the first feedback after a number."""
        return [(number, event_of(row)) for number, *row in self._log("feedback", EVENT, after, limit)]

    def log_served(self, served: Served) -> None:
        """Append what was shown, soon."""
        self._served.put(served)

    def served(self, request_id: str) -> Served | None:
        """Return what an answer showed."""
        self._served.flush()
        rows = self._read(f"SELECT {SERVED} FROM {self._schema}.served WHERE request_id = %s", request_id)
        return served_of(rows[0]) if rows else None

    def served_log(self, after: int, *, limit: int) -> list[tuple[int, Served]]:
        """Return number and answer of the first answers after a number."""
        self._served.flush()
        return [(number, served_of(row)) for number, *row in self._log("served", SERVED, after, limit)]

    def setting(self, name: str) -> str | None:
        """Return what was last set under a name."""
        rows = self._read(f"SELECT value FROM {self._schema}.settings WHERE name = %s", name)
        return str(rows[0][0]) if rows else None

    def set_setting(self, name: str, value: str) -> None:
        """Keep a value under a name."""
        statement = (
            f"INSERT INTO {self._schema}.settings (name, value) VALUES (%s, %s)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        )
        with self._calling() as connection:
            connection.execute(statement, (name, value))

    def secret(self) -> bytes:
        """Return 32 random bytes that stay the same as long as the store does."""
        return self._secret

    def close(self) -> None:
        """Keep what was served, and let go of the connections."""
        self._served.close()
        self._pool.close()

    def _check(self, url: str) -> None:
        """Look for the store before anything that needs it.

        Raises:
            ArtifactError: it is not there.
            ConfigError: no such database.
        """
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
                row = connection.execute("SELECT to_regclass(%s)", (f"{self._schema}.about",)).fetchone()
        except psycopg.Error as error:
            raise ConfigError(
                "a Postgres database that can be reached", got=first_line(error), where=address(url)
            ) from error
        if row is None or row[0] is None:
            raise ArtifactError(
                "a store of mmrec serve",
                got=f"a database without the table {self._schema}.about",
                where=address(url),
                fix="Give what mmrec serve got as --store.",
            )

    def _prepare(self, where: str, *, make: bool) -> bytes:
        """Make the tables where there are none, and return the secret; processes that start at once take turns.

        Raises:
            ArtifactError: tables of another version.
        """
        insert = f"INSERT INTO {self._schema}.about (name, value) VALUES (%s, %s) ON CONFLICT DO NOTHING"
        with self._calling() as connection, connection.transaction():
            if make:
                connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{self._schema}.schema",))
                connection.execute(_SCHEMA.format(schema=self._schema))
                connection.execute(insert, ("schema_version", str(SCHEMA_VERSION).encode()))
                connection.execute(insert, ("secret", secrets.token_bytes(32)))
            about = dict(connection.execute(f"SELECT name, value FROM {self._schema}.about").fetchall())
            version = bytes(about["schema_version"]).decode()
            if version != str(SCHEMA_VERSION):
                raise ArtifactError(f"a store of version {SCHEMA_VERSION}", got=version, where=where)
            return bytes(about["secret"])

    def _keep_served(self, answers: Sequence[Served]) -> None:
        statement = (
            f"INSERT INTO {self._schema}.served ({SERVED}) VALUES ({_marks(SERVED.split())})"
            " ON CONFLICT (request_id) DO NOTHING"
        )
        with self._writing("served") as connection, connection.cursor() as cursor:
            cursor.executemany(statement, [_clean(served_values(served)) for served in answers])

    def _log(self, table: _Log, columns: str, after: int, limit: int) -> Sequence[Row]:
        """Return number and columns of the first rows of a table after a number, none of which can get company."""
        if not self._read(f"SELECT 1 FROM {self._schema}.{table} WHERE number > %s LIMIT 1", after):
            return ()
        statement = f"SELECT number, {columns} FROM {self._schema}.{table} WHERE number > %s ORDER BY number LIMIT %s"
        with self._calling() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{self._schema}.{table}",))
            return connection.cursor(binary=True).execute(statement, (after, limit)).fetchall()

    def _read(self, statement: str, *values: object) -> Sequence[Row]:
        with self._calling() as connection:
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def _writing(self, table: _Log) -> Iterator[Connection]:
        """Open a transaction that adds to a table, and commit it at the end."""
        with self._calling() as connection, connection.transaction():
            key = f"{self._schema}.{table}"
            connection.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))", (key,))
            yield connection

    @contextmanager
    def _calling(self) -> Iterator[Connection]:
        """Lend a connection.

        Raises:
            StoreFailureError: whatever Postgres or the way to it refuses.
        """
        try:
            with self._pool.connection() as connection:
                yield connection
        except psycopg.Error as error:  # a pool that is closed, or gets no connection, among them
            raise StoreFailureError(first_line(error)) from error


def _vector(post: StoredPost) -> Vector | None:
    return Vector(post.vector) if len(post.vector) else None


def _marks(values: Sequence[object]) -> str:
    return ", ".join(["%s"] * len(values))


def _clean(values: Sequence[object]) -> Sequence[object]:
    """Return values without the one character that Postgres has no place for."""
    return [value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value for value in values]
