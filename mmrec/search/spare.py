"""A store of vectors with another one behind it, for the time in which the first does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mmrec.errors import ArtifactError
from mmrec.search.index import Hits, Mask, Store, Vectors


class SpareStore:
    """Answers from the first store, and from the spare one where that fails.

    Args:
        store: the first.
        spare: of the same vectors.
        notify: told when the first begins to fail, and when it answers again.
    """

    def __init__(self, store: Store, spare: Store, *, notify: Callable[[str], None]) -> None:
        self._store, self._spare, self._notify = store, spare, notify
        self._failing, self._lock = False, threading.Lock()

    @property
    def kind(self) -> str:
        """What it searches with at the moment."""
        return f"exact, while {self._store.kind} fails" if self._failing else self._store.kind

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._store.dim

    def __len__(self) -> int:
        return len(self._store)

    def search(self, queries: Vectors, *, k: int, allowed: Mask | None = None) -> Hits:
        """Return the k best rows of each query."""
        try:
            hits = self._store.search(queries, k=k, allowed=allowed)
        except ArtifactError as error:
            self._note(failing=True, message=f"the index fails, every vector is looked at in its place: {error}")
            return self._spare.search(queries, k=k, allowed=allowed)
        self._note(failing=False, message="the index answers again")
        return hits

    def _note(self, *, failing: bool, message: str) -> None:
        with self._lock:
            changed, self._failing = self._failing != failing, failing
        if changed:
            self._notify(message)
