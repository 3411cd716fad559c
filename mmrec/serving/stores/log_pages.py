"""The store's logs page by page, for whoever makes a feed of them (``mmrec-data pull``)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

from mmrec.serving.log_schemas import (
    FeedbackPage,
    LoggedAnswer,
    LoggedEvent,
    LoggedPost,
    LogRequest,
    PostsPage,
    ServedPage,
    Shown,
)
from mmrec.serving.schemas import Image
from mmrec.serving.stores.store import Store
from mmrec.serving.trace import Trace

External = Callable[[str], str | int]
"""An id in the type that the feed's have."""
_PAGE_BYTES = 16 << 20
"""Pictures of one page, unless a single post has more."""


def posts_page(store: Store, external: External, request: LogRequest, trace: Trace) -> PostsPage:
    """Return posts that were put after a number, with their pictures.

    A store may tell again what it told a moment ago; such entries do not count towards the limit.
    """
    entries: list[LoggedPost] = []
    new, size, more, last = 0, 0, False, request.after
    with trace.stage("store"):
        for number, post in store.changes(request.after):
            trace.left()
            pictures = () if post.deleted else store.pictures(post.item_id)
            size += sum(map(len, pictures))
            if new == request.limit or (new and size > _PAGE_BYTES):
                more = True
                break
            entries.append(
                LoggedPost(
                    number=number,
                    item_id=external(post.item_id),
                    caption=post.caption,
                    attributes=dict(post.attributes),
                    published_at=post.published_at,
                    deleted=post.deleted,
                    pictures=[Image(base64=base64.b64encode(data).decode("ascii")) for data in pictures],
                )
            )
            new += number > request.after
            last = max(last, number)
    return PostsPage(request_id=trace.request_id, next=last, more=more, entries=entries)


def feedback_page(store: Store, external: External, request: LogRequest, trace: Trace) -> FeedbackPage:
    """Return feedback that came after a number."""
    with trace.stage("store"):
        found = store.feedback_log(request.after, limit=request.limit)
    entries = [
        LoggedEvent(
            number=number,
            user_id=event.user_id,
            item_id=external(event.item_id),
            timestamp=event.timestamp,
            event=event.event,
            value=event.value,
            chosen=event.chosen,
            request_id=event.request_id,
        )
        for number, event in found
    ]
    last, more = _end([number for number, _ in found], request)
    return FeedbackPage(request_id=trace.request_id, next=last, more=more, entries=entries)


def served_page(store: Store, external: External, request: LogRequest, trace: Trace) -> ServedPage:
    """Return answers that were kept after a number."""
    with trace.stage("store"):
        found = store.served_log(request.after, limit=request.limit)
    entries = [
        LoggedAnswer(
            number=number,
            request_id=served.request_id,
            route=served.route,
            user_id=served.user_id,
            timestamp=served.timestamp,
            model=served.model_hash,
            shown=[Shown(item_id=external(item_id), score=score) for item_id, score in served.shown],
        )
        for number, served in found
    ]
    last, more = _end([number for number, _ in found], request)
    return ServedPage(request_id=trace.request_id, next=last, more=more, entries=entries)


def _end(numbers: Sequence[int], request: LogRequest) -> tuple[int, bool]:
    """Return the last number of a page, and whether there may be more."""
    return max(numbers, default=request.after), len(numbers) == request.limit
