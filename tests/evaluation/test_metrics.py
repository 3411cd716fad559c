from __future__ import annotations

from itertools import permutations
from math import comb, log2

import numpy as np
import pytest

from mmrec.evaluation.metrics import (
    UNREACHABLE,
    Places,
    case_metrics,
    coverage,
    gini,
    hr_ceiling,
    metric_names,
    recommendation_counts,
)


def places(*cases: list[tuple[int, int]]) -> Places:
    """Each case is a list of (above, tied)."""
    flat = np.array([pair for case in cases for pair in case], dtype=np.int64).reshape(-1, 2)
    offsets = np.concatenate([[0], np.cumsum([len(case) for case in cases])]).astype(np.int64)
    return Places(offsets, flat[:, 0], flat[:, 1])


def test_one_target_at_rank_two() -> None:
    found = case_metrics(places([(1, 0)]))
    assert found["hr@1"][0] == 0
    assert found["hr@5"][0] == 1
    assert found["ndcg@5"][0] == pytest.approx(1 / log2(3))
    assert found["ndcg@1"][0] == 0
    assert found["mrr@10"][0] == pytest.approx(1 / 2)
    assert found["recall@5"][0] == 1


def test_two_targets_at_ranks_one_and_three() -> None:
    found = case_metrics(places([(0, 0), (2, 0)]))
    assert found["ndcg@5"][0] == pytest.approx((1 + 1 / log2(4)) / (1 + 1 / log2(3)))
    assert found["ndcg@1"][0] == pytest.approx(1)  # the ideal list of one item has one hit
    assert found["recall@1"][0] == pytest.approx(1 / 2)
    assert found["recall@5"][0] == pytest.approx(1)
    assert found["hr@1"][0] == 1
    assert found["mrr@5"][0] == pytest.approx(1)


def test_equals_come_first_pessimistically_and_share_their_places_in_expectation() -> None:
    tied = places([(0, 1)])
    assert tied.ranks.tolist() == [2]
    assert tied.expected_ranks.tolist() == [1.5]
    assert case_metrics(tied)["hr@1"][0] == 0
    expected = case_metrics(tied, ties="expected")
    assert expected["hr@1"][0] == pytest.approx(1 / 2)
    assert expected["mrr@5"][0] == pytest.approx((1 + 1 / 2) / 2)
    assert expected["ndcg@5"][0] == pytest.approx((1 + 1 / log2(3)) / 2)


def test_constant_model_gets_chance_under_expected_ties() -> None:
    found = case_metrics(places([(0, 99)]), ties="expected")
    assert found["hr@10"][0] == pytest.approx(10 / 100)
    assert found["recall@50"][0] == pytest.approx(50 / 100)
    several = case_metrics(places([(0, 9), (0, 9)]), ties="expected")
    assert several["hr@5"][0] == pytest.approx(1 - comb(8, 5) / comb(10, 5))
    assert several["recall@5"][0] == pytest.approx(5 / 10)
    assert case_metrics(places([(0, 99)]))["hr@50"][0] == 0


@pytest.mark.parametrize("seed", range(8))
def test_expected_ties_equal_the_mean_over_every_order_of_equals(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 3, size=6)
    targets = generator.choice(6, size=int(generator.integers(1, 4)), replace=False)
    case = [(int((scores > scores[t]).sum()), int((scores == scores[t]).sum()) - 1) for t in targets]
    found = case_metrics(places(case), ties="expected", cutoffs=[1, 3, 5])
    orders = {order for order in permutations(range(6)) if all(np.diff(scores[list(order)]) <= 0)}
    for k in (1, 3, 5):
        lists = [[item in targets for item in order] for order in orders]
        hits = np.array(lists)[:, :k]
        first = [1 / (row.index(True) + 1) if True in row[:k] else 0 for row in lists]
        ideal = sum(1 / log2(rank + 2) for rank in range(min(k, len(targets))))
        gains = (hits / np.log2(np.arange(2, k + 2))).sum(1)
        assert found[f"hr@{k}"][0] == pytest.approx(hits.any(1).mean())
        assert found[f"recall@{k}"][0] == pytest.approx(hits.sum(1).mean() / len(targets))
        assert found[f"mrr@{k}"][0] == pytest.approx(np.mean(first))
        assert found[f"ndcg@{k}"][0] == pytest.approx(gains.mean() / ideal)


def test_unreachable_target_is_a_miss_however_large_k_is() -> None:
    found = places([(UNREACHABLE, 0)], [(UNREACHABLE, 0), (0, 0)])
    metrics = case_metrics(found)
    assert metrics["hr@50"].tolist() == [0, 1]
    assert metrics["recall@50"].tolist() == [0, 0.5]
    assert hr_ceiling(found) == 0.5
    assert hr_ceiling(found, np.array([True, True, False])) == 0


def test_metrics_rise_with_k_and_stay_in_range() -> None:
    generator = np.random.default_rng(3)
    found = places(*[[(int(a), int(t))] for a, t in generator.integers(0, 40, size=(50, 2))])
    for ties in ("pessimistic", "expected"):
        metrics = case_metrics(found, ties=ties)
        assert list(metrics) == metric_names()
        for name in ("hr", "ndcg", "mrr", "recall"):
            table = np.stack([metrics[f"{name}@{k}"] for k in (1, 5, 10, 20, 50)])
            assert (np.diff(table, axis=0) >= -1e-12).all()
            assert table.min() >= 0
            assert table.max() <= 1 + 1e-12


def test_no_cases() -> None:
    assert case_metrics(places())["hr@10"].shape == (0,)


def test_only_keeps_targets_and_says_which_cases_are_left() -> None:
    kept, cases = places([(0, 0), (4, 1)], [(7, 0)]).only(np.array([False, True, False]))
    assert cases.tolist() == [0]
    assert kept.ranks.tolist() == [6]


def test_coverage_and_gini() -> None:
    counts = recommendation_counts(np.array([[0, 1], [0, -1]], dtype=np.int32), num_items=4)
    assert counts.tolist() == [2, 1, 0, 0]
    assert coverage(counts) == 0.5
    assert gini(np.array([5, 5, 5])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 4])) == pytest.approx(3 / 4)
    assert gini(np.array([1, 3])) == pytest.approx(1 / 4)  # mean gap 2 / (2 * mean 2) over pairs: 1 / 4
    assert gini(np.zeros(3, dtype=np.int64)) == 0
