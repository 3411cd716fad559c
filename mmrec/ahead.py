"""Doing ahead, in a thread, what will be wanted soon."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(entries: Iterator[T], depth: int, *, name: str) -> Iterator[T]:
    """Take entries in a thread, at most ``depth`` ahead of whoever wants them; an error there is raised here.

    Args:
        entries: made by the thread alone.
        depth: most entries that wait, at least 1.
        name: of the thread.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(entry: T | _End) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for entry in entries:
                if not put(entry):
                    return
        except BaseException as error:  # noqa: BLE001  (handed over, raised by the consumer)
            put(_End(error))
            return
        put(_End(None))

    threading.Thread(target=work, daemon=True, name=name).start()
    try:
        while not isinstance(entry := ready.get(), _End):
            yield entry
        if entry.error is not None:
            raise entry.error
    finally:
        stop.set()


class _End:
    """No further entry, because there is none or because of an error."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
