"""What was shown, on its way to a store: answers do not wait for it, but later feedback does."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from mmrec.serving.stores.store import Served, StoreFailureError

_WAITING, _TOGETHER = 4096, 256
_LOG = logging.getLogger("mmrec.serving")


class ServedQueue:
    """A thread that keeps answers, many at a time.

    Args:
        keep: makes some of them durable.
    """

    def __init__(self, keep: Callable[[Sequence[Served]], None]) -> None:
        self._keep = keep
        self._queue: queue.Queue[Served | threading.Event | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name="mmrec-served", daemon=True)
        self._thread.start()

    def put(self, served: Served) -> None:
        """Have an answer kept.

        Raises:
            StoreFailureError: too many wait, or it is closed.
        """
        if not self._thread.is_alive():
            raise StoreFailureError("the store is closed")
        try:
            self._queue.put_nowait(served)
        except queue.Full:
            raise StoreFailureError(f"{_WAITING} answers wait to be kept already") from None

    def flush(self) -> None:
        """Return when what was put before is durable, or could not be made so.

        Raises:
            StoreFailureError: it is closed.
        """
        if not self._thread.is_alive():
            raise StoreFailureError("the store is closed")
        reached = threading.Event()
        self._queue.put(reached)
        reached.wait()

    def close(self) -> None:
        """Keep what waits, then stop."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        open_ = True
        while open_:
            entries = [self._queue.get()]
            while len(entries) < _TOGETHER:
                try:
                    entries.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            open_ = None not in entries
            try:
                if answers := [entry for entry in entries if isinstance(entry, Served)]:
                    self._keep(answers)
            except Exception as error:  # whatever a store raises, the thread must live
                _LOG.error("%d answers could not be kept: %s", len(answers), error)
            for entry in entries:
                if isinstance(entry, threading.Event):
                    entry.set()
