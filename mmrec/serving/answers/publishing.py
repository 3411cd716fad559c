"""What changes the service: posts that are published or taken back, and feedback; durable before the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from mmrec.errors import MmrecError, RequestError
from mmrec.serving.answers.service import Service
from mmrec.serving.batch_schemas import BatchedPost, PublishBatchAnswer, PublishBatchRequest
from mmrec.serving.posts.attributes import check_attributes
from mmrec.serving.posts.post_vectors import Content, Encoded
from mmrec.serving.posts.references import Parts, content_of
from mmrec.serving.problems import or_raise, settled, too_many, unknown_item
from mmrec.serving.schemas import (
    DeleteAnswer,
    FeedbackAnswer,
    FeedbackRequest,
    PublishAnswer,
    PublishRequest,
)
from mmrec.serving.stores.store import Event, StoredPost, StoreFailureError
from mmrec.serving.trace import Trace, now_ms

_WRITERS = 16


class Publishing:
    """The writes of a service.

    Args:
        service: what offers the posts and asks for the feedback.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._items, self._store = service, service.items, service.store

    def publish(self, item_id: str, request: PublishRequest, parts: Parts, trace: Trace) -> PublishAnswer:
        """Take a post in; when this returns, it is durable, and recommended and searched like any other.

        Raises:
            ProblemError: attributes that the export does not have.
            RequestError: a post that cannot be read.
            StoreFailureError: it could not be kept.
        """
        content = self._read(request, parts)
        encoded = or_raise(self._service.posts.encode([content], trace)[0])
        trace.left()
        with trace.stage("store"):
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
        contents: list[Content | MmrecError] = []
        names: set[str] = set()
        for post in posts:
            again = str(post.item_id) in names
            names.add(str(post.item_id))
            twice = RequestError("an id that no post before has", got=repr(post.item_id))
            contents.append(twice if again else settled(partial(self._read, post, parts)))
        encoded = self._service.posts.encode(contents, trace)
        trace.left()

        def put(number: int) -> BatchedPost:
            post, content, vector = posts[number], contents[number], encoded[number]
            created, error = False, str(vector) if isinstance(vector, MmrecError) else None
            try:
                if isinstance(vector, Encoded) and isinstance(content, Content):
                    created = self._put(str(post.item_id), post, content, vector)
            except StoreFailureError:
                error = "expected a post that the store keeps, got a failure. Try again."
            present = list(vector.present) if isinstance(vector, Encoded) and error is None else []
            name = self._items.external(str(post.item_id))
            return BatchedPost(item_id=name, present=present, created=created, error=error)

        # Writes of several threads share a commit.
        with trace.stage("store"), ThreadPoolExecutor(min(_WRITERS, len(posts))) as writers:
            results = list(writers.map(put, range(len(posts))))
        return PublishBatchAnswer(request_id=trace.request_id, results=results, items=len(self._items))

    def _read(self, request: PublishRequest, parts: Parts) -> Content:
        """Check a post and return it as it is encoded."""
        read = self._service.recommender.vectors.contents.read_attributes(request.attributes)
        content = content_of(request.caption, request.image, parts, self._service.limits, read)
        check_attributes(self._items.exported, request.attributes)
        return content

    def _put(self, item_id: str, request: PublishRequest, content: Content, encoded: Encoded) -> bool:
        """Keep and offer a post; return whether its id is new."""
        post = StoredPost(
            item_id=item_id,
            caption=content.caption,
            attributes=request.attributes,
            content_hash=encoded.key,
            model_hash=self._service.model_hash,
            present=encoded.present,
            vector=encoded.vector,
            published_at=now_ms() if request.published_at is None else request.published_at,
        )
        created = not self._items.known(item_id)
        self._keep(post, content.pictures)
        return created

    def delete(self, item_id: str, trace: Trace) -> DeleteAnswer:
        """Take a post back, published or exported: it is offered no more, but stays in the histories of its users.

        Raises:
            ProblemError: no such item.
            StoreFailureError: it could not be kept.
        """
        with trace.stage("store"):
            if not self._items.known(item_id):
                raise unknown_item(item_id)
            nothing = np.zeros(0, dtype=np.float32)
            model_hash = self._service.model_hash
            gone = StoredPost(item_id, None, {}, "", model_hash, (), nothing, now_ms(), deleted=True)
            self._keep(gone, ())
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

    def _keep(self, post: StoredPost, pictures: Sequence[bytes]) -> None:
        """Keep a post, then bring it into memory; of writes at a time the store's numbers tell the last."""
        self._service.changes.apply(self._store.put_post(post, pictures), post)


class _Clock:
    """Times of events that come without one: now, and in the order in which each user's came."""

    def __init__(self) -> None:
        self._now = now_ms()
        self._counts: Counter[str] = Counter()

    def of(self, user_id: str) -> int:
        """Return the time of a user's next event."""
        self._counts[user_id] += 1
        return self._now + self._counts[user_id] - 1
