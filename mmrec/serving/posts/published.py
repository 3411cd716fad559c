"""Posts that were published since the export: few, new, and searched exactly."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from mmrec import columns
from mmrec.search.index import Mask, Rows, Vectors
from mmrec.search.where import where_mask
from mmrec.serving.stores.store import Attribute

_FIRST_ROOM = 64


@dataclass(frozen=True)
class Published:
    """A post that the service took in.

    Args:
        item_id: its id.
        caption: its text, or None.
        attributes: what filters see.
        present: the modalities that the model read.
        vector: shape (width,), score-ready.
        published_at: milliseconds since 1970.
    """

    item_id: str
    caption: str | None
    attributes: Mapping[str, Attribute]
    present: tuple[str, ...]
    vector: Vectors
    published_at: int


@dataclass(frozen=True)
class View:
    """What there is at one moment; later posts do not change it.

    Args:
        posts: every post, also those that are gone.
        vectors: shape (posts, width).
        alive: shape (posts,), False of what was taken back or replaced.
        places: place of an id in these arrays; may name later places too.
    """

    posts: Sequence[Published]
    vectors: Vectors
    alive: Mask
    places: Mapping[str, int]

    def rows(self, item_ids: Iterable[str]) -> Rows:
        """Return the places of those of some ids that are here."""
        found = (self.places.get(item_id, -1) for item_id in item_ids)
        return np.array([place for place in found if 0 <= place < len(self.vectors)], dtype=np.int64)


class PublishedPosts:
    """Published posts by id; safe to use from many threads.

    Vectors are only ever appended, to arrays that are replaced when they are full: a view needs no copy.

    Args:
        width: of the vectors.
        like: the export's id, caption and attributes, whose types filters on published posts share.
    """

    def __init__(self, width: int, like: pd.DataFrame) -> None:
        self._like = like.iloc[:0]
        self._posts: list[Published] = []
        self._slots: dict[str, int] = {}
        self._vectors = np.zeros((_FIRST_ROOM, width), dtype=np.float32)
        self._alive = np.zeros(_FIRST_ROOM, dtype=bool)
        self._lock = threading.Lock()
        self._table, self._table_of_posts = self._like, cast("Sequence[Published]", self._posts)

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, item_id: str) -> Published | None:
        """Return a post, None where there is none of that id."""
        if item_id not in self._slots:  # most are none, and need no lock for that
            return None
        with self._lock:
            slot = self._slots.get(item_id)
            return None if slot is None else self._posts[slot]

    def put(self, post: Published) -> None:
        """Add a post, in place of one of the same id."""
        with self._lock:
            if len(self._posts) == len(self._vectors):
                self._make_room()
            old = self._slots.get(post.item_id)
            slot = len(self._posts)
            self._vectors[slot], self._alive[slot] = post.vector, True
            self._posts.append(post)
            self._slots[post.item_id] = slot
            if old is not None:
                self._alive[old] = False

    def remove(self, item_id: str) -> bool:
        """Take a post away; return whether it was there."""
        with self._lock:
            slot = self._slots.pop(item_id, None)
            if slot is not None:
                self._alive[slot] = False
            return slot is not None

    def view(self) -> View:
        """Return what there is now."""
        with self._lock:
            count = len(self._posts)
            return View(self._posts, self._vectors[:count], self._alive[:count], self._slots)

    def mask(self, view: View, where: str) -> Mask:
        """Return which posts of a view are there and meet some conditions, shape (posts,).

        Raises:
            RequestError: conditions that are none.
        """
        if not where.strip():
            return view.alive.copy()
        return view.alive & where_mask(self._table_of(view), where)

    def _table_of(self, view: View) -> pd.DataFrame:
        """Return what filters see of a view's posts; kept until there are more."""
        count = len(view.vectors)
        with self._lock:
            table, posts = self._table, self._table_of_posts
        if posts is not view.posts or len(table) < count:
            table = attribute_table(view.posts[:count], self._like)
            with self._lock:
                self._table, self._table_of_posts = table, view.posts
        return table.iloc[:count]

    def _make_room(self) -> None:
        """Replace the arrays by larger ones, without what is gone."""
        kept = sorted(self._slots.values())
        size = max(_FIRST_ROOM, 2 * len(kept))
        vectors, alive = np.zeros((size, self._vectors.shape[1]), dtype=np.float32), np.zeros(size, dtype=bool)
        vectors[: len(kept)], alive[: len(kept)] = self._vectors[kept], True
        self._posts = [self._posts[slot] for slot in kept]
        self._slots = {post.item_id: slot for slot, post in enumerate(self._posts)}
        self._vectors, self._alive = vectors, alive


def attribute_table(posts: Sequence[Published], like: pd.DataFrame) -> pd.DataFrame:
    """Return posts as a table with the columns and types of another, which has no rows."""
    made = {}
    for name in like.columns:
        if name == columns.ITEM_ID:
            made[name] = pd.Series([post.item_id for post in posts], dtype=object)
        elif name == columns.CAPTION:
            made[name] = pd.Series([post.caption for post in posts], dtype=object)
        else:
            values = [post.attributes.get(name) for post in posts]
            made[name] = pd.Series(values, dtype=_nullable(like[name]))
    return pd.DataFrame(made)


def _nullable(column: pd.Series) -> str:
    """Return the type of a column that is like another but may have gaps."""
    if pd.api.types.is_bool_dtype(column):
        return "boolean"
    if pd.api.types.is_integer_dtype(column):
        return "Int64"
    return "Float64" if pd.api.types.is_float_dtype(column) else "object"
