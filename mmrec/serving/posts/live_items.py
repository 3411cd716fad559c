"""Everything that can be recommended, searched and scored by id: the export, with what was published since over it."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmrec import columns
from mmrec.search.index import Rows, Vectors
from mmrec.search.rescored import num_candidates
from mmrec.serving.model.exported import Exported
from mmrec.serving.posts.published import Published, PublishedPosts
from mmrec.serving.schemas import external_id

Scores = npt.NDArray[np.float32]
_PIECE = 1024


class Item(NamedTuple):
    """An item as it is known now; a tuple, for a request makes hundreds.

    Args:
        item_id: its id, as text.
        vector: shape (width,), score-ready.
        row: in the export, -1 of a published post.
        published: the post, None of one that was exported.
    """

    item_id: str
    vector: Vectors
    row: int
    published: Published | None


@dataclass(frozen=True)
class Ask:
    """What is looked for.

    Args:
        queries: shape (queries, dim), in the export's format; they find candidates.
        score: exact scores of full vectors, shape (items, width) to (items,).
        bonus: what items gain that the user had.
        had: their ids.
        dropped: ids that must not be found.
        where: conditions on attributes.
    """

    queries: Vectors
    score: Callable[[Vectors], Scores]
    bonus: float = 0.0
    had: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    where: str = ""


@dataclass(frozen=True)
class Hit:
    """An item that was found.

    Args:
        item_id: its id, as text.
        score: exact.
    """

    item_id: str
    score: float


class LiveItems:
    """Items by id and by vector; safe to use from many threads.

    Args:
        exported: what was exported.
        integer_ids: whether the feed's ids are integers.
    """

    def __init__(self, exported: Exported, *, integer_ids: bool = False) -> None:
        self.exported = exported
        self.published = PublishedPosts(exported.full.shape[1], exported.table)
        self._integers = integer_ids
        self._hidden: frozenset[int] = frozenset()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.exported) - len(self._hidden) + len(self.published)

    def find(self, item_id: str) -> Item | None:
        """Return an item, None of an id that nothing has, or has no longer."""
        published = self.published.get(item_id)
        if published is not None:
            return Item(item_id, published.vector, -1, published)
        row = self.exported.row_of(item_id)
        return None if row < 0 or row in self._hidden else Item(item_id, self.exported.full[row], row, None)

    def remember(self, item_id: str) -> Item | None:
        """Return an item as histories know it: one of the export counts there even after it was taken away."""
        row = self.exported.row_of(item_id)
        there = self.find(item_id)
        return Item(item_id, self.exported.full[row], row, None) if there is None and row >= 0 else there

    def known(self, item_id: str) -> bool:
        """Return whether there is an item of that id."""
        return self.find(item_id) is not None

    @property
    def hidden_rows(self) -> Rows:
        """Rows of the export that are not offered: taken away, or published over."""
        return np.fromiter(self._hidden, dtype=np.int64)

    def put(self, post: Published) -> None:
        """Add a post, in place of whatever had its id."""
        self.published.put(post)
        self._hide(post.item_id)

    def remove(self, item_id: str) -> bool:
        """Take an item away; return whether it was there."""
        there = self.known(item_id)
        self.published.remove(item_id)
        self._hide(item_id)
        return there

    def external(self, item_id: str) -> str | int:
        """Return an id in the type that the feed's have."""
        return external_id(item_id, integers=self._integers)

    def caption(self, item: Item) -> str | None:
        """Return an item's caption, None where it has none."""
        if item.published is not None:
            return item.published.caption
        value = self.exported.table[columns.CAPTION].iloc[item.row]
        return None if pd.isna(value) else str(value)

    def best(self, ask: Ask, *, k: int) -> list[Hit]:
        """Return the k best items, scored exactly, the best first.

        Raises:
            RequestError: conditions that are none.
        """
        rows = self._candidates(ask, k)
        scores = ask.score(np.asarray(self.exported.full[rows], dtype=np.float32))
        had_rows = self._rows(ask.had)
        scores = scores + np.float32(ask.bonus) * np.isin(rows, had_rows).astype(np.float32)
        view = self.published.view()
        there = self.published.mask(view, ask.where)
        there[view.rows(ask.dropped)] = False
        slots = np.flatnonzero(there)
        again = np.isin(slots, view.rows(ask.had)).astype(np.float32)
        new = ask.score(view.vectors[slots]) + np.float32(ask.bonus) * again
        both = np.concatenate([scores, new])
        order = np.argsort(-both, kind="stable")
        order = order[np.isfinite(both[order])][:k]
        return [
            Hit(
                self.exported.item_ids[rows[place]]
                if place < len(rows)
                else view.posts[slots[place - len(rows)]].item_id,
                float(both[place]),
            )
            for place in order.tolist()
        ]

    def first(self, rows: Rows, *, k: int, where: str, dropped: frozenset[str]) -> list[str]:
        """Return the ids of the first k of some rows of the export that are offered, as they are or published over.

        Args:
            rows: in the order wanted.
            k: ids wanted.
            where: conditions on attributes.
            dropped: ids that must not be among them.

        Raises:
            RequestError: conditions that are none.
        """
        mask, hidden = self.exported.mask(where), self._hidden
        if mask is not None:
            mask = mask.copy()
            mask[np.fromiter(hidden, dtype=np.int64)] = True  # whether a post in its place meets them is seen below
            rows = rows[mask[rows]]
        view = self.published.view()
        new = self.published.mask(view, where)

        def offered() -> Iterator[str]:
            # Orders are as long as the catalogue, and answers short.
            for start in range(0, len(rows), _PIECE):
                for row in rows[start : start + _PIECE].tolist():
                    item_id = self.exported.item_ids[row]
                    if item_id not in dropped and (row not in hidden or new[view.rows([item_id])].any()):
                        yield item_id

        return list(islice(offered(), k))

    def newest(self, *, k: int, where: str, dropped: frozenset[str]) -> list[str]:
        """Return the ids of the k posts that were published last and meet some conditions, the newest first.

        Args:
            k: ids wanted.
            where: conditions on attributes.
            dropped: ids that must not be among them.

        Raises:
            RequestError: conditions that are none.
        """
        view = self.published.view()
        there = self.published.mask(view, where)
        there[view.rows(dropped)] = False
        posts = (view.posts[slot] for slot in np.flatnonzero(there).tolist())
        return [post.item_id for post in heapq.nlargest(k, posts, key=attrgetter("published_at"))]

    def _candidates(self, ask: Ask, k: int) -> Rows:
        """Return the rows of the export that are worth scoring: what the index finds, and what the user had."""
        hidden = self.hidden_rows
        dropped, had = self._rows(ask.dropped), self._rows(ask.had)
        allowed = self.exported.mask(ask.where)
        if len(hidden):
            allowed = np.ones(len(self.exported), dtype=bool) if allowed is None else allowed.copy()
            allowed[hidden] = False
        # A few rows are sooner left out of what is found than kept out of the search.
        wanted = num_candidates(k, items=len(self.exported)) + len(dropped) + len(had)
        store = self.exported.store
        found = store.search(ask.queries, k=min(wanted, len(self.exported)), allowed=allowed).rows
        kept = had if allowed is None else had[allowed[had]]
        rows = np.unique(np.concatenate([found[found >= 0], kept]))
        return np.asarray(rows[~np.isin(rows, dropped)], dtype=np.int64)

    def _rows(self, item_ids: frozenset[str]) -> Rows:
        rows = np.array([self.exported.row_of(item_id) for item_id in item_ids], dtype=np.int64)
        return np.asarray(rows[rows >= 0], dtype=np.int64)

    def _hide(self, item_id: str) -> None:
        row = self.exported.row_of(item_id)
        if row >= 0:
            with self._lock:
                self._hidden |= {row}
