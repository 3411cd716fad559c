"""What the service does, without HTTP: score, recommend, search; see :mod:`mmrec.serving.answers.publishing` for its writes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from mmrec.errors import MmrecError
from mmrec.search.index import Vectors
from mmrec.serving.answers.askers import Askers, Asking
from mmrec.serving.answers.pasts import Pasts
from mmrec.serving.answers.recommending import Recommending
from mmrec.serving.answers.searching import Searching
from mmrec.serving.batch_schemas import BatchedRecommendation, RecommendBatchAnswer, RecommendBatchRequest
from mmrec.serving.limits import Limits
from mmrec.serving.model.exported import Pair
from mmrec.serving.model.model_worker import ModelWorker
from mmrec.serving.posts.live_items import LiveItems
from mmrec.serving.posts.partial_vectors import PartialVectors
from mmrec.serving.posts.post_changes import PostChanges
from mmrec.serving.posts.post_vectors import PostVectors
from mmrec.serving.posts.references import Parts
from mmrec.serving.posts.resolver import Resolved, Resolver
from mmrec.serving.problems import settled, too_many
from mmrec.serving.schemas import (
    RecommendAnswer,
    RecommendRequest,
    ScoreAnswer,
    ScoredCandidate,
    ScoreRequest,
    SearchAnswer,
    SearchRequest,
    SimilarRequest,
)
from mmrec.serving.stores.store import Served, Store, StoreFailureError
from mmrec.serving.trace import Trace, now_ms

_LOG = logging.getLogger("mmrec.serving")


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
        self.recommender, self.store, self.vectors_name = pair.recommender, store, pair.vectors
        assembly = self.recommender.assembly
        self.catalogue, self.histories = assembly.catalogue, assembly.histories
        self.length = assembly.config.train.history_length
        integers = self.catalogue.manifest.get("item_id_type") == "integer"
        self.items = LiveItems(pair.exported, integer_ids=integers)
        self.changes = PostChanges(self.items, store)
        self.worker = ModelWorker(self.recommender, self.limits, on_batch=on_batch or (lambda size: None))
        self.posts = PostVectors(
            self.worker.encode_posts,
            self.recommender.vectors.readable,
            side=int(str(self.catalogue.manifest.get("image_side", 224))),
            max_images=assembly.config.train.max_images,
            limits=self.limits,
        )
        pasts = Pasts(self.histories, self.catalogue.item_ids, store, length=self.length)
        self.resolver = Resolver(self.recommender, self.items, self.posts, limits=self.limits)
        self.askers = Askers(
            self.resolver,
            self.items,
            pasts,
            self.worker,
            width=assembly.model.width,
            length=self.length,
            limits=self.limits,
        )
        some = PartialVectors(self.worker, self.posts, store, most=self.limits.cached_vectors)
        self._searching = Searching(self.recommender, self.items, self.posts, self.askers, self.limits)
        self.recommending = Recommending(
            self.recommender, self.items, self.resolver, some, self.compare, limits=self.limits
        )

    @property
    def model_hash(self) -> str:
        """Hash of the weights and of the preprocessing."""
        return self.recommender.model_hash

    def stop(self) -> None:
        """Finish what was accepted, then take no more; the store may have others who use it."""
        self.posts.close()
        self.worker.close()

    def close(self) -> None:
        """Finish what was accepted, then let go of everything."""
        self.stop()
        self.store.close()

    def score(self, request: ScoreRequest, parts: Parts, trace: Trace) -> ScoreAnswer:
        """Score candidates, in the order given.

        Raises:
            ProblemError: too many candidates, or a user or history that cannot be used.
        """
        if len(request.candidates) > self.limits.candidates:
            given, fix = len(request.candidates), "Ask in several requests."
            raise too_many("candidates", limit=self.limits.candidates, got=given, where="candidates", fix=fix)
        asking = self.askers.one(request.user_id, request.history, parts, trace)
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
            vectors = np.array([entry.vector for entry in candidates if entry.vector is not None])
            again = np.array([candidates[index].key in asking.had for index in usable], dtype=np.float32)
            scores[usable] = self.compare(asking.vectors, vectors) + np.float32(self.recommender.repeat_bonus) * again
        finite = np.flatnonzero(np.isfinite(scores))
        ranks = np.zeros(len(candidates), dtype=np.int64)
        ranks[finite[np.argsort(-scores[finite], kind="stable")]] = np.arange(1, len(finite) + 1)
        return [
            ScoredCandidate(
                entry.name,
                score if rank else None,
                rank or None,
                entry.present,
                entry.error_message if rank or entry.error_message else "expected a finite score, got another",
            )
            for entry, score, rank in zip(candidates, scores.tolist(), ranks.tolist(), strict=True)
        ]

    def recommend(self, request: RecommendRequest, parts: Parts, trace: Trace) -> RecommendAnswer:
        """Return the best items for a user; a stranger gets what is popular and what is fresh.

        Raises:
            ProblemError: more items than an answer holds, or a user or history that cannot be used.
            RequestError: conditions that are none.
        """
        self.recommending.check(request)
        asking = self.askers.one(request.user_id, request.history, parts, trace)
        answer = self.recommending.answer(request, asking, trace)
        self._log(trace, _shown(answer))
        return answer

    def recommend_batch(self, request: RecommendBatchRequest, parts: Parts, trace: Trace) -> RecommendBatchAnswer:
        """Answer several requests, each as :meth:`recommend` would; one that cannot be answered spoils no other.

        Raises:
            ProblemError: too many, or more work than there is time for.
        """
        asked = request.requests
        if len(asked) > self.limits.users:
            raise too_many("requests", limit=self.limits.users, got=len(asked), where="requests")
        refused = [settled(partial(self.recommending.check, one)) for one in asked]
        good = [number for number, error in enumerate(refused) if error is None]
        who = [(asked[number].user_id, asked[number].history) for number in good]
        askings = dict(zip(good, self.askers.several(who, parts, trace), strict=True))
        results = []
        for number, one in enumerate(asked):
            asking = refused[number] or askings[number]
            trace.left()
            made = (
                settled(partial(self.recommending.answer, one, asking, trace)) if isinstance(asking, Asking) else asking
            )
            if isinstance(made, MmrecError):
                results.append(BatchedRecommendation(answer=None, error=str(made)))
                continue
            answer = made.model_copy(update={"request_id": f"{trace.request_id}-{number}"})
            user_id = None if one.user_id is None else str(one.user_id)
            self._log(trace, _shown(answer), request_id=answer.request_id, user_id=user_id)
            results.append(BatchedRecommendation(answer=answer, error=None))
        return RecommendBatchAnswer(request_id=trace.request_id, results=results)

    def search(self, request: SearchRequest, parts: Parts, trace: Trace) -> SearchAnswer:
        """Return the items nearest to a text, pictures, items, a user, or any mix; see :meth:`Searching.search`."""
        answer = self._searching.search(request, parts, trace)
        self._log(trace, _shown(answer))
        return answer

    def similar(self, item_id: str, request: SimilarRequest, trace: Trace) -> SearchAnswer:
        """Return the items nearest to one, without itself; see :meth:`Searching.similar`."""
        answer = self._searching.similar(item_id, request, trace)
        self._log(trace, _shown(answer))
        return answer

    def compare(self, users: Vectors, items: Vectors) -> Vectors:
        """Return the score of every item for one user, shape (items,), without the repeat bonus."""
        with torch.inference_mode():
            scorer = self.recommender.assembly.model.scorer
            return np.asarray(scorer.compare(torch.from_numpy(users)[None], torch.from_numpy(items))[0].numpy())

    def _log(
        self,
        trace: Trace,
        shown: Sequence[tuple[str, float | None]],
        *,
        request_id: str | None = None,
        user_id: str | None = None,
    ) -> None:
        """Keep what is shown, to the one who asked or to one of several; an answer is given even where that fails."""
        trace.show((score for _, score in shown), model_hash=self.model_hash)
        if not self._keep_served:
            return
        number, who = request_id or trace.request_id, user_id or trace.user_id
        served = Served(number, trace.route, who, now_ms(), self.model_hash, shown)
        try:
            with trace.stage("store"):
                self.store.log_served(served)
        except StoreFailureError:
            _LOG.exception("what was shown could not be kept")


def _shown(answer: RecommendAnswer | SearchAnswer) -> list[tuple[str, float | None]]:
    return [(str(entry.item_id), entry.score) for entry in answer.results]
