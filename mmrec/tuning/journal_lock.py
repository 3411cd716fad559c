"""The lock of the journal of trials, held whole or not at all."""

from __future__ import annotations

from contextlib import ExitStack

from mmrec.errors import MissingExtraError
from mmrec.process import uninterrupted

try:
    from optuna.storages.journal import JournalFileSymlinkLock
except ImportError as error:
    raise MissingExtraError("optuna", "tune") from error


class JournalLock(JournalFileSymlinkLock):
    """Optuna's lock; Ctrl-C waits until it is released, for in the middle of that it would end in another error.

    Args:
        path: of the journal.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._held = ExitStack()

    def acquire(self) -> bool:
        """Take the lock, as soon as nobody else has it."""
        self._held.enter_context(uninterrupted())
        return bool(super().acquire())

    def release(self) -> None:
        """Give the lock back.

        Raises:
            KeyboardInterrupt: Ctrl-C came meanwhile.
        """
        with self._held:
            super().release()
