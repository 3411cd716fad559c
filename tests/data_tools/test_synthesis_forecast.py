"""The Bayes-optimal forecast is exact, and the demo feed needs both modalities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from data_tools.synthesis.figures import figures_of_last_clicks, last_click_questions
from data_tools.synthesis.filtering import HIDDEN, Knowledge, Questions, forecast, memberships
from data_tools.synthesis.truth import Dynamics, Posts, Truth
from data_tools.synthesize import START, SynthesizeOptions, draw_truth


def tiny_truth(*, noise: float = 0.2) -> Truth:
    """Eight posts of the six kinds of 3 subjects x 2 looks, the last one published in the second 20."""
    posts = Posts(
        item_ids=np.array([f"p{row}" for row in range(8)], dtype=object),
        subjects=np.array([0, 0, 1, 1, 0, 2, 2, 1]),
        looks=np.array([0, 1, 0, 1, 0, 1, 0, 1]),
        appeal=np.array([1.0, 2.0, 0.5, 1.5, 1.0, 0.5, 2.0, 3.0]),
        published=np.array([0, 0, 0, 0, 0, 0, 0, 20]),
        captioned=np.array([True] * 7 + [False]),
        pictures=np.array([1, 1, 1, 0, 1, 2, 1, 1]),
    )
    return Truth(Dynamics(subjects=3, looks=2, noise=noise, switch=0.3, drift=0.1), posts)


def brute_force(truth: Truth, questions: Questions, knowledge: Knowledge) -> np.ndarray:
    """Add up every path of hidden states, for the first user of ``questions``."""
    dynamics, posts = truth.dynamics, truth.posts
    members = memberships(posts, dynamics, knowledge)
    states = [(c, o) for o in range(dynamics.kinds) for c in range(dynamics.kinds) if dynamics.fresh[c, o] > 0]

    def move(now: tuple[int, int], then: tuple[int, int]) -> float:
        chance = 0.0
        for middle, p in ((now, 1 - dynamics.switch), (now[::-1], dynamics.switch)):
            chance += p * (1 - dynamics.drift) * (then == middle)
            chance += p * dynamics.drift * (then[1] == middle[1]) * dynamics.fresh[then]
        return chance

    def chances(kind: int, time: int, seen: set[int]) -> np.ndarray:
        weights = np.array(
            [0.0 if i in seen or posts.published[i] > time else posts.appeal[i] for i in range(len(posts))]
        )
        wanted = weights * members[:, kind]
        stray = weights / weights.sum()
        return dynamics.noise * stray + (1 - dynamics.noise) * (wanted / wanted.sum() if wanted.sum() > 0 else stray)

    length = int(questions.lengths[0])
    answer = np.zeros(len(posts))
    for path in itertools.product(states, repeat=length + 1):
        weight, seen = dynamics.fresh[path[0]] / dynamics.kinds, set[int]()
        for time in range(length):
            item = int(questions.items[0, time])
            emitted = chances(path[time][0], int(questions.times[0, time]), seen)
            weight *= emitted[questions.hidden].sum() if item == HIDDEN else emitted[item]
            weight *= move(path[time], path[time + 1])
            seen |= {item} - {HIDDEN}
        answer += weight * chances(path[-1][0], int(questions.asked[0]), seen)
    return answer / answer.sum()


class TestForecast:
    @pytest.mark.parametrize("knowledge", ["nothing", "caption", "image", "truth"])
    @pytest.mark.parametrize("items", [[0, 3], [5, HIDDEN], [HIDDEN, 4], []])
    def test_the_filter_equals_the_sum_over_all_paths(self, knowledge: Knowledge, items: list[int]) -> None:
        truth = tiny_truth()
        hidden = np.zeros(8, np.bool_)
        hidden[[2, 6, 7]] = True
        questions = Questions(
            items=np.array([[*items, 0]], dtype=np.int64),
            times=np.array([[*(10 * (1 + i) for i in range(len(items))), 0]], dtype=np.int64),
            lengths=np.array([len(items)]),
            asked=np.array([60]),
            hidden=hidden,
        )
        found = forecast(truth, questions, knowledge)[0]
        np.testing.assert_allclose(found, brute_force(truth, questions, knowledge), rtol=1e-9, atol=1e-12)

    def test_without_history_or_noise_it_is_appeal_within_kinds(self) -> None:
        """Six kinds of a sixth each; kind (0, 0) holds posts 0 and 4 of appeal 1 and 1: a twelfth each."""
        questions = Questions(
            items=np.zeros((1, 0), np.int64),
            times=np.zeros((1, 0), np.int64),
            lengths=np.array([0]),
            asked=np.array([19]),
            hidden=np.zeros(8, np.bool_),
        )
        found = forecast(tiny_truth(noise=0.0), questions, "truth")[0]
        # Every other kind has one post: post 7, the second of kind (1, 1), is not published yet.
        expected = [1 / 12, 1 / 6, 1 / 6, 1 / 6, 1 / 12, 1 / 6, 1 / 6, 0.0]
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_knowing_nothing_ranks_by_appeal(self) -> None:
        truth, clicks = draw_truth(SynthesizeOptions(users=5))
        questions = last_click_questions(truth, clicks, np.arange(5))
        found = forecast(truth, questions, "nothing")
        reach = found > 0
        assert np.diff((found / truth.posts.appeal)[0][reach[0]]) == pytest.approx(0.0, abs=1e-12)
        np.testing.assert_allclose(found.sum(axis=1), 1.0)

    def test_the_forecast_is_calibrated(self) -> None:
        """Clicks that were given a chance of p happen with a frequency of p."""
        truth, clicks = draw_truth(SynthesizeOptions(users=400))
        questions = last_click_questions(truth, clicks, np.arange(400))
        last = clicks.items[clicks.offsets[1:] - 1]
        chances = forecast(truth, questions, "truth")
        happened = np.zeros_like(chances)
        happened[np.arange(400), last] = 1.0
        for low, high in ((0.0, 0.01), (0.01, 0.04), (0.04, 0.1)):
            inside = (chances >= low) & (chances < high)
            spread = np.sqrt((chances * (1 - chances))[inside].sum())
            assert abs(happened[inside].sum() - chances[inside].sum()) < 3.5 * spread


class TestDifficulty:
    @pytest.mark.parametrize("brand_new", [False, True])
    def test_the_conjunction_is_needed(self, *, brand_new: bool) -> None:
        """For posts of the last two weeks and for all others, one modality gives a fraction of what both give."""
        options = SynthesizeOptions(users=800)
        truth, clicks = draw_truth(options)
        last = clicks.items[clicks.offsets[1:] - 1]
        new = truth.posts.published[last] > START + (options.days - 14) * 86_400
        asked = np.flatnonzero(new == brand_new)
        questions = last_click_questions(truth, clicks, asked)

        def hit_rate(knowledge: Knowledge) -> float:
            scores = forecast(truth, questions, knowledge)
            own = scores[np.arange(len(asked)), last[asked]]
            return float(np.mean((scores >= own[:, None]).sum(axis=1) <= 10))

        best, popular = hit_rate("truth"), hit_rate("nothing")
        assert best > 0.5
        assert popular < 0.08
        assert popular < hit_rate("caption") < popular + 0.3 * (best - popular)
        assert popular < hit_rate("image") < popular + 0.3 * (best - popular)

    def test_knowing_the_state_is_better_than_inferring_it(self) -> None:
        figures = figures_of_last_clicks(*draw_truth(SynthesizeOptions(users=300)))
        assert list(figures) == ["nothing", "caption", "image", "truth", "oracle"]
        assert figures["oracle"]["NDCG@10"] > figures["truth"]["NDCG@10"]
        assert figures["oracle"]["HR@10"] > figures["oracle"]["NDCG@10"]

    def test_new_posts_are_asked_about_and_warm_posts_have_few_clicks(self) -> None:
        truth, clicks = draw_truth(SynthesizeOptions(users=1500))
        test_from = np.quantile(clicks.times, 0.9)
        train_until = np.quantile(clicks.times, 0.8)
        new = truth.posts.published > train_until
        assert 0.05 < np.mean(new[clicks.items[clicks.times >= test_from]]) < 0.3
        assert np.median(np.bincount(clicks.items[clicks.times < train_until], minlength=1200)) <= 15
