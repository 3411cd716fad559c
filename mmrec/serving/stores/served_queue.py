"""What was shown, on its way to a store: answers do not wait for it, but later feedback does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from mmrec.serving.stores.store import Served
from mmrec.serving.stores.write_queue import WriteQueue

_LOG = logging.getLogger("mmrec.serving")


class ServedQueue:
    """A thread that keeps answers, many at a time.

    Args:
        keep: makes some of them durable.
    """

    def __init__(self, keep: Callable[[Sequence[Served]], None]) -> None:
        self._keep = keep
        self._queue: WriteQueue[Served | threading.Event] = WriteQueue()
        self._thread = threading.Thread(target=self._work, name="mmrec-served", daemon=True)
        self._thread.start()

    def put(self, served: Served) -> None:
        """Have an answer kept.

        Raises:
            StoreFailureError: too many wait, or it is closed.
        """
        self._queue.put(served, hurry=False)

    def flush(self) -> None:
        """Return when what was put before is durable, or could not be made so.

        Raises:
            StoreFailureError: it is closed.
        """
        reached = threading.Event()
        self._queue.put(reached, hurry=True)
        reached.wait()

    def close(self) -> None:
        """Keep what waits, then stop."""
        self._queue.close()
        self._thread.join()

    def _work(self) -> None:
        while entries := self._queue.take():
            answers = [entry for entry in entries if isinstance(entry, Served)]
            try:
                if answers:
                    self._keep(answers)
            except Exception as error:  # whatever a store raises, the thread must live
                _LOG.error("%d answers could not be kept: %s", len(answers), error)
            for entry in entries:
                if isinstance(entry, threading.Event):
                    entry.set()
