"""The thread that writes to an SQLite file: writes of many threads share a commit, and so a sync."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from mmrec.serving.stores.store import StoreFailureError
from mmrec.serving.stores.write_queue import WriteQueue

Statement = tuple[str, Sequence[object]]


class _Write:
    """Statements that are made together or not at all."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements, self.done = statements, Future[int]()


class SqliteWriter:
    """Makes writes in the order in which they are asked for.

    Args:
        connection: to write with; closed by :meth:`close`.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._queue: WriteQueue[_Write] = WriteQueue()
        self._thread = threading.Thread(target=self._write, name="mmrec-store", daemon=True)
        self._thread.start()

    def submit(self, statements: Sequence[Statement], *, hurry: bool = True) -> Future[int]:
        """Return what will hold the row number of the last insertion once the statements are durable.

        Args:
            statements: made together or not at all.
            hurry: whether somebody waits for that.

        Raises:
            StoreFailureError: it is closed, or too many wait already and nobody waits for this.
        """
        write = _Write(statements)
        self._queue.put(write, hurry=hurry)
        return write.done

    def flush(self) -> None:
        """Return when what was submitted before is durable, or could not be made so."""
        self.submit([]).result()

    def close(self) -> None:
        """Make the writes that wait, and let go of the file."""
        self._queue.close()
        self._thread.join()
        self.connection.close()

    def _write(self) -> None:
        while writes := self._queue.take():
            try:
                self._commit(writes)
            except Exception as error:  # not even undone; the thread must live, and nobody wait for ever
                for write in writes:
                    if not write.done.done():
                        write.done.set_exception(StoreFailureError(f"{type(error).__name__}: {error}"))

    def _commit(self, writes: Sequence[_Write]) -> None:
        """Make some writes in one transaction; where that fails, each in its own, so that a bad one spoils no other."""
        numbers = []
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            for write in writes:
                last = None
                for statement, values in write.statements:
                    last = self.connection.execute(statement, values).lastrowid
                numbers.append(last or 0)
            self.connection.execute("COMMIT")
        except Exception as error:  # a full disk, a value that SQLite cannot hold, ...
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            if len(writes) == 1:
                writes[0].done.set_exception(StoreFailureError(f"{type(error).__name__}: {error}"))
                return
            for write in writes:
                self._commit([write])
            return
        for write, number in zip(writes, numbers, strict=True):
            write.done.set_result(number)
