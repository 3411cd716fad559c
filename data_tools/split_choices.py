"""What the maker of a split may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from data_tools.cold import SortIds
from mmrec.feed.splits import Kind

WindowTargets = Literal["first", "successive"]
EXISTING_ONLY: Final[dict[Kind, bool]] = {
    "global_time": True,
    "last_day": False,
    "leave_last_out": False,
    "cold_items": False,
}


@dataclass(frozen=True, kw_only=True)
class SplitChoices:
    """What the maker of a split may choose; each kind reads the choices that concern it.

    Args:
        validation_share: share of the events between the two times of ``global_time``.
        test_share: share of the events after the second time of ``global_time``.
        validation_from: first millisecond of the validation window, instead of a share.
        test_from: first millisecond of the test window, instead of a share.
        window_targets: what ``global_time`` asks for in a window: the ``first`` event of each user, or ``successive``
            ones, each with everything before it as history.
        cold_share: share of the items that ``cold_items`` tests on.
        validation_cold_share: share of all items that it selects on.
        cold_count: number of test-cold items, instead of a share.
        validation_cold_count: number of validation-cold items, instead of a share.
        cold_seed: seed of the draw of test-cold items.
        validation_seed: seed of the draw of validation-cold items.
        warm_share: share of the users of ``cold_items`` whose last instant of warm items is held out and asked about too,
            a third of them for calibration.
        warm_seed: seed of the draw of these users.
        cold_ids: the test-cold items themselves, instead of a draw.
        validation_cold_ids: the validation-cold items themselves, instead of a draw.
        sort_ids: order of the ids before a draw; None: as integers where every id is a plain integer, else as text.
        minimum_history: items a case's history must hold at least.
        existing_only: whether items are candidates only once they exist; None: only in ``global_time``.
    """

    validation_share: float = 0.1
    test_share: float = 0.1
    validation_from: int | None = None
    test_from: int | None = None
    window_targets: WindowTargets = "first"
    cold_share: float = 0.2
    validation_cold_share: float = 0.1
    cold_count: int | None = None
    validation_cold_count: int | None = None
    cold_seed: int = 7
    validation_seed: int = 8
    warm_share: float = 0.0
    warm_seed: int = 9
    cold_ids: tuple[str, ...] | None = None
    validation_cold_ids: tuple[str, ...] | None = None
    sort_ids: SortIds | None = None
    minimum_history: int = 1
    existing_only: bool | None = None
