"""How an item's popularity moved of late, read off the training events."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmrec.feed.histories import Histories

DAY = 86_400_000
"""Milliseconds."""


def popularity_trends(
    histories: Histories, train_events: npt.NDArray[np.bool_], *, num_items: int, days: int
) -> npt.NDArray[np.float32]:
    """Return the logarithm of each item's recent popularity over what its whole count leads to expect, shape (items,).

    ``log((n + 1) / (N share + 1))``: n events in the last ``days`` days of training, N in all of it, of which they are
    the share; less the mean of all items with events.  So an item without any, which gets 0, counts as one like the others,
    and a weight of trends neither favours nor hides what is new.  A feed without real timestamps and ``days`` of 0 give 0.

    Args:
        histories: the feed's interactions.
        train_events: shape (events,), what training may use.
        num_items: items of the catalogue.
        days: length of the recent past; a whole number of weeks evens out their days.
    """
    events = np.flatnonzero(train_events)
    if not histories.has_time or not days or not len(events):
        return np.zeros(num_items, np.float32)
    rows, times = histories.item_rows[events], np.asarray(histories.timestamps[events])
    end, span = times.max(), int(times.max() - times.min())
    share = min(days * DAY / max(span, 1), 1.0)
    recent = np.bincount(rows[times > end - days * DAY], minlength=num_items)
    counts = np.bincount(rows, minlength=num_items)
    trends = np.log((recent + 1) / (counts * share + 1))
    return np.where(counts > 0, trends - trends[counts > 0].mean(), 0).astype(np.float32)
