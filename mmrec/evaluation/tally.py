"""What one setting asks of every case, and the arrays in which the answers are collected."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases
from mmrec.storage import RaggedArray


def case_item_keys(events: RaggedArray, histories: Histories, *, num_items: int) -> npt.NDArray[np.int64]:
    """Return one number for each pair of case and item, shape (events,), from the events of every case."""
    owners = np.repeat(np.arange(len(events)), events.lengths)
    return np.asarray(owners * num_items + np.asarray(histories.item_rows)[events.values])


class Tally:
    """The candidates and targets of every case under one setting, and where the targets were found.

    Args:
        cases: the questions.
        histories: the feed's interactions.
        pool: shape (items,), candidates before anything that depends on the case.
        filter_seen: take the history's items out of the candidates and of the targets.
        first_seen: shape (items,), where an item is a candidate only if first seen by the time of the question.
        top_k: length of the lists.
    """

    def __init__(
        self,
        cases: Cases,
        histories: Histories,
        *,
        pool: npt.NDArray[np.bool_],
        filter_seen: bool,
        first_seen: npt.NDArray[np.int64] | None,
        top_k: int,
    ) -> None:
        self.pool, self.first_seen, self.top_k, self.num_items = pool, first_seen, top_k, len(pool)
        self.times = None if first_seen is None else cases.times(histories)
        self._seen = cases.histories(histories) if filter_seen else None
        self._item_rows = np.asarray(histories.item_rows)
        targets = cases.targets(histories)
        keys = np.unique(case_item_keys(targets, histories, num_items=self.num_items))
        asked = len(keys)
        if self._seen is not None:
            seen = case_item_keys(self._seen, histories, num_items=self.num_items)
            keys = keys[~np.isin(keys, seen)]
        self.dropped_targets = asked - len(keys)
        self.targets = keys % self.num_items
        counts = np.bincount(keys // self.num_items, minlength=len(cases))
        self.dropped_cases = int(((counts == 0) & (targets.lengths > 0)).sum())
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.above = np.zeros(len(keys), np.int64)
        self.tied = np.zeros(len(keys), np.int64)
        self.num_candidates = np.zeros(len(cases), np.int64)
        self.top_items = np.full((len(cases), top_k), -1, np.int32)
        self.top_scores = np.full((len(cases), top_k), np.nan, np.float32)

    @property
    def filters(self) -> bool:
        """Whether the history's items are no candidates."""
        return self._seen is not None

    def seen(self, chunk: npt.NDArray[np.int64]) -> RaggedArray:
        """Return the item rows that some cases do not offer because the history holds them, repetitions included."""
        if self._seen is None:
            return RaggedArray(np.zeros(0, np.int64), np.zeros(len(chunk) + 1, np.int64))
        events = self._seen.gather(chunk)
        return RaggedArray(self._item_rows[events.values].astype(np.int64), events.offsets)

    def offered(self, chunk: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return whether the n-th case may be offered the n-th item, its history aside, shape (pairs,)."""
        inside = self.pool[items]
        if self.first_seen is not None and self.times is not None:
            inside = inside & (self.first_seen[items] <= self.times[chunk])
        return np.asarray(inside)

    def candidates(self, chunk: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return the candidates of some cases, shape (chunk, items)."""
        mask = np.broadcast_to(self.pool, (len(chunk), self.num_items)).copy()
        if self.first_seen is not None and self.times is not None:
            mask &= self.first_seen[None, :] <= self.times[chunk, None]
        seen = self.seen(chunk)
        mask[np.repeat(np.arange(len(chunk)), seen.lengths), seen.values] = False
        return mask

    def places(self, chunk: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the positions in ``targets`` of some cases' targets, and whose each is (positions in ``chunk``)."""
        counts = np.diff(self.offsets)[chunk]
        places = np.arange(counts.sum()) + np.repeat(self.offsets[chunk] - np.cumsum(counts) + counts, counts)
        return places, np.repeat(np.arange(len(chunk)), counts)
