"""Users as a page shows them: found by the beginning of their id, with their history and what was held out of it."""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmrec.errors import MmrecError
from mmrec.feed.catalogue import restore_ids
from mmrec.feed.splits import Split
from mmrec.serving.answers.pasts import Past, Pasts
from mmrec.serving.answers.service import Service
from mmrec.serving.studio.cards import Cards
from mmrec.serving.studio.schemas import (
    HeldOut,
    ListedUser,
    PastEvent,
    UserAnswer,
    UserQuery,
    UsersAnswer,
    UsersRequest,
)
from mmrec.serving.trace import Trace

PART: Literal["validation"] = "validation"
"""The part of the split that may be looked at; looking at the test part would spoil its figures."""
LATEST = 4
_LAST = "\U0010ffff"


class People:
    """Looks users up.

    Args:
        service: what knows them.
        cards: makes cards of items.
    """

    def __init__(self, service: Service, cards: Cards) -> None:
        self._service, self._cards = service, cards
        self._histories = service.histories

    def listed(self, request: UsersRequest, trace: Trace) -> UsersAnswer:
        """Return users whose ids begin with a text, the most active first."""
        ids, rows = self._by_name
        rows = rows[bisect_left(ids, request.prefix) : bisect_left(ids, request.prefix + _LAST)]
        if request.held_out == "true":
            rows = rows[np.isin(rows, np.fromiter(self._cases, dtype=np.int64))]
        activity = -np.diff(self._histories.offsets)[rows]
        k = min(request.k, len(rows))
        best = np.argpartition(activity, k - 1)[:k] if 0 < k < len(rows) else np.arange(k)
        # Of equally active users the first by name, whatever the partition did.
        best = best[np.lexsort((best, activity[best]))]
        results = [self._listed(int(row)) for row in rows[best]]
        prefix = request.prefix
        if not results and prefix and self._service.store.feedback_of(prefix, limit=1):
            results = [ListedUser(user_id=self._external(prefix), events=0, last=None, held_out=False, latest=[])]
        return UsersAnswer(
            request_id=trace.request_id,
            found=max(len(rows), len(results)),
            users=self._histories.num_users,
            results=results,
        )

    def one(self, user_id: str, request: UserQuery, trace: Trace) -> UserAnswer:
        """Return a user, known or not: feed and feedback since, and what was held out."""
        trace.user_id = user_id
        service = self._service
        pasts = Pasts(self._histories, service.catalogue.item_ids, service.store, length=request.k)
        past = pasts.of(user_id, known=lambda item_id: service.items.remember(item_id) is not None)
        row = self._histories.row(user_id) if user_id in self._histories else -1
        return UserAnswer(
            request_id=trace.request_id,
            user_id=self._external(user_id),
            events=0 if row < 0 else int(np.diff(self._histories.offsets)[row]),
            known=past is not None,
            history_length=service.length,
            history=[] if past is None else self._events(past),
            held_out=self._held_out(row),
        )

    def _events(self, past: Past) -> list[PastEvent]:
        times, names = past.times, self._histories.event_names
        events = []
        for place, card in enumerate(self._cards.of(past.item_ids)):
            if card is not None:
                code = -1 if times.codes is None else int(times.codes[place])
                at = None if times.timestamps is None else int(times.timestamps[place])
                event = names[code] if code >= 0 else None
                events.append(PastEvent(**card.model_dump(), timestamp=at, event=event))
        return events

    def _listed(self, row: int) -> ListedUser:
        histories = self._histories
        start, stop = int(histories.offsets[row]), int(histories.offsets[row + 1])
        latest = dict.fromkeys(histories.item_rows[start:stop][::-1].tolist())
        ids = self._service.catalogue.item_ids[list(latest)[:LATEST]]
        return ListedUser(
            user_id=self._external(str(histories.user_ids[row])),
            events=stop - start,
            last=int(histories.timestamps[stop - 1]) if histories.has_time and stop > start else None,
            held_out=row in self._cases,
            latest=self._cards.some([str(item_id) for item_id in ids]),
        )

    def _held_out(self, row: int) -> HeldOut | None:
        """Return the last question that the split asks of a user, None where it asks none."""
        split, place = self._split, self._cases.get(row)
        if split is None or place is None:
            return None
        case = split.part(PART).take(np.array([place]))
        before, chosen = case.histories(self._histories), case.targets(self._histories)
        catalogue, histories = self._service.catalogue, self._histories
        recent = histories.item_rows[before.values[-self._service.length :].astype(np.int64)]
        rows = histories.item_rows[chosen.values.astype(np.int64)]
        chosen_ids = [str(item_id) for item_id in catalogue.item_ids[np.unique(rows)]]
        return HeldOut(
            split=split.name,
            part=PART,
            at=int(case.times(histories)[0]) if histories.has_time else None,
            before=[*catalogue.external_ids(recent)],
            chosen=self._cards.some(chosen_ids),
        )

    @cached_property
    def _by_name(self) -> tuple[list[str], npt.NDArray[np.int64]]:
        """User ids in order, and their rows."""
        ids = [str(user_id) for user_id in self._histories.user_ids]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        return [ids[row] for row in order], np.array(order, dtype=np.int64)

    @cached_property
    def _split(self) -> Split | None:
        """The split that the run was trained on; None on a feed that has no such split, or a later one."""
        try:
            name = str(self._service.recommender.run.read_about()["split"])
            split = Split.load(self._service.catalogue.folder, name)
        except MmrecError:
            return None
        return split if len(split.train_events) == self._histories.num_events else None

    @cached_property
    def _cases(self) -> dict[int, int]:
        """User row to the last of their questions that has an answer and a history."""
        if self._split is None:
            return {}
        cases = self._split.part(PART)
        asked = (cases.targets(self._histories).lengths > 0) & (cases.histories(self._histories).lengths > 0)
        return {int(cases.user_rows[place]): int(place) for place in np.flatnonzero(asked)}

    def _external(self, user_id: str) -> str | int:
        """Return an id in the type that the feed's have."""
        kind = self._histories.user_id_type
        whole = kind == "integer" and user_id.removeprefix("-").isdecimal() and user_id.isascii()
        return restore_ids(np.array([user_id], dtype=object), "integer" if whole else "string")[0]
