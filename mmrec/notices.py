"""What long work tells whoever started it: sentences, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

Notify = Callable[[str], None]
"""Takes one sentence for the user."""


@runtime_checkable
class Advance(Protocol):
    """A progress bar: call it with steps just done, or tell it how many of how many are."""

    def __call__(self, steps: int = 1) -> None:
        """Advance by some steps."""
        ...

    def at(self, done: int, total: int) -> None:
        """Say how many of how many steps are done."""
        ...


Meter = Callable[[str], AbstractContextManager[Advance]]
"""Opens a progress bar with a description."""


class _Silent:
    def __call__(self, steps: int = 1) -> None:
        """Do nothing."""

    def at(self, done: int, total: int) -> None:
        """Do nothing."""


@contextmanager
def silent_meter(description: str) -> Iterator[Advance]:
    """Open a progress bar that nobody sees."""
    yield _Silent()


def ignore(message: str) -> None:
    """Take a sentence and say nothing."""
