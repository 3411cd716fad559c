"""What the service does, without HTTP: score, recommend, search; see :mod:`mmrec.serving.publishing` for its writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from mmrec.inference.questions import Question, as_query
from mmrec.search.index import Vectors
from mmrec.serving.exported import Pair
from mmrec.serving.fallback import alternate, fresh_items, popular_items
from mmrec.serving.limits import Limits
from mmrec.serving.live_items import Ask, Hit, LiveItems
from mmrec.serving.model_worker import ModelWorker
from mmrec.serving.pasts import Pasts
from mmrec.serving.post_changes import PostChanges
from mmrec.serving.post_vectors import PostVectors
from mmrec.serving.problems import ProblemError
from mmrec.serving.references import content_of
from mmrec.serving.resolver import Asking, Resolved, Resolver
from mmrec.serving.schemas import (
    FoundItem,
    RankedItem,
    RecommendAnswer,
    RecommendRequest,
    ScoreAnswer,
    ScoredCandidate,
    ScoreRequest,
    SearchAnswer,
    SearchRequest,
    SimilarRequest,
)
from mmrec.serving.store import Served, Store, StoreFailureError
from mmrec.serving.trace import Trace

Parts = Mapping[str, bytes]
"""The pictures of a multipart request, by name."""
_LOG = logging.getLogger("mmrec.serving")


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Service:
    """A model, an export and a store, ready to answer; safe to use from many threads.

    Args:
        pair: the run and its export.
        store: what was published, fed back and served.
        limits: what a request may ask.
        on_batch: told the size of every batch that the model runs.
        keep_served: keep what every answer shows.
    """

    def __init__(
        self,
        pair: Pair,
        store: Store,
        *,
        limits: Limits | None = None,
        on_batch: Callable[[int], None] | None = None,
        keep_served: bool = True,
    ) -> None:
        self.limits, self._keep_served = limits or Limits(), keep_served
        self.recommender, self.store = pair.recommender, store
        assembly = self.recommender.assembly
        self.catalogue, self.histories = assembly.catalogue, assembly.histories
        self.length = assembly.config.train.history_length
        integers = self.catalogue.manifest.get("item_id_type") == "integer"
        self.items = LiveItems(pair.exported, integer_ids=integers)
        self.changes = PostChanges(self.items, store)
        self.worker = ModelWorker(self.recommender, self.limits, on_batch=on_batch or (lambda size: None))
        self.posts = PostVectors(
            self.worker.encode_post,
            self.recommender.vectors.readable,
            side=int(str(self.catalogue.manifest.get("image_side", 224))),
            max_images=assembly.config.train.max_images,
            limits=self.limits,
        )
        pasts = Pasts(self.histories, self.catalogue.item_ids, store, length=self.length)
        self.resolver = Resolver(
            self.recommender, self.items, self.posts, pasts, self.worker, length=self.length, limits=self.limits
        )
        self._popular = popular_items(self.catalogue, self.histories)
        self._fresh = fresh_items(self.catalogue)

    @property
    def model_hash(self) -> str:
        """Hash of the weights and of the preprocessing."""
        return self.recommender.model_hash

    def close(self) -> None:
        """Finish what was accepted, then let go of everything."""
        self.worker.close()
        self.store.close()

    def score(self, request: ScoreRequest, parts: Parts, trace: Trace) -> ScoreAnswer:
        """Score candidates, in the order given.

        Raises:
            ProblemError: too many candidates, or a user or history that cannot be used.
        """
        if len(request.candidates) > self.limits.candidates:
            raise ProblemError(
                422,
                f"at most {self.limits.candidates} candidates",
                got=str(len(request.candidates)),
                where="candidates",
                fix="Ask in several requests.",
            )
        asking = self.resolver.asking(request.user_id, request.history, parts, trace)
        candidates = self.resolver.resolve(request.candidates, parts, trace)
        with trace.stage("score"):
            results = self._scored(asking, candidates)
        ranked = sorted((entry for entry in results if entry.rank), key=lambda entry: entry.rank or 0)
        self._log(trace, [(str(entry.candidate), entry.score) for entry in ranked])
        return ScoreAnswer(request_id=trace.request_id, model=self.model_hash, user=asking.note, results=results)

    def _scored(self, asking: Asking, candidates: Sequence[Resolved]) -> list[ScoredCandidate]:
        usable = [index for index, entry in enumerate(candidates) if entry.vector is not None]
        scores = np.full(len(candidates), np.nan, dtype=np.float32)
        if usable:
            vectors = np.stack([entry.vector for entry in candidates if entry.vector is not None])
            again = np.array([candidates[index].key in asking.had for index in usable], dtype=np.float32)
            scores[usable] = self._compare(asking.vectors, vectors) + np.float32(self.recommender.repeat_bonus) * again
        finite = np.flatnonzero(np.isfinite(scores))
        ranks = np.zeros(len(candidates), dtype=np.int64)
        ranks[finite[np.argsort(-scores[finite], kind="stable")]] = np.arange(1, len(finite) + 1)
        return [
            ScoredCandidate(
                candidate=entry.name,
                score=float(score) if rank else None,
                rank=int(rank) or None,
                present=list(entry.present),
                error=entry.error_message if rank or entry.error_message else "expected a finite score, got another",
            )
            for entry, score, rank in zip(candidates, scores, ranks, strict=True)
        ]

    def recommend(self, request: RecommendRequest, parts: Parts, trace: Trace) -> RecommendAnswer:
        """Return the best items for a user; a stranger gets what is popular and what is fresh.

        Raises:
            ProblemError: more items than an answer holds, or a user or history that cannot be used.
            RequestError: conditions that are none.
        """
        self._check_k(request.k)
        if len(request.exclude) > self.limits.excluded:
            raise ProblemError(
                422,
                f"at most {self.limits.excluded} items to leave out",
                got=str(len(request.exclude)),
                where="exclude",
            )
        asking = self.resolver.asking(request.user_id, request.history, parts, trace)
        dropped = frozenset(map(str, request.exclude)) | (asking.seen if request.seen == "exclude" else frozenset())
        strategy: Literal["model", "popular_and_fresh"] = (
            "popular_and_fresh" if asking.note.kind == "stranger" else "model"
        )
        with trace.stage("search"):
            if strategy == "model":
                hits = self.items.best(self._ask(asking, dropped, request.where), k=request.k)
                results = [self._ranked(hit, rank) for rank, hit in enumerate(hits, start=1)]
            else:
                results = self._for_strangers(dropped, request.where, request.k)
        self._log(trace, [(str(entry.item_id), entry.score) for entry in results])
        return RecommendAnswer(
            request_id=trace.request_id, model=self.model_hash, user=asking.note, strategy=strategy, results=results
        )

    def _ask(self, asking: Asking, dropped: frozenset[str], where: str) -> Ask:
        layout = self.items.exported.layout
        had = frozenset(key.removeprefix("id:") for key in asking.had if key.startswith("id:"))
        return Ask(
            queries=layout.shape(asking.vectors),
            score=lambda vectors: self._compare(asking.vectors, vectors),
            bonus=self.recommender.repeat_bonus,
            had=had,
            dropped=dropped,
            where=where,
        )

    def _for_strangers(self, dropped: frozenset[str], where: str, k: int) -> list[RankedItem]:
        newest = self.items.published.newest(k + len(dropped))
        lists = [
            [item_id for item_id in self.items.allowed(ids, where) if item_id not in dropped]
            for ids in (self._popular, list(dict.fromkeys([*newest, *self._fresh])))
        ]
        return [
            RankedItem(item_id=self.items.external(item_id), rank=rank, score=None, reason=reason)
            for rank, (item_id, reason) in enumerate(alternate(*lists, k=k), start=1)
        ]

    def search(self, request: SearchRequest, parts: Parts, trace: Trace) -> SearchAnswer:
        """Return the items nearest to a text, pictures, items, a user, or any mix; text and pictures are one post.

        Raises:
            ProblemError: nothing asked, an unknown user or item, or more items than an answer holds.
            RequestError: a post that cannot be read, or conditions that are none.
        """
        self._check_k(request.k)
        post = asking = None
        if request.text is not None or request.image:
            with trace.stage("decode"):
                coming = self.posts.start(content_of(request.text, request.image, parts, self.limits))
            with trace.stage("encode"):
                post = trace.wait(coming).vector[None]
        if request.user_id is not None:
            asking = self.resolver.asking(request.user_id, None, parts, trace)
            if asking.note.kind == "stranger":
                raise ProblemError(422, "a user who chose something", got="an unknown one", where="user_id")
        if len(request.items) > self.limits.history:
            raise ProblemError(422, f"at most {self.limits.history} items", got=str(len(request.items)), where="items")
        items = [self._vector_of(str(item_id)) for item_id in request.items]
        if post is None and asking is None and not items:
            raise ProblemError(422, "a text, an image, items or a user_id", got="none of them")
        return self._found(post, asking, items, trace, where=request.where, k=request.k)

    def similar(self, item_id: str, request: SimilarRequest, trace: Trace) -> SearchAnswer:
        """Return the items nearest to one, without itself.

        Raises:
            ProblemError: no such item, or more items than an answer holds.
            RequestError: conditions that are none.
        """
        self._check_k(request.k)
        item = self.items.find(item_id)
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
    ) -> SearchAnswer:
        """Answer a question of content, of a user, or of both, as ``mmrec search`` does."""
        layout, nothing = self.items.exported.layout, np.zeros(0, dtype=np.int64)
        user = None if asking is None else asking.vectors.mean(axis=0, keepdims=True)
        question = Question(post, user, nothing, nothing, self.recommender.repeat_bonus if asking else 0.0)
        asked = np.stack(items) if items else np.zeros((0, self.items.exported.full.shape[1]), dtype=np.float32)
        near = as_query(layout, question, layout.shape(asked))
        exact = as_query(layout.full, question, layout.full.shape(asked))
        had = frozenset(key.removeprefix("id:") for key in asking.had) if asking else frozenset()
        ask = Ask(
            queries=near.vector[None],
            score=lambda vectors: np.asarray(layout.full.shape(vectors) @ exact.vector, dtype=np.float32),
            bonus=exact.bonus,
            had=had,
            dropped=dropped,
            where=where,
        )
        with trace.stage("search"):
            hits = self.items.best(ask, k=k)
        self._log(trace, [(hit.item_id, hit.score) for hit in hits])
        results = [
            FoundItem(**self._ranked(hit, rank).model_dump(), caption=self._caption(hit.item_id))
            for rank, hit in enumerate(hits, start=1)
        ]
        return SearchAnswer(request_id=trace.request_id, model=self.model_hash, results=results)

    def _compare(self, users: Vectors, items: Vectors) -> Vectors:
        """Return the score of every item for one user, shape (items,), without the repeat bonus."""
        with torch.inference_mode():
            scorer = self.recommender.assembly.model.scorer
            return np.asarray(scorer.compare(torch.from_numpy(users)[None], torch.from_numpy(items))[0].numpy())

    def _vector_of(self, item_id: str) -> Vectors:
        item = self.items.find(item_id)
        if item is None:
            raise ProblemError(422, "the id of a known item", got=repr(item_id), where="items")
        return item.vector

    def _caption(self, item_id: str) -> str | None:
        item = self.items.find(item_id)
        return None if item is None else self.items.caption(item)

    def _ranked(self, hit: Hit, rank: int) -> RankedItem:
        return RankedItem(item_id=self.items.external(hit.item_id), rank=rank, score=hit.score)

    def _check_k(self, k: int) -> None:
        if k > self.limits.k:
            raise ProblemError(422, f"at most {self.limits.k} items", got=str(k), where="k")

    def _log(self, trace: Trace, shown: Sequence[tuple[str, float | None]]) -> None:
        """Keep what is shown; an answer is given even where that fails."""
        if not self._keep_served:
            return
        served = Served(trace.request_id, trace.route, trace.user_id, now_ms(), self.model_hash, shown)
        try:
            with trace.stage("store"):
                self.store.log_served(served)
        except StoreFailureError:
            _LOG.exception("what was shown could not be kept")


def unknown_item(item_id: str) -> ProblemError:
    """Return the refusal of an id in a path that nothing has."""
    return ProblemError(404, "the id of a known item", got=repr(item_id), where="the path")
