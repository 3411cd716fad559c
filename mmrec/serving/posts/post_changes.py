"""Posts from the store to the items in memory, whoever put them there, never back to an earlier state."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from mmrec.serving.posts.attributes import fitting
from mmrec.serving.posts.live_items import LiveItems
from mmrec.serving.posts.published import Published
from mmrec.serving.stores.store import Store, StoredPost


class PostChanges:
    """Which state of each post is in memory, by the numbers of the store; safe to use from many threads.

    Args:
        items: in memory.
        store: where posts are put.
    """

    def __init__(self, items: LiveItems, store: Store) -> None:
        self._items, self._store = items, store
        self._applied: dict[str, int] = {}
        self._after = 0
        self._lock = threading.Lock()

    def new(self) -> Iterator[tuple[int, StoredPost]]:
        """Yield what was put after what was seen, and is not in memory yet."""
        for number, stored in self._store.changes(self._after):
            if number > self._applied.get(stored.item_id, 0):
                yield number, stored

    def seen(self, number: int) -> None:
        """Look only for what was put after a number from now on: everything up to it was dealt with."""
        self._after = max(self._after, number)

    def apply(self, number: int, stored: StoredPost) -> bool:
        """Bring a post into memory, or out of it; return False where a later state of it is there already."""
        with self._lock:
            if number <= self._applied.get(stored.item_id, 0):
                return False
            self._applied[stored.item_id] = number
            if stored.deleted:
                self._items.remove(stored.item_id)
            else:
                self._items.put(self._published(stored))
            return True

    def _published(self, stored: StoredPost) -> Published:
        """Return a post as it is offered, with those of its attributes that the export has."""
        attributes = fitting(self._items.exported, stored.attributes)
        return Published(stored.item_id, stored.caption, attributes, stored.present, stored.vector, stored.published_at)
