"""What was published, offered by a model that did not take it in: read from the store, and encoded again where need be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mmrec.errors import MmrecError
from mmrec.notices import Notify, ignore
from mmrec.serving.answers.service import Service
from mmrec.serving.posts.post_vectors import Content
from mmrec.serving.stores.store import StoredPost

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


def carry_over(
    service: Service,
    *,
    has: Callable[[int, str], bool] = lambda number, item_id: False,
    keep: bool = False,
    notify: Notify = _LOG.info,
) -> Carried:
    """Offer what the store took in since a service last looked.

    Vectors of this very model are taken as they are; a post that another one encoded is encoded again.

    Args:
        service: what is to offer the posts.
        has: told number and id of a post that another model encoded; whether the export has it already.
        keep: put the new vectors into the store.  Where two models serve at a time they would replace each other's for
            ever.
        notify: told what is about to be done.

    Raises:
        StoreFailureError: the store cannot be read, or keeps nothing.
    """
    carried, stale, last, left = Carried(), list[tuple[int, StoredPost]](), 0, 0
    for number, stored in service.changes.new():
        last = number
        if stored.deleted or stored.model_hash == service.model_hash:
            carried += Carried(offered=int(service.changes.apply(number, stored) and not stored.deleted))
        elif not has(number, stored.item_id):
            stale.append((number, stored))
        else:
            left += 1
    if left:
        notify(
            f"{left} published posts are taken from the export, which has their ids; publish one again to replace that"
        )
    if stale:
        notify(f"{len(stale)} published posts are encoded again, by another model than before")
    for start in range(0, len(stale), _AT_ONCE):
        carried += _encode_again(service, stale[start : start + _AT_ONCE], keep=keep, notify=notify)
    service.changes.seen(last)
    return carried


def restore(service: Service, *, notify: Notify = ignore) -> None:
    """Offer again what the store holds, before a service answers.

    Posts that another model encoded are encoded again from what was published, and kept so; one that has become part of
    the export is taken from there.
    """
    exported = service.items.exported
    carry_over(service, has=lambda number, item_id: exported.row_of(item_id) >= 0, keep=True, notify=notify)


def _encode_again(service: Service, posts: Sequence[tuple[int, StoredPost]], *, keep: bool, notify: Notify) -> Carried:
    read = service.recommender.vectors.contents.read_attributes
    contents = [
        Content(stored.caption, service.store.pictures(stored.item_id), read(stored.attributes)) for _, stored in posts
    ]
    offered = 0
    for (number, stored), future in zip(posts, service.posts.start(contents), strict=True):
        try:
            encoded = future.result()
        except MmrecError as error:
            notify(f"published post {stored.item_id!r} is left out: {error}")
            continue
        again = replace(stored, vector=encoded.vector, present=encoded.present, model_hash=service.model_hash)
        if keep:
            service.store.set_vector(number, again)
        offered += service.changes.apply(number, again)
    return Carried(offered, len(posts) - offered)


def keep_vectors(service: Service) -> None:
    """Put the vectors of a service's posts into the store, where those of another model are: it starts with them again.

    Raises:
        StoreFailureError: they were not kept.
    """
    for number, stored in service.store.changes(0):
        post = service.items.published.get(stored.item_id)
        if not stored.deleted and stored.model_hash != service.model_hash and post is not None:
            again = replace(stored, vector=post.vector, present=post.present, model_hash=service.model_hash)
            service.store.set_vector(number, again)
