"""Whoever asks, to vectors: users by their history, encoded together where several are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mmrec.errors import MmrecError
from mmrec.search.index import Vectors
from mmrec.serving.answers.pasts import Pasts
from mmrec.serving.limits import Limits
from mmrec.serving.model.jobs import UserJob
from mmrec.serving.model.model_worker import ModelWorker
from mmrec.serving.posts.live_items import Item, LiveItems
from mmrec.serving.posts.references import Parts
from mmrec.serving.posts.resolver import Resolver, Started, item_key
from mmrec.serving.problems import ProblemError, or_raise, settled, too_many
from mmrec.serving.schemas import Asker, Candidate, RawPost, Unused
from mmrec.serving.trace import Trace


@dataclass(frozen=True)
class PastPost:
    """A post of a history.

    Args:
        name: its id, or what the request calls it.
        key: the same for two entries of one item or one content.
        vector: shape (width,), score-ready.
    """

    name: str | int
    key: str
    vector: Vectors


@dataclass(frozen=True)
class Asking:
    """Who asks.

    Args:
        note: what the answer says of them.
        vectors: shape (interests, width), score-ready.
        had: keys of the part of the history that counts; what it holds gains the repeat bonus.
        seen: ids of all that they ever chose.
        past: the part of the history that counts, oldest first.
    """

    note: Asker
    vectors: Vectors
    had: frozenset[str]
    seen: frozenset[str]
    past: Sequence[PastPost]


class Askers:
    """Turns users and histories into vectors.

    Args:
        resolver: turns the posts of histories into vectors.
        items: what has an id.
        pasts: what known users chose.
        worker: runs the model.
        width: of the vectors.
        length: most recent events of a history that count.
        limits: of the service.
    """

    def __init__(
        self,
        resolver: Resolver,
        items: LiveItems,
        pasts: Pasts,
        worker: ModelWorker,
        *,
        width: int,
        length: int,
        limits: Limits,
    ) -> None:
        self._resolver, self._items, self._pasts, self._worker = resolver, items, pasts, worker
        self._width, self._length, self._limits = width, length, limits

    def one(
        self,
        user_id: str | int | None,
        history: Sequence[Candidate] | None,
        parts: Parts,
        trace: Trace,
    ) -> Asking:
        """Return who asks: a known user, or whoever chose a history; a stranger where that is empty.

        Raises:
            ProblemError: both or neither are given, the history is too long, or nothing in it can be used.
        """
        trace.user_id = None if user_id is None else str(user_id)
        return or_raise(self.several([(user_id, history)], parts, trace)[0])

    def several(
        self,
        asked: Sequence[tuple[str | int | None, Sequence[Candidate] | None]],
        parts: Parts,
        trace: Trace,
    ) -> list[Asking | MmrecError]:
        """Return who several are, as :meth:`one` does for one; their posts are encoded together, and so are they.

        Args:
            asked: id or history of each.
            parts: the pictures of a multipart request, by name.
            trace: of the request.

        Returns:
            For one who cannot be used the error, which spoils no other.

        Raises:
            ProblemError: too much waits already, or there is no time left.
        """
        begun = [settled(partial(self._begin, *one, parts, trace)) for one in asked]
        read = [one if isinstance(one, MmrecError) else settled(partial(self._read, one, trace)) for one in begun]
        with trace.stage("user"):
            coming = iter(self._worker.encode_users([one.job for one in read if isinstance(one, _Asker)]))
            return [one.as_asking(trace.wait(next(coming))) if isinstance(one, _Asker) else one for one in read]

    def _begin(
        self,
        user_id: str | int | None,
        history: Sequence[Candidate] | None,
        parts: Parts,
        trace: Trace,
    ) -> _Asker | _Begun:
        """Look a user up, or have the posts of a history encoded."""
        if (user_id is None) == (history is None):
            got = "both" if history is not None else "neither"
            raise ProblemError(422, "either user_id or history", got=got, fix="For a stranger give an empty history.")
        known = None if user_id is None else self._known(str(user_id), trace)
        if known is not None:
            return known
        history = history or []
        if len(history) > self._limits.history:
            given, fix = len(history), "Send the most recent entries."
            raise too_many("entries of a history", limit=self._limits.history, got=given, where="history", fix=fix)
        seen = frozenset(str(i) for e in history if (i := e.item_id if isinstance(e, RawPost) else e) is not None)
        first = max(0, len(history) - self._length)
        return _Begun(self._resolver.start(history[first:], parts, trace, self._items.remember), first, seen)

    def _known(self, user_id: str, trace: Trace) -> _Asker | None:
        """Return a user who chose something."""
        found: dict[str, Item] = {}

        def known(item_id: str) -> bool:
            # Looked up once, for a post may be taken back meanwhile.
            item = found.get(item_id) or self._items.remember(item_id)
            if item is not None:
                found[item_id] = item
            return item is not None

        with trace.stage("store"):
            past = self._pasts.of(user_id, known=known)
        if past is None:
            return None
        posts = [
            PastPost(self._items.external(item_id), item_key(item_id), found[item_id].vector)
            for item_id in past.item_ids
            if known(item_id)
        ]
        job = UserJob(np.stack([post.vector for post in posts]), past.times)
        return _Asker(Asker(kind="known", history_length=len(posts)), job, past.seen, posts)

    def _read(self, begun: _Asker | _Begun, trace: Trace) -> _Asker:
        """Return who chose a history, once its posts are encoded."""
        if isinstance(begun, _Asker):
            return begun
        resolved = self._resolver.finish(begun.entries, trace)
        unused = [
            Unused(position=begun.first + position, error=entry.error_message)
            for position, entry in enumerate(resolved)
            if entry.error_message is not None
        ]
        posts = [PastPost(entry.name, entry.key, entry.vector) for entry in resolved if entry.vector is not None]
        if resolved and not posts:
            errors = [{"where": f"history.{entry.position}", "message": entry.error} for entry in unused]
            raise ProblemError(
                422, "a history with an entry that can be used", got="none", where="history", errors=errors
            )
        items = np.array([post.vector for post in posts], dtype=np.float32).reshape(len(posts), self._width)
        note = Asker(kind="history" if posts else "stranger", history_length=len(posts), unused=unused)
        return _Asker(note, UserJob(items, None), begun.seen, posts)


@dataclass(frozen=True)
class _Begun:
    """A history whose posts are on their way: all that count, the position of the first of them, ids of all."""

    entries: Sequence[Started]
    first: int
    seen: frozenset[str]


@dataclass(frozen=True)
class _Asker:
    """Someone who is still to be encoded."""

    note: Asker
    job: UserJob
    seen: frozenset[str]
    past: Sequence[PastPost]

    def as_asking(self, vectors: Vectors) -> Asking:
        return Asking(self.note, vectors, frozenset(post.key for post in self.past), self.seen, self.past)
