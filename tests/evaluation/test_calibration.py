"""The repeat bonus is what ranks best where nothing is filtered, the trend's weight what does so by the headline."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mmrec.evaluation.calibration import calibrated_metrics
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases, Kind
from tests.evaluation.toys import cases_of, histories_of, split_of

ITEMS = 6


class Toy:
    """Scores items by falling row, and adds a bonus to what the history holds."""

    def __init__(self, cases: Cases, histories: Histories) -> None:
        self.bonus = 0.0
        self.weight = 9.0
        self.trends = torch.zeros(ITEMS)
        self._events, self._histories = cases.histories(histories), histories

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        scores = (-torch.arange(ITEMS) + self.weight * self.trends).repeat(len(cases), 1)
        for row, case in enumerate(cases):
            scores[row, torch.from_numpy(self._histories.item_rows[self._events[int(case)]])] += self.bonus
        return scores

    def set(self, bonus: float) -> None:
        self.bonus = bonus

    def set_trend(self, weight: float) -> None:
        self.weight = weight


def calibrate(sequences: list[list[int]], *, kind: Kind = "leave_last_out") -> tuple[dict[str, float], float]:
    histories = histories_of(sequences)
    roles = [0, 0, 0, 0, 0, 1] if kind == "cold_items" else None
    cases = cases_of(histories, [1] * len(sequences), num_items=ITEMS, roles=roles, target_role=int(roles is not None))
    toy = Toy(cases, histories)
    found = calibrated_metrics(
        toy,
        cases,
        histories,
        split_of(histories, cases, kind=kind),
        set_bonus=toy.set,
        set_trend=None,
        metric="ndcg@10",
        names=["ndcg@10", "hr@1"],
        first_seen=np.zeros(ITEMS, dtype=np.int64),
    )
    return found, toy.bonus


def test_people_who_come_back_raise_it() -> None:
    found, bonus = calibrate([[5, 5], [4, 4]])
    assert bonus == found["repeat_bonus"] == 6.0  # row 5 scores five below row 0
    assert found["hr@1"] == 1


def test_people_who_never_do_lower_it() -> None:
    found, bonus = calibrate([[0, 1, 2], [0, 1, 3]])
    assert bonus == found["repeat_bonus"] == -20.0
    assert found["hr@1"] == 0.5  # the headline filters the history anyway


def test_it_stays_at_nothing_where_it_changes_nothing() -> None:
    assert calibrate([[5, 0], [4, 0]])[1] == 0.0


def test_questions_about_cold_items_say_nothing_of_it() -> None:
    found, bonus = calibrate([[0, 1, 5], [1, 2, 5]], kind="cold_items")
    assert bonus == found["repeat_bonus"] == 0.0
    assert found["ndcg@10"] == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "weight"), [("leave_last_out", 0.5), ("cold_items", 0.0)])
def test_the_trend_is_weighed_as_far_as_it_helps(kind: Kind, weight: float) -> None:
    """Row 3 rose: at weight 0.5 it comes first; at 1 row 5, which nobody chooses, comes before it."""
    histories = histories_of([[0, 1, 3], [1, 0, 3]])
    cases = cases_of(histories, [1, 1], num_items=ITEMS)
    toy = Toy(cases, histories)
    toy.trends = torch.tensor([0.0, 0, 0, 3, 0, 6])
    found = calibrated_metrics(
        toy,
        cases,
        histories,
        split_of(histories, cases, kind=kind),
        set_bonus=toy.set,
        set_trend=toy.set_trend,
        metric="ndcg@10",
        names=["ndcg@10"],
        first_seen=np.zeros(ITEMS, dtype=np.int64),
    )
    assert toy.weight == found["trend_weight"] == weight
    assert (found["ndcg@10"] == 1.0) == (weight > 0)


def test_a_gain_that_may_be_chance_is_not_taken() -> None:
    """One user of four comes back: a bonus ranks better in the mean, by less than two standard errors."""
    one = [[5, 5], [4, 0], [4, 0], [4, 0]]
    assert calibrate(one)[1] == 0.0
    assert calibrate([one[0]] * 4)[1] == 6.0
