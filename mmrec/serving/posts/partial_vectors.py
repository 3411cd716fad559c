"""Vectors of items as if they had some of their modalities only; encoded when they are asked for, then kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from mmrec.search.index import Vectors
from mmrec.serving.model.jobs import ItemJob
from mmrec.serving.model.model_worker import ModelWorker
from mmrec.serving.posts.live_items import Item
from mmrec.serving.posts.post_vectors import Content, PostVectors
from mmrec.serving.stores.store import Store
from mmrec.serving.trace import Trace

_Key = tuple[int, tuple[str, ...]]


class PartialVectors:
    """A cache of vectors of exported items, by row and modalities; published posts are kept by content as all posts are.

    Args:
        worker: runs the model.
        posts: vectors of posts by content.
        store: holds the pictures of published posts.
        most: vectors kept, the most recently used ones.
    """

    def __init__(self, worker: ModelWorker, posts: PostVectors, store: Store, *, most: int) -> None:
        self._worker, self._posts, self._store, self._most = worker, posts, store, most
        self._kept: OrderedDict[_Key, Vectors] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, asked: Sequence[tuple[Item, tuple[str, ...]]], trace: Trace) -> Vectors:
        """Return score-ready vectors of items by the modalities named, shape (asked, width).

        Args:
            asked: items, and which of the modalities that each of them has are to be read.
            trace: of the request.

        Raises:
            ProblemError: too much waits already, or it takes longer than there is time.
            RequestError: a post that was taken back meanwhile.
        """
        vectors = [self._recall(item.row, kept) for item, kept in asked]
        missing = [place for place, vector in enumerate(vectors) if vector is None]
        coming = {place: self._start(*asked[place], trace) for place in missing}
        for place, brought in coming.items():
            vectors[place] = brought()
        return np.stack([vector for vector in vectors if vector is not None])

    def _start(self, item: Item, kept: tuple[str, ...], trace: Trace) -> Callable[[], Vectors]:
        """Have an item encoded; return what waits for its vector."""
        if item.published is None:
            future = self._worker.encode_item(ItemJob(item.row, kept), until=lambda: trace.until)
            return lambda: self._keep((item.row, kept), trace.wait(future))
        pictures = self._store.pictures(item.item_id) if "image" in kept else ()
        caption = item.published.caption if "text" in kept else None
        attributes = item.published.attributes if "attributes" in kept else {}
        coming = self._posts.start([Content(caption, pictures, attributes)], until=trace.until)[0]
        return lambda: trace.wait(coming).vector

    def _recall(self, row: int, kept: tuple[str, ...]) -> Vectors | None:
        with self._lock:
            vector = self._kept.get((row, kept))
            if vector is not None:
                self._kept.move_to_end((row, kept))
            return vector

    def _keep(self, key: _Key, vector: Vectors) -> Vectors:
        with self._lock:
            self._kept[key] = vector
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return vector
