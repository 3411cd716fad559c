"""Whatever a request names to vectors: items by id, raw posts encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from mmrec.errors import MmrecError, RequestError
from mmrec.inference.recommender import Recommender
from mmrec.search.index import Vectors
from mmrec.serving.limits import Limits
from mmrec.serving.posts.live_items import Item, LiveItems
from mmrec.serving.posts.post_vectors import Content, Encoded, PostVectors
from mmrec.serving.posts.references import Parts, content_of, name_of
from mmrec.serving.problems import ProblemError
from mmrec.serving.schemas import Candidate, RawPost
from mmrec.serving.trace import Trace


class Resolved(NamedTuple):
    """What became of an entry of a request; a tuple, for a request has hundreds.

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


Started = Resolved | tuple[str | int, Future[Encoded]]
"""An entry that is looked up, or the name and the vector to be of a post that is on its way."""


class Resolver:
    """Turns the entries of requests into vectors.

    Args:
        recommender: the trained model.
        items: what has an id.
        posts: vectors of raw posts.
        limits: of the service.
    """

    def __init__(self, recommender: Recommender, items: LiveItems, posts: PostVectors, *, limits: Limits) -> None:
        self._recommender, self._items, self._posts, self._limits = recommender, items, posts, limits

    def present(self, item: Item) -> tuple[str, ...]:
        """Return the modalities of an item."""
        return self._recommender.vectors.present(item.row) if item.published is None else item.published.present

    def resolve(
        self,
        entries: Sequence[Candidate],
        parts: Parts,
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
        return self.finish(self.start(entries, parts, trace, find or self._items.find), trace)

    def start(
        self,
        entries: Sequence[Candidate],
        parts: Parts,
        trace: Trace,
        find: Callable[[str], Item | None],
    ) -> list[Started]:
        """Look ids up and have posts encoded, without waiting for them; see :meth:`resolve`."""
        read = [self._read(entry, number, parts, find) for number, entry in enumerate(entries)]
        contents = [entry[1] for entry in read if not isinstance(entry, Resolved)]
        if not contents:
            return [entry for entry in read if isinstance(entry, Resolved)]
        with trace.stage("decode"):
            coming = iter(self._posts.start(contents, check=trace.left, until=trace.until))
        return [entry if isinstance(entry, Resolved) else (entry[0], next(coming)) for entry in read]

    def finish(self, started: Sequence[Started], trace: Trace) -> list[Resolved]:
        """Return what became of entries that were started."""
        return [entry if isinstance(entry, Resolved) else self._finish(*entry, trace) for entry in started]

    def _read(
        self, entry: Candidate, position: int, parts: Parts, find: Callable[[str], Item | None]
    ) -> Resolved | tuple[str | int, Content]:
        """Look an id up, or return the name and the content of a post."""
        item_id = entry.item_id if isinstance(entry, RawPost) else entry
        item = None if item_id is None else find(str(item_id))
        if item_id is not None and item is not None:
            return Resolved(item_id, item_key(item.item_id), item.vector, self.present(item))
        name = name_of(item_id, position)
        if not isinstance(entry, RawPost) or (item_id is not None and (entry.caption, entry.image) == (None, None)):
            return Resolved(name, "", None, (), str(RequestError("the id of a known item", got=repr(item_id))))
        try:
            return name, content_of(entry.caption, entry.image, parts, self._limits, entry.attributes)
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
        trace.posts.append(encoded.present)
        return Resolved(name, f"post:{encoded.key}", encoded.vector, encoded.present)


def item_key(item_id: str) -> str:
    """Return the key of an item with an id."""
    return f"id:{item_id}"
