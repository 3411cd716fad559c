"""Trends by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmrec.feed.histories import Histories
from mmrec.feed.trends import DAY, popularity_trends
from tests.evaluation.toys import histories_of

EVERYTHING = np.ones(6, bool)


@pytest.fixture
def histories() -> Histories:
    """Ten days: item 0 was chosen three times at their beginning, item 1 twice on the last two days."""
    return histories_of([[0, 0, 1], [0, 2, 1]], [[0, 0, 9 * DAY], [DAY, 5 * DAY, 10 * DAY]])


def test_recent_events_over_expected_ones(histories: Histories) -> None:
    trends = popularity_trends(histories, EVERYTHING, num_items=4, days=2)
    # Two of ten days: of three events 0.6 were to be expected, of two 0.4, of one 0.2.
    known = np.log([1 / 1.6, 3 / 1.4, 1 / 1.2])
    assert trends[:3].tolist() == pytest.approx((known - known.mean()).tolist(), rel=1e-6)
    assert trends[3] == 0, "what nobody has chosen yet counts as an item like the others"


def test_only_training_events_count_and_time_ends_with_them(histories: Histories) -> None:
    early = np.array([True, True, False, True, True, False])
    trends = popularity_trends(histories, early, num_items=3, days=2)
    first, last = np.log([1 / 2.2, 2 / 1.4])
    mean = (first + last) / 2
    assert trends.tolist() == pytest.approx([first - mean, 0, last - mean], rel=1e-6)


@pytest.mark.parametrize("case", ["no time", "no days", "no events", "all of it is recent"])
def test_nothing_to_say(histories: Histories, case: str) -> None:
    given = replace(histories, has_time=False) if case == "no time" else histories
    events = np.zeros(6, bool) if case == "no events" else EVERYTHING
    days = {"no days": 0, "all of it is recent": 11}.get(case, 2)
    assert popularity_trends(given, events, num_items=3, days=days).tolist() == [0, 0, 0]
