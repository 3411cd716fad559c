from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch

from mmrec.evaluation import baselines
from mmrec.evaluation.baselines import ContentKnn, CoOccurrence, Popularity, neighbours, standard_baselines
from mmrec.evaluation.ranking import CaseScorer, Setting, rank_cases
from mmrec.evaluation.slices import training_counts
from tests.evaluation.toys import cases_of, histories_of, split_of

EACH = np.arange(2)


def weights_of(found: tuple[object, object], num_items: int) -> np.ndarray:
    rows, weights = found
    dense = np.zeros((num_items, num_items))
    for item in range(num_items):
        dense[item, rows[item]] = weights[item]  # type: ignore[index]
    return dense


def test_popularity_counts_training_events_only() -> None:
    histories = histories_of([[0, 1, 2], [1, 2]])
    cases = cases_of(histories, [1, 1], num_items=4)
    counts = training_counts(split_of(histories, cases).train_events, histories, num_items=4)
    assert counts.tolist() == [1, 2, 0, 0]
    assert Popularity(counts).scores(EACH).tolist() == [[1, 2, 0, 0]] * 2


def test_neighbours_in_both_directions() -> None:
    sequence, users = np.array([0, 1, 2, 0, 1]), np.array([0, 0, 0, 1, 1])
    dense = weights_of(neighbours(sequence, users, None, num_items=3, shrinkage=0.0), 3)
    # 0-1 is seen twice at distance 1; 1-2 once at distance 1; 0-2 once at distance 2.  Events: 2, 2, 1.
    expected = [[0, 2 / 2, 0.5 / 2], [2 / 2, 0, 1 / 2], [0.5 / 1, 1 / 1, 0]]
    np.testing.assert_allclose(dense, expected)


def test_neighbours_directed_turn_round_within_an_instant_only() -> None:
    sequence, users, instants = np.array([0, 1, 2]), np.zeros(3, np.int64), np.array([5, 5, 6])
    dense = weights_of(neighbours(sequence, users, instants, num_items=3, shrinkage=1.0), 3)
    np.testing.assert_allclose(dense, [[0, 1 / 2, 0.5 / 2], [1 / 2, 0, 1 / 2], [0, 0, 0]])


def test_neighbours_stop_at_the_window_and_at_the_user() -> None:
    sequence, users = np.array([0, 1, 2, 3]), np.array([0, 0, 0, 1])
    dense = weights_of(neighbours(sequence, users, None, num_items=4, window=1, shrinkage=0.0), 4)
    assert dense[0, 2] == 0
    assert dense[2, 3] == 0
    assert dense[0, 1] == 1


@pytest.mark.parametrize("directed", [False, True])
def test_neighbours_do_not_depend_on_the_block_size(directed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    sequence, users = generator.integers(0, 7, size=60), np.sort(generator.integers(0, 5, size=60))
    instants = np.sort(generator.integers(0, 20, size=60)) if directed else None
    whole = neighbours(sequence, users, instants, num_items=7)
    monkeypatch.setattr(baselines, "_BLOCK_EVENTS", 4)
    parts = neighbours(sequence, users, instants, num_items=7)
    np.testing.assert_allclose(weights_of(whole, 7), weights_of(parts, 7))
    naive = np.zeros((7, 7))
    for i in range(60):
        for j in range(60):
            near = users[i] == users[j] and 0 < abs(i - j) <= 10 and sequence[i] != sequence[j]
            if near and (instants is None or j > i or instants[i] == instants[j]):
                naive[sequence[i], sequence[j]] += 1 / abs(i - j)
    naive /= np.bincount(sequence, minlength=7)[:, None] + 20
    np.testing.assert_allclose(weights_of(whole, 7), naive)


def test_co_occurrence_adds_the_last_items_and_the_bonus() -> None:
    # Training: user 0 has 0, 1, user 1 has 2, 1.  Events: item 0 once, 1 twice, 2 once; shrinkage 20.
    histories = histories_of([[0, 1, 3], [2, 1, 3]])
    cases = cases_of(histories, [1, 1], num_items=4)
    train = split_of(histories, cases).train_events
    scores = CoOccurrence(cases, histories, train).scores(EACH)
    first = [2 + 1 / 22, 2 + 1 / 21, 1 / 22, 0]
    assert scores[0].tolist() == pytest.approx(first)
    assert scores[1].tolist() == pytest.approx([first[2], first[1], first[0], 0])
    only_last = CoOccurrence(cases, histories, train, last_items=1, repeat_bonus=0.0).scores(EACH)
    assert only_last[0].tolist() == pytest.approx([1 / 22, 0, 1 / 22, 0])


def test_recency_weighs_the_last_item_most() -> None:
    histories = histories_of([[0, 1, 3], [0, 2, 3], [1, 2, 3]])
    cases = cases_of(histories, [1, 1, 1], num_items=4)
    train = split_of(histories, cases).train_events
    flat = CoOccurrence(cases, histories, train, repeat_bonus=0.0).scores(np.array([0]))[0]
    recent = CoOccurrence(cases, histories, train, repeat_bonus=0.0, recency=True).scores(np.array([0]))[0]
    # Every pair of 0, 1, 2 was seen once and every item twice: each weight is 1 / 22.
    assert flat.tolist() == pytest.approx([1 / 22, 1 / 22, 2 / 22, 0])
    assert recent.tolist() == pytest.approx([1 / 22, 0.5 / 22, 1.5 / 22, 0])


def test_content_knn_is_the_mean_cosine_side_by_side() -> None:
    histories = histories_of([[0, 1, 2], [3, 2]])
    cases = cases_of(histories, [1, 1], num_items=4)
    text = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [9.0, 9.0]])
    image = torch.tensor([[1.0], [-1.0], [5.0], [7.0]])
    present = {"text": torch.tensor([True, True, True, False]), "image": torch.tensor([True, True, False, False])}
    scores = ContentKnn({"text": text, "image": image}, present, cases, histories).scores(EACH)
    # Item 0 and 1 have both; cosine of the pair (0 + 1 * -1) / 2.  Item 2 has text only.
    half = 1 / sqrt(2)
    assert scores[0].tolist() == pytest.approx([(1 - 0.5) / 2, (1 - 0.5) / 2, half * half, 0], abs=1e-6)
    assert scores[1].tolist() == [0, 0, 0, 0]


def test_content_knn_looks_at_the_last_five() -> None:
    histories = histories_of([[0, 1, 1, 1, 1, 1, 2]])
    cases = cases_of(histories, [1], num_items=3)
    vectors, present = {"text": torch.eye(3)}, {"text": torch.ones(3, dtype=torch.bool)}
    assert ContentKnn(vectors, present, cases, histories).scores(np.array([0]))[0].tolist() == [0, 1, 0]


def test_standard_baselines_give_the_bonus_only_where_training_repeats() -> None:
    never = histories_of([[0, 1, 2], [1, 0, 2]])
    again = histories_of([[0, 0, 2], [1, 0, 2]])
    for histories, bonus in ((never, 0.0), (again, 2.0)):
        cases = cases_of(histories, [1, 1], num_items=3)
        train = split_of(histories, cases).train_events
        found = standard_baselines(
            cases,
            histories,
            train,
            vectors={"text": torch.eye(3)},
            present={"text": torch.ones(3, dtype=torch.bool)},
        )
        assert list(found) == ["popularity", "co-occurrence", "transitions", "content-kNN"]
        assert all(isinstance(scorer, CaseScorer) for scorer in found.values())
        assert (found["co-occurrence"].scores(EACH)[0, 0] >= 2) == (bonus > 0)
        for scorer in found.values():
            assert len(rank_cases(scorer, cases, histories, Setting("all")).cases) == 2


def test_each_modality_is_a_baseline_of_its_own() -> None:
    histories = histories_of([[0, 1, 2], [1, 0, 2]])
    cases = cases_of(histories, [1, 1], num_items=3)
    vectors = {"text": torch.eye(3), "image": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])}
    present = {name: torch.ones(3, dtype=torch.bool) for name in vectors}
    found = standard_baselines(
        cases, histories, split_of(histories, cases).train_events, vectors=vectors, present=present
    )
    assert list(found)[3:] == ["content-kNN", "content-kNN (text)", "content-kNN (image)"]
    for name in vectors:
        alone = ContentKnn({name: vectors[name]}, present, cases, histories)
        torch.testing.assert_close(found[f"content-kNN ({name})"].scores(EACH), alone.scores(EACH))


def test_empty_history() -> None:
    histories = histories_of([[0], [1, 2]])
    cases = cases_of(histories, [1, 1], num_items=3)
    scorer = CoOccurrence(cases, histories, split_of(histories, cases).train_events)
    assert scorer.scores(EACH)[0].tolist() == [0, 0, 0]
