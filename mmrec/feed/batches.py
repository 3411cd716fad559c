"""Histories to tensors: windows of interactions, as positions in the distinct items of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mmrec.batch import NEXT, HistoryBatch, Share, Targets, UserBatch
from mmrec.feed.histories import Histories
from mmrec.feed.items import ItemReader

START = -1
"""``time_index`` of a target that nothing precedes: the state of a user with no history."""

_Number = TypeVar("_Number", bound=np.generic)


def pad(
    flat: npt.NDArray[_Number], lengths: npt.NDArray[np.int64], *, width: int, fill: float = 0.0
) -> npt.NDArray[_Number]:
    """Lay rows of different lengths, given end to end, into a (rows, width) array, left-aligned."""
    padded = np.full((len(lengths), width), fill, dtype=flat.dtype)
    padded[np.arange(width) < lengths[:, None]] = flat
    return padded


def ranks_within(keys: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rank of each key among the distinct keys of its row, from 0; keys ascend within a row."""
    new = np.ones(len(keys), dtype=np.int64)
    new[1:] = keys[1:] != keys[:-1]
    starts = np.cumsum(lengths) - lengths
    starts = starts[lengths > 0]
    new[starts] = 1
    total = np.cumsum(new)
    return np.asarray(total - np.repeat(total[starts], lengths[lengths > 0]), dtype=np.int64)


def user_batch(
    histories: Histories,
    events: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    *,
    item_positions: npt.NDArray[np.int64],
    instants: npt.NDArray[np.int64],
) -> UserBatch:
    """Build the user side of a batch from histories laid end to end.

    Args:
        histories: the feed's interactions.
        events: shape (total,), event positions.
        lengths: shape (users,), events of each history.
        item_positions: shape (total,), position of each event's item in the item batch.
        instants: shape (total,), rank of each event's instant within its history.
    """
    width = max(int(lengths.max(initial=0)), 1)

    def tensor(flat: npt.NDArray[np.generic], fill: float = 0.0) -> torch.Tensor:
        return torch.from_numpy(pad(flat, lengths, width=width, fill=fill))

    codes, values = histories.event_codes, histories.values
    return UserBatch(
        item_positions=tensor(item_positions),
        valid=torch.from_numpy(np.arange(width) < lengths[:, None]),
        instants=tensor(instants),
        timestamps=tensor(np.asarray(histories.timestamps[events])) if histories.has_time else None,
        events=None if codes is None else tensor(codes[events].astype(np.int64)),
        values=None if values is None else tensor(values[events], np.nan),
    )


def ordered_users(item_positions: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> UserBatch:
    """Build the user side of a batch from bare orders of items, laid end to end, without times or events."""
    width = max(int(lengths.max(initial=0)), 1)
    slots = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return UserBatch(
        item_positions=torch.from_numpy(pad(item_positions, lengths, width=width)),
        valid=torch.from_numpy(np.arange(width) < lengths[:, None]),
        instants=torch.from_numpy(pad(slots, lengths, width=width)),
    )


@dataclass(frozen=True)
class Windows:
    """Training windows of a batch, events end to end.

    Args:
        user_rows: shape (windows,).
        events: shape (total,), event positions, oldest first within a window.
        lengths: shape (windows,), all >= 1.
        instants: shape (total,), rank of the event's instant within its window.
        opens: shape (windows,), True where the window starts at the user's very first training event.
    """

    user_rows: npt.NDArray[np.int64]
    events: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    instants: npt.NDArray[np.int64]
    opens: npt.NDArray[np.bool_]

    def share(self, rank: int, num_ranks: int) -> Windows:
        """Return every ``num_ranks``-th window from ``rank`` on: windows sorted by length are shared out evenly."""
        own = np.arange(len(self.lengths)) % num_ranks == rank
        events = np.repeat(own, self.lengths)
        return Windows(
            self.user_rows[own], self.events[events], self.lengths[own], self.instants[events], self.opens[own]
        )


def _target_slots(windows: Windows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return which events are targets and, for each, the last slot of an earlier instant (``START`` where none)."""
    starts = np.cumsum(windows.lengths) - windows.lengths
    slot = np.arange(len(windows.events)) - np.repeat(starts, windows.lengths)
    first = np.ones(len(slot), dtype=bool)
    first[1:] = windows.instants[1:] != windows.instants[:-1]
    first[starts] = True
    # The slot just before an instant's first event, carried over the instant's other events.
    before = np.maximum.accumulate(np.where(first, np.arange(len(slot)), 0)) - np.repeat(starts, windows.lengths) - 1
    asked = (before >= 0) | np.repeat(windows.opens, windows.lengths)
    return np.flatnonzero(asked), before[asked]


def _together(
    histories: Histories, windows: Windows, index: npt.NDArray[np.int64], slots: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return whether the slot that predicts a target happened at the target's own time."""
    times = np.asarray(histories.timestamps[windows.events])
    starts = np.repeat(np.cumsum(windows.lengths) - windows.lengths, windows.lengths)[index]
    return np.asarray((slots >= 0) & (times[starts + np.maximum(slots, 0)] == times[index]), dtype=np.bool_)


def _whole(windows: Windows, item_rows: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Share:
    """Describe a batch that is about to be shared out."""
    return Share(
        item_rows=torch.from_numpy(item_rows),
        sizes=tuple(sizes.tolist()),
        num_users=len(windows.lengths),
        num_targets=len(_target_slots(windows)[0]),
    )


def collate(
    histories: Histories,
    windows: Windows,
    reader: ItemReader,
    *,
    negatives: npt.NDArray[np.int64],
    rank: int = 0,
    num_ranks: int = 1,
) -> HistoryBatch:
    """Gather the distinct items of some windows and of the negatives, and point at them.

    Every event is a target that some earlier instant of its window precedes (or, at the user's very beginning, nothing).
    Of several ranks each reads its own items only; a content that items of two ranks share is read by both.

    Args:
        histories: the feed's interactions.
        windows: what the batch learns from.
        reader: gives the items' contents.
        negatives: shape (negatives,), item rows drawn uniformly.
        rank: whose share of the batch is wanted: of the windows every ``num_ranks``-th, of the items a stretch.
        num_ranks: processes that share the batch.
    """
    distinct = np.unique(np.concatenate([histories.item_rows[windows.events], negatives])).astype(np.int64)
    own, share = distinct, None
    if num_ranks > 1:
        bounds = len(distinct) * np.arange(num_ranks + 1) // num_ranks
        own, share = distinct[bounds[rank] : bounds[rank + 1]], _whole(windows, distinct, np.diff(bounds))
        windows = windows.share(rank, num_ranks)
    positions = np.searchsorted(distinct, histories.item_rows[windows.events]).astype(np.int64)
    index, slots = _target_slots(windows)
    targets = windows.events[index]
    values = histories.values
    count = len(index)
    owner = np.repeat(np.arange(len(windows.lengths)), windows.lengths)
    return HistoryBatch(
        items=reader.read(own),
        users=user_batch(
            histories, windows.events, windows.lengths, item_positions=positions, instants=windows.instants
        ),
        targets=Targets(
            user_index=torch.from_numpy(owner[index]),
            time_index=torch.from_numpy(slots),
            item_positions=torch.from_numpy(positions[index]),
            action=torch.full((count,), NEXT),
            value=torch.full((count,), float("nan")) if values is None else torch.from_numpy(values[targets].copy()),
            weight=torch.ones(count),
            impression=torch.full((count,), -1),
            together=torch.from_numpy(_together(histories, windows, index, slots)),
            timestamps=torch.from_numpy(np.array(histories.timestamps[targets])) if histories.has_time else None,
        ),
        negatives=torch.from_numpy(np.searchsorted(distinct, negatives).astype(np.int64)),
        user_rows=torch.from_numpy(np.ascontiguousarray(windows.user_rows)),
        share=share,
    )
