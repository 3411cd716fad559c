"""What validation chooses: the repeat bonus, the weight of a trend, and what cold items may cost the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mmrec.evaluation import calibration
from mmrec.evaluation.calibration import Calibration, Measure, calibrated_metrics
from mmrec.evaluation.evaluate import validation_values
from mmrec.evaluation.ranking import CaseScorer
from mmrec.evaluation.settings import settings_of
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases, Kind, Split
from tests.evaluation.toys import cases_of, histories_of, split_of

ITEMS = 6


class Toy:
    """Scores items by falling row, and adds what calibration chooses."""

    def __init__(self) -> None:
        self.bonus, self.weight, self.known = 9.0, 9.0, 9.0
        self.trends = torch.zeros(ITEMS)
        self.is_known = torch.ones(ITEMS)

    @property
    def setters(self) -> dict[str, Callable[[float], object]]:
        return {
            "repeat_bonus": partial(setattr, self, "bonus"),
            "trend_weight": partial(setattr, self, "weight"),
            "known_bonus": partial(setattr, self, "known"),
        }

    def answers(self, cases: Cases, histories: Histories) -> CaseScorer:
        return Answers(self, cases, histories)

    def asked(self, cases: Cases, histories: Histories, split: Split) -> Calibration:
        measure = measuring(self.answers(cases, histories), cases, histories)
        settings = settings_of(split, cases, histories)
        return Calibration(measure, settings, setters=self.setters, names=["ndcg@10", "hr@1"])


def measuring(scorer: CaseScorer, cases: Cases, histories: Histories) -> Measure:
    first_seen = np.zeros(ITEMS, dtype=np.int64)
    return lambda setting, names: validation_values(
        scorer, cases, histories, setting, first_seen=first_seen, names=names
    )


class Answers:
    def __init__(self, toy: Toy, cases: Cases, histories: Histories) -> None:
        self.toy, self.histories, self.events = toy, histories, cases.histories(histories)

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        toy = self.toy
        scores = -torch.arange(ITEMS) + toy.weight * toy.trends + toy.known * toy.is_known
        scores = scores.repeat(len(cases), 1)
        for row, case in enumerate(cases):
            scores[row, torch.from_numpy(self.histories.item_rows[self.events[int(case)]])] += toy.bonus
        return scores


def calibrate(sequences: list[list[int]], *, kind: Kind = "leave_last_out") -> tuple[dict[str, float], float]:
    histories = histories_of(sequences)
    roles = [0, 0, 0, 0, 0, 1] if kind == "cold_items" else None
    cases = cases_of(histories, [1] * len(sequences), num_items=ITEMS, roles=roles, target_role=int(roles is not None))
    toy = Toy()
    asked = toy.asked(cases, histories, split_of(histories, cases, kind=kind))
    found = calibrated_metrics(asked, metric="ndcg@10", names=["ndcg@10", "hr@1"], cold_cost=None)
    assert toy.bonus == found["repeat_bonus"]
    return found, toy.bonus


@pytest.mark.parametrize("kind", ["leave_last_out", "cold_items"])
def test_shares_of_modalities_are_judged_by_what_is_new(kind: Kind) -> None:
    """Captions raise rows 5 and 4, half of it is enough where these are asked for; that row 0 is chosen again says nothing."""
    histories = histories_of([[0, 1, 5], [1, 2, 5], [0, 1, 0]][: 2 if kind == "cold_items" else 3])
    roles = [0, 0, 0, 1, 1, 1] if kind == "cold_items" else None
    cases = cases_of(
        histories, [1] * len(histories.user_ids), num_items=ITEMS, roles=roles, target_role=int(roles is not None)
    )
    toy = Toy()
    raised = {
        "late_share_text": torch.tensor([0.0, 0, 0, 0, 9, 12]),
        "late_share_image": torch.tensor([9.0, 0, 0, 9, 0, 0]),
    }
    shares = dict.fromkeys(raised, 0.0)

    class Mixed(Answers):
        def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
            return super().scores(cases) + sum(shares[name] * raised[name] for name in shares)

    asked = Calibration(
        measuring(Mixed(toy, cases, histories), cases, histories),
        settings_of(split_of(histories, cases, kind=kind), cases, histories),
        setters=toy.setters | {name: partial(shares.__setitem__, name) for name in raised},
        names=["ndcg@10"],
    )
    found = calibrated_metrics(asked, metric="ndcg@10", names=["ndcg@10"], cold_cost=None, late_shares=(0.5, 1.0))
    assert shares == {"late_share_text": 0.5, "late_share_image": 0.0}
    assert shares.items() <= found.items()


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
    roles = [0, 0, 0, 1, 0, 0] if kind == "cold_items" else None
    cases = cases_of(histories, [1, 1], num_items=ITEMS, roles=roles, target_role=int(roles is not None))
    toy = Toy()
    toy.trends = torch.tensor([0.0, 0, 0, 3, 0, 6])
    asked = toy.asked(cases, histories, split_of(histories, cases, kind=kind))
    found = calibrated_metrics(asked, metric="ndcg@10", names=["ndcg@10"], cold_cost=None)
    assert toy.weight == found["trend_weight"] == weight


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ([0.1] * 8, 1.0),  # less in the mean than the other, but on every question
        ([0.9, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1], 2.0),
        ([-0.1] * 8, 2.0),
    ],
)
def test_of_two_gains_the_surer_is_taken(gains: list[float], chosen: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {0.0: [0.0] * 8, 1.0: gains, 2.0: [0.9, 0.9, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1]}
    assert choose(found, monkeypatch) == chosen


def test_a_gain_that_is_next_to_chance_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose({0.0: [0.0] * 8, 1.0: [0.9, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1]}, monkeypatch) == 0.0


def choose(found: dict[float, list[float]], monkeypatch: pytest.MonkeyPatch) -> float:
    """What is chosen where each candidate gains so much on each question."""
    histories = histories_of([[0, 1]] * 8)
    cases = cases_of(histories, [1] * 8, num_items=ITEMS)
    asked = Toy().asked(cases, histories, split_of(histories, cases))
    monkeypatch.setattr(asked, "measure", lambda setting: {"ndcg@10": np.array(found[asked.chosen["trend_weight"]])})
    asked.choose_best("trend_weight", tuple(found), asked.settings[0], metric="ndcg@10")
    return asked.chosen["trend_weight"]


class TestWarmQuestions:
    """Of a split about cold items: row 0 is cold, and stands before all others as long as nothing is added to them."""

    def calibrate(
        self, sequences: list[list[int]], *, cold_cost: float | None, unit: float = 1.0
    ) -> tuple[dict[str, float], Toy]:
        histories = histories_of([*sequences, [1, 0]])
        last = len(sequences)
        roles = [1, 0, 0, 0, 0, 0]
        stops = [len(sequence) - 1 for sequence in sequences]
        cold = cases_of(histories, [0] * last + [1], num_items=ITEMS, roles=roles, target_role=1).take(np.array([last]))
        warm = cases_of(histories, [*stops, 1], num_items=ITEMS, roles=roles).take(np.arange(last))
        split = split_of(histories, cold, kind="cold_items")
        toy = Toy()
        toy.is_known = unit * torch.tensor([0.0, 1, 1, 1, 1, 1])
        found = calibrated_metrics(
            toy.asked(cold, histories, split),
            metric="ndcg@10",
            names=["ndcg@10"],
            warm=toy.asked(warm, histories, split),
            cold_cost=cold_cost,
        )
        return found, toy

    def test_they_choose_the_repeat_bonus(self) -> None:
        found, toy = self.calibrate([[5, 5], [4, 4]], cold_cost=None)
        assert found["repeat_bonus"] == toy.bonus == 6.0  # row 5 scores four below row 1
        assert found["known_bonus"] == toy.known == 0.0

    def test_known_items_gain_as_little_as_keeps_to_the_cost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By hit rate at 1, row 0 costs everything until row 1 gains more than 1."""
        monkeypatch.setattr(calibration, "COST_METRICS", ("hr@1",))
        found, toy = self.calibrate([[5, 1], [4, 1]], cold_cost=0.02)
        assert found["known_bonus"] == toy.known == pytest.approx(1, abs=calibration.BONUS_STEP)
        assert toy.known > 1  # at 1 both are level, and ties count against the target
        assert self.calibrate([[5, 1], [4, 1]], cold_cost=0.99)[0]["known_bonus"] == toy.known
        # Where scores are larger, so is the bonus.
        large = self.calibrate([[5, 1], [4, 1]], cold_cost=0.02, unit=0.01)[1].known
        assert large == pytest.approx(100, abs=2 * calibration.BONUS_STEP)
        monkeypatch.setattr(calibration, "COST_METRICS", ("hr@10",))
        assert self.calibrate([[5, 1], [4, 1]], cold_cost=0.0)[0]["known_bonus"] == 0.0
