"""What the service remembers: posts that were published, feedback, and what was shown to whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Attribute = str | int | float | bool | None


class StoreFailureError(Exception):
    """A write that was not made, or a store that cannot be read; nothing of it was acknowledged."""


@dataclass(frozen=True)
class StoredPost:
    """A post as it was published, or the fact that it was taken back.

    Args:
        item_id: its id.
        caption: its text, or None.
        attributes: what filters see.
        content_hash: of caption and pictures.
        model_hash: the model that ``vector`` is of.
        present: the modalities that model read.
        vector: shape (width,), score-ready; empty of one that was taken back.
        published_at: milliseconds since 1970.
        deleted: whether it was taken back.
    """

    item_id: str
    caption: str | None
    attributes: Mapping[str, Attribute]
    content_hash: str
    model_hash: str
    present: tuple[str, ...]
    vector: npt.NDArray[np.float32]
    published_at: int
    deleted: bool = False


@dataclass(frozen=True)
class Event:
    """One piece of feedback.

    Args:
        user_id: who.
        item_id: what.
        timestamp: when, milliseconds since 1970.
        event: name, or None.
        value: a number, or None.
        chosen: whether it belongs to the user's history; others are kept for training and evaluation alone.
        request_id: the answer that showed the item, or None.
    """

    user_id: str
    item_id: str
    timestamp: int
    event: str | None = None
    value: float | None = None
    chosen: bool = True
    request_id: str | None = None


@dataclass(frozen=True)
class Served:
    """What one answer showed.

    Args:
        request_id: of the answer.
        route: what was asked.
        user_id: who asked, or None.
        timestamp: when, milliseconds since 1970.
        model_hash: the model that chose.
        shown: item ids (or names of new posts) and scores, best first.
    """

    request_id: str
    route: str
    user_id: str | None
    timestamp: int
    model_hash: str
    shown: Sequence[tuple[str, float | None]]


@runtime_checkable
class Store(Protocol):
    """A place where writes are durable when the call that makes them returns; safe to use from many threads."""

    def put_post(self, post: StoredPost, pictures: Sequence[bytes]) -> int:
        """Keep a post and its encoded pictures in place of an earlier one of that id.

        Returns:
            Its number: positive, and greater than that of every post put before.

        Raises:
            StoreFailureError: it was not kept.
        """
        ...

    def set_vector(self, number: int, post: StoredPost) -> None:
        """Keep vector, model and modalities of a post that has a number; nothing where no post has it any more.

        Raises:
            StoreFailureError: they were not kept.
        """
        ...

    def posts(self) -> Iterator[StoredPost]:
        """Yield every post, the deleted among them, in the order they were last put."""
        ...

    def changes(self, after: int) -> Iterator[tuple[int, StoredPost]]:
        """Yield number and post of what was put after a number, by whichever process, in the order of the numbers.

        Nothing is ever left out; what was put within the last seconds may be told again.

        Args:
            after: the greatest number known; 0 for everything.
        """
        ...

    def pictures(self, item_id: str) -> tuple[bytes, ...]:
        """Return the pictures of a post."""
        ...

    def add_feedback(self, events: Sequence[Event]) -> None:
        """Append events, all or none of them.

        Raises:
            StoreFailureError: they were not kept.
        """
        ...

    def feedback_of(self, user_id: str, *, limit: int) -> list[Event]:
        """Return the last events of a user, in the order in which they came."""
        ...

    def feedback_log(self, after: int, *, limit: int) -> list[tuple[int, Event]]:
        """Return number and event of the first feedback after a number, in the order in which it came.

        Args:
            after: the last number known; 0 for the first.
            limit: events at most.
        """
        ...

    def log_served(self, served: Served) -> None:
        """Append what was shown.  It is durable before any later feedback of this process is, not when this returns."""
        ...

    def served(self, request_id: str) -> Served | None:
        """Return what an answer showed."""
        ...

    def served_log(self, after: int, *, limit: int) -> list[tuple[int, Served]]:
        """Return number and answer of the first answers after a number, in the order in which they were kept.

        Args:
            after: the last number known; 0 for the first.
            limit: answers at most.
        """
        ...

    def setting(self, name: str) -> str | None:
        """Return what was last set under a name, by whichever process; None where nothing was."""
        ...

    def set_setting(self, name: str, value: str) -> None:
        """Keep a value under a name.

        Raises:
            StoreFailureError: it was not kept.
        """
        ...

    def secret(self) -> bytes:
        """Return 32 random bytes that stay the same as long as the store does."""
        ...

    def close(self) -> None:
        """Finish what was asked, and let go of the files."""
        ...
