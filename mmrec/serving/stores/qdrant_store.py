"""A store in Qdrant: posts, events and answers are the payloads of points without vectors, one collection a kind."""

from __future__ import annotations

import base64
import secrets
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from mmrec.errors import ArtifactError, MissingExtraError
from mmrec.search.qdrant_server import Qdrant, QdrantFailureError
from mmrec.serving.stores.served_queue import ServedQueue
from mmrec.serving.stores.store import Event, Served, StoredPost, StoreFailureError

try:
    from qdrant_client import QdrantClient, models
except ImportError as error:
    raise MissingExtraError("qdrant_client", "qdrant") from error

SCHEMA_VERSION = 1
SETTLE_SECONDS = 5.0
"""After which no write can come between earlier ones any more: how long one takes, and how far clocks are apart."""
_PAGE = 1000
_NAMES = uuid.UUID("5b0f6d1e-6a3b-5a0e-9c3a-8f3c7f5d2a11")
_INTEGERS = range(-(1 << 63), 1 << 63)

_Kind = Literal["posts", "feedback", "served", "about"]
_Payload = Mapping[str, Any]
_INDEXED: Mapping[_Kind, Mapping[str, models.PayloadSchemaType]] = {
    "posts": {"number": models.PayloadSchemaType.INTEGER},
    "feedback": {"number": models.PayloadSchemaType.INTEGER, "user_id": models.PayloadSchemaType.KEYWORD},
    "served": {"number": models.PayloadSchemaType.INTEGER},
    "about": {},
}


class QdrantStore:
    """Posts, feedback and what was served, in a Qdrant server that any number of services share.

    Qdrant counts nothing, so numbers are microseconds since 1970.  Those of several processes may become visible in
    another order: :meth:`changes` tells the posts of the last seconds again, and the logs leave out what is as recent.

    Args:
        qdrant: the server.
        prefix: of the collections' names.
        settle_seconds: how long a write may take, plus how far the clocks of its writers are apart.
        make: make the collections where there are none; else nothing is written.

    Raises:
        ArtifactError: collections of another version, or none where none are to be made.
        StoreFailureError: it cannot be read or written.
    """

    def __init__(
        self, qdrant: Qdrant, *, prefix: str = "mmrec", settle_seconds: float = SETTLE_SECONDS, make: bool = True
    ) -> None:
        self._qdrant, self._prefix, self._settle = qdrant, prefix, round(settle_seconds * 1e6)
        self._counting, self._last = threading.Lock(), 0
        if make:
            for kind in _INDEXED:
                self._make(kind)
            self._set_once("schema_version", str(SCHEMA_VERSION))
            self._set_once("secret", secrets.token_hex(32))
        else:
            self._check()
        if (version := self._get("schema_version")) != str(SCHEMA_VERSION):
            raise ArtifactError(f"a store of version {SCHEMA_VERSION}", got=str(version), where=f"{prefix}_about")
        self._secret = bytes.fromhex(self._get("secret") or "")
        # A clock that was set back must not let numbers begin again.
        newest = self._scroll("posts", None, limit=1, newest_first=True)
        self._last = newest[0]["number"] if newest else 0
        self._served = ServedQueue(self._keep_served)

    def put_post(self, post: StoredPost, pictures: Sequence[bytes]) -> int:
        """Keep a post and its encoded pictures in place of an earlier one of that id; return its number."""
        number = self._numbers(1)[0]
        payload = {
            **vars(post),
            "attributes": dict(post.attributes),
            "vector": _vector(post),
            "pictures": [_text(data) for data in pictures],
            "number": number,
        }
        # Of two processes that put one post at a time the later number stays.
        earlier = models.Filter(must=[_between("number", lt=number)])
        self._upsert("posts", [(_id(post.item_id), payload)], update_filter=earlier)
        return number

    def set_vector(self, number: int, post: StoredPost) -> None:
        """Keep vector, model and modalities of a post that has a number."""
        payload = {"model_hash": post.model_hash, "present": list(post.present), "vector": _vector(post)}
        it = models.FieldCondition(key="number", match=models.MatchValue(value=number))
        with self._calling() as client:
            client.set_payload(self._name("posts"), payload, points=models.Filter(must=[it]), wait=True)

    def posts(self) -> Iterator[StoredPost]:
        """Yield every post, the deleted among them, in the order they were last put."""
        return (post for _, post in self.changes(0))

    def changes(self, after: int) -> Iterator[tuple[int, StoredPost]]:
        """Yield number and post of what was put after a number, and again what was put within the last seconds."""
        after = min(after, _now() - self._settle)
        while page := self._page("posts", after, limit=_PAGE, without=["pictures"]):
            for payload in page:
                after = payload["number"]
                yield after, _post(payload)

    def pictures(self, item_id: str) -> tuple[bytes, ...]:
        """Return the pictures of a post."""
        payload = self._retrieve("posts", _id(item_id))
        return tuple(_data(text) for text in payload["pictures"]) if payload else ()

    def add_feedback(self, events: Sequence[Event]) -> None:
        """Append events, all or none of them: Qdrant takes a request whole."""
        self._served.flush()
        if any(event.timestamp not in _INTEGERS for event in events):
            raise StoreFailureError("a timestamp of more than 64 bits")
        numbers = self._numbers(len(events))
        points = [(uuid.uuid4(), vars(event) | {"number": n}) for event, n in zip(events, numbers, strict=True)]
        self._upsert("feedback", points)

    def feedback_of(self, user_id: str, *, limit: int) -> list[Event]:
        """Return the last events of a user, in the order in which they came."""
        of_user = models.FieldCondition(key="user_id", match=models.MatchValue(value=user_id))
        found = self._scroll("feedback", models.Filter(must=[of_user]), limit=limit, newest_first=True)
        return [_event(payload) for payload in reversed(found)]

    def feedback_log(self, after: int, *, limit: int) -> list[tuple[int, Event]]:
        """Return number and event of the first feedback after a number, but for that of the last seconds."""
        page = self._page("feedback", after, limit=limit, settled=True)
        return [(payload["number"], _event(payload)) for payload in page]

    def log_served(self, served: Served) -> None:
        """Append what was shown, soon."""
        self._served.put(served)

    def served(self, request_id: str) -> Served | None:
        """Return what an answer showed."""
        self._served.flush()
        payload = self._retrieve("served", _id(request_id))
        return _answer(payload) if payload else None

    def served_log(self, after: int, *, limit: int) -> list[tuple[int, Served]]:
        """Return number and answer of the first answers after a number, but for those of the last seconds."""
        self._served.flush()
        page = self._page("served", after, limit=limit, settled=True)
        return [(payload["number"], _answer(payload)) for payload in page]

    def setting(self, name: str) -> str | None:
        """Return what was last set under a name."""
        return self._get(f"setting:{name}")

    def set_setting(self, name: str, value: str) -> None:
        """Keep a value under a name."""
        self._upsert("about", [(_id(f"setting:{name}"), {"value": value})])

    def secret(self) -> bytes:
        """Return 32 random bytes that stay the same as long as the store does."""
        return self._secret

    def close(self) -> None:
        """Keep what was served, and let go of the connection."""
        self._served.close()
        self._qdrant.close()

    def _check(self) -> None:
        """Look for the store.

        Raises:
            ArtifactError: it is not there.
        """
        with self._calling() as client:
            missing = [name for name in map(self._name, _INDEXED) if not client.collection_exists(name)]
        if missing:
            raise ArtifactError(
                "a store of mmrec serve",
                got=f"a server without the collection {missing[0]}",
                where="Qdrant",
                fix="Give what mmrec serve got as --store.",
            )

    def _make(self, kind: _Kind) -> None:
        """Make a collection where there is none; what another process makes meanwhile will do."""
        name = self._name(kind)
        with self._calling() as client:
            if not client.collection_exists(name):
                try:
                    client.create_collection(name, vectors_config={})
                except Exception:
                    if not client.collection_exists(name):
                        raise
            for field, schema in _INDEXED[kind].items():
                client.create_payload_index(name, field, field_schema=schema, wait=True)

    def _set_once(self, name: str, value: str) -> None:
        self._upsert("about", [(_id(name), {"value": value})], update_mode=models.UpdateMode.INSERT_ONLY)

    def _get(self, name: str) -> str | None:
        payload = self._retrieve("about", _id(name))
        return str(payload["value"]) if payload else None

    def _keep_served(self, answers: Sequence[Served]) -> None:
        numbers = self._numbers(len(answers))
        points = [
            (
                _id(served.request_id),
                vars(served) | {"shown": [list(entry) for entry in served.shown], "number": number},
            )
            for served, number in zip(answers, numbers, strict=True)
        ]
        self._upsert("served", points)

    def _numbers(self, count: int) -> Sequence[int]:
        """Draw numbers, greater than all before."""
        with self._counting:
            first = max(_now(), self._last + 1)
            self._last = first + count - 1
            return range(first, first + count)

    def _upsert(
        self,
        kind: _Kind,
        points: Sequence[tuple[uuid.UUID, _Payload]],
        *,
        update_filter: models.Filter | None = None,
        update_mode: models.UpdateMode | None = None,
    ) -> None:
        """Put points; when this returns, Qdrant has applied them."""
        structs = [models.PointStruct(id=str(key), payload=dict(payload), vector={}) for key, payload in points]
        with self._calling() as client:
            client.upsert(self._name(kind), structs, wait=True, update_filter=update_filter, update_mode=update_mode)

    def _retrieve(self, kind: _Kind, key: uuid.UUID) -> _Payload | None:
        with self._calling() as client:
            found = client.retrieve(self._name(kind), [str(key)], with_payload=True)
        return (found[0].payload or {}) if found else None

    def _page(
        self, kind: _Kind, after: int, *, limit: int, settled: bool = False, without: Sequence[str] = ()
    ) -> list[_Payload]:
        """Return the payloads of the first points after a number."""
        last = _now() - self._settle if settled else None
        within = models.Filter(must=[_between("number", gt=after, lte=last)])
        page = self._scroll(kind, within, limit=limit + 1, without=without)
        if len(page) <= limit:
            return page
        # Of two processes there may be two points of one number: a page that ended between them would lose one.
        whole = [payload for payload in page if payload["number"] < page[-1]["number"]]
        return whole or page

    def _scroll(
        self,
        kind: _Kind,
        condition: models.Filter | None,
        *,
        limit: int,
        newest_first: bool = False,
        without: Sequence[str] = (),
    ) -> list[_Payload]:
        direction = models.Direction.DESC if newest_first else models.Direction.ASC
        with self._calling() as client:
            found, _ = client.scroll(
                self._name(kind),
                scroll_filter=condition,
                limit=limit,
                order_by=models.OrderBy(key="number", direction=direction),
                with_payload=models.PayloadSelectorExclude(exclude=list(without)) if without else True,
            )
        return [point.payload or {} for point in found]

    def _name(self, kind: _Kind) -> str:
        return f"{self._prefix}_{kind}"

    @contextmanager
    def _calling(self) -> Iterator[QdrantClient]:
        try:
            with self._qdrant.calling() as client:
                yield client
        except QdrantFailureError as error:
            raise StoreFailureError(str(error)) from error


def _post(payload: _Payload) -> StoredPost:
    return StoredPost(
        item_id=payload["item_id"],
        caption=payload["caption"],
        attributes=payload["attributes"],
        content_hash=payload["content_hash"],
        model_hash=payload["model_hash"],
        present=tuple(payload["present"]),
        vector=np.frombuffer(_data(payload["vector"]), dtype="<f4").astype(np.float32),
        published_at=payload["published_at"],
        deleted=payload["deleted"],
    )


def _vector(post: StoredPost) -> str:
    return _text(np.ascontiguousarray(post.vector, dtype="<f4").tobytes())


def _event(payload: _Payload) -> Event:
    return Event(**{name: payload[name] for name in Event.__dataclass_fields__})


def _answer(payload: _Payload) -> Served:
    shown = [(item_id, score) for item_id, score in payload["shown"]]
    return Served(**{name: payload[name] for name in Served.__dataclass_fields__} | {"shown": shown})


def _between(key: str, **bounds: int | None) -> models.FieldCondition:
    # Bounds are float64 in Qdrant, which holds microseconds of the next 200 years exactly.
    return models.FieldCondition(key=key, range=models.Range(**bounds))


def _id(name: str) -> uuid.UUID:
    return uuid.uuid5(_NAMES, name)


def _now() -> int:
    return time.time_ns() // 1000


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _data(text: str) -> bytes:
    return base64.b64decode(text)
