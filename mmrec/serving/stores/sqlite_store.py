"""The embedded store: one SQLite file in WAL mode, synced at every commit."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mmrec.errors import ArtifactError, ConfigError
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
from mmrec.serving.stores.sqlite_writer import SqliteWriter, Statement
from mmrec.serving.stores.store import Event, Served, StoredPost, StoreFailureError

SCHEMA_VERSION = 2
DATABASE, LOCK = "mmrec.sqlite", "lock.sqlite"
_SERVED_TABLE = """
CREATE TABLE IF NOT EXISTS served (
    number INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL UNIQUE, route TEXT NOT NULL, user_id TEXT,
    timestamp INTEGER NOT NULL, model_hash TEXT NOT NULL, shown TEXT NOT NULL
);
"""
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS posts (
    number INTEGER PRIMARY KEY AUTOINCREMENT, item_id TEXT NOT NULL UNIQUE, caption TEXT, attributes TEXT NOT NULL,
    content_hash TEXT NOT NULL, model_hash TEXT NOT NULL, present TEXT NOT NULL, vector BLOB NOT NULL,
    published_at INTEGER NOT NULL, deleted INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS pictures (
    item_id TEXT NOT NULL, position INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (item_id, position)
);
CREATE TABLE IF NOT EXISTS feedback (
    number INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, item_id TEXT NOT NULL, timestamp INTEGER NOT NULL,
    event TEXT, value REAL, chosen INTEGER NOT NULL, request_id TEXT
);
CREATE INDEX IF NOT EXISTS feedback_of_user ON feedback (user_id, number);
{_SERVED_TABLE}
"""
_FROM_VERSION_1 = f"""
ALTER TABLE served RENAME TO served_before;
{_SERVED_TABLE}
INSERT INTO served ({SERVED}) SELECT {SERVED} FROM served_before ORDER BY rowid;
DROP TABLE served_before;
UPDATE about SET value = x'32' WHERE name = 'schema_version';
"""
"""A served log without numbers; x'32' is the text 2."""
_BUSY_SECONDS = 30
_PAGE = 1000


class SqliteStore:
    """Posts, feedback and what was served, in a folder that the processes of one service use.

    Args:
        folder: where; made if it is not there.
        hold: keep every other service out of the folder; False in a process that shares it with the one that does.

    Raises:
        ArtifactError: a file that is damaged, or of another version.
        ConfigError: another service uses the folder.
    """

    def __init__(self, folder: Path, *, hold: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / DATABASE
        self._lock_file = hold_folder(folder) if hold else None
        with ExitStack() as undo:
            if self._lock_file is not None:
                undo.callback(self._lock_file.close)
            writer, self._reader, self._secret = self._open()
            undo.pop_all()
        self._reading = threading.Lock()
        self._writer = SqliteWriter(writer)

    def put_post(self, post: StoredPost, pictures: Sequence[bytes]) -> int:
        """Keep a post and its encoded pictures in place of an earlier one of that id; return its number."""
        values = post_values(post, _blob(post))
        statements: list[Statement] = [("DELETE FROM pictures WHERE item_id = ?", (post.item_id,))]
        statements += [
            ("INSERT INTO pictures (item_id, position, data) VALUES (?, ?, ?)", (post.item_id, position, data))
            for position, data in enumerate(pictures)
        ]
        statements.append((f"INSERT OR REPLACE INTO posts ({POST}) VALUES ({_marks(values)})", values))
        return self._writer.submit(statements).result()

    def set_vector(self, number: int, post: StoredPost) -> None:
        """Keep vector, model and modalities of a post that has a number."""
        values = (post.model_hash, " ".join(post.present), _blob(post), number)
        update = "UPDATE posts SET model_hash = ?, present = ?, vector = ? WHERE number = ?"
        self._writer.submit([(update, values)]).result()

    def posts(self) -> Iterator[StoredPost]:
        """Yield every post, the deleted among them, in the order they were last put."""
        return (post for _, post in self.changes(0))

    def changes(self, after: int) -> Iterator[tuple[int, StoredPost]]:
        """Yield number and post of what was put after a number, in the order of the numbers."""
        statement = f"SELECT number, {POST} FROM posts WHERE number > ? ORDER BY number LIMIT {_PAGE}"
        while rows := self._read(statement, after):
            for after, *row in rows:
                yield after, post_of(row, np.frombuffer(row[VECTOR], dtype="<f4").astype(np.float32))

    def pictures(self, item_id: str) -> tuple[bytes, ...]:
        """Return the pictures of a post."""
        rows = self._read("SELECT data FROM pictures WHERE item_id = ? ORDER BY position", item_id)
        return tuple(data for (data,) in rows)

    def add_feedback(self, events: Sequence[Event]) -> None:
        """Append events, all or none of them."""
        rows = [event_values(event) for event in events]
        self._writer.submit([(f"INSERT INTO feedback ({EVENT}) VALUES ({_marks(row)})", row) for row in rows]).result()

    def feedback_of(self, user_id: str, *, limit: int) -> list[Event]:
        """Return the last events of a user, in the order in which they came."""
        rows = self._read(
            f"SELECT {EVENT} FROM feedback WHERE user_id = ? ORDER BY number DESC LIMIT ?", user_id, limit
        )
        return [event_of(row) for row in reversed(rows)]

    def feedback_log(self, after: int, *, limit: int) -> list[tuple[int, Event]]:
        """Return number and event of the first feedback after a number."""
        rows = self._read(
            f"SELECT number, {EVENT} FROM feedback WHERE number > ? ORDER BY number LIMIT ?", after, limit
        )
        return [(number, event_of(row)) for number, *row in rows]

    def log_served(self, served: Served) -> None:
        """Append what was shown; writes are made in the order they were asked for, so it is there before later feedback."""
        values = served_values(served)
        insert = f"INSERT OR REPLACE INTO served ({SERVED}) VALUES ({_marks(values)})"
        self._writer.submit([(insert, values)], hurry=False)

    def served(self, request_id: str) -> Served | None:
        """Return what an answer showed."""
        self._writer.flush()
        rows = self._read(f"SELECT {SERVED} FROM served WHERE request_id = ?", request_id)
        return served_of(rows[0]) if rows else None

    def served_log(self, after: int, *, limit: int) -> list[tuple[int, Served]]:
        """Return number and answer of the first answers after a number."""
        self._writer.flush()
        rows = self._read(f"SELECT number, {SERVED} FROM served WHERE number > ? ORDER BY number LIMIT ?", after, limit)
        return [(number, served_of(row)) for number, *row in rows]

    def setting(self, name: str) -> str | None:
        """Return what was last set under a name."""
        rows = self._read("SELECT value FROM settings WHERE name = ?", name)
        return str(rows[0][0]) if rows else None

    def set_setting(self, name: str, value: str) -> None:
        """Keep a value under a name."""
        self._writer.submit([("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (name, value))]).result()

    def secret(self) -> bytes:
        """Return 32 random bytes that stay the same as long as the store does."""
        return self._secret

    def close(self) -> None:
        """Make the writes that wait, and let go of the files."""
        self._writer.close()
        self._reader.close()
        if self._lock_file is not None:
            self._lock_file.close()

    def _open(self) -> tuple[sqlite3.Connection, sqlite3.Connection, bytes]:
        """Return a connection to write with, one to read with, and the secret.

        Raises:
            ArtifactError: a file that is damaged, or of another version.
        """
        try:
            writer, reader = self._connect(), self._connect()
            return writer, reader, _prepare(writer, self._path)
        except sqlite3.DatabaseError as error:
            raise ArtifactError(
                "a store of mmrec serve",
                got=str(error),
                where=str(self._path),
                fix="Restore it, or give another --data.",
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _read(self, statement: str, *values: object) -> list[Row]:
        try:
            with self._reading:
                return self._reader.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreFailureError(str(error)) from error


def hold_folder(folder: Path) -> sqlite3.Connection:
    """Lock a folder for as long as this process lives; the system lets go of it however the process ends.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(folder / LOCK, isolation_level=None, timeout=0, check_same_thread=False)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        connection.close()
        raise ConfigError(
            "a folder that no other service uses",
            got=str(error),
            where=str(folder),
            fix="Stop the other one, or give another folder: --data.",
        ) from error
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> bytes:
    """Make the tables where there are none, bring earlier ones up to date, and return the secret.

    Raises:
        ArtifactError: tables of another version.
    """
    connection.execute("BEGIN IMMEDIATE")
    about: dict[str, bytes] = {}
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone():
        about = dict(connection.execute("SELECT name, value FROM about").fetchall())
    version = int(about.get("schema_version", str(SCHEMA_VERSION)))
    if version == 1:
        _run(connection, _FROM_VERSION_1)
    elif version != SCHEMA_VERSION:
        connection.execute("ROLLBACK")
        raise ArtifactError(f"a store of version {SCHEMA_VERSION}", got=str(version), where=str(path))
    _run(connection, _SCHEMA)
    secret = about.get("secret", secrets.token_bytes(32))
    insert = "INSERT OR IGNORE INTO about (name, value) VALUES (?, ?)"
    connection.executemany(insert, [("schema_version", str(SCHEMA_VERSION).encode()), ("secret", secret)])
    connection.execute("COMMIT")
    return secret


def _run(connection: sqlite3.Connection, script: str) -> None:
    """Run statements within the transaction that is open, which ``executescript`` would commit."""
    for statement in filter(str.strip, script.split(";")):
        connection.execute(statement)


def _blob(post: StoredPost) -> bytes:
    return np.ascontiguousarray(post.vector, dtype="<f4").tobytes()


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
