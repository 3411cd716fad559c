"""Requests to scores: who asks, which candidates, in what order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from mmrec.errors import MmrecError, RequestError
from mmrec.feed.batches import ordered_users, ranks_within, user_batch
from mmrec.feed.histories import Histories
from mmrec.inference.encoding import encode_histories, evaluating
from mmrec.inference.references import Reference, Resolved, ResolvedVectors
from mmrec.inference.vectors import ItemVectors
from mmrec.model.recommender import RecommenderModel
from mmrec.storage import RaggedArray


@dataclass(frozen=True)
class Request:
    """One user and the candidates to score for them.

    Args:
        request_id: comes back with every score.
        candidates: item ids of the catalogue and/or new posts.
        user_id: a user the feed knows, whose whole history counts; or
        history: the items and posts a user chose, oldest first; may be empty.
    """

    request_id: str
    candidates: Sequence[Reference]
    user_id: str | int | None = None
    history: Sequence[Reference] | None = None


@dataclass(frozen=True)
class Scored:
    """The answer to one request, candidates in the order given.

    Args:
        request_id: as asked.
        candidates: as asked.
        scores: shape (candidates,), NaN where a candidate has none.
        ranks: shape (candidates,), 1 for the highest score, 0 where there is none.
        present: modalities of each candidate.
        error_messages: of each candidate, None where it was scored.
        request_error: why nothing was scored, or None.
    """

    request_id: str
    candidates: Sequence[Reference]
    scores: npt.NDArray[np.float32]
    ranks: npt.NDArray[np.int64]
    present: Sequence[tuple[str, ...]]
    error_messages: Sequence[str | None]
    request_error: str | None


@dataclass(frozen=True)
class RequestUsers:
    """Who asks.

    Args:
        vectors: shape (users, interests, width), score-ready.
        seen: of each user, the item rows of their whole history.
        had: of each user, the part of the history that counts, item by item; what it holds gains the repeat bonus.
        error_messages: of each user, why the history cannot be used, or None.
    """

    vectors: Float[Tensor, "users interests width"]
    seen: Sequence[npt.NDArray[np.int64]]
    had: Sequence[Sequence[Resolved]]
    error_messages: Sequence[str | None]


class Scoring:
    """Scores requests, each distinct post of a group of requests encoded once.

    Args:
        model: the recommender.
        vectors: gives vectors of items and posts.
        histories: the feed's interactions.
        history_length: most recent events a history is cut to.
        device: where to compute.
    """

    def __init__(
        self,
        model: RecommenderModel,
        vectors: ItemVectors,
        histories: Histories,
        *,
        history_length: int,
        device: torch.device,
    ) -> None:
        self._model, self._vectors, self._histories = model, vectors, histories
        self._length, self._device = history_length, device

    def score(self, requests: Iterable[Request], *, group: int = 64) -> Iterator[Scored]:
        """Yield the answer to each request, in order; ``group`` of them are encoded together."""
        waiting: list[Request] = []
        shared = _Shared()
        for request in requests:
            waiting.append(request)
            if len(waiting) == group:
                yield from self._group(waiting, shared)
                waiting = []
        if waiting:
            yield from self._group(waiting, shared)

    def _group(self, requests: Sequence[Request], shared: _Shared) -> Iterator[Scored]:
        users = self.users(requests)
        resolved, places = self._candidates(requests, shared)
        for index, (request, place) in enumerate(zip(requests, places, strict=True)):
            yield self._answer(request, place, resolved, users, index)

    def _answer(
        self,
        request: Request,
        place: slice,
        resolved: ResolvedVectors,
        users: RequestUsers,
        index: int,
    ) -> Scored:
        reason = users.error_messages[index]
        candidates, positions = resolved.references[place], resolved.positions[place]
        usable = np.flatnonzero(positions >= 0) if reason is None else _NOTHING
        scores = np.full(len(candidates), np.nan, dtype=np.float32)
        ranks = np.zeros(len(candidates), dtype=np.int64)
        if len(usable):
            positions = positions[usable]
            owned = [resolved.rows[entry.key] for entry in users.had[index] if entry.key in resolved.rows]
            again = np.flatnonzero(np.isin(positions, owned))
            had = torch.zeros(len(again), dtype=torch.long), torch.from_numpy(again)
            user, items = users.vectors[index : index + 1], resolved.vectors[torch.from_numpy(positions)]
            with torch.no_grad():
                found = self._model.scorer.compare(user, items, had=had)[0].numpy()
            scores[usable] = found
            ranks[usable[np.argsort(-found, kind="stable")]] = np.arange(1, len(usable) + 1)
        return Scored(
            request_id=request.request_id,
            candidates=request.candidates,
            scores=scores,
            ranks=ranks,
            present=[entry.present for entry in candidates],
            error_messages=[reason or entry.error_message for entry in candidates],
            request_error=reason,
        )

    def _candidates(self, requests: Sequence[Request], shared: _Shared) -> tuple[ResolvedVectors, list[slice]]:
        """Resolve the candidates of a group, and say where those of each request are.

        One list that all requests share is resolved once for all groups.
        """
        first = requests[0].candidates
        if all(request.candidates is first for request in requests):
            if shared.candidates is not first or shared.resolved is None:
                shared.candidates, shared.resolved = first, self._vectors.resolve(first)
            return shared.resolved, [slice(None)] * len(requests)
        stops = np.cumsum([len(request.candidates) for request in requests]).tolist()
        resolved = self._vectors.resolve([reference for request in requests for reference in request.candidates])
        return resolved, [slice(start, stop) for start, stop in pairwise([0, *stops])]

    def users(self, requests: Sequence[Request]) -> RequestUsers:
        """Return who asks: vectors, known items of each history, and why a history cannot be used."""
        pasts = [self._past(request) for request in requests]
        resolved = self._vectors.resolve([reference for past in pasts for reference in past.references])
        entries = iter(resolved.references)
        had = [[next(entries) for _ in past.references] for past in pasts]
        errors = [
            past.error_message or next((entry.error_message for entry in entries if entry.error_message), None)
            for past, entries in zip(pasts, had, strict=True)
        ]
        vectors = self._user_vectors(pasts, had, resolved.vectors)
        return RequestUsers(vectors, [past.seen for past in pasts], had, errors)

    def compare(
        self, users: RequestUsers, item_embeddings: Float[Tensor, "items width"]
    ) -> Float[Tensor, "users items"]:
        """Return the scores of the whole catalogue for some users, on the device of ``item_embeddings``."""
        device = item_embeddings.device
        rows = [[entry.row for entry in history if entry.row >= 0] for history in users.had]
        owners = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        had = torch.from_numpy(owners), torch.tensor([row for own in rows for row in own], dtype=torch.long)
        with torch.no_grad():
            return self._model.scorer.compare(
                users.vectors.to(device), item_embeddings, had=(had[0].to(device), had[1].to(device))
            )

    def _past(self, request: Request) -> _Past:
        if (request.user_id is None) == (request.history is None):
            error = RequestError("either user_id or history", got="both or neither", where=request.request_id)
            return _Past([], None, _NOTHING, str(error))
        if request.history is not None:
            seen = self._vectors.known_rows(request.history)
            return _Past(list(request.history)[-self._length :], None, seen, None)
        try:
            user = self._histories.row(request.user_id)
        except MmrecError as error:
            return _Past([], None, _NOTHING, str(error))
        events = self._recent(np.array([user])).values.astype(np.int64)
        everything = slice(int(self._histories.offsets[user]), int(self._histories.offsets[user + 1]))
        seen = np.unique(self._histories.item_rows[everything])
        return _Past(self._vectors.ids(self._histories.item_rows[events]), events, seen, None)

    def _recent(self, user_rows: npt.NDArray[np.int64]) -> RaggedArray:
        stops = self._histories.offsets[user_rows + 1]
        starts = np.maximum(self._histories.offsets[user_rows], stops - self._length)
        offsets = np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64)
        return RaggedArray(np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], stops - starts), offsets)

    def _user_vectors(
        self, pasts: Sequence[_Past], had: Sequence[Sequence[Resolved]], vectors: Float[Tensor, "distinct width"]
    ) -> Float[Tensor, "users interests width"]:
        """Encode histories of the feed with their times and events, and explicit ones as a bare order."""
        items = (vectors if len(vectors) else vectors.new_zeros(1, self._model.width)).to(self._device)
        known = np.array([past.events is not None for past in pasts], dtype=bool)
        found: dict[int, Tensor] = {}
        for index, bare in ((np.flatnonzero(known).tolist(), False), (np.flatnonzero(~known).tolist(), True)):
            if len(index) == 0:
                continue
            usable = [[entry.position for entry in had[i] if entry.position >= 0] for i in index]
            lengths = np.array([len(past) for past in usable], dtype=np.int64)
            flat = np.array([position for past in usable for position in past], dtype=np.int64)
            if bare:
                users = ordered_users(flat, lengths)
            else:
                events = np.concatenate([pasts[i].events for i in index if pasts[i].events is not None])
                instants = ranks_within(np.asarray(self._histories.timestamps[events]), lengths)
                users = user_batch(self._histories, events, lengths, item_positions=flat, instants=instants)
            with evaluating(self._model):
                encoded = self._model.encode_users(users.to(self._device), items).vectors.float().cpu()
            found |= dict(zip(index, encoded, strict=True))
        return torch.stack([found[i] for i in range(len(pasts))])

    def feed_user_vectors(
        self, user_rows: npt.NDArray[np.int64], item_embeddings: Float[Tensor, "items width"]
    ) -> Float[Tensor, "users interests width"]:
        """Return the score-ready vectors of users of the feed after their whole history, on the CPU."""
        return encode_histories(
            self._model, self._histories, self._recent(user_rows), item_embeddings, device=self._device
        )


_NOTHING = np.zeros(0, dtype=np.int64)


@dataclass
class _Shared:
    """The last list of candidates that a whole group shared, and what became of it."""

    candidates: Sequence[Reference] | None = None
    resolved: ResolvedVectors | None = None


@dataclass(frozen=True)
class _Past:
    references: Sequence[Reference]
    events: npt.NDArray[np.int64] | None
    seen: npt.NDArray[np.int64]
    error_message: str | None
