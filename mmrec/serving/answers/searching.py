"""Searches: items near a text, pictures, items, a user, or any mix of these, as ``mmrec search`` finds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrec.inference.questions import Question, as_query
from mmrec.inference.recommender import Recommender
from mmrec.search.index import Vectors
from mmrec.serving.answers.askers import Askers, Asking
from mmrec.serving.limits import Limits
from mmrec.serving.model.exported import Exported
from mmrec.serving.posts.live_items import Ask, LiveItems
from mmrec.serving.posts.post_vectors import PostVectors
from mmrec.serving.posts.references import Parts, content_of
from mmrec.serving.problems import ProblemError, or_raise, too_many, unknown_item
from mmrec.serving.schemas import FoundItem, Image, SearchAnswer, SearchRequest, SimilarRequest
from mmrec.serving.trace import Trace


class Searching:
    """Finds items.

    Args:
        recommender: the trained model.
        items: what can be found.
        posts: vectors of texts and pictures.
        askers: vectors of users.
        limits: of the service.
    """

    def __init__(
        self, recommender: Recommender, items: LiveItems, posts: PostVectors, askers: Askers, limits: Limits
    ) -> None:
        self._recommender, self._items, self._posts = recommender, items, posts
        self._askers, self._limits = askers, limits

    def search(self, request: SearchRequest, parts: Parts, trace: Trace) -> SearchAnswer:
        """Return the items nearest to a text, pictures, items, a user, or any mix.

        Text and pictures are one post, unless the parts have weights.

        Raises:
            ProblemError: nothing asked, an unknown user or item, or more items than an answer holds.
            RequestError: a post that cannot be read, or conditions that are none.
        """
        self._check_k(request.k)
        posts = self._posts_of(request, parts, trace)
        asking = None
        if request.user_id is not None:
            asking = self._askers.one(request.user_id, None, parts, trace)
            if asking.note.kind == "stranger":
                raise ProblemError(422, "a user who chose something", got="an unknown one", where="user_id")
        if len(request.items) > self._limits.history:
            raise too_many("items", limit=self._limits.history, got=len(request.items), where="items")
        items = [self._vector_of(str(item_id)) for item_id in request.items]
        if not posts and asking is None and not items:
            raise ProblemError(422, "a text, an image, items or a user_id", got="none of them")
        weights = _weights(request, users=int(asking is not None))
        post = np.stack(posts) if posts else None
        return self._found(post, asking, items, trace, where=request.where, k=request.k, weights=weights)

    def _posts_of(self, request: SearchRequest, parts: Parts, trace: Trace) -> list[Vectors]:
        """Return the vector of text and pictures together or, where they have weights, of each of them."""
        halves: list[tuple[str | None, Image | str | list[Image | str] | None]] = [(request.text, request.image)]
        if request.weights is not None:
            halves = [(request.text, None), (None, request.image)]
        asked = [(text, image) for text, image in halves if text is not None or image]
        contents = [content_of(text, image, parts, self._limits) for text, image in asked]
        return [or_raise(one).vector for one in self._posts.encode(contents, trace)]

    def similar(self, item_id: str, request: SimilarRequest, trace: Trace) -> SearchAnswer:
        """Return the items nearest to one, without itself.

        Raises:
            ProblemError: no such item, or more items than an answer holds.
            RequestError: conditions that are none.
        """
        self._check_k(request.k)
        item = self._items.find(item_id)
        if item is None:
            raise unknown_item(item_id)
        return self._found(
            None, None, [item.vector], trace, where=request.where, k=request.k, dropped=frozenset({item_id})
        )

    def _found(
        self,
        post: Vectors | None,
        asking: Asking | None,
        items: Sequence[Vectors],
        trace: Trace,
        *,
        where: str,
        k: int,
        dropped: frozenset[str] = frozenset(),
        weights: Vectors | None = None,
    ) -> SearchAnswer:
        """Answer a question of content, of a user, or of both, as ``mmrec search`` does."""
        nothing = np.zeros(0, dtype=np.int64)
        user = None if asking is None else asking.vectors.mean(axis=0, keepdims=True)
        question = Question(post, user, nothing, nothing, self._recommender.repeat_bonus if asking else 0.0, weights)
        had = frozenset(key.removeprefix("id:") for key in asking.had) if asking else frozenset()
        ask = as_ask(self._items.exported, question, items, had=had, dropped=dropped, where=where)
        with trace.stage("search"):
            hits = self._items.best(ask, k=k)
        results = [
            FoundItem(
                item_id=self._items.external(hit.item_id),
                rank=rank,
                score=hit.score,
                caption=self._caption(hit.item_id),
            )
            for rank, hit in enumerate(hits, start=1)
        ]
        return SearchAnswer(request_id=trace.request_id, model=self._recommender.model_hash, results=results)

    def _check_k(self, k: int) -> None:
        if k > self._limits.k:
            raise too_many("items", limit=self._limits.k, got=k, where="k")

    def _vector_of(self, item_id: str) -> Vectors:
        item = self._items.find(item_id)
        if item is None:
            raise ProblemError(422, "the id of a known item", got=repr(item_id), where="items")
        return item.vector

    def _caption(self, item_id: str) -> str | None:
        item = self._items.find(item_id)
        return None if item is None else self._items.caption(item)


def as_ask(
    exported: Exported,
    question: Question,
    items: Sequence[Vectors] = (),
    *,
    had: frozenset[str] = frozenset(),
    dropped: frozenset[str] = frozenset(),
    where: str = "",
) -> Ask:
    """Return a question as what the export and the posts since are asked.

    Args:
        exported: whose format finds candidates.
        question: what is looked for.
        items: score-ready vectors of items that are asked for.
        had: ids of what the asking user had.
        dropped: ids that must not be found.
        where: conditions on attributes.
    """
    layout = exported.layout
    asked = np.stack(items) if items else np.zeros((0, exported.full.shape[1]), dtype=np.float32)
    near = as_query(layout, question, layout.shape(asked))
    exact = as_query(layout.full, question, layout.full.shape(asked))
    return Ask(
        queries=near.vector[None],
        score=lambda vectors: np.asarray(layout.full.shape(vectors) @ exact.vector, dtype=np.float32),
        bonus=exact.bonus,
        had=had,
        dropped=dropped,
        where=where,
    )


def _weights(request: SearchRequest, *, users: int) -> Vectors | None:
    """Return the weight of each direction of a question, in the order text, picture, user, items.

    Raises:
        ProblemError: nothing that is asked has one.
    """
    if request.weights is None:
        return None
    weights = request.weights
    counts = (int(request.text is not None), int(bool(request.image)), users, len(request.items))
    found = np.repeat([weights.text, weights.image, weights.user, weights.items], counts).astype(np.float32)
    if not found.any():
        raise ProblemError(422, "a weight above 0 for something that is asked", got="none", where="weights")
    return found
