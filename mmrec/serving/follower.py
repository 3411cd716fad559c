"""Other processes' writes, looked for a few times a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

SECONDS = 0.25
"""Between two looks."""
_LOG = logging.getLogger("mmrec.serving")


class Follower:
    """A thread that calls watchers in turn, for as long as the process serves.

    A watcher that fails is called again like any other; its failure is logged once until it works again.

    Args:
        watchers: each looks for one kind of change and does what it asks for.
        seconds: between two rounds.
    """

    def __init__(self, *watchers: Callable[[], None], seconds: float = SECONDS) -> None:
        self._watchers, self._seconds = list(watchers), seconds
        self._failing: set[Callable[[], None]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mmrec-follower", daemon=True)
        self._thread.start()

    def add(self, watcher: Callable[[], None]) -> None:
        """Call a further watcher from the next round on."""
        self._watchers.append(watcher)

    def close(self) -> None:
        """Finish the round, then stop."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(self._seconds):
            for watcher in tuple(self._watchers):
                self._call(watcher)

    def _call(self, watcher: Callable[[], None]) -> None:
        try:
            watcher()
        except Exception as error:  # a store that is away for a while, ...
            if watcher not in self._failing:
                self._failing.add(watcher)
                _LOG.error("changes cannot be followed: %s: %s", type(error).__name__, error)
            return
        if watcher in self._failing:
            self._failing.discard(watcher)
            _LOG.warning("changes are followed again")
