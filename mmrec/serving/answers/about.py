"""What the service says of itself: an item, the model, whether it answers."""

from __future__ import annotations

import io
import math
import threading
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from mmrec.errors import MmrecError
from mmrec.serving.answers.service import Service
from mmrec.serving.model.jobs import UserJob
from mmrec.serving.posts.live_items import Item
from mmrec.serving.posts.post_vectors import Content
from mmrec.serving.problems import ProblemError, unknown_item
from mmrec.serving.schemas import Attribute, HealthAnswer, ItemAnswer, ModelAnswer
from mmrec.serving.trace import Trace


@dataclass(frozen=True)
class State:
    """Figures of a moment, for the metrics.

    Args:
        model_hash: of the weights and of the preprocessing.
        queue_depth: posts and users that wait for the model.
        cache_hits: contents whose vector was there or on its way.
        cache_misses: contents that had to be encoded.
        cache_size: vectors that are kept.
        exported: items of the export, hidden ones included.
        published: posts that were published.
    """

    model_hash: str
    queue_depth: int
    cache_hits: int
    cache_misses: int
    cache_size: int
    exported: int
    published: int


class About:
    """Answers about the service itself.

    Args:
        service: the service.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        picture = io.BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(picture, format="PNG")
        self._picture = picture.getvalue()
        self._checking, self._checked = threading.Lock(), -math.inf
        self._problem: ProblemError | None = None

    def item(self, item_id: str, trace: Trace) -> ItemAnswer:
        """Return an item as it is known now.

        Raises:
            ProblemError: no such item.
        """
        service = self._service
        item = service.items.find(item_id)
        if item is None:
            raise unknown_item(item_id)
        post = item.published
        return ItemAnswer(
            request_id=trace.request_id,
            item_id=service.items.external(item_id),
            source="catalogue" if post is None else "published",
            caption=service.items.caption(item),
            present=list(service.resolver.present(item)),
            attributes=self._attributes(item) if post is None else dict(post.attributes),
            published_at=None if post is None else post.published_at,
        )

    def model(self, trace: Trace, *, since: int) -> ModelAnswer:
        """Return what answers, and since when, in milliseconds since 1970."""
        service = self._service
        return ModelAnswer(
            request_id=trace.request_id,
            model=service.model_hash,
            run=service.recommender.run.path.name,
            vectors=service.vectors_name,
            index=service.items.exported.store.kind,
            since=since,
            feed_hash=service.catalogue.feed_hash,
            modalities=list(service.recommender.assembly.encoders),
            width=service.recommender.assembly.model.width,
            history_length=service.length,
            items=len(service.items),
            published=len(service.items.published),
            users=service.histories.num_users,
            attributes=service.items.exported.attributes,
            events=list(service.histories.event_names),
        )

    def ready(self, trace: Trace) -> HealthAnswer:
        """Encode a post that nobody sent, and a user who chose it, on the way that every request takes.

        Whoever asked before the last check began learns how that ended: a crowd at the door, which needs no key, makes the
        model work as often as two callers would.

        Raises:
            ProblemError: the model or the store does not answer, or there is no time left.
        """
        with self._checking:
            trace.left()
            if trace.came > self._checked:
                self._checked, self._problem = time.monotonic(), None
                try:
                    self._check(trace)
                except ProblemError as problem:
                    self._problem = problem
            if self._problem is not None:
                raise self._problem.with_traceback(None)
        return HealthAnswer(request_id=trace.request_id, status="ready")

    def _check(self, trace: Trace) -> None:
        try:
            vector = self._encoded(trace)
            user = trace.wait(self._service.worker.encode_users([UserJob(vector[None], None)])[0])
            self._service.store.feedback_of("", limit=1)
        except ProblemError:
            raise
        except Exception as error:
            raise ProblemError(503, "a model and a store that answer", got=type(error).__name__) from error
        if not (np.isfinite(vector).all() and np.isfinite(user).all()):
            raise ProblemError(503, "vectors of finite numbers", got="others", fix="Restart with another run.")

    def state(self) -> State:
        """Return figures of this moment."""
        service = self._service
        return State(
            model_hash=service.model_hash,
            queue_depth=service.worker.depth,
            cache_hits=service.posts.hits,
            cache_misses=service.posts.misses,
            cache_size=len(service.posts),
            exported=len(service.items.exported),
            published=len(service.items.published),
        )

    def _encoded(self, trace: Trace) -> np.ndarray:
        """Return the vector of a post that no cache knows; of an item where the model reads no content."""
        post = self._service.posts.decode(Content(f"ready {trace.request_id}", (self._picture,)))
        try:
            self._service.recommender.vectors.readable(post)
        except MmrecError:
            return np.array(self._service.items.exported.full[0])
        return trace.wait(self._service.worker.encode_posts([post])[0])

    def _attributes(self, item: Item) -> dict[str, Attribute]:
        exported = self._service.items.exported
        row = exported.table.iloc[item.row]
        return {name: _plain(row[name]) for name in exported.attributes}


def _plain(value: object) -> Attribute:
    """Return a cell of a table as JSON holds it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, np.ndarray | list | tuple):
        return " ".join(str(entry) for entry in value)
    return None if value is None or pd.isna(value) else str(value)  # type: ignore[call-overload]
