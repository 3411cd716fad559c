"""What was published, offered by a model that did not take it in: read from the store, and encoded again where need be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mmrec.errors import MmrecError
from mmrec.serving.attributes import fitting
from mmrec.serving.post_vectors import Content
from mmrec.serving.publishing import as_published
from mmrec.serving.service import Service
from mmrec.serving.store import StoredPost

_AT_ONCE = 64
"""Posts whose pictures are in memory while they are encoded again."""
_LOG = logging.getLogger("mmrec.serving")


@dataclass(frozen=True)
class Carried:
    """What became of published posts.

    Args:
        offered: posts that are offered now.
        left_out: posts that the model cannot encode.
    """

    offered: int = 0
    left_out: int = 0

    def __add__(self, other: Carried) -> Carried:
        return Carried(self.offered + other.offered, self.left_out + other.left_out)


def carry_over(service: Service, *, has: Callable[[int, str], bool] = lambda number, item_id: False) -> Carried:
    """Offer what the store took in since a service last looked; nothing is written.

    Vectors of this very model are taken as they are.  Those of others stay in the store, for their model may answer
    again; here the post is encoded anew.

    Args:
        service: what is to offer the posts.
        has: told number and id of a post; whether the export has it already.

    Raises:
        StoreFailureError: the store cannot be read.
    """
    carried, seen, waiting = Carried(), service.seen, dict[str, StoredPost]()
    for number, stored in service.store.changes(service.seen):
        seen = max(seen, number)
        waiting.pop(stored.item_id, None)
        if stored.deleted:
            service.items.remove(stored.item_id)
        elif stored.model_hash == service.model_hash:
            service.items.put(as_published(stored, fitting(service.items.exported, stored.attributes)))
            carried += Carried(offered=1)
        elif not has(number, stored.item_id):
            waiting[stored.item_id] = stored
        if len(waiting) == _AT_ONCE:
            carried += _encode_again(service, list(waiting.values()))
            waiting.clear()
    carried += _encode_again(service, list(waiting.values()))
    service.seen = seen
    return carried


def _encode_again(service: Service, posts: Sequence[StoredPost]) -> Carried:
    coming = [service.posts.start(Content(post.caption, service.store.pictures(post.item_id))) for post in posts]
    offered = 0
    for stored, future in zip(posts, coming, strict=True):
        try:
            encoded = future.result()
        except MmrecError as error:
            _LOG.warning("a published post is left out by model %s: %s", service.model_hash, error)
            continue
        attributes = fitting(service.items.exported, stored.attributes)
        service.items.put(replace(as_published(stored, attributes), present=encoded.present, vector=encoded.vector))
        offered += 1
    return Carried(offered, len(posts) - offered)
