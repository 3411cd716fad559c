"""What changes the service: posts that are published or taken back, and feedback; durable before the answer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mmrec.assembly import Notify, ignore
from mmrec.errors import MmrecError, near_names
from mmrec.serving.post_vectors import Content, Encoded
from mmrec.serving.problems import ProblemError
from mmrec.serving.published import Published, attribute_table
from mmrec.serving.references import content_of
from mmrec.serving.schemas import (
    Attribute,
    DeleteAnswer,
    FeedbackAnswer,
    FeedbackRequest,
    PublishAnswer,
    PublishRequest,
)
from mmrec.serving.service import Parts, Service, now_ms, unknown_item
from mmrec.serving.store import Event, StoredPost
from mmrec.serving.trace import Trace

_AT_ONCE = 64
"""Posts whose pictures are in memory while they are encoded again."""


class Publishing:
    """The writes of a service.

    Args:
        service: what offers the posts and asks for the feedback.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._items, self._store = service, service.items, service.store
        # The store and the items in memory must see writes in the same order.
        self._lock = threading.Lock()

    def restore(self, *, notify: Notify = ignore) -> None:
        """Offer again what the store holds.

        Posts that another model encoded are encoded again from what was published; one that has become part of the
        export is taken from there.
        """
        stale = []
        for stored in self._store.posts():
            if stored.deleted:
                self._items.remove(stored.item_id)
            elif stored.model_hash == self._service.model_hash:
                self._items.put(_published(stored))
            elif self._items.exported.row_of(stored.item_id) < 0:
                stale.append(stored)
        if stale:
            notify(f"{len(stale)} published posts are encoded again, by another model than before")
        for start in range(0, len(stale), _AT_ONCE):
            self._encode_again(stale[start : start + _AT_ONCE], notify)

    def _encode_again(self, posts: Sequence[StoredPost], notify: Notify) -> None:
        read = self._service.recommender.vectors.contents.read_attributes
        contents = [
            Content(stored.caption, self._store.pictures(stored.item_id), read(stored.attributes)) for stored in posts
        ]
        coming = [self._service.posts.start(content) for content in contents]
        for stored, content, future in zip(posts, contents, coming, strict=True):
            try:
                self._keep(stored.item_id, content, future.result(), stored.attributes, stored.published_at)
            except MmrecError as error:
                notify(f"published post {stored.item_id!r} is left out: {error}")

    def publish(self, item_id: str, request: PublishRequest, parts: Parts, trace: Trace) -> PublishAnswer:
        """Take a post in; when this returns, it is durable, and recommended and searched like any other.

        Raises:
            ProblemError: attributes that the export does not have.
            RequestError: a post that cannot be read.
            StoreFailureError: it could not be kept.
        """
        self._check_attributes(request.attributes)
        read = self._service.recommender.vectors.contents.read_attributes(request.attributes)
        content = content_of(request.caption, request.image, parts, self._service.limits, read)
        with trace.stage("decode"):
            coming = self._service.posts.start(content)
        with trace.stage("encode"):
            encoded = trace.wait(coming)
        at = now_ms() if request.published_at is None else request.published_at
        trace.left()
        with self._lock, trace.stage("store"):
            created = not self._items.known(item_id)
            self._keep(item_id, content, encoded, request.attributes, at)
        return PublishAnswer(
            request_id=trace.request_id,
            item_id=self._items.external(item_id),
            present=list(encoded.present),
            created=created,
            items=len(self._items),
        )

    def delete(self, item_id: str, trace: Trace) -> DeleteAnswer:
        """Take a post back, published or exported: it is offered no more, but stays in the histories of its users.

        Raises:
            ProblemError: no such item.
            StoreFailureError: it could not be kept.
        """
        with self._lock, trace.stage("store"):
            if not self._items.known(item_id):
                raise unknown_item(item_id)
            nothing = np.zeros(0, dtype=np.float32)
            model_hash = self._service.model_hash
            gone = StoredPost(item_id, None, {}, "", model_hash, (), nothing, now_ms(), deleted=True)
            self._store.put_post(gone, ())
            self._items.remove(item_id)
        external = self._items.external(item_id)
        return DeleteAnswer(request_id=trace.request_id, item_id=external, items=len(self._items))

    def feedback(self, request: FeedbackRequest, trace: Trace) -> FeedbackAnswer:
        """Append events; when this returns they are durable, and the next answer to these users knows them.

        Raises:
            ProblemError: too many.
            StoreFailureError: none of them was kept.
        """
        limit = self._service.limits.events
        if len(request.events) > limit:
            raise ProblemError(422, f"at most {limit} events", got=str(len(request.events)), where="events")
        times = _Clock()
        events = [
            Event(
                user_id=str(event.user_id),
                item_id=str(event.item_id),
                timestamp=times.of(str(event.user_id)) if event.timestamp is None else event.timestamp,
                event=event.event,
                value=event.value,
                chosen=event.chosen,
                request_id=event.request_id,
            )
            for event in request.events
        ]
        with trace.stage("store"):
            self._store.add_feedback(events)
        unknown = sum(not self._items.known(event.item_id) for event in events)
        return FeedbackAnswer(request_id=trace.request_id, accepted=len(events), unknown_items=unknown)

    def _keep(
        self, item_id: str, content: Content, encoded: Encoded, attributes: Mapping[str, Attribute], published_at: int
    ) -> None:
        stored = StoredPost(
            item_id=item_id,
            caption=content.caption,
            attributes=attributes,
            content_hash=encoded.key,
            model_hash=self._service.model_hash,
            present=encoded.present,
            vector=encoded.vector,
            published_at=published_at,
        )
        self._store.put_post(stored, content.pictures)
        self._items.put(_published(stored))

    def _check_attributes(self, attributes: Mapping[str, Attribute]) -> None:
        """Refuse what filters could not compare with what the export has.

        Raises:
            ProblemError: an unknown attribute, or a value of another type.
        """
        known, table = self._items.exported.attributes, self._items.exported.table
        for name, value in attributes.items():
            where = f"attributes.{name[:100]}"
            if name not in known:
                raise ProblemError(
                    422,
                    "an attribute of the export",
                    got=repr(name[:100]),
                    where=where,
                    fix=near_names(name[:100], known),
                )
            probe = Published("", None, {name: value}, (), np.zeros(0, np.float32), 0)
            try:
                attribute_table([probe], table[[name]].iloc[:0])
            except (TypeError, ValueError, OverflowError) as error:
                kind = str(table[name].dtype)
                raise ProblemError(422, f"a value of type {kind}", got=type(value).__name__, where=where) from error


class _Clock:
    """Times of events that come without one: now, and in the order in which each user's came."""

    def __init__(self) -> None:
        self._now = now_ms()
        self._counts: Counter[str] = Counter()

    def of(self, user_id: str) -> int:
        """Return the time of a user's next event."""
        self._counts[user_id] += 1
        return self._now + self._counts[user_id] - 1


def _published(stored: StoredPost) -> Published:
    return Published(
        stored.item_id, stored.caption, stored.attributes, stored.present, stored.vector, stored.published_at
    )
