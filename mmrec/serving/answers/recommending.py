"""Recommendations: candidates off the index, scored exactly, put in another order where that is asked, and why each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmrec.errors import near_names
from mmrec.feed.catalogue import NEVER
from mmrec.inference.recommender import Recommender
from mmrec.model.item_encoder import ITEM_ID
from mmrec.search.index import Vectors
from mmrec.serving.answers.askers import Asking
from mmrec.serving.answers.fallback import alternate, fresh_rows, popular_rows
from mmrec.serving.answers.rerank import UNKNOWN, kept_shares, marginal_order, nearest_posts, pool_size, values_of
from mmrec.serving.limits import Limits
from mmrec.serving.posts.live_items import Ask, Hit, Item, LiveItems
from mmrec.serving.posts.partial_vectors import PartialVectors
from mmrec.serving.posts.resolver import Resolver
from mmrec.serving.problems import ProblemError, too_many
from mmrec.serving.schemas import NearPost, RecommendAnswer, RecommendedItem, RecommendRequest
from mmrec.serving.trace import Trace

Compare = Callable[[Vectors, Vectors], Vectors]
"""Scores of items, shape (items, width), for one user, shape (interests, width)."""


class Recommending:
    """Chooses items for users.

    Args:
        recommender: the trained model.
        items: what can be recommended.
        resolver: knows what posts consist of.
        partial: vectors of items by some of their modalities.
        compare: scores.
        limits: of the service.
    """

    def __init__(
        self,
        recommender: Recommender,
        items: LiveItems,
        resolver: Resolver,
        partial: PartialVectors,
        compare: Compare,
        *,
        limits: Limits,
    ) -> None:
        self._recommender, self._items, self._resolver = recommender, items, resolver
        self._partial, self._compare, self._limits = partial, compare, limits
        assembly = recommender.assembly
        self._modalities = list(assembly.encoders)
        self._first_seen = assembly.catalogue.first_seen
        self._popular = popular_rows(assembly.catalogue, assembly.histories)
        self._fresh = fresh_rows(assembly.catalogue)

    def check(self, request: RecommendRequest) -> None:
        """Refuse what no answer can be given to, before any work.

        Raises:
            ProblemError: more items than an answer holds or leaves out, or weights that say nothing.
        """
        if request.k > self._limits.k:
            raise too_many("items", limit=self._limits.k, got=request.k, where="k")
        if len(request.exclude) > self._limits.excluded:
            excluded = len(request.exclude)
            raise too_many("items to leave out", limit=self._limits.excluded, got=excluded, where="exclude")
        for name in request.modality_weights:
            if name not in self._modalities:
                fix = near_names(name[:100], self._modalities)
                raise ProblemError(
                    422, "a modality of the model", got=repr(name[:100]), where="modality_weights", fix=fix
                )
        content = self._content(self._modalities) or self._modalities
        if all(request.modality_weights.get(name, 1.0) == 0 for name in content):
            raise ProblemError(
                422,
                "a weight above 0 for a modality at least",
                got=f"0 for {' and '.join(content)}",
                where="modality_weights",
            )

    def answer(self, request: RecommendRequest, asking: Asking, trace: Trace) -> RecommendAnswer:
        """Return the best items for a user; a stranger gets what is popular and what is fresh.

        Raises:
            ProblemError: weights of modalities need more work than there is time for.
            RequestError: conditions that are none.
        """
        dropped = frozenset(map(str, request.exclude)) | (asking.seen if request.seen == "exclude" else frozenset())
        stranger = asking.note.kind == "stranger"
        strategy: Literal["model", "popular_and_fresh"] = "popular_and_fresh" if stranger else "model"
        pool = 0
        if stranger:
            with trace.stage("search"):
                results = self._for_strangers(dropped, request.where, request.k)
        else:
            again = bool(request.freshness or request.diversity) or any(
                w < 1 for w in request.modality_weights.values()
            )
            wanted = pool_size(request.k, most=self._limits.pool) if again else request.k
            with trace.stage("search"):
                hits: Sequence[Hit] = self._items.best(self._ask(asking, dropped, request.where), k=wanted)
            if again:
                pool = len(hits)
                hits = self._reranked(request, asking, hits, trace)
            results = self._explained(asking, hits, n=request.reasons)
        return RecommendAnswer(
            request_id=trace.request_id,
            model=self._recommender.model_hash,
            user=asking.note,
            strategy=strategy,
            pool=pool,
            results=results,
        )

    def _ask(self, asking: Asking, dropped: frozenset[str], where: str) -> Ask:
        return Ask(
            queries=self._items.exported.layout.shape(asking.vectors),
            score=lambda vectors: self._compare(asking.vectors, vectors),
            bonus=self._recommender.repeat_bonus,
            had=frozenset(key.removeprefix("id:") for key in asking.had if key.startswith("id:")),
            dropped=dropped,
            where=where,
        )

    def _for_strangers(self, dropped: frozenset[str], where: str, k: int) -> list[RecommendedItem]:
        # Of each list k are enough, whatever the two have in common.
        popular, fresh = (
            self._items.first(rows, k=k, where=where, dropped=dropped) for rows in (self._popular, self._fresh)
        )
        newest = self._items.newest(k=k, where=where, dropped=dropped)
        chosen = alternate(popular, list(dict.fromkeys([*newest, *fresh])), k=k)
        return [
            RecommendedItem(item_id=self._items.external(item_id), rank=rank, score=None, reason=reason)
            for rank, (item_id, reason) in enumerate(chosen, start=1)
        ]

    def _reranked(self, request: RecommendRequest, asking: Asking, hits: Sequence[Hit], trace: Trace) -> Sequence[Hit]:
        """Return the k best of a pool as the request wants them ordered, with the model's own scores."""
        found = [(hit, item) for hit in hits if (item := self._items.find(hit.item_id)) is not None]
        if not found:
            return []
        items = [item for _, item in found]
        relevance = np.array([hit.score for hit, _ in found], dtype=np.float64)
        if any(weight < 1 for weight in request.modality_weights.values()):
            with trace.stage("modalities"):
                relevance += self._weighted_change(request, asking, items, trace)
        with trace.stage("rerank"):
            times = np.array([self._time_of(item) for item in items], dtype=np.int64)
            values = values_of(relevance, times, freshness=request.freshness)
            content = self._content_of([item.vector for item in items])
            places = marginal_order(values, content, diversity=request.diversity, k=request.k)
        return [found[place][0] for place in places.tolist()]

    def _weighted_change(
        self, request: RecommendRequest, asking: Asking, items: Sequence[Item], trace: Trace
    ) -> npt.NDArray[np.float64]:
        """Return what the weights of modalities add to the items' scores, shape (items,)."""
        ways = []
        for place, item in enumerate(items):
            present = self._resolver.present(item)
            shares = kept_shares(present, request.modality_weights, content=frozenset(self._content(present)))
            ways += [(place, kept, share) for kept, share in shares.items() if kept != present]
        change = np.zeros(len(items))
        if ways:
            places = np.array([place for place, _, _ in ways])
            partial = self._partial.of([(items[place], kept) for place, kept, _ in ways], trace)
            whole = np.stack([items[place].vector for place in places.tolist()])
            gain = self._compare(asking.vectors, partial).astype(np.float64) - self._compare(asking.vectors, whole)
            np.add.at(change, places, gain * np.array([share for _, _, share in ways]))
        return change

    def _explained(self, asking: Asking, hits: Sequence[Hit], *, n: int) -> list[RecommendedItem]:
        """Return hits as the answer shows them, each with the n nearest posts of the history."""
        found = [self._items.find(hit.item_id) for hit in hits] if n else []
        past = list({post.key: post for post in asking.past}.values())
        because: dict[str, list[NearPost]] = {}
        items = [item for item in found if item is not None]
        if items and past:
            places, cosines = nearest_posts(
                self._content_of([item.vector for item in items]), self._content_of([post.vector for post in past]), n=n
            )
            for item, row, near in zip(items, places.tolist(), cosines.tolist(), strict=True):
                because[item.item_id] = [
                    NearPost(item_id=past[place].name, similarity=cosine)
                    for place, cosine in zip(row, near, strict=True)
                ]
        return [
            RecommendedItem(
                item_id=self._items.external(hit.item_id),
                rank=rank,
                score=hit.score,
                because=because.get(hit.item_id, []),
            )
            for rank, hit in enumerate(hits, start=1)
        ]

    def _time_of(self, item: Item) -> int:
        """Return when an item became one, as its feed counts time."""
        if item.published is not None:
            return item.published.published_at
        first = int(self._first_seen[item.row])
        return UNKNOWN if first == NEVER else first

    def _content_of(self, vectors: Sequence[Vectors]) -> Vectors:
        """Return the content coordinates of score-ready vectors, shape (vectors, dim)."""
        return np.stack(vectors)[:, : self._recommender.assembly.model.dim]

    @staticmethod
    def _content(modalities: Sequence[str]) -> list[str]:
        return [name for name in modalities if name != ITEM_ID]
