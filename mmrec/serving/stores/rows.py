"""Posts, events and answers as rows of SQL tables, the same for every database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import to_json

from mmrec.serving.stores.store import Event, Served, StoredPost

Row = Sequence[Any]

POST = "item_id, caption, attributes, content_hash, model_hash, present, vector, published_at, deleted"
VECTOR = POST.split(", ").index("vector")
EVENT = "user_id, item_id, timestamp, event, value, chosen, request_id"
SERVED = "request_id, route, user_id, timestamp, model_hash, shown"


def post_values(post: StoredPost, vector: object) -> Sequence[object]:
    """Return the columns ``POST`` of a post, whose vector the database keeps as ``vector``."""
    return (
        post.item_id,
        post.caption,
        json.dumps(dict(post.attributes), ensure_ascii=False, allow_nan=False),
        post.content_hash,
        post.model_hash,
        " ".join(post.present),
        vector,
        post.published_at,
        post.deleted,
    )


def post_of(row: Row, vector: npt.NDArray[np.float32]) -> StoredPost:
    """Return the post of the columns ``POST``, whose vector was read already."""
    item_id, caption, attributes, content, model, present, _, published_at, deleted = row
    return StoredPost(
        item_id=item_id,
        caption=caption,
        attributes=json.loads(attributes),
        content_hash=content,
        model_hash=model,
        present=tuple(present.split()),
        vector=vector,
        published_at=published_at,
        deleted=bool(deleted),
    )


def event_values(event: Event) -> Sequence[object]:
    """Return the columns ``EVENT`` of an event."""
    return (
        event.user_id,
        event.item_id,
        event.timestamp,
        event.event,
        event.value,
        event.chosen,
        event.request_id,
    )


def event_of(row: Row) -> Event:
    """Return the event of the columns ``EVENT``."""
    user_id, item_id, timestamp, event, value, chosen, request_id = row
    return Event(user_id, item_id, timestamp, event, value, bool(chosen), request_id)


def served_values(served: Served) -> Sequence[object]:
    """Return the columns ``SERVED`` of an answer."""
    shown = to_json(served.shown).decode("utf-8")  # while somebody waits: json would take seven times as long
    return (served.request_id, served.route, served.user_id, served.timestamp, served.model_hash, shown)


def served_of(row: Row) -> Served:
    """Return the answer of the columns ``SERVED``."""
    request_id, route, user_id, timestamp, model_hash, shown = row
    entries = [(item_id, score) for item_id, score in json.loads(shown)]
    return Served(request_id, route, user_id, timestamp, model_hash, entries)
