"""What a user is shown of whom nothing is known: what many chose of late, and what is new."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmrec.feed.catalogue import NEVER, Catalogue
from mmrec.feed.histories import DAY_MS, Histories

RECENT_DAYS = 7
Reason = Literal["popular", "fresh"]


def popular_rows(catalogue: Catalogue, histories: Histories) -> npt.NDArray[np.int64]:
    """Return the rows that were chosen in the last week of the feed (ever, where it has no times), the most often first."""
    rows = np.asarray(histories.item_rows)
    if histories.has_time and len(rows):
        times = np.asarray(histories.timestamps)
        rows = rows[times > times.max() - RECENT_DAYS * DAY_MS]
    counts = np.bincount(rows, minlength=len(catalogue))
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0]


def fresh_rows(catalogue: Catalogue) -> npt.NDArray[np.int64]:
    """Return the rows of the feed by when they became candidates, the newest first."""
    # The smallest of all has no negative.
    first = np.where(catalogue.first_seen == NEVER, np.iinfo(np.int64).min + 1, catalogue.first_seen)
    return np.argsort(-first, kind="stable")


def alternate(popular: Sequence[str], fresh: Sequence[str], *, k: int) -> list[tuple[str, Reason]]:
    """Return k distinct ids, taken in turn from both lists, and why each is there."""
    chosen: dict[str, Reason] = {}
    for one, other in zip_longest(popular, fresh):
        for item_id, reason in ((one, "popular"), (other, "fresh")):
            if item_id is not None:
                chosen.setdefault(item_id, "popular" if reason == "popular" else "fresh")
        if len(chosen) >= k:
            break
    return list(chosen.items())[:k]
