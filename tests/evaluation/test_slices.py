from __future__ import annotations

from math import log2

import numpy as np
import pytest

from mmrec.evaluation.knockout import shuffled_pictures
from mmrec.evaluation.ranking import Setting, rank_cases
from mmrec.evaluation.slices import (
    Slicing,
    all_slicings,
    by_history_length,
    by_modality,
    by_popularity,
    by_training,
    repeated_targets,
)
from mmrec.evaluation.tables import slice_table
from tests.evaluation.toys import Fixed, cases_of, catalogue_of, histories_of

PIXEL = np.zeros((1, 1, 3), np.uint8)


def named(slicing: Slicing) -> list[str]:
    return [slicing.groups[code] for code in slicing.codes]


def test_warm_and_cold() -> None:
    found = by_training(np.array([0, 1, 1]), np.array([3, 0]))
    assert named(found) == ["warm (in training)", "cold (never in training)", "cold (never in training)"]


def test_popularity_quintiles_of_the_items_that_training_saw() -> None:
    counts = np.array([0, 10, 20, 30, 40, 50, 0])
    assert named(by_popularity(np.array([1, 2, 3, 4, 5, 6]), counts)) == [
        "1 (rarest fifth)",
        "2",
        "3",
        "4",
        "5 (most popular fifth)",
        "never seen",
    ]


def test_equal_counts_share_the_quintile_of_their_middle() -> None:
    assert set(named(by_popularity(np.arange(10), np.full(10, 7)))) == {"3"}
    assert named(by_popularity(np.array([0]), np.array([0]))) == ["never seen"]


def test_history_length() -> None:
    lengths = np.array([0, 1, 2, 4, 5, 19, 49, 50, 900])
    found = by_history_length(lengths, np.arange(9))
    assert named(found) == ["0", "1", "2-4", "2-4", "5-9", "10-19", "20-49", "50+", "50+"]
    assert named(by_history_length(np.array([0, 7]), np.array([1, 1, 0]))) == ["5-9", "5-9", "0"]


def test_modality() -> None:
    catalogue = catalogue_of(["a", None, "c", None], [None, PIXEL, PIXEL, None])
    assert named(by_modality(np.arange(4), catalogue)) == ["text only", "image only", "both", "none"]


def test_repeats_and_the_slicings_in_use() -> None:
    histories = histories_of([[0, 1, 0], [1, 2]])
    cases = cases_of(histories, [1, 1], num_items=3)
    ranks = rank_cases(Fixed(np.zeros((2, 3))), cases, histories, Setting("all"))
    assert repeated_targets(ranks, cases, histories).tolist() == [True, False]
    found = all_slicings(ranks, cases, histories, catalogue_of(["a", "b", "c"]), np.array([2, 2, 0]))
    assert [entry.name for entry in found] == [
        "target",
        "popularity of the target in training",
        "length of the history",
        "novelty of the target",
    ]


def test_a_group_is_scored_on_its_own_targets_among_all_candidates() -> None:
    histories = histories_of([[0, 1], [2]])
    cases = cases_of(histories, [2, 1], num_items=3)
    # Case 0: targets 0 (rank 1) and 1 (rank 3).  Case 1: target 2 (rank 2).
    ranks = rank_cases(Fixed([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), cases, histories, Setting("all"))
    assert ranks.places.ranks.tolist() == [1, 3, 2]
    slicing = Slicing("halves", ["even", "odd", "unused"], ranks.targets % 2)
    found = slice_table(slicing, {"model": ranks}, users=cases.user_rows)
    assert [(group.name, group.cases) for group in found.groups] == [("even", 2), ("odd", 1)]
    assert found.groups[0].scores["model"]["ndcg@10"].mean == pytest.approx((1 + 1 / log2(3)) / 2)
    assert found.groups[1].scores["model"]["ndcg@10"].mean == pytest.approx(1 / log2(4))


def test_shuffled_pictures_move_every_picture_and_no_gap() -> None:
    has_picture = np.array([True, False, True, True, False, True])
    source = shuffled_pictures(has_picture, seed=5)
    moved = np.flatnonzero(has_picture)
    assert sorted(source[moved].tolist()) == moved.tolist()
    assert (source[moved] != moved).all()
    assert source[~has_picture].tolist() == [1, 4]
    assert shuffled_pictures(has_picture, seed=5).tolist() == source.tolist()
    assert shuffled_pictures(np.array([True, False])).tolist() == [0, 1]
    assert shuffled_pictures(np.zeros(0, bool)).tolist() == []
