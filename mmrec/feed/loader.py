"""Training batches in an order that depends on seed, epoch and position alone, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmrec.ahead import ahead
from mmrec.batch import HistoryBatch
from mmrec.errors import FeedError
from mmrec.feed.batches import Windows, collate, ranks_within
from mmrec.feed.histories import Histories
from mmrec.feed.items import ItemReader
from mmrec.feed.splits import Split

Simultaneous = Literal["apart", "shuffled"]


class HistoryLoader:
    """Windows of users' training events, shuffled anew every epoch.

    A user with more events than a window holds gives several windows, cut at a place drawn anew every epoch, so that
    each event is a target about once an epoch.

    Args:
        histories: the feed's interactions.
        split: tells which events may be used.
        reader: gives the items' contents.
        batch_users: windows in a batch, all ranks together.
        history_length: events in a window, at most.
        negatives: shape (items,), items that may be drawn as not chosen.
        num_negatives: of these, drawn uniformly for each batch.
        simultaneous: ``apart``: events of one instant never see each other.  ``shuffled``: they are put in an order
            drawn anew every epoch, so that a basket teaches what is bought together.
        seed: seed of everything drawn.
        bucket: batches whose windows are sorted by length together, which saves padding; 1 for uniform batches.
        prefetch: batches prepared ahead by a thread; 0 prepares them in step.
        rank: which share of each batch this process takes.
        num_ranks: processes that share each batch.
        watch: opens a context around the preparation of each batch, in the thread that does it.

    Raises:
        FeedError: the split leaves no event to learn from.
    """

    def __init__(
        self,
        histories: Histories,
        split: Split,
        reader: ItemReader,
        *,
        batch_users: int,
        history_length: int,
        negatives: npt.NDArray[np.bool_],
        num_negatives: int,
        simultaneous: Simultaneous = "shuffled",
        seed: int = 0,
        bucket: int = 8,
        prefetch: int = 2,
        rank: int = 0,
        num_ranks: int = 1,
        watch: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._histories, self._reader = histories, reader
        self._batch_users, self._length, self._num_negatives = batch_users, history_length, num_negatives
        self._rank, self._num_ranks = rank, num_ranks
        self._simultaneous, self._seed, self._bucket, self._prefetch = simultaneous, seed, bucket, prefetch
        self._watch = watch
        self._events = np.flatnonzero(split.train_events)
        if len(self._events) == 0:
            raise FeedError(
                "training events", got="none", where=f"split {split.name!r}", fix="Choose an earlier test time."
            )
        counts = np.bincount(histories.user_rows[self._events], minlength=histories.num_users)
        self._users = np.flatnonzero(counts)
        self._counts = counts[self._users]
        self._starts = np.cumsum(self._counts) - self._counts
        self._eligible = np.flatnonzero(negatives)
        # The cut moves, but the number of windows must not: it is the number of batches of every epoch.
        self._pieces = 1 + (self._counts - 1) // max(history_length, 1)

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return int(self._pieces.sum())

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-self.num_windows // self._batch_users)

    def _cut(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return user, first and last-but-one position (in ``_events``) of every window of an epoch, shuffled."""
        generator = np.random.default_rng([self._seed, epoch, 0])
        owner = np.repeat(np.arange(len(self._users)), self._pieces)
        piece = np.arange(len(owner)) - np.repeat(np.cumsum(self._pieces) - self._pieces, self._pieces)
        shift = np.floor(generator.random(len(self._users)) * self._length).astype(np.int64)
        shift = np.where(self._pieces > 1, shift, 0)[owner]
        counts = self._counts[owner]
        stops = np.where(piece == 0, counts, counts - piece * self._length + shift)
        stops = np.clip(stops, 1, counts)
        starts = np.maximum(stops - self._length, 0)
        base = self._starts[owner]
        order = generator.permutation(len(owner))
        size = self._bucket * self._batch_users
        lengths = (stops - starts)[order]
        blocks = np.arange(len(order)) // size
        if self._bucket > 1:
            order = order[np.lexsort((lengths, blocks))]
            order = self._shuffle_batches(order, generator)
        return self._users[owner[order]], (base + starts)[order], (base + stops)[order]

    def _shuffle_batches(self, order: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Put whole batches in random order, the short last one staying last."""
        full = len(order) // self._batch_users
        head = order[: full * self._batch_users].reshape(full, self._batch_users)
        return np.concatenate([head[generator.permutation(full)].reshape(-1), order[full * self._batch_users :]])

    def _windows(
        self,
        users: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        stops: npt.NDArray[np.int64],
        generator: np.random.Generator,
    ) -> Windows:
        lengths = stops - starts
        begin = np.cumsum(lengths) - lengths
        events = self._events[np.arange(lengths.sum()) + np.repeat(starts - begin, lengths)]
        keys = np.asarray(self._histories.timestamps[events])
        if self._simultaneous == "shuffled":
            owner = np.repeat(np.arange(len(lengths)), lengths)
            events = events[np.lexsort((generator.random(len(events)), keys, owner))]
            instants = np.arange(len(events)) - np.repeat(begin, lengths)
        else:
            instants = ranks_within(keys, lengths)
        user = np.searchsorted(self._starts, starts, side="right") - 1
        return Windows(users, events, lengths, instants, opens=self._starts[user] == starts)

    def batch(self, epoch: int, index: int, cut: tuple[npt.NDArray[np.int64], ...] | None = None) -> HistoryBatch:
        """Return batch ``index`` of an epoch."""
        with self._watch():
            return self._batch(epoch, index, cut or self._cut(epoch))

    def _batch(self, epoch: int, index: int, cut: tuple[npt.NDArray[np.int64], ...]) -> HistoryBatch:
        users, starts, stops = cut
        part = slice(index * self._batch_users, (index + 1) * self._batch_users)
        generator = np.random.default_rng([self._seed, epoch, 1 + index])
        windows = self._windows(users[part], starts[part], stops[part], generator)
        count = min(self._num_negatives, len(self._eligible))
        negatives = generator.choice(self._eligible, size=count, replace=False)
        return collate(
            self._histories,
            windows,
            self._reader,
            negatives=negatives,
            rank=self._rank,
            num_ranks=self._num_ranks,
        )

    def batches(self, *, epoch: int, start: int = 0) -> Iterator[HistoryBatch]:
        """Yield the batches of an epoch from ``start`` on."""
        cut = self._cut(epoch)
        made = (self.batch(epoch, index, cut) for index in range(start, len(self)))
        return made if self._prefetch == 0 else ahead(made, self._prefetch, name="mmrec-loader")
