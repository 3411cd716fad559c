"""What a user is shown of whom nothing is known: what many chose of late, and what is new."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal

import numpy as np

from mmrec.feed.catalogue import NEVER, Catalogue
from mmrec.feed.histories import DAY_MS, Histories

RECENT_DAYS = 7
_KEPT = 2000
Reason = Literal["popular", "fresh"]


def popular_items(catalogue: Catalogue, histories: Histories) -> list[str]:
    """Return the ids that were chosen most in the last week of the feed (ever, where it has no times), most first."""
    rows = np.asarray(histories.item_rows)
    if histories.has_time and len(rows):
        times = np.asarray(histories.timestamps)
        rows = rows[times > times.max() - RECENT_DAYS * DAY_MS]
    counts = np.bincount(rows, minlength=len(catalogue))
    order = np.argsort(-counts, kind="stable")[:_KEPT]
    return [str(item_id) for item_id in catalogue.item_ids[order[counts[order] > 0]]]


def fresh_items(catalogue: Catalogue) -> list[str]:
    """Return the ids of the feed that became candidates last, the newest first."""
    first = np.where(catalogue.first_seen == NEVER, np.iinfo(np.int64).min, catalogue.first_seen)
    return [str(item_id) for item_id in catalogue.item_ids[np.argsort(-first, kind="stable")[:_KEPT]]]


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
