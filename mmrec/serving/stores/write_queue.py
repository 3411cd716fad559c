"""Writes on their way to the one thread that makes them."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

from mmrec.serving.stores.store import StoreFailureError

WAITING, TOGETHER = 4096, 256
"""Entries that may wait, and those that are taken at once."""
LINGER = 0.05
"""Seconds."""
_Entry = TypeVar("_Entry")


class WriteQueue(Generic[_Entry]):
    """Entries in the order in which they came, taken many at a time.

    Somebody waits for an entry that is in a hurry; another one is taken with the next of these, or a moment later: what
    every answer shows is no reason to wake a thread and to commit for each.

    Args:
        linger: how long an entry without hurry may wait, in seconds.
    """

    def __init__(self, *, linger: float = LINGER) -> None:
        self._linger = linger
        self._entries: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._hurry = self._closed = False

    def put(self, entry: _Entry, *, hurry: bool) -> None:
        """Add an entry.

        Raises:
            StoreFailureError: it is closed, or too many wait for an entry that nobody waits for.
        """
        with self._changed:
            if self._closed:
                raise StoreFailureError("the store is closed")
            if len(self._entries) >= WAITING and not hurry:
                raise StoreFailureError(f"{WAITING} writes wait already")
            self._entries.append(entry)
            self._hurry |= hurry or len(self._entries) >= TOGETHER
            if self._hurry or len(self._entries) == 1:
                self._changed.notify()

    def take(self) -> list[_Entry]:
        """Wait for entries and return them; none when there will be no more."""
        with self._changed:
            while not (self._entries or self._closed):
                self._changed.wait()
            until = time.monotonic() + self._linger
            while not (self._hurry or self._closed) and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            taken = [self._entries.popleft() for _ in range(min(len(self._entries), TOGETHER))]
            self._hurry = bool(self._entries)
            return taken

    def close(self) -> None:
        """Take no more; what is there is taken still."""
        with self._changed:
            self._closed = True
            self._changed.notify()
