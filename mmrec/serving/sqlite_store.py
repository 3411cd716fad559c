"""The embedded store: one SQLite file in WAL mode, synced at every commit; writes of many threads share a commit."""

from __future__ import annotations

import json
import queue
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from mmrec.errors import ArtifactError, ConfigError
from mmrec.serving.store import Event, Served, StoredPost, StoreFailureError

SCHEMA_VERSION = 1
DATABASE, LOCK = "mmrec.sqlite", "lock.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value BLOB NOT NULL);
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
CREATE TABLE IF NOT EXISTS served (
    request_id TEXT PRIMARY KEY, route TEXT NOT NULL, user_id TEXT, timestamp INTEGER NOT NULL, model_hash TEXT NOT NULL,
    shown TEXT NOT NULL
);
"""
_POST = "item_id, caption, attributes, content_hash, model_hash, present, vector, published_at, deleted"
_EVENT = "user_id, item_id, timestamp, event, value, chosen, request_id"
_WAITING, _TOGETHER = 4096, 256

_Statement = tuple[str, Sequence[object]]


class _Write:
    """Statements that are made together or not at all."""

    def __init__(self, statements: Sequence[_Statement]) -> None:
        self.statements, self.done = statements, Future[None]()


class SqliteStore:
    """Posts, feedback and what was served, in a folder that one process at a time uses.

    Args:
        folder: where; made if it is not there.

    Raises:
        ArtifactError: a file that is damaged, or of another version.
        ConfigError: another process uses the folder.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / DATABASE
        self._lock_file = _hold(folder)
        try:
            self._writer, self._reader = self._connect(), self._connect()
            self._secret = self._prepare()
        except sqlite3.DatabaseError as error:
            self._lock_file.close()
            raise ArtifactError(
                "a store of mmrec serve",
                got=str(error),
                where=str(self._path),
                fix="Restore it, or give another --data.",
            ) from error
        self._reading = threading.Lock()
        self._queue: queue.Queue[_Write | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write, name="mmrec-store", daemon=True)
        self._thread.start()

    def put_post(self, post: StoredPost, pictures: Sequence[bytes]) -> None:
        """Keep a post and its encoded pictures in place of an earlier one of that id."""
        values = (
            post.item_id,
            post.caption,
            json.dumps(dict(post.attributes), ensure_ascii=False, allow_nan=False),
            post.content_hash,
            post.model_hash,
            " ".join(post.present),
            np.ascontiguousarray(post.vector, dtype="<f4").tobytes(),
            post.published_at,
            int(post.deleted),
        )
        statements: list[_Statement] = [
            ("DELETE FROM pictures WHERE item_id = ?", (post.item_id,)),
            (f"INSERT OR REPLACE INTO posts ({_POST}) VALUES ({_marks(values)})", values),
        ]
        statements += [
            ("INSERT INTO pictures (item_id, position, data) VALUES (?, ?, ?)", (post.item_id, position, data))
            for position, data in enumerate(pictures)
        ]
        self._submit(statements).result()

    def posts(self) -> Iterator[StoredPost]:
        """Yield every post, the deleted among them, in the order they were last put."""
        for row in self._read(f"SELECT {_POST} FROM posts ORDER BY number"):
            item_id, caption, attributes, content, model, present, vector, published_at, deleted = row
            yield StoredPost(
                item_id=str(item_id),
                caption=None if caption is None else str(caption),
                attributes=json.loads(str(attributes)),
                content_hash=str(content),
                model_hash=str(model),
                present=tuple(str(present).split()),
                vector=np.frombuffer(_bytes(vector), dtype="<f4").astype(np.float32),
                published_at=int(str(published_at)),
                deleted=bool(deleted),
            )

    def pictures(self, item_id: str) -> tuple[bytes, ...]:
        """Return the pictures of a post."""
        rows = self._read("SELECT data FROM pictures WHERE item_id = ? ORDER BY position", item_id)
        return tuple(_bytes(row[0]) for row in rows)

    def add_feedback(self, events: Sequence[Event]) -> None:
        """Append events, all or none of them."""
        self._submit(
            [(f"INSERT INTO feedback ({_EVENT}) VALUES ({_marks(_event(e))})", _event(e)) for e in events]
        ).result()

    def feedback_of(self, user_id: str, *, limit: int) -> list[Event]:
        """Return the last events of a user, in the order in which they came."""
        rows = self._read(
            f"SELECT {_EVENT} FROM feedback WHERE user_id = ? ORDER BY number DESC LIMIT ?", user_id, limit
        )
        return [
            Event(
                user_id=str(user),
                item_id=str(item_id),
                timestamp=int(str(timestamp)),
                event=None if event is None else str(event),
                value=None if value is None else float(str(value)),
                chosen=bool(chosen),
                request_id=None if request_id is None else str(request_id),
            )
            for user, item_id, timestamp, event, value, chosen, request_id in reversed(rows)
        ]

    def log_served(self, served: Served) -> None:
        """Append what was shown; writes are made in the order they were asked for, so it is there before later feedback."""
        shown = json.dumps([list(entry) for entry in served.shown], ensure_ascii=False, allow_nan=False)
        values = (served.request_id, served.route, served.user_id, served.timestamp, served.model_hash, shown)
        names = "request_id, route, user_id, timestamp, model_hash, shown"
        self._submit([(f"INSERT OR REPLACE INTO served ({names}) VALUES ({_marks(values)})", values)])

    def served(self, request_id: str) -> Served | None:
        """Return what an answer showed."""
        names = "request_id, route, user_id, timestamp, model_hash, shown"
        for found, route, user, timestamp, model, shown in self._read(
            f"SELECT {names} FROM served WHERE request_id = ?", request_id
        ):
            entries = [(str(item_id), score) for item_id, score in json.loads(str(shown))]
            who = None if user is None else str(user)
            return Served(str(found), str(route), who, int(str(timestamp)), str(model), entries)
        return None

    def secret(self) -> bytes:
        """Return 32 random bytes that stay the same as long as the store does."""
        return self._secret

    def close(self) -> None:
        """Make the writes that wait, and let go of the files."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        for connection in (self._reader, self._writer, self._lock_file):
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _prepare(self) -> bytes:
        """Make the tables where there are none, and return the secret."""
        self._writer.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        insert = "INSERT OR IGNORE INTO about (name, value) VALUES (?, ?)"
        self._writer.execute(insert, ("schema_version", str(SCHEMA_VERSION).encode()))
        self._writer.execute(insert, ("secret", secrets.token_bytes(32)))
        about = {str(name): _bytes(value) for name, value in self._writer.execute("SELECT name, value FROM about")}
        if about["schema_version"] != str(SCHEMA_VERSION).encode():
            raise ArtifactError(
                f"a store of version {SCHEMA_VERSION}", got=about["schema_version"].decode(), where=str(self._path)
            )
        return about["secret"]

    def _read(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        try:
            with self._reading:
                return self._reader.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreFailureError(str(error)) from error

    def _submit(self, statements: Sequence[_Statement]) -> Future[None]:
        if not self._thread.is_alive():
            raise StoreFailureError("the store is closed")
        write = _Write(statements)
        self._queue.put(write)
        return write.done

    def _write(self) -> None:
        """Make writes in the order in which they come; those that wait share one commit and so one sync."""
        open_ = True
        while open_:
            first = self._queue.get()
            writes = [] if first is None else [first]
            open_ = first is not None
            while open_ and len(writes) < _TOGETHER:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    open_ = False
                else:
                    writes.append(more)
            self._commit(writes)

    def _commit(self, writes: Sequence[_Write]) -> None:
        """Make some writes in one transaction; where that fails, each in its own, so that a bad one spoils no other."""
        if not writes:
            return
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for write in writes:
                for statement, values in write.statements:
                    self._writer.execute(statement, values)
            self._writer.execute("COMMIT")
        except Exception as error:  # a full disk, a value that SQLite cannot hold, ...
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            if len(writes) == 1:
                failure = StoreFailureError(f"{type(error).__name__}: {error}")
                writes[0].done.set_exception(failure)
                return
            for write in writes:
                self._commit([write])
            return
        for write in writes:
            write.done.set_result(None)


def _hold(folder: Path) -> sqlite3.Connection:
    """Lock a folder for as long as this process lives; the system lets go of it however the process ends.

    Raises:
        ConfigError: another process holds it.
    """
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


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _event(event: Event) -> tuple[object, ...]:
    return (
        event.user_id,
        event.item_id,
        event.timestamp,
        event.event,
        event.value,
        int(event.chosen),
        event.request_id,
    )


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value
