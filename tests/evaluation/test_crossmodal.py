from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmrec.evaluation.crossmodal import (
    CAPTION_TO_PICTURE,
    FROZEN,
    MAX_QUESTIONS,
    PICTURE_TO_CAPTION,
    Questions,
    best_ranks,
    chance_curve,
    choose_questions,
    crossmodal_tables,
    frozen_scores,
    space_scores,
    unseen_items,
)
from mmrec.evaluation.significance import Bootstrap, estimates
from mmrec.feed.splits import TEST_COLD, VALIDATION_COLD, WARM
from tests.evaluation.toys import cases_of, catalogue_of, histories_of, split_of

QUICK = Bootstrap(resamples=50)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def asked(number: int, *, others: int = 0) -> Questions:
    """The first ``number`` items asked about, the next ``others`` to learn from."""
    return Questions(np.arange(number), np.arange(number, number + others), unseen=True)


def distinct(number: int) -> npt.NDArray[np.int64]:
    return np.arange(number)


class TestRanks:
    def test_by_hand(self) -> None:
        scores = torch.tensor([[0.5, 0.9, 0.1], [0.2, 0.3, 0.1], [0.4, 0.6, 0.5]])
        assert best_ranks(scores, torch.eye(3, dtype=torch.bool)).tolist() == [2, 1, 2]

    def test_of_equals_the_right_one_comes_last(self) -> None:
        assert best_ranks(torch.zeros(4, 4), torch.eye(4, dtype=torch.bool)).tolist() == [4, 4, 4, 4]

    def test_the_best_right_one_counts_and_right_ones_do_not_compete(self) -> None:
        scores = torch.tensor([[0.1, 0.9, 0.9, 0.5]])
        assert best_ranks(scores, torch.tensor([[True, True, True, False]])).tolist() == [1]
        assert best_ranks(scores, torch.tensor([[True, False, False, True]])).tolist() == [3]

    def test_what_is_no_number_counts_against_the_question(self) -> None:
        nan = float("nan")
        right = torch.tensor([[True, False, False]])
        assert best_ranks(torch.tensor([[0.9, nan, 0.1]]), right).tolist() == [2]
        assert best_ranks(torch.tensor([[nan, 0.5, 0.1]]), right).tolist() == [3]

    @pytest.mark.parametrize("seed", range(5))
    def test_equal_to_loops(self, seed: int) -> None:
        """Few distinct scores and few distinct contents, so that ties and twins abound."""
        generator = np.random.default_rng(seed)
        number = 23
        captions, pictures = generator.integers(12, size=number), generator.integers(15, size=number)
        table = generator.integers(6, size=(number, number)).astype(np.float64)
        tables = crossmodal_tables(
            {"model": {CAPTION_TO_PICTURE: torch.from_numpy(table), PICTURE_TO_CAPTION: torch.from_numpy(table.T)}},
            asked(number),
            captions=captions,
            pictures=pictures,
            bootstrap=QUICK,
        ).tables
        for found, scores in zip(tables, (table, table.T), strict=True):
            ranks = []
            for question in range(number):
                right = [
                    j for j in range(number) if captions[j] == captions[question] or pictures[j] == pictures[question]
                ]
                best = max(scores[question][j] for j in right)
                ranks.append(1 + sum(scores[question][j] >= best for j in range(number) if j not in right))
            row = found.rows[0]
            assert row.median_rank == np.median(ranks)
            for cutoff in (1, 10, 50):
                assert row.recall[f"recall@{cutoff}"].mean == pytest.approx(np.mean([r <= cutoff for r in ranks]))


class TestChance:
    def test_one_right_answer_of_four(self) -> None:
        np.testing.assert_allclose(chance_curve(np.array([1, 1, 1]), num_candidates=4), [1 / 4, 2 / 4, 3 / 4, 1])

    def test_two_of_four_and_a_mixture(self) -> None:
        two = np.array([1 - 2 / 4, 1 - 2 / 4 * 1 / 3, 1, 1])
        np.testing.assert_allclose(chance_curve(np.array([2]), num_candidates=4), two)
        one = np.array([1 / 4, 2 / 4, 3 / 4, 1])
        np.testing.assert_allclose(chance_curve(np.array([2, 1, 1]), num_candidates=4), (two + 2 * one) / 3)

    def test_random_vectors_get_chance(self) -> None:
        number = 600
        captions = np.arange(number) // 2
        scores = space_scores(normal(number, 32), normal(number, 32, seed=1))
        for table in crossmodal_tables(
            {"model": scores}, asked(number), captions=captions, pictures=distinct(number), bootstrap=QUICK
        ).tables:
            row = table.rows[0]
            # Two right answers of 600: 1 - 590 / 600 * 589 / 599.
            assert table.chance["recall@10"] == pytest.approx(1 - 590 / 600 * 589 / 599)
            assert row.recall["recall@10"].mean == pytest.approx(table.chance["recall@10"], abs=0.03)
            assert row.recall["recall@50"].mean == pytest.approx(table.chance["recall@50"], abs=0.05)
            assert row.median_rank == pytest.approx(table.chance_median_rank, rel=0.2)

    def test_median_of_one_right_answer_is_the_middle(self) -> None:
        table = crossmodal_tables(
            {"model": space_scores(torch.eye(8), torch.eye(8))},
            asked(8),
            captions=distinct(8),
            pictures=distinct(8),
            bootstrap=QUICK,
        ).tables[0]
        assert table.chance_median_rank == 4
        assert table.chance["recall@1"] == pytest.approx(1 / 8)
        assert table.chance["recall@50"] == 1
        assert table.rows[0].median_rank == 1


class TestTables:
    def test_paired_difference_and_intervals_over_what_is_asked_with(self) -> None:
        number = 60
        captions = np.arange(number) // 3
        text = normal(number, 8)
        scorers = {
            "model": space_scores(text, text + 0.3 * normal(number, 8, seed=1)),
            FROZEN: space_scores(text, text + 2.0 * normal(number, 8, seed=2)),
        }
        found = crossmodal_tables(
            scorers, asked(number, others=7), captions=captions, pictures=distinct(number), bootstrap=QUICK
        )
        assert (found.questions, found.candidates, found.others, found.unseen) == (60, 60, 7, True)
        assert [table.direction for table in found.tables] == [CAPTION_TO_PICTURE, PICTURE_TO_CAPTION]
        right = torch.from_numpy(captions[:, None] == captions)
        for table, owner in zip(found.tables, (captions, distinct(number)), strict=True):
            model, frozen = table.rows
            assert [model.scorer, frozen.scorer] == ["model", FROZEN]
            assert model.ahead == {}
            gap = frozen.ahead["recall@10"]
            assert gap.mean == pytest.approx(model.recall["recall@10"].mean - frozen.recall["recall@10"].mean)
            assert gap.low > 0
            hits = (best_ranks(scorers[FROZEN][table.direction], right) <= 10).double().numpy()
            expected = estimates({"recall@10": hits}, owner, bootstrap=QUICK)
            assert frozen.recall["recall@10"] == expected["recall@10"]

    def test_both_directions_of_one_space(self) -> None:
        text, image = normal(6, 3), normal(6, 3, seed=1)
        scores = space_scores(text, 7 * image)
        cosine = functional.cosine_similarity(text[2], image[4], dim=0)
        torch.testing.assert_close(scores[CAPTION_TO_PICTURE][2, 4], cosine)
        torch.testing.assert_close(scores[PICTURE_TO_CAPTION][4, 2], cosine)


class TestFrozenFeatures:
    @pytest.mark.parametrize("image_dim", [8, 11])
    def test_ridge_finds_a_linear_map_that_cosine_cannot(self, image_dim: int) -> None:
        questions = asked(80, others=400)
        text = normal(480, 8) + 2
        image = text @ normal(8, image_dim, seed=1) - 1
        scorers = {FROZEN: frozen_scores(text, image, questions)}
        if image_dim == 8:
            scorers["cosine"] = space_scores(text[:80], image[:80])
        for table in crossmodal_tables(
            scorers, questions, captions=distinct(80), pictures=distinct(80), bootstrap=QUICK
        ).tables:
            assert table.rows[0].recall["recall@10"].mean > 0.95
            assert all(row.recall["recall@10"].mean < 0.4 for row in table.rows[1:])

    def test_learns_nothing_from_the_posts_asked_about(self) -> None:
        questions = asked(30, others=50)
        text, image = normal(80, 5), normal(80, 6, seed=1)
        order = np.random.default_rng(2).permutation(30)
        moved = image.clone()
        moved[:30] = image[torch.from_numpy(order)]
        before, after = frozen_scores(text, image, questions), frozen_scores(text, moved, questions)
        torch.testing.assert_close(after[CAPTION_TO_PICTURE], before[CAPTION_TO_PICTURE][:, order])
        torch.testing.assert_close(after[PICTURE_TO_CAPTION], before[PICTURE_TO_CAPTION][order])

    def test_scores_are_cosines(self) -> None:
        for scores in frozen_scores(normal(60, 5), normal(60, 6, seed=1), asked(20, others=40)).values():
            assert scores.abs().max() <= 1 + 1e-9


class TestUnseenItems:
    def test_neither_chosen_nor_a_negative(self) -> None:
        """Item 1 was out while training was recorded, chosen by nobody; items 2 and 3 came later."""
        histories = histories_of([[0, 0, 2], [0, 3]])
        cases = cases_of(histories, [1, 1], num_items=4)
        catalogue = catalogue_of(["a", "b", "c", "d"], first_seen=[0, 1, 2, 9])
        split = split_of(histories, cases)
        assert unseen_items(catalogue, histories, split, cases).tolist() == [False, False, True, True]

    def test_what_is_kept_for_the_other_part_is_left_to_it(self) -> None:
        histories = histories_of([[0, 2], [0, 1]])
        roles = [WARM, VALIDATION_COLD, TEST_COLD]
        catalogue = catalogue_of(["a", "b", "c"])
        for role, expected in ((VALIDATION_COLD, [False, True, False]), (TEST_COLD, [False, False, True])):
            cases = cases_of(histories, [1, 1], num_items=3, roles=roles, target_role=role)
            split = split_of(histories, cases, kind="cold_items")
            assert unseen_items(catalogue, histories, split, cases).tolist() == expected


class TestWhichPostsAreAsked:
    def test_unseen_ones_where_there_are_enough(self) -> None:
        both, unseen = np.arange(0, 1000, 2), np.zeros(1000, dtype=bool)
        unseen[:240] = True
        found = choose_questions(both, unseen)
        assert found is not None
        assert found.unseen
        assert found.rows.tolist() == list(range(0, 240, 2))
        assert found.others.tolist() == list(range(240, 1000, 2))

    def test_half_of_all_where_too_few_are_unseen(self) -> None:
        unseen = np.zeros(301, dtype=bool)
        unseen[:99] = True
        found = choose_questions(np.arange(301), unseen)
        assert found is not None
        assert not found.unseen
        assert len(found.rows) == 150
        assert sorted([*found.rows, *found.others]) == list(range(301))
        assert found.rows.max() > 200

    def test_half_stays_out_even_where_nearly_all_are_unseen(self) -> None:
        found = choose_questions(np.arange(400), np.arange(400) < 390)
        assert found is not None
        assert (found.unseen, len(found.rows), len(found.others)) == (True, 200, 200)
        assert found.rows.max() < 390

    def test_at_most_the_limit_and_always_the_same(self) -> None:
        both, unseen = np.arange(9000), np.ones(9000, dtype=bool)
        first, second = choose_questions(both, unseen), choose_questions(both, unseen)
        other = choose_questions(both, unseen, seed=1)
        assert first is not None
        assert second is not None
        assert other is not None
        assert len(first.rows) == len(set(first.rows.tolist())) == MAX_QUESTIONS
        np.testing.assert_array_equal(first.rows, second.rows)
        assert first.rows.tolist() != other.rows.tolist()

    def test_what_is_learnt_from_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mmrec.evaluation.crossmodal.MAX_FITTED", 30)
        found = choose_questions(np.arange(100), np.zeros(100, dtype=bool))
        assert found is not None
        assert (len(found.rows), len(found.others)) == (50, 30)
        assert not set(found.rows) & set(found.others)

    def test_nobody_where_few_posts_have_both(self) -> None:
        assert choose_questions(np.arange(19), np.ones(19, dtype=bool)) is None
        assert choose_questions(np.arange(20), np.ones(20, dtype=bool)) is not None
