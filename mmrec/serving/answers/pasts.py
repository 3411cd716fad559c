"""What users chose: the feed's interactions and the feedback since, or a history that a request brings along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmrec.feed.batches import ranks_within
from mmrec.feed.histories import Histories
from mmrec.serving.model.jobs import Times
from mmrec.serving.stores.store import Event, Store

SEEN_EVENTS = 10_000
"""Most recent feedback of a user that is read."""


@dataclass(frozen=True)
class Past:
    """A known user's history.

    Args:
        item_ids: the most recent items, oldest first.
        times: of the same events.
        seen: every item the user ever chose.
    """

    item_ids: Sequence[str]
    times: Times
    seen: frozenset[str]


@dataclass(frozen=True)
class _Events:
    """Events of one user, from wherever they come."""

    item_ids: npt.NDArray[np.object_]
    order: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


class Pasts:
    """Looks up what a user chose.

    Args:
        histories: the feed's interactions.
        item_ids: shape (items,), of the feed's catalogue.
        store: holds the feedback.
        length: most recent events that count.
    """

    def __init__(self, histories: Histories, item_ids: npt.NDArray[np.object_], store: Store, *, length: int) -> None:
        self._histories, self._item_ids, self._store, self._length = histories, item_ids, store, length
        self._codes = {name: code for code, name in enumerate(histories.event_names)}

    def of(self, user_id: str, *, known: Callable[[str], bool]) -> Past | None:
        """Return the history of a user, None of one who never chose anything.

        Args:
            user_id: who.
            known: tells items whose vectors there are.
        """
        return self._past(self._of_feed(user_id), self._since(user_id, known))

    def of_feed(self, user_id: str) -> Past | None:
        """Return the history of a user as the feed alone has it, None of one whom it does not know."""
        return self._past(self._of_feed(user_id), _NONE)

    def _past(self, feed: _Events, since: _Events) -> Past | None:
        if not len(feed.item_ids) and not len(since.item_ids):
            return None
        item_ids = np.concatenate([feed.item_ids, since.item_ids])
        order = np.concatenate([feed.order, since.order])
        codes, values = np.concatenate([feed.codes, since.codes]), np.concatenate([feed.values, since.values])
        recent = np.argsort(order, kind="stable")[-self._length :]
        has_time = self._histories.has_time
        times = Times(
            instants=ranks_within(order[recent], np.array([len(recent)])),
            timestamps=order[recent] if has_time else None,
            codes=codes[recent] if self._histories.event_codes is not None else None,
            values=values[recent] if self._histories.values is not None else None,
        )
        return Past([str(item_id) for item_id in item_ids[recent]], times, frozenset(map(str, item_ids)))

    def _of_feed(self, user_id: str) -> _Events:
        histories = self._histories
        if user_id not in histories:
            return _NONE
        row = histories.row(user_id)
        events = slice(int(histories.offsets[row]), int(histories.offsets[row + 1]))
        count = events.stop - events.start
        codes, values = histories.event_codes, histories.values
        return _Events(
            self._item_ids[histories.item_rows[events]],
            np.asarray(histories.timestamps[events], dtype=np.int64),
            np.full(count, -1) if codes is None else np.asarray(codes[events], dtype=np.int64),
            np.full(count, np.nan, np.float32) if values is None else np.asarray(values[events], np.float32),
        )

    def _since(self, user_id: str, known: Callable[[str], bool]) -> _Events:
        events = [e for e in self._store.feedback_of(user_id, limit=SEEN_EVENTS) if e.chosen and known(e.item_id)]
        if not events:
            return _NONE
        return _Events(
            np.array([event.item_id for event in events], dtype=object),
            self._order(user_id, events),
            np.array([self._codes.get(event.event or "", -1) for event in events], dtype=np.int64),
            np.array([np.nan if event.value is None else event.value for event in events], dtype=np.float32),
        )

    def _order(self, user_id: str, events: Sequence[Event]) -> npt.NDArray[np.int64]:
        """Return what feedback is sorted by: its time, or a rank behind the feed's where that has ranks only."""
        times = np.array([event.timestamp for event in events], dtype=np.int64)
        if self._histories.has_time:
            return times
        feed = self._of_feed(user_id)
        last = int(feed.order.max()) if len(feed.order) else -1
        return np.asarray(np.unique(times, return_inverse=True)[1] + last + 1, dtype=np.int64)


_NONE = _Events(np.zeros(0, dtype=object), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
