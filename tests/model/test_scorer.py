"""Score-ready vectors: whatever a score knows is in the inner product."""

from __future__ import annotations

from functools import partial
from typing import Literal

import pytest
import torch

from mmrec.batch import UserStates
from mmrec.model.scorer import DEFAULT_ACTION, Scorer, shorten

ITEMS = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, -2.0]])
STATES = torch.tensor([[0.6, 0.8], [2.0, 0.0]])


def users(vectors: torch.Tensor) -> UserStates:
    return UserStates(vectors=vectors, states=vectors, valid=torch.ones(vectors.shape[:2], dtype=torch.bool))


def test_cosine_by_hand() -> None:
    scorer = Scorer(dim=2, temperature=0.5, item_bias=False)
    scores = scorer.user_vectors(STATES) @ scorer.item_vectors(ITEMS).T
    # Cosines over the temperature: (0.36 + 0.64) / 0.5 = 2, 0.6 / 0.5, -0.8 / 0.5; 0.6 / 0.5, 1 / 0.5, 0.
    torch.testing.assert_close(scores, torch.tensor([[2.0, 1.2, -1.6], [1.2, 2.0, 0.0]]))


def test_dot_by_hand() -> None:
    scorer = Scorer(dim=2, similarity="dot", item_bias=False)
    scores = scorer.user_vectors(STATES) @ scorer.item_vectors(ITEMS).T
    torch.testing.assert_close(scores, torch.tensor([[5.0, 0.6, -1.6], [6.0, 2.0, 0.0]]))


def test_a_mean_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.0, 1.0, -1.0]])
    # Content (3, 4) / 7 is of unit length again as (0.6, 0.8); the bias is (3 x 2 - 4) / 7.
    torch.testing.assert_close(Scorer(dim=2).mean(vectors, [3.0, 4.0]), torch.tensor([[0.6, 0.8, 2 / 7]]))
    plain = Scorer(dim=2, similarity="dot", item_bias=False).mean([v[:, :2] for v in vectors], [3.0, 4.0])
    torch.testing.assert_close(plain, torch.tensor([[3 / 7, 4 / 7]]))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_bias_is_read_off_the_item_and_added_to_every_score(similarity: str) -> None:
    scorer = Scorer(dim=2, similarity=similarity, temperature=0.5)
    assert scorer.width == 3
    assert scorer.bias is not None
    plain = scorer.user_vectors(STATES) @ scorer.item_vectors(ITEMS).T
    with torch.no_grad():
        scorer.bias.weight.copy_(torch.tensor([[1.0, 0.0]]))
        scorer.bias.bias.fill_(0.25)
    biased = scorer.user_vectors(STATES) @ scorer.item_vectors(ITEMS).T
    first = torch.tensor([0.6, 1.0, 0.0]) if similarity == "cosine" else torch.tensor([3.0, 1.0, 0.0])
    torch.testing.assert_close(biased - plain, (first * 2**0.5 + 0.25).expand(2, 3))
    content = scorer.content(scorer.item_vectors(ITEMS))
    torch.testing.assert_close(content[1], torch.tensor([1.0, 0.0]))
    assert content.shape == (3, 2)


@pytest.mark.parametrize("temperature", [0.02, 0.05, 0.5])
def test_temperature_starts_as_asked(temperature: float) -> None:
    torch.testing.assert_close(
        Scorer(dim=2, temperature=temperature).temperature().item(), temperature, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("logit", [-1e3, -8.0, 8.0, 1e3])
def test_temperature_never_leaves_its_limits(logit: float) -> None:
    scorer = Scorer(dim=2)
    assert scorer.temperature_logit is not None
    scorer.temperature_logit.data.fill_(logit)
    assert 0.00999 < scorer.temperature().item() < 1.00001


def test_the_best_of_several_interests_counts() -> None:
    scorer = Scorer(dim=2, similarity="dot", item_bias=False)
    scores = scorer(users(STATES.unsqueeze(0)), ITEMS)[DEFAULT_ACTION]
    torch.testing.assert_close(scores, torch.tensor([[6.0, 2.0, 0.0]]))


def test_what_a_user_had_gains_the_repeat_bonus() -> None:
    scorer = Scorer(dim=2, similarity="dot", item_bias=False)
    vectors = STATES.unsqueeze(1)
    plain = scorer.compare(vectors, ITEMS)
    scorer.repeat_bonus.fill_(2.5)
    had = torch.tensor([0, 1, 1, 1]), torch.tensor([2, 0, 1, 1])  # named twice, counted once
    gains = scorer.compare(vectors, ITEMS, had=had) - plain
    torch.testing.assert_close(gains, 2.5 * torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]))


def test_one_interest() -> None:
    scores = Scorer(dim=2, similarity="dot", item_bias=False)(users(STATES.unsqueeze(1)), ITEMS)
    torch.testing.assert_close(scores, {"next": torch.tensor([[5.0, 0.6, -1.6], [6.0, 2.0, 0.0]])})


def test_an_untrained_stranger_is_scored_by_the_bias_alone() -> None:
    scorer = Scorer(dim=2)
    assert scorer.bias is not None
    torch.nn.init.ones_(scorer.bias.weight)
    items = scorer.item_vectors(ITEMS)
    torch.testing.assert_close(items @ scorer.stranger_vector(), items[:, 2])


def test_a_zero_vector_is_finite() -> None:
    scorer = Scorer(dim=2)
    zeros = torch.zeros(1, 2, requires_grad=True)
    (scorer.item_vectors(zeros).sum() + scorer.user_vectors(zeros).sum()).backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


def test_calibration_moves_the_bias_and_nothing_else() -> None:
    scorer = Scorer(dim=2)
    vectors, signals = scorer.item_vectors(ITEMS), torch.tensor([[1.0, 1.0], [0.0, 0.0], [-2.0, 1.0]])
    assert torch.equal(scorer.calibrated(vectors, signals), vectors)
    scorer.trend_weight.fill_(0.5)
    moved = scorer.calibrated(vectors, signals) - vectors
    torch.testing.assert_close(moved, torch.tensor([[0, 0, 0.5], [0, 0, 0], [0, 0, -1.0]]))
    scorer.known_bonus.fill_(3.0)
    moved = scorer.calibrated(vectors, signals) - vectors
    torch.testing.assert_close(moved, torch.tensor([[0, 0, 3.5], [0, 0, 0], [0, 0, 2.0]]))
    without = Scorer(dim=2, item_bias=False)
    without.trend_weight.fill_(0.5)
    assert torch.equal(without.calibrated(without.item_vectors(ITEMS), signals), without.item_vectors(ITEMS))


class TestShorten:
    @pytest.mark.parametrize("item_bias", [True, False])
    @pytest.mark.parametrize("similarity", ["cosine", "dot"])
    def test_is_what_a_scorer_of_that_width_makes(self, similarity: Literal["cosine", "dot"], item_bias: bool) -> None:
        torch.manual_seed(0)
        fused, states = torch.randn(5, 8), torch.randn(3, 8)
        wide, narrow = (Scorer(dim=dim, similarity=similarity, item_bias=item_bias) for dim in (8, 3))
        cut = partial(shorten, dim=3, has_bias=item_bias, keeps_length=similarity == "cosine")
        for one, other in (
            (cut(wide.item_vectors(fused)), narrow.item_vectors(fused[:, :3])),
            (cut(wide.user_vectors(states)), narrow.user_vectors(states[:, :3])),
        ):
            torch.testing.assert_close(one, other)

    def test_the_bias_is_never_cut_and_a_whole_vector_stays_as_it_is(self) -> None:
        vectors = torch.tensor([[3.0, 4.0, 12.0, -7.0]])
        short = shorten(vectors, 2, has_bias=True, keeps_length=True)
        torch.testing.assert_close(short, torch.tensor([[3 * 13 / 5, 4 * 13 / 5, -7.0]]))
        assert shorten(vectors, 2, has_bias=True, keeps_length=False).tolist() == [[3.0, 4.0, -7.0]]
        assert shorten(vectors, 3, has_bias=True, keeps_length=True) is vectors
        zero = shorten(torch.zeros(1, 4), 2, has_bias=True, keeps_length=True)
        assert zero.tolist() == [[0.0, 0.0, 0.0]]
