"""Recall of smaller vectors against a naive twin: dense scores, full sorts, sets."""

from __future__ import annotations

import numpy as np
import pytest

from mmrec.inference.export_recall import Questions, recall_against_full
from mmrec.inference.recommender import Recommender
from mmrec.inference.vector_format import VectorFormat, WrittenVectors
from mmrec.search.index import ExactStore
from mmrec.search.repeats import search_with_repeats

ITEMS, DIM = 400, 8
GENERATOR = np.random.default_rng(0)
TABLE = np.hstack([GENERATOR.normal(size=(ITEMS, DIM)), 2 * GENERATOR.normal(size=(ITEMS, 1))]).astype(np.float32)
TABLE[:, :DIM] /= np.linalg.norm(TABLE[:, :DIM], axis=1, keepdims=True)
FULL = VectorFormat(has_bias=True, keeps_length=True)
CUT = VectorFormat(has_bias=True, keeps_length=True, dim=5, precision="int8")


def asked(count: int, bonus: float) -> Questions:
    """Users at a temperature of a tenth, each of whom had three items."""
    generator = np.random.default_rng(1)
    users = np.hstack([generator.normal(size=(count, DIM)), np.ones((count, 1))]).astype(np.float32)
    users[:, :DIM] *= 10 / np.linalg.norm(users[:, :DIM], axis=1, keepdims=True)
    had = [np.sort(generator.choice(ITEMS, 3, replace=False)) for _ in range(count)]
    return Questions(users, had, bonus)


def naive(layout: VectorFormat, questions: Questions) -> list[list[int]]:
    """All items of each question, best first."""
    items, users = WrittenVectors(TABLE, layout)[:], layout.shape(questions.vectors)
    scores = users @ items.T
    for row, had in enumerate(questions.had):
        scores[row, had] += questions.bonus
    return [list(np.argsort(-own, kind="stable")) for own in scores]


@pytest.mark.parametrize("bonus", [-20.0, 0.0, 5.0, -np.inf])
@pytest.mark.parametrize("layout", [CUT, VectorFormat(has_bias=True, keeps_length=True, dim=2)])
def test_counts_what_a_naive_twin_counts(layout: VectorFormat, bonus: float) -> None:
    questions = asked(130, bonus)  # more than one piece, the last one short
    report = recall_against_full(TABLE, [FULL, layout], {"users": questions})
    assert set(report[0].values()) == {1.0}
    exact, found = naive(FULL, questions), naive(layout, questions)
    for k, candidates in ((10, 200), (100, 400)):
        shares = [len({*a[:k]} & {*b[:k]}) / k for a, b in zip(exact, found, strict=True)]
        again = [len({*a[:k]} & {*b[:candidates]}) / k for a, b in zip(exact, found, strict=True)]
        assert report[1][f"recall@{k}, users"] == pytest.approx(np.mean(shares), abs=1e-4)
        assert report[1][f"recall@{k}, users, rescored"] == pytest.approx(np.mean(again), abs=1e-4)
        assert np.mean(shares) < np.mean(again) <= 1


def test_a_bonus_of_minus_infinity_leaves_out() -> None:
    questions = asked(7, -np.inf)
    hits = search_with_repeats(
        ExactStore(TABLE), TABLE, questions.vectors, had=questions.had, bonus=np.full(7, -np.inf, np.float32), k=ITEMS
    )
    for rows, had in zip(hits.rows, questions.had, strict=True):
        assert sorted(rows) == sorted([-1, -1, -1, *set(range(ITEMS)) - set(had)])


def test_a_bias_that_shares_the_scale_would_cost_recall() -> None:
    """Why the bias is kept out of int8: with the scale it would force, one post in seventy is another."""
    questions = asked(100, 0.0)
    kept = recall_against_full(TABLE, [VectorFormat(has_bias=True, precision="int8")], {"users": questions})
    shared = recall_against_full(TABLE, [VectorFormat(has_bias=False, precision="int8")], {"users": questions})
    # Without a bias of its own, the last coordinate is one like any other.
    assert kept[0]["recall@10, users"] > shared[0]["recall@10, users"] + 0.01


def test_users_are_asked_as_search_asks_them(recommender: Recommender) -> None:
    from mmrec.inference.export_recall import questions_of

    questions = questions_of(recommender, recommender.item_embeddings())
    users = questions["users"]
    assert len(users.vectors) == len(users.had) == len(recommender.assembly.histories.user_ids)
    assert users.bonus == recommender.repeat_bonus
    best = recommender.recommend(user_id="u07", k=30)
    scores = users.vectors[7] @ recommender.item_embeddings().T
    scores[users.had[7]] += users.bonus
    order = np.argsort(-scores, kind="stable")
    assert recommender.assembly.catalogue.external_ids(order) == best["item_id"].tolist()
    posts = questions["posts"]
    assert (posts.vectors[:, -1] == 0).all()
    assert [own.tolist() for own in posts.had] == [[row] for row in range(30)]


def test_unit_vectors_scale_the_bonus_with_the_user() -> None:
    questions = asked(3, -2.0)
    _, vectors, bonus = next(questions.parts(VectorFormat(has_bias=True, normalised=True)))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(bonus, -0.2, rtol=1e-6)
