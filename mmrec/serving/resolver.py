"""Whatever a request names, and whoever asks, to vectors: items by id, raw posts encoded once, users by their history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from mmrec.errors import MmrecError, RequestError
from mmrec.inference.recommender import Recommender
from mmrec.search.index import Vectors
from mmrec.serving.limits import Limits
from mmrec.serving.live_items import Item, LiveItems
from mmrec.serving.model_worker import ModelWorker, UserJob
from mmrec.serving.pasts import Pasts
from mmrec.serving.post_vectors import Encoded, PostVectors
from mmrec.serving.problems import ProblemError
from mmrec.serving.references import content_of, name_of
from mmrec.serving.schemas import Asker, Candidate, RawPost, Unused
from mmrec.serving.trace import Trace


@dataclass(frozen=True)
class Resolved:
    """What became of an entry of a request.

    Args:
        name: what the answer calls it.
        key: the same for two entries of one item or one content.
        vector: shape (width,), score-ready; None where there is none.
        present: the modalities it has.
        error_message: why it has no vector, or None.
    """

    name: str | int
    key: str
    vector: Vectors | None
    present: tuple[str, ...] = ()
    error_message: str | None = None


@dataclass(frozen=True)
class Asking:
    """Who asks.

    Args:
        note: what the answer says of them.
        vectors: shape (interests, width), score-ready.
        had: keys of the part of the history that counts; what it holds gains the repeat bonus.
        seen: ids of all that they ever chose.
    """

    note: Asker
    vectors: Vectors
    had: frozenset[str]
    seen: frozenset[str]


class Resolver:
    """Turns the entries of requests into vectors.

    Args:
        recommender: the trained model.
        items: what has an id.
        posts: vectors of raw posts.
        pasts: what known users chose.
        worker: runs the model.
        length: most recent events of a history that count.
        limits: of the service.
    """

    def __init__(
        self,
        recommender: Recommender,
        items: LiveItems,
        posts: PostVectors,
        pasts: Pasts,
        worker: ModelWorker,
        *,
        length: int,
        limits: Limits,
    ) -> None:
        self._recommender, self._items, self._posts, self._pasts = recommender, items, posts, pasts
        self._worker, self._length, self._limits = worker, length, limits

    def present(self, item: Item) -> tuple[str, ...]:
        """Return the modalities of an item."""
        return self._recommender.vectors.present(item.row) if item.published is None else item.published.present

    def resolve(
        self,
        entries: Sequence[Candidate],
        parts: Mapping[str, bytes],
        trace: Trace,
        *,
        find: Callable[[str], Item | None] | None = None,
    ) -> list[Resolved]:
        """Return what became of each entry; one that cannot be used spoils no other.

        Args:
            entries: ids and raw posts.
            parts: the pictures of a multipart request, by name.
            trace: of the request.
            find: looks up ids, by default among what is offered.

        Raises:
            ProblemError: too much waits already, or there is no time left.
        """
        started = [
            self._start(entry, number, parts, trace, find or self._items.find) for number, entry in enumerate(entries)
        ]
        return [entry if isinstance(entry, Resolved) else self._finish(*entry, trace) for entry in started]

    def _start(
        self,
        entry: Candidate,
        position: int,
        parts: Mapping[str, bytes],
        trace: Trace,
        find: Callable[[str], Item | None],
    ) -> Resolved | tuple[str | int, Future[Encoded]]:
        """Look an id up, or decode a post and have it encoded."""
        post = entry if isinstance(entry, RawPost) else RawPost(item_id=entry)
        name = name_of(post, position)
        item = None if post.item_id is None else find(str(post.item_id))
        if item is not None:
            return Resolved(name, item_key(item.item_id), item.vector, self.present(item))
        if post.item_id is not None and post.caption is None and post.image is None:
            error = RequestError("the id of a known item", got=repr(post.item_id))
            return Resolved(name, "", None, (), str(error))
        trace.left()
        try:
            with trace.stage("decode"):
                content = content_of(post.caption, post.image, parts, self._limits, post.attributes)
                return name, self._posts.start(content)
        except ProblemError:
            raise
        except MmrecError as error:
            return Resolved(name, "", None, (), str(error))

    def _finish(self, name: str | int, coming: Future[Encoded], trace: Trace) -> Resolved:
        try:
            with trace.stage("encode"):
                encoded = trace.wait(coming)
        except ProblemError:
            raise
        except MmrecError as error:
            return Resolved(name, "", None, (), str(error))
        return Resolved(name, f"post:{encoded.key}", encoded.vector, encoded.present)

    def asking(
        self,
        user_id: str | int | None,
        history: Sequence[Candidate] | None,
        parts: Mapping[str, bytes],
        trace: Trace,
    ) -> Asking:
        """Return who asks: a known user, or whoever chose a history; a stranger where that is empty.

        Raises:
            ProblemError: both or neither are given, the history is too long, or nothing in it can be used.
        """
        if (user_id is None) == (history is None):
            got = "both" if history is not None else "neither"
            raise ProblemError(422, "either user_id or history", got=got, fix="For a stranger give an empty history.")
        if history is not None:
            return self._after(history, parts, trace)
        trace.user_id = str(user_id)
        found: dict[str, Item] = {}

        def known(item_id: str) -> bool:
            # Looked up once, for a post may be taken back meanwhile.
            item = found.get(item_id) or self._items.remember(item_id)
            if item is not None:
                found[item_id] = item
            return item is not None

        with trace.stage("store"):
            past = self._pasts.of(trace.user_id, known=known)
        if past is None:
            return self._after([], parts, trace)
        vectors = [found[item_id].vector for item_id in past.item_ids if known(item_id)]
        encoded = self._encode(UserJob(np.stack(vectors), past.times), trace)
        note = Asker(kind="known", history_length=len(vectors))
        return Asking(note, encoded, frozenset(map(item_key, past.item_ids)), past.seen)

    def _after(self, history: Sequence[Candidate], parts: Mapping[str, bytes], trace: Trace) -> Asking:
        if len(history) > self._limits.history:
            raise ProblemError(
                422,
                f"a history of at most {self._limits.history}",
                got=str(len(history)),
                where="history",
                fix="Send the most recent entries.",
            )
        seen = frozenset(str(i) for e in history if (i := e.item_id if isinstance(e, RawPost) else e) is not None)
        first = max(0, len(history) - self._length)
        resolved = self.resolve(history[first:], parts, trace, find=self._items.remember)
        unused = [
            Unused(position=first + position, error=entry.error_message)
            for position, entry in enumerate(resolved)
            if entry.error_message is not None
        ]
        used = [entry for entry in resolved if entry.vector is not None]
        vectors = [entry.vector for entry in resolved if entry.vector is not None]
        if history and not used:
            errors = [{"where": f"history.{entry.position}", "message": entry.error} for entry in unused]
            raise ProblemError(
                422, "a history with an entry that can be used", got="none", where="history", errors=errors
            )
        width = self._recommender.assembly.model.width
        items = np.stack(vectors) if vectors else np.zeros((0, width), dtype=np.float32)
        note = Asker(kind="history" if used else "stranger", history_length=len(used), unused=unused)
        return Asking(note, self._encode(UserJob(items, None), trace), frozenset(entry.key for entry in used), seen)

    def _encode(self, job: UserJob, trace: Trace) -> Vectors:
        with trace.stage("user"):
            return trace.wait(self._worker.encode_user(job))


def item_key(item_id: str) -> str:
    """Return the key of an item with an id."""
    return f"id:{item_id}"
