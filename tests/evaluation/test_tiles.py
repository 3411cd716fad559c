"""Tile after tile finds what whole rows of scores find."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from mmrec.errors import ArtifactError
from mmrec.evaluation import standing, tiles
from mmrec.evaluation.ranking import CaseScorer, Ranks, Setting, rank_settings
from mmrec.evaluation.tiles import VectorCaseScorer
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases
from mmrec.storage import RaggedArray
from tests.evaluation.toys import cases_of, histories_of
from tests.torch_threads import torch_threads

SETTINGS = [
    Setting(f"{pool} {seen} {existing}", pool=pool, filter_seen=seen, existing_only=existing)
    for pool in ("all", "cold")
    for seen in (False, True)
    for existing in (False, True)
]


class Vectors:
    """Small integers, so that every way of adding gives the same float32."""

    def __init__(self, users: Tensor, items: Tensor, cases: Cases, histories: Histories, bonus: float) -> None:
        self.users, self.items, self.bonus = users, items, bonus
        self._events, self._rows = cases.histories(histories), np.asarray(histories.item_rows)

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        scores = (self.users[torch.from_numpy(cases)] @ self.items.T).amax(dim=1)
        for row, case in enumerate(cases):
            scores[row, torch.from_numpy(np.unique(self._rows[self._events[int(case)]]))] += self.bonus
        return scores

    def case_vectors(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases interests width"]:
        return self.users[torch.from_numpy(cases)]

    def item_vectors(self, rows: slice | Tensor) -> Float[Tensor, "rows width"]:
        return self.items[rows]

    def repeat_items(self, cases: npt.NDArray[np.int64]) -> RaggedArray:
        events = self._events.gather(cases)
        return RaggedArray(self._rows[events.values], events.offsets)

    def repeat_bonus(self) -> float:
        return self.bonus


class Rows:
    """The same scores, by rows only."""

    def __init__(self, scorer: CaseScorer) -> None:
        self._scorer = scorer

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        return self._scorer.scores(cases)


def feed(seed: int, num_items: int, num_cases: int) -> tuple[Cases, Histories, npt.NDArray[np.int64]]:
    """Histories whose targets may repeat them, warm and cold items, items first seen before and after the questions."""
    generator = np.random.default_rng(seed)
    number = generator.integers(1, 4, num_cases).tolist()
    sequences = [generator.integers(0, num_items, count + generator.integers(0, 6)).tolist() for count in number]
    histories = histories_of(sequences)
    roles = generator.integers(0, 2, num_items).tolist() if seed % 2 else None
    cases = cases_of(histories, number, num_items=num_items, roles=roles, target_role=int(seed % 4 == 3))
    # Every case needs a target, whose time is the question's.
    kept = np.flatnonzero(cases.targets(histories).lengths)
    return cases.take(kept), histories, generator.integers(0, 8, num_items)


def assert_same(found: Ranks, expected: Ranks) -> None:
    assert found.cases.tolist() == expected.cases.tolist()
    assert found.targets.tolist() == expected.targets.tolist()
    assert found.places.above.tolist() == expected.places.above.tolist()
    assert found.places.tied.tolist() == expected.places.tied.tolist()
    assert found.num_candidates.tolist() == expected.num_candidates.tolist()
    np.testing.assert_array_equal(found.top_scores, expected.top_scores)
    np.testing.assert_array_equal(found.top_items >= 0, expected.top_items >= 0)
    for row in found.top_items:
        real = row[row >= 0]
        assert len(set(real.tolist())) == len(real)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_items=st.integers(1, 40),
    interests=st.integers(1, 3),
    bonus=st.sampled_from([0.0, 2.0, -20.0]),
    top_k=st.integers(1, 50),
    chunk_elements=st.sampled_from([1, 7, 60, 1 << 20]),
    crowd=st.sampled_from([0, 1 << 13]),
    pending=st.sampled_from([0, 1 << 16]),
)
def test_equals_rows(
    seed: int,
    num_items: int,
    interests: int,
    bonus: float,
    top_k: int,
    chunk_elements: int,
    crowd: int,
    pending: int,
) -> None:
    cases, histories, first_seen = feed(seed, num_items, 9)
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(-2, 3, (len(cases), interests, 3), generator=generator).float()
    items = torch.randint(-1, 2, (num_items, 3), generator=generator).float()
    scorer = Vectors(users, items, cases, histories, bonus)
    expected = rank_settings(Rows(scorer), cases, histories, SETTINGS, first_seen=first_seen, top_k=top_k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standing, "CROWD", crowd)
        patch.setattr(standing, "PENDING", pending)
        patch.setattr(standing, "MOST_TILES", 3)
        found = rank_settings(
            scorer, cases, histories, SETTINGS, first_seen=first_seen, top_k=top_k, chunk_elements=chunk_elements
        )
    for name, ranks in found.items():
        assert_same(ranks, expected[name])
        rows = scorer.scores(ranks.cases) if len(ranks.cases) else None
        for row, (listed, values) in enumerate(zip(ranks.top_items, ranks.top_scores, strict=True)):
            assert rows is not None
            assert rows[row, torch.from_numpy(listed[listed >= 0]).long()].tolist() == values[listed >= 0].tolist()


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_vectors_tie_and_others_are_ranked_as_in_float64(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors that float32 cannot all tell apart: every third is the first one, some differ from it by a rounding."""
    cases, histories, _ = feed(2, 1000, 40)
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(1000, 65, generator=generator)
    items[::3] = items[0]
    items[1:300:3] = items[0] * (1 + 2e-7 * torch.randn(100, 1, generator=generator))
    users = torch.randn(len(cases), 1, 65, generator=generator)
    monkeypatch.setattr(tiles, "FEW_USERS", 10)
    with torch_threads(threads):
        found = rank_settings(
            Vectors(users, items, cases, histories, 0.0), cases, histories, [Setting("all")], chunk_elements=900
        )["all"]
    for place, (case, target) in enumerate(zip(found.places.case_index, found.targets, strict=True)):
        # One order of adding for every item, so that equal vectors are equal here.
        row = (users[found.cases[case], 0].double() * items.double()).sum(dim=1)
        assert found.places.above[place] == (row > row[target] + 1e-13).sum()
        assert found.places.tied[place] == ((row - row[target]).abs() <= 1e-13).sum() - 1


@pytest.mark.parametrize("side", ["users", "items"])
def test_vectors_that_are_no_numbers_are_an_error(side: str) -> None:
    cases, histories, _ = feed(0, 5, 3)
    scorer = Vectors(torch.zeros(len(cases), 1, 2), torch.zeros(5, 2), cases, histories, 0.0)
    assert isinstance(scorer, VectorCaseScorer)
    assert not isinstance(Rows(scorer), VectorCaseScorer)
    getattr(scorer, side)[-1] = torch.nan
    with pytest.raises(ArtifactError, match="NaN"):
        rank_settings(scorer, cases, histories, [Setting("all")])
