"""The synthetic feed: reproducible, as described, and with a Bayes-optimal ranker that is exact."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, UnidentifiedImageError

from data_tools.synthesis.captions import SUBJECTS, write_caption
from data_tools.synthesis.clicks import draw_clicks, draw_posts
from data_tools.synthesis.figures import figures_of_last_clicks, last_click_questions
from data_tools.synthesis.filtering import HIDDEN, Knowledge, Questions, forecast, memberships
from data_tools.synthesis.patterns import LOOKS
from data_tools.synthesis.pictures import draw_picture
from data_tools.synthesis.truth import Clicks, Dynamics, Posts, Truth
from data_tools.synthesize import START, SynthesizeOptions, synthesize
from mmrec.errors import ConfigError, FeedError

SMALL = SynthesizeOptions(items=96, users=40, side=24, subjects=4, looks=4, events=8.0, without_picture=0.06)


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("synthetic") / "feed", options=SMALL).feed


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def world(*, users: int, seed: int = 3) -> tuple[Truth, Clicks]:
    """Posts and clicks at the default difficulty, without the drawing."""
    options = SynthesizeOptions()
    posts = draw_posts(
        items=options.items,
        dynamics=options.dynamics,
        zipf=options.popularity,
        start=START,
        days=options.days,
        late_share=options.late_share,
        without_caption=options.without_caption,
        without_picture=options.without_picture,
        two_pictures=options.two_pictures,
        generator=np.random.default_rng([seed, 0]),
    )
    clicks = draw_clicks(
        posts,
        options.dynamics,
        users=users,
        mean=options.events,
        start=START,
        days=options.days,
        generator=np.random.default_rng([seed, 1]),
    )
    return Truth(options.dynamics, posts), clicks


def tiny_truth(*, noise: float = 0.2) -> Truth:
    """Eight posts of the four kinds of 2 subjects x 2 looks, the last one published late."""
    posts = Posts(
        item_ids=np.array([f"p{row}" for row in range(8)], dtype=object),
        subjects=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        looks=np.array([0, 1, 0, 1, 0, 1, 0, 1]),
        appeal=np.array([1.0, 2.0, 0.5, 1.5, 1.0, 0.5, 2.0, 3.0]),
        published=np.array([0, 0, 0, 0, 0, 0, 0, 50]),
        captioned=np.array([True] * 7 + [False]),
        pictures=np.array([1, 1, 1, 0, 1, 2, 1, 1]),
    )
    return Truth(Dynamics(subjects=2, looks=2, noise=noise, switch=0.3, drift=0.1), posts)


class TestFiles:
    def test_one_seed_gives_one_feed_byte_for_byte(self, feed: Path, tmp_path: Path) -> None:
        again = synthesize(tmp_path / "again", options=SMALL)
        assert files(again.feed) == files(feed)

    def test_another_seed_gives_another_feed(self, feed: Path, tmp_path: Path) -> None:
        other = synthesize(tmp_path / "other", options=SynthesizeOptions(**{**vars(SMALL), "seed": 1}))
        assert (other.feed / "interactions.csv").read_bytes() != (feed / "interactions.csv").read_bytes()
        assert (other.feed / "images/p0001.jpg").read_bytes() != (feed / "images/p0001.jpg").read_bytes()

    def test_tables_have_the_declared_columns_and_no_hint_of_the_truth(self, feed: Path) -> None:
        items = pd.read_csv(feed / "items.csv", keep_default_na=False)
        assert list(items) == ["item_id", "title", "description", "image", "published_at", "maker", "price"]
        assert list(pd.read_csv(feed / "interactions.csv")) == ["user_id", "item_id", "timestamp"]
        names = [look.name for look in LOOKS]
        assert not any(name in text for name in names for text in items["title"] + items["description"])

    def test_every_picture_named_exists_and_the_truth_says_which_can_be_read(self, feed: Path) -> None:
        items = pd.read_csv(feed / "items.csv", keep_default_na=False).set_index("item_id")
        truth = pd.read_parquet(feed / "truth" / "items.parquet").set_index("item_id")
        readable = {item_id: 0 for item_id in truth.index}
        damaged = 0
        for item_id, cell in items["image"].items():
            for name in filter(None, cell.split("|")):
                try:
                    with Image.open(feed / name) as picture:
                        picture.load()
                    readable[str(item_id)] += 1
                except (OSError, UnidentifiedImageError):
                    damaged += 1
        assert readable == truth["pictures"].to_dict()
        assert damaged == SMALL.bad_pictures
        assert set(truth["pictures"]) == {0, 1, 2}

    def test_no_true_post_lacks_both_parts_and_captions_are_as_the_truth_says(self, feed: Path) -> None:
        items = pd.read_csv(feed / "items.csv", keep_default_na=False).set_index("item_id")
        truth = pd.read_parquet(feed / "truth" / "items.parquet").set_index("item_id")
        assert (truth["captioned"] | (truth["pictures"] > 0)).all()
        assert ((items.loc[truth.index, "title"] != "") == truth["captioned"]).all()
        assert set(items.index) - set(truth.index) == {"empty0", "empty1", "empty2"}

    def test_faulty_rows_are_what_the_options_say(self, feed: Path) -> None:
        rows = pd.read_csv(feed / "interactions.csv", dtype=str, keep_default_na=False)
        kinds = (rows["item_id"] == "withdrawn", rows["timestamp"] == "", rows.duplicated())
        assert [int(kind.sum()) for kind in kinds] == [3, 3, 3]
        events = pd.read_parquet(feed / "truth" / "events.parquet")
        assert len(rows) == len(events) + SMALL.bad_rows

    def test_an_earlier_synthetic_feed_is_replaced_and_a_foreign_folder_is_not(self, tmp_path: Path) -> None:
        tiny = SynthesizeOptions(items=32, users=3, side=16, subjects=2, looks=2, events=5.0, bad_pictures=0)
        synthesize(tmp_path / "feed", options=tiny)
        synthesize(tmp_path / "feed", options=SynthesizeOptions(**{**vars(tiny), "users": 4}))
        assert len(pd.read_parquet(tmp_path / "feed/truth/events.parquet")["user_id"].unique()) == 4
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
        with pytest.raises(FeedError, match="Choose another --out"):
            synthesize(tmp_path / "mine", options=tiny)
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose"

    @pytest.mark.parametrize("wrong", [{"looks": 11}, {"noise": 1.5}, {"events": 2.0}, {"late_share": 0.9}])
    def test_options_out_of_range_are_named(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SynthesizeOptions(**wrong)  # type: ignore[arg-type]


class TestContent:
    def test_a_caption_names_its_subject_and_no_other(self) -> None:
        for subject, draw in itertools.product(range(len(SUBJECTS)), range(30)):
            title, description = write_caption(subject, generator=np.random.default_rng([subject, draw]))
            text = f"{title} {description}".lower()
            named = [row for row, about in enumerate(SUBJECTS) if any(word in text for word in about.words)]
            assert named == [subject]

    def test_palettes_are_told_apart_by_their_pixels(self) -> None:
        """The nearest mean colour histogram (Hellinger) of other draws finds the look."""

        def histogram(look: int, draw: int) -> np.ndarray:
            generator = np.random.default_rng([look, draw])
            picture = draw_picture(look, looks=len(LOOKS), side=48, difficulty=0.1, generator=generator)
            bins = np.asarray(picture).reshape(-1, 3) // 64 @ np.array([16, 4, 1])
            return np.sqrt(np.bincount(bins, minlength=64) / len(bins))

        shown = np.array([[histogram(look, draw) for draw in range(24)] for look in range(len(LOOKS))])
        known, asked = shown[:, :16].mean(axis=1), shown[:, 16:].reshape(-1, 64)
        found = ((asked[:, None] - known[None]) ** 2).sum(axis=2).argmin(axis=1)
        assert (found == np.repeat(np.arange(len(LOOKS)), 8)).mean() > 0.9


class TestClicks:
    def test_no_user_sees_a_post_twice_or_before_its_day(self) -> None:
        truth, clicks = world(users=150)
        users = np.repeat(np.arange(150), clicks.lengths)
        assert len(set(zip(users.tolist(), clicks.items.tolist(), strict=True))) == len(clicks.items)
        assert (truth.posts.published[clicks.items] <= clicks.times).all()
        same_user = users[1:] == users[:-1]
        assert (np.diff(clicks.times)[same_user] > 0).all()

    def test_shares_of_noise_switch_and_drift_are_the_declared_ones(self) -> None:
        truth, clicks = world(users=1000)
        dynamics, posts = truth.dynamics, truth.posts
        kinds = posts.subjects * dynamics.looks + posts.looks
        # A stray click still hits the wanted kind one time in 64.
        strayed = 1 - np.mean(kinds[clicks.items] == clicks.current)
        assert strayed == pytest.approx(dynamics.noise * 63 / 64, abs=0.015)
        users = np.repeat(np.arange(1000), clicks.lengths)
        inner = users[1:] == users[:-1]
        before = np.stack([clicks.current[:-1], clicks.other[:-1]])[:, inner]
        after = np.stack([clicks.current[1:], clicks.other[1:]])[:, inner]
        kept = np.all(before == after, axis=0).mean()
        swapped = np.all(before == after[::-1], axis=0).mean()
        # A fresh kind is the old one again one time in 49, which these tolerances swallow.
        assert kept == pytest.approx((1 - dynamics.switch) * (1 - dynamics.drift), abs=0.012)
        assert swapped == pytest.approx(dynamics.switch * (1 - dynamics.drift), abs=0.012)

    def test_the_two_kinds_share_neither_subject_nor_look(self) -> None:
        truth, clicks = world(users=200)
        looks = truth.dynamics.looks
        assert (clicks.current // looks != clicks.other // looks).all()
        assert (clicks.current % looks != clicks.other % looks).all()


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
    @pytest.mark.parametrize("items", [[0, 4, 3], [5, HIDDEN, 1], []])
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
        """Four kinds of a quarter each; kind (0, 0) holds posts 0 and 4 of appeal 1 and 1: an eighth each."""
        questions = Questions(
            items=np.zeros((1, 0), np.int64),
            times=np.zeros((1, 0), np.int64),
            lengths=np.array([0]),
            asked=np.array([49]),
            hidden=np.zeros(8, np.bool_),
        )
        found = forecast(tiny_truth(noise=0.0), questions, "truth")[0]
        # Kind (0, 1): 2.0 and 0.5; kind (1, 0): 0.5 and 2.0; kind (1, 1): post 7 is not published yet.
        expected = [1 / 8, 0.8 / 4, 0.2 / 4, 1 / 4, 1 / 8, 0.2 / 4, 0.8 / 4, 0.0]
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_knowing_nothing_ranks_by_appeal(self) -> None:
        truth, clicks = world(users=5)
        questions = last_click_questions(truth, clicks, np.arange(5))
        found = forecast(truth, questions, "nothing")
        reach = found > 0
        assert np.diff((found / truth.posts.appeal)[0][reach[0]]) == pytest.approx(0.0, abs=1e-12)
        np.testing.assert_allclose(found.sum(axis=1), 1.0)

    def test_the_forecast_is_calibrated(self) -> None:
        """Clicks that were given a chance of p happen with a frequency of p."""
        truth, clicks = world(users=400)
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
    def test_the_conjunction_is_needed_and_the_history_suffices(self) -> None:
        truth, clicks = world(users=500)
        figures = {ranker: value["HR@10"] for ranker, value in figures_of_last_clicks(truth, clicks).items()}
        best, popular = figures["truth"], figures["nothing"]
        assert 0.35 < best < 0.65
        assert popular < figures["caption"] < popular + 0.4 * (best - popular)
        assert popular < figures["image"] < popular + 0.4 * (best - popular)
        assert best < figures["oracle"]

    def test_new_posts_are_asked_about_and_warm_posts_have_few_clicks(self) -> None:
        truth, clicks = world(users=1500)
        test_from = np.quantile(clicks.times, 0.9)
        train_until = np.quantile(clicks.times, 0.8)
        new = truth.posts.published > train_until
        assert 0.05 < np.mean(new[clicks.items[clicks.times >= test_from]]) < 0.3
        assert np.median(np.bincount(clicks.items[clicks.times < train_until], minlength=1200)) <= 15
