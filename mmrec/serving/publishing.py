"""What changes the service: posts that are published or taken back, and feedback; durable before the answer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from mmrec.assembly import Notify, ignore
from mmrec.errors import MmrecError, RequestError
from mmrec.serving.askers import settled
from mmrec.serving.attributes import check_attributes, fitting
from mmrec.serving.batch_schemas import BatchedPost, PublishBatchAnswer, PublishBatchRequest
from mmrec.serving.post_vectors import Content, Encoded
from mmrec.serving.problems import too_many, unknown_item
from mmrec.serving.published import Published
from mmrec.serving.references import content_of
from mmrec.serving.schemas import (
    Attribute,
    DeleteAnswer,
    FeedbackAnswer,
    FeedbackRequest,
    PublishAnswer,
    PublishRequest,
)
from mmrec.serving.service import Parts, Service, now_ms
from mmrec.serving.store import Event, StoredPost, StoreFailureError
from mmrec.serving.trace import Trace

_WRITERS = 16
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
        for number, stored in self._store.changes(0):
            self._service.seen = max(self._service.seen, number)
            if stored.deleted:
                self._items.remove(stored.item_id)
            elif stored.model_hash == self._service.model_hash:
                self._offer(stored)
            elif self._items.exported.row_of(stored.item_id) < 0:
                stale.append(stored)
        if stale:
            notify(f"{len(stale)} published posts are encoded again, by another model than before")
        for start in range(0, len(stale), _AT_ONCE):
            self._encode_again(stale[start : start + _AT_ONCE], notify)

    def _encode_again(self, posts: Sequence[StoredPost], notify: Notify) -> None:
        contents = [Content(stored.caption, self._store.pictures(stored.item_id)) for stored in posts]
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
        content, coming = self._start(request, parts, trace)
        with trace.stage("encode"):
            encoded = trace.wait(coming)
        trace.posts.append(encoded.present)
        trace.left()
        with self._lock, trace.stage("store"):
            created = self._put(item_id, request, content, encoded)
        return PublishAnswer(
            request_id=trace.request_id,
            item_id=self._items.external(item_id),
            present=list(encoded.present),
            created=created,
            items=len(self._items),
        )

    def publish_batch(self, request: PublishBatchRequest, parts: Parts, trace: Trace) -> PublishBatchAnswer:
        """Take several posts in, encoded together; one that cannot be taken in spoils no other.

        Raises:
            ProblemError: too many, or more work than there is time for.
        """
        posts, limit = request.items, self._service.limits.posts
        if len(posts) > limit:
            raise too_many("posts", limit=limit, got=len(posts), where="items", fix="Send several requests.")
        started: list[tuple[Content, Future[Encoded]] | MmrecError] = []
        names: set[str] = set()
        for post in posts:
            again = str(post.item_id) in names
            names.add(str(post.item_id))
            twice = RequestError("an id that no post before has", got=repr(post.item_id))
            started.append(twice if again else settled(partial(self._start, post, parts, trace)))
        with trace.stage("encode"):
            encoded = [one if isinstance(one, MmrecError) else settled(partial(trace.wait, one[1])) for one in started]
        trace.posts += [one.present for one in encoded if isinstance(one, Encoded)]
        trace.left()

        def put(number: int) -> BatchedPost:
            post, begun, vector = posts[number], started[number], encoded[number]
            created, error = False, str(vector) if isinstance(vector, MmrecError) else None
            try:
                if isinstance(vector, Encoded) and not isinstance(begun, MmrecError):
                    created = self._put(str(post.item_id), post, begun[0], vector)
            except StoreFailureError:
                error = "expected a post that the store keeps, got a failure. Try again."
            present = list(vector.present) if isinstance(vector, Encoded) and error is None else []
            name = self._items.external(str(post.item_id))
            return BatchedPost(item_id=name, present=present, created=created, error=error)

        # Writes of several threads share a commit.
        with self._lock, trace.stage("store"), ThreadPoolExecutor(min(_WRITERS, len(posts))) as writers:
            results = list(writers.map(put, range(len(posts))))
        return PublishBatchAnswer(request_id=trace.request_id, results=results, items=len(self._items))

    def _start(self, request: PublishRequest, parts: Parts, trace: Trace) -> tuple[Content, Future[Encoded]]:
        """Check and decode a post and have it encoded."""
        trace.left()
        content = content_of(request.caption, request.image, parts, self._service.limits)
        check_attributes(self._items.exported, request.attributes)
        with trace.stage("decode"):
            return content, self._service.posts.start(content)

    def _put(self, item_id: str, request: PublishRequest, content: Content, encoded: Encoded) -> bool:
        """Keep and offer a post; return whether its id is new."""
        at = now_ms() if request.published_at is None else request.published_at
        created = not self._items.known(item_id)
        self._keep(item_id, content, encoded, request.attributes, at)
        return created

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
            raise too_many("events", limit=limit, got=len(request.events), where="events")
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
        self._offer(stored)

    def _offer(self, stored: StoredPost) -> None:
        self._items.put(as_published(stored, fitting(self._items.exported, stored.attributes)))


class _Clock:
    """Times of events that come without one: now, and in the order in which each user's came."""

    def __init__(self) -> None:
        self._now = now_ms()
        self._counts: Counter[str] = Counter()

    def of(self, user_id: str) -> int:
        """Return the time of a user's next event."""
        self._counts[user_id] += 1
        return self._now + self._counts[user_id] - 1


def as_published(stored: StoredPost, attributes: Mapping[str, Attribute]) -> Published:
    """Return a post of the store as it is offered, with those of its attributes that the export has."""
    return Published(stored.item_id, stored.caption, attributes, stored.present, stored.vector, stored.published_at)
