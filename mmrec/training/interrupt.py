"""Ctrl-C that waits for the end of a batch, so that the checkpoint it leaves can be continued exactly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interrupt:
    """Whether a stretch that must not be cut is running, and whether Ctrl-C came during it.

    Attributes:
        held: True inside :meth:`hold`; still True after an exception has left the stretch half-done.
        pending: Ctrl-C came and waits.
        agree: whether it came to any of several processes; they stop together, after the same stretch, or those that
            go on wait for the others for ever.  None for one process.
    """

    held: bool = False
    pending: bool = False
    agree: Callable[[bool], bool] | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Run a stretch to its end even if Ctrl-C comes; then raise KeyboardInterrupt.

        A second Ctrl-C cuts it, unless there are several processes: launchers send it on to those that had it already.
        """
        self.held = True
        yield
        self.held = False
        if self.pending if self.agree is None else self.agree(self.pending):
            self.pending = False
            raise KeyboardInterrupt

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Take a SIGINT: note it inside a held stretch (of several processes: anywhere), raise otherwise."""
        if self.agree is not None or (self.held and not self.pending):
            self.pending = True
            return
        raise KeyboardInterrupt


@contextmanager
def interruptible(agree: Callable[[bool], bool] | None = None) -> Iterator[Interrupt]:
    """Yield an :class:`Interrupt` that takes SIGINT until the block ends; see there for ``agree``.

    Only Python's own handler is replaced (and put back): a process that ignores SIGINT or handles it goes on doing
    so, and threads other than the main one get no signals.
    """
    interrupt = Interrupt(agree=agree)
    ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield interrupt
        return
    signal.signal(signal.SIGINT, interrupt.on_signal)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
