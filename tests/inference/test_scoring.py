"""Requests to scores: who may ask, what a bad request or candidate does, and that equal histories score equally."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmrec import Post
from mmrec.errors import RequestError
from mmrec.inference.posts import decode_post
from mmrec.inference.recommender import Recommender
from mmrec.inference.references import Unusable
from mmrec.inference.scoring import Request, Scored
from tests.tiny_run import NUM_EVENTS, TinyFeed, draw, interactions_table

CANDIDATES = ["p00", "p11", "p22"]


def answer(recommender: Recommender, *requests: Request, group: int = 64) -> list[Scored]:
    return list(recommender.scoring.score(requests, group=group))


def chosen(user: str) -> list[str]:
    table = interactions_table()
    return table[table["user_id"] == user]["item_id"].tolist()


class TestWhoAsks:
    def test_explicit_history_equals_the_users_own_where_only_order_is_known(self, recommender: Recommender) -> None:
        for user in ("u00", "u07"):
            own = recommender.score(user_id=user, candidates=CANDIDATES)["score"]
            explicit = recommender.score(history=chosen(user), candidates=CANDIDATES)["score"]
            np.testing.assert_allclose(explicit, own, atol=1e-5, rtol=0)

    def test_only_the_most_recent_events_count(self, recommender: Recommender) -> None:
        length = recommender.assembly.config.train.history_length
        assert length == 8
        recent = ["p01", "p04", "p07", "p10", "p13", "p16", "p19", "p22"]
        older = recommender.score(history=["p29", "p28", *recent], candidates=CANDIDATES)["score"]
        np.testing.assert_allclose(older, recommender.score(history=recent, candidates=CANDIDATES)["score"], atol=1e-5)
        other = recommender.score(history=recent[::-1], candidates=CANDIDATES)["score"]
        assert np.abs(older - other).max() > 1e-3, "order counts"

    def test_an_unusable_post_before_the_window_does_no_harm(self, recommender: Recommender) -> None:
        history = ["p01"] * 8
        padded = [Post(image="no.png"), *history]
        expected = recommender.score(history=history, candidates=CANDIDATES)["score"]
        np.testing.assert_allclose(recommender.score(history=padded, candidates=CANDIDATES)["score"], expected)

    def test_empty_history_is_a_stranger_and_gets_scores(self, recommender: Recommender) -> None:
        found = recommender.score(history=[], candidates=[*CANDIDATES, Post("red")])
        assert found["score"].notna().all()
        assert sorted(found["rank"]) == [1, 2, 3, 4]
        assert found["error_message"].isna().all()

    @pytest.mark.parametrize("who", [{}, {"user_id": "u00", "history": []}])
    def test_both_or_neither_is_refused(self, recommender: Recommender, who: dict[str, object]) -> None:
        with pytest.raises(RequestError, match="either user_id or history"):
            recommender.score(candidates=CANDIDATES, **who)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="either user_id or history"):
            recommender.recommend(**who)  # type: ignore[arg-type]

    def test_unknown_user(self, recommender: Recommender) -> None:
        with pytest.raises(RequestError, match="'u99'.*Give a history"):
            recommender.score(user_id="u99", candidates=CANDIDATES)

    def test_history_that_cannot_be_read(self, recommender: Recommender) -> None:
        with pytest.raises(RequestError, match="no.png"):
            recommender.score(history=["p01", Post(image="no.png")], candidates=CANDIDATES)
        with pytest.raises(RequestError, match="'nobody'"):
            recommender.recommend(history=["nobody"])


class TestGroups:
    def test_a_bad_request_spoils_no_other(self, recommender: Recommender) -> None:
        requests = [
            Request("good", CANDIDATES, user_id="u01"),
            Request("who?", CANDIDATES),
            Request("stranger", CANDIDATES, user_id="u99"),
            Request("damaged", ["p01", "p02"], history=["p01", Unusable("x", "cut")]),
            Request("empty", [], user_id="u02"),
            Request("good too", ["p05"], history=["p02"]),
        ]
        found = answer(recommender, *requests)
        assert [scored.request_id for scored in found] == [request.request_id for request in requests]
        assert [scored.request_error is None for scored in found] == [True, False, False, False, True, True]
        for scored in found[1:4]:
            assert np.isnan(scored.scores).all()
            assert set(scored.ranks) == {0}
            assert set(scored.error_messages) == {scored.request_error}
        assert found[3].request_error == "cut"
        assert len(found[4].scores) == 0
        np.testing.assert_allclose(found[0].scores, answer(recommender, requests[0])[0].scores, atol=1e-5)
        np.testing.assert_allclose(found[5].scores, answer(recommender, requests[5])[0].scores, atol=1e-5)

    def test_a_bad_candidate_spoils_no_other(self, recommender: Recommender, tiny_feed: TinyFeed) -> None:
        cut = tiny_feed.image("p01").read_bytes()[:50]
        bad = [Post("fine words", cut), "nobody", Unusable("e", "empty"), Post("x", Path("no.png"))]
        mixed = [bad[0], "p00", bad[1], "p11", bad[2], bad[3], "p22"]
        (good,) = answer(recommender, Request("a", CANDIDATES, user_id="u03"))
        (found,) = answer(recommender, Request("a", mixed, user_id="u03"))
        assert [message is None for message in found.error_messages] == [False, True, False, True, False, False, True]
        np.testing.assert_allclose(found.scores[[1, 3, 6]], good.scores, atol=1e-5)
        assert list(found.ranks[[1, 3, 6]]) == list(good.ranks)
        assert list(found.ranks[[0, 2, 4, 5]]) == [0] * 4
        assert found.request_error is None

    def test_ranks_follow_scores_and_ties_keep_their_order(self, recommender: Recommender) -> None:
        (found,) = answer(recommender, Request("a", ["p03", "p08", "p03", "p21"], user_id="u04"))
        scores, ranks = found.scores, found.ranks
        assert sorted(ranks) == [1, 2, 3, 4]
        assert list(np.argsort(-scores, kind="stable")) == list(np.argsort(ranks))
        assert ranks[2] == ranks[0] + 1

    def test_shared_candidates_are_decoded_once_for_all_groups(
        self, recommender: Recommender, tiny_feed: TinyFeed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded = []

        def count(post: Post, **settings: int) -> object:
            decoded.append(post.name)
            return decode_post(post, **settings)

        monkeypatch.setattr("mmrec.inference.post_decoder.decode_post", count)
        shared = [Post("red", draw(3), name="a"), "p01", Post("blue", name="b")]
        users = [f"u{number:02}" for number in range(10)]
        found = answer(recommender, *(Request(user, shared, user_id=user) for user in users), group=4)
        assert decoded == ["a", "b"]
        apart = answer(recommender, *(Request(user, list(shared), user_id=user) for user in users), group=4)
        for one, other in zip(found, apart, strict=True):
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)

    def test_a_post_in_history_and_candidates_is_encoded_once(self, recommender: Recommender) -> None:
        before = recommender.vectors.num_encoded
        post = Post("striped silk dress", draw(7))
        answer(recommender, *(Request(str(n), [post, "p01"], history=[post]) for n in range(5)), group=2)
        assert recommender.vectors.num_encoded - before == 1


class TestRecommend:
    def test_agrees_with_score(self, recommender: Recommender) -> None:
        found = recommender.recommend(user_id="u05", k=7)
        assert list(found.columns) == ["item_id", "score", "rank"]
        assert found["rank"].tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert found["score"].is_monotonic_decreasing
        again = recommender.score(user_id="u05", candidates=found["item_id"].tolist())
        np.testing.assert_allclose(again["score"], found["score"], atol=1e-5)
        everything = recommender.score(user_id="u05", candidates=[f"p{row:02}" for row in range(30)])
        best = everything.sort_values("score", ascending=False)["candidate"][:7]
        assert best.tolist() == found["item_id"].tolist()

    def test_more_than_there_is(self, recommender: Recommender) -> None:
        assert len(recommender.recommend(user_id="u05", k=1000)) == 30
        assert len(recommender.recommend(history=[], k=31)) == 30

    def test_new_only_leaves_out_the_whole_history(self, recommender: Recommender) -> None:
        left = recommender.recommend(user_id="u05", k=1000, new_only=True)["item_id"]
        assert len(left) == 30 - NUM_EVENTS
        assert not set(chosen("u05")) & set(left)
        long = [f"p{row:02}" for row in range(12)]
        left = recommender.recommend(history=[*long, Post("red")], k=1000, new_only=True)["item_id"]
        assert sorted(left) == [f"p{row:02}" for row in range(12, 30)]
