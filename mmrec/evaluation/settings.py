"""Which settings a split is reported under."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmrec.errors import FeedError
from mmrec.evaluation.ranking import Setting
from mmrec.evaluation.tally import case_item_keys
from mmrec.feed.histories import Histories
from mmrec.feed.splits import WARM, Cases, Split

ALL_ITEMS = "all items"
NEW_ITEMS = "all items but the history"
COLD_ITEMS = "cold items"
WARM_ITEMS = "warm items"


def settings_of(split: Split, cases: Cases, histories: Histories) -> list[Setting]:
    """Return the settings of a split, the headline first.

    Cold items are ranked among themselves first.  The warm items that a split about cold ones holds out are ranked among
    all and, to show what the cold ones cost them, among themselves.  Elsewhere the headline filters the history, unless some target
    repeats an item of it, for then filtering would take real choices away.

    Raises:
        FeedError: no cases.
    """
    if not len(cases):
        raise FeedError("at least one case to answer", got="none", where=f"split {split.name!r}")
    existing = split.existing_only
    kept = Setting(ALL_ITEMS, existing_only=existing)
    filtered = Setting(NEW_ITEMS, filter_seen=True, existing_only=existing)
    asked_warm = cases.target_role == WARM
    if split.kind == "cold_items" and not asked_warm:
        return [Setting(COLD_ITEMS, pool="cold", existing_only=existing), filtered, kept]
    settings = [kept, filtered] if _any_repeat(cases, histories) else [filtered, kept]
    if split.kind == "cold_items":
        settings.append(replace(settings[0], name=WARM_ITEMS, pool="cold"))
    return settings


def _any_repeat(cases: Cases, histories: Histories) -> bool:
    number = len(cases.item_roles)
    seen = case_item_keys(cases.histories(histories), histories, num_items=number)
    return bool(np.isin(case_item_keys(cases.targets(histories), histories, num_items=number), seen).any())
