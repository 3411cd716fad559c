"""Drawing of negatives, inclusion probabilities and pairs, against counting."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
import torch

from mmrec.objectives.negatives import (
    Pairs,
    exclusion_pairs,
    inclusion_probability,
    log_inclusion_probability,
    window_pairs,
)


def as_set(pairs: Pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.target_index.tolist(), pairs.item_index.tolist(), strict=True))


@pytest.mark.parametrize(("num_users", "batch_users"), [(6, 1), (6, 2), (6, 4), (6, 6), (1, 1)])
def test_inclusion_probability_is_the_ratio_of_binomials(num_users: int, batch_users: int) -> None:
    counts = torch.arange(num_users)
    expected = [
        1 - comb(num_users - 1 - n, batch_users - 1) / comb(num_users - 1, batch_users - 1) for n in range(num_users)
    ]
    got = inclusion_probability(counts, num_users=num_users, batch_users=batch_users)
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


def test_inclusion_probability_counts_batches() -> None:
    holders, met, batches = {1, 3}, 0, 0
    for others in combinations(range(1, 6), 2):  # batches of three out of six users, user 0 among them
        batches += 1
        met += bool(holders & set(others))
    got = inclusion_probability(torch.tensor([2]), num_users=6, batch_users=3)
    assert got.item() == pytest.approx(met / batches)


def test_sampled_negatives_raise_the_probability() -> None:
    got = inclusion_probability(torch.tensor([0, 2]), num_users=6, batch_users=3, negatives=5, num_items=20)
    alone = 1 - comb(3, 2) / comb(5, 2)
    assert got.tolist() == pytest.approx([0.25, 1 - (1 - alone) * 0.75])
    everything = inclusion_probability(torch.tensor([0]), num_users=6, batch_users=3, negatives=20, num_items=20)
    assert everything.item() == 1.0


def test_inclusion_probability_keeps_its_digits_in_a_huge_feed() -> None:
    num_users, batch_users = 100_000_000, 256
    got = log_inclusion_probability(torch.tensor([1, 2]), num_users=num_users, batch_users=batch_users).exp()
    one = 255 / 99_999_999
    two = 1 - (1 - one) * (1 - 255 / 99_999_998)
    assert got.tolist() == pytest.approx([one, two], rel=1e-9)


def test_item_nobody_holds_cannot_be_there() -> None:
    assert log_inclusion_probability(torch.tensor([0]), num_users=5, batch_users=3).item() == -torch.inf


HISTORY = torch.tensor([[4, 5, 4, 6], [7, 8, 0, 0]])
VALID = torch.tensor([[True, True, True, True], [True, True, False, False]])
INSTANTS = torch.tensor([[0, 1, 1, 2], [0, 1, 0, 0]])


def test_exclusion_is_the_past_of_the_target_and_its_whole_instant() -> None:
    pairs = exclusion_pairs(HISTORY, VALID, INSTANTS, torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 3, 1]))
    assert as_set(pairs) == {(0, 4), (1, 4), (1, 5), (2, 4), (2, 5), (2, 6), (3, 7), (3, 8)}


def test_window_is_the_history_and_all_targets_of_the_user() -> None:
    user_index, positions = torch.tensor([1, 0, 0]), torch.tensor([9, 5, 2])
    pairs = window_pairs(HISTORY, VALID, user_index, positions)
    zero = {4, 5, 6, 2}
    expected = {(0, item) for item in (7, 8, 9)} | {(t, item) for t in (1, 2) for item in zero}
    assert as_set(pairs) == expected
    assert len(pairs) == len(expected)


def test_pairs_of_nothing_are_empty() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert len(window_pairs(HISTORY, VALID, none, none)) == 0
    assert len(exclusion_pairs(HISTORY, VALID, INSTANTS, none, none)) == 0
    assert len(window_pairs(HISTORY[:0], VALID[:0], none, none)) == 0
