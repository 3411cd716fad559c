"""Scores, recommendations and searches of the service are those of the library."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrec.commands.search import search_vectors
from mmrec.inference.posts import DecodedPost, Post
from mmrec.serving.model.exported import Pair
from tests.serving.served import LIMITS, Serve, Server, in_base64, picture
from tests.tiny_run import CAPTION_ONLY, NUM_ITEMS, NUM_USERS, PICTURE_ONLY, TinyFeed

CAPTION = {"caption": "a red scarf"}


def pictured(seed: int) -> dict[str, object]:
    return {"image": in_base64(picture(seed))}


def both(seed: int) -> dict[str, object]:
    return {"caption": f"a soft dress {seed}", "image": in_base64(picture(seed))}


class TestScore:
    def test_equals_the_library(self, server: Server, pair: Pair) -> None:
        candidates = ["p01", CAPTION_ONLY, PICTURE_ONLY, CAPTION, pictured(1), both(2)]
        posts = ["p01", CAPTION_ONLY, PICTURE_ONLY, Post("a red scarf"), Post(image=picture(1))]
        posts.append(Post("a soft dress 2", image=picture(2)))  # type: ignore[arg-type]
        for asker in ({"user_id": "u03"}, {"history": ["p04", CAPTION, "p01"]}, {"history": []}):
            answer = server.post("score", {**asker, "candidates": candidates})
            history = asker.get("history")
            past = None if history is None else [Post("a red scarf") if e == CAPTION else e for e in history]
            table = pair.recommender.score(user_id=asker.get("user_id"), history=past, candidates=posts)  # type: ignore[arg-type]
            results: list[dict[str, object]] = answer["results"]  # type: ignore[assignment]
            np.testing.assert_allclose([row["score"] for row in results], table["score"], rtol=1e-5, atol=1e-5)
            assert [row["rank"] for row in results] == table["rank"].tolist()
            assert ["+".join(row["present"]) for row in results] == table["present"].tolist()  # type: ignore[arg-type]
            assert [row["error"] for row in results] == [None] * len(candidates)
            assert [row["candidate"] for row in results] == ["p01", "p02", "p03", "new:3", "new:4", "new:5"]
            assert len(str(answer["request_id"])) == 32

    def test_says_who_was_answered(self, server: Server) -> None:
        def asked(body: dict[str, object]) -> object:
            return server.post("score", {**body, "candidates": ["p01"]})["user"]

        assert asked({"user_id": "u03"}) == {"kind": "known", "history_length": 6, "unused": []}
        assert asked({"user_id": "nobody"}) == {"kind": "stranger", "history_length": 0, "unused": []}
        assert asked({"history": []}) == {"kind": "stranger", "history_length": 0, "unused": []}
        unused = [{"position": 1, "error": "expected the id of a known item, got 'gone'"}]
        assert asked({"history": ["p01", "gone"]}) == {"kind": "history", "history_length": 1, "unused": unused}

    def test_a_bad_candidate_gets_an_error_and_spoils_no_other(self, server: Server) -> None:
        bad = {
            "broken": in_base64(picture(3)[:60]),
            "one pixel": in_base64(picture(3, height=1, width=1)),
            "no picture": in_base64(b"plain text"),
            "empty": {"base64": ""},
            "no base64": {"base64": "%%%"},
            "URL": "https://example.org/a.jpg",
            "path": "/etc/passwd",
            "file": "file:///etc/passwd",
            "no part": "part:p9",
        }
        candidates = [{"item_id": name, "image": image} for name, image in bad.items()]
        candidates += [{"caption": "  "}, {}, {"item_id": "unknown"}, {"caption": "x" * 10_001}, {"caption": "fine"}]
        results = server.results("score", {"history": ["p01"], "candidates": [*candidates, "unknown", "p02"]})
        assert [row["candidate"] for row in results[: len(bad)]] == list(bad)
        errors = [str(row["error"]) for row in results if row["error"]]
        assert len(errors) == len(candidates)
        assert [row["rank"] for row in results if row["error"] is None] in ([1, 2], [2, 1])
        assert all((row["score"] is None) == (row["rank"] is None) == (row["error"] is not None) for row in results)
        assert "1 x 1" in errors[1]
        assert not any("passwd" in error or "example.org" in error for error in errors)
        assert "mmrec" not in " ".join(errors), "no place on the disk"
        assert server.get("/health/ready")["status"] == "ready"

    def test_a_known_id_with_content_is_the_known_item(self, server: Server) -> None:
        given, known = server.results("score", {"user_id": "u01", "candidates": [{"item_id": "p05", **CAPTION}, "p05"]})
        assert (given["score"], given["candidate"]) == (known["score"], "p05")

    def test_a_history_with_nothing_usable_is_refused(self, server: Server) -> None:
        problem = server.post("score", {"history": ["x", {"caption": ""}], "candidates": ["p01"]}, 422)
        assert [entry["where"] for entry in problem["errors"]] == ["history.0", "history.1"]  # type: ignore[attr-defined]

    def test_multipart(self, server: Server) -> None:
        request = {"history": ["p01"], "candidates": [{"image": "part:p1"}, {"image": ["part:p2", "part:p1"]}, "p03"]}
        files = {
            "request": (None, json.dumps(request), "application/json"),
            "p1": ("new.jpg", picture(4, kind="JPEG")),
            "p2": ("", picture(5, kind="WEBP")),
        }
        answer = server.client.post("/v1/score", files=files)
        assert answer.status_code == 200, answer.text
        pictures = [in_base64(picture(4, kind="JPEG")), in_base64(picture(5, kind="WEBP"))]
        inline = [{"image": pictures[0]}, {"image": [pictures[1], pictures[0]]}, "p03"]
        assert answer.json()["results"] == server.results("score", {"history": ["p01"], "candidates": inline})

    def test_what_was_answered_is_kept(self, server: Server) -> None:
        answer = server.post("score", {"user_id": "u01", "candidates": ["p01", CAPTION, "unknown"]})
        server.post("feedback", {"events": [{"user_id": "u01", "item_id": "p01"}]})
        served = server.service.store.served(str(answer["request_id"]))
        assert served is not None
        assert (served.route, served.user_id, served.model_hash) == ("score", "u01", answer["model"])
        assert {name for name, _ in served.shown} == {"p01", "new:1"}
        scores = [score for _, score in served.shown]
        assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]


class TestBatches:
    def test_together_and_alone_give_the_same(self, serve: Serve) -> None:
        alone = serve("alone")
        together = serve("together", limits=replace(LIMITS, batch_seconds=0.05, threads=16))
        bodies = [
            {"history": [f"p{number:02}", both(number)], "candidates": [both(100 + number), pictured(number), "p07"]}
            for number in range(12)
        ]
        wanted = [alone.results("score", body) for body in bodies]
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda body: together.results("score", body), bodies))
        assert max(together.batches) > 3
        assert len(together.batches) < len(alone.batches)
        for one, other in zip(wanted, found, strict=True):
            scores = [[row["score"] for row in rows] for rows in (one, other)]
            np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-5)

    def test_a_content_is_encoded_once_however_many_carry_it(self, serve: Serve) -> None:
        server = serve(limits=replace(LIMITS, batch_seconds=0.05, threads=16))
        body = {"history": [], "candidates": [both(1), {**both(1), "item_id": "x"}, both(2)]}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: server.results("score", body), range(8)))
        assert all(answer == answers[0] for answer in answers)
        assert (server.service.posts.misses, server.service.posts.hits) == (2, 22)
        assert sum(server.batches) == 2 + 8, "two posts, and a user each time"

    def test_words_and_users_wait_for_no_picture(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        vectors, begun, go = server.service.recommender.vectors, threading.Event(), threading.Event()
        encode = vectors.encode

        def slow(posts: Sequence[DecodedPost]) -> object:
            if any(post.pictures for post in posts):
                begun.set()
                assert go.wait(20)
            return encode(posts)

        monkeypatch.setattr(vectors, "encode", slow)
        with ThreadPoolExecutor(1) as pool:
            raw = pool.submit(server.results, "score", {"history": [], "candidates": [pictured(1)]})
            assert begun.wait(20)
            assert server.results("recommend", {"user_id": "u01"})
            assert server.results("search", {"text": "a red scarf"})
            go.set()
            assert raw.result()

    def test_the_cache_is_bounded(self, serve: Serve) -> None:
        server = serve(limits=replace(LIMITS, cached_vectors=3))
        for number in range(6):
            server.post("score", {"history": [], "candidates": [{"caption": f"post {number}"}]})
        assert len(server.service.posts) == 3
        server.post("score", {"history": [], "candidates": [{"caption": "post 5"}, {"caption": "post 0"}]})
        assert (server.service.posts.hits, server.service.posts.misses) == (1, 7)


class TestRecommend:
    def test_equals_the_library(self, server: Server, pair: Pair) -> None:
        for number in range(NUM_USERS):
            table = pair.recommender.recommend(user_id=f"u{number:02}", k=7)
            results = server.results("recommend", {"user_id": f"u{number:02}", "k": 7})
            assert [row["item_id"] for row in results] == table["item_id"].tolist()
            np.testing.assert_allclose([row["score"] for row in results], table["score"], rtol=1e-5, atol=1e-5)
            assert [row["rank"] for row in results] == list(range(1, 8))
        table = pair.recommender.recommend(history=["p04", Post("a red scarf")], k=30)
        results = server.results("recommend", {"history": ["p04", CAPTION], "k": 30})
        assert [row["item_id"] for row in results] == table["item_id"].tolist()

    def test_score_and_recommend_agree(self, server: Server) -> None:
        recommended = server.results("recommend", {"user_id": "u05", "k": NUM_ITEMS})
        scored = server.results("score", {"user_id": "u05", "candidates": [row["item_id"] for row in recommended]})
        np.testing.assert_allclose(
            [row["score"] for row in recommended], [row["score"] for row in scored], rtol=1e-5, atol=1e-5
        )

    def test_seen_and_excluded_items(self, server: Server, pair: Pair) -> None:
        new = pair.recommender.recommend(user_id="u02", k=NUM_ITEMS, new_only=True)["item_id"].tolist()
        assert server.ids("recommend", {"user_id": "u02", "k": 100, "seen": "exclude"}) == new
        every = server.ids("recommend", {"user_id": "u02", "k": 100})
        assert len(every) == NUM_ITEMS
        without = server.ids("recommend", {"user_id": "u02", "k": 5, "exclude": [*every[:3], "unknown"]})
        assert without == every[3:8]
        assert set(server.ids("recommend", {"history": ["p01"], "k": 100, "seen": "exclude"})) == set(every) - {"p01"}

    def test_conditions(self, server: Server) -> None:
        every = server.results("recommend", {"user_id": "u02", "k": 100})
        cheap = server.ids("recommend", {"user_id": "u02", "k": 4, "where": "colour=red and price<20"})
        reds = [f"p{row:02}" for row in range(NUM_ITEMS) if row % 3 == 0 and 1.5 * row < 20]
        assert cheap == [row["item_id"] for row in every if row["item_id"] in reds][:4]
        assert server.ids("recommend", {"user_id": "u02", "where": "price<0"}) == []
        problem = server.post("recommend", {"user_id": "u02", "where": "color=red"}, 422)
        assert "colour" in str(problem["detail"])

    def test_strangers_get_what_is_popular_and_what_is_fresh(self, server: Server) -> None:
        server.put("fresh", CAPTION)
        for body in ({"user_id": "nobody", "k": 4}, {"history": [], "k": 4}):
            answer = server.post("recommend", body)
            results: list[dict[str, object]] = answer["results"]  # type: ignore[assignment]
            assert answer["strategy"] == "popular_and_fresh"
            assert answer["user"]["kind"] == "stranger"  # type: ignore[index]
            assert [row["reason"] for row in results] == ["popular", "fresh", "popular", "fresh"]
            assert [row["score"] for row in results] == [None] * 4
            assert results[1]["item_id"] == "fresh"
        counts = np.bincount(server.service.histories.item_rows, minlength=NUM_ITEMS)
        assert results[0]["item_id"] == f"p{int(np.argmax(counts)):02}"
        body = {"history": [], "k": 50, "exclude": ["fresh"], "where": "colour=blue"}
        blues = {f"p{row:02}" for row in range(NUM_ITEMS) if row % 3 == 2}
        assert set(server.ids("recommend", body)) <= blues
        assert server.post("recommend", {"user_id": "u01"})["strategy"] == "model"


class TestSearch:
    def test_equals_mmrec_search(self, server: Server, served_vectors: Path, tiny_feed: TinyFeed) -> None:
        image = tiny_feed.image("p04")
        for where, body, asked in (
            ("", {"text": "red scarf"}, {"text": "red scarf"}),
            ("price<20", {"image": in_base64(image.read_bytes())}, {"images": [image]}),
            ("", {"text": "wool", "image": in_base64(image.read_bytes())}, {"text": "wool", "images": [image]}),
            # Of two items each is as near to their mean as the other.
            ("price<20", {"items": ["p01", "p08", "p03"]}, {"items": ["p01", "p08", "p03"]}),
            ("", {"user_id": "u03"}, {"user": "u03"}),
            (
                "price<20",
                {"text": "red", "items": ["p02"], "user_id": "u03"},
                {"text": "red", "items": ["p02"], "user": "u03"},
            ),
        ):
            found = search_vectors(served_vectors, **asked, where=where, k=6, device="cpu")  # type: ignore[arg-type]
            rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
            results = server.results("search", {**body, "where": where, "k": 6})
            assert [row["item_id"] for row in results] == [row["item_id"] for row in rows], body
            np.testing.assert_allclose([row["score"] for row in results], [row["score"] for row in rows], atol=1e-4)
            assert [row["caption"] or "" for row in results] == [row["caption"] for row in rows]

    def test_similar(self, server: Server) -> None:
        found = server.get("/v1/items/p04/similar", k=5, where="price<30")["results"]
        every = server.results("search", {"items": ["p04"], "k": 6, "where": "price<30"})
        assert every[0]["item_id"] == "p04"
        assert [row["item_id"] for row in found] == [row["item_id"] for row in every[1:]]  # type: ignore[attr-defined]

    def test_refusals(self, server: Server) -> None:
        for body in (
            {},
            {"items": ["p99"]},
            {"user_id": "nobody"},
            {"text": ""},
            {"text": "a", "k": 0},
            {"text": "a", "k": 501},
            {"text": "a", "where": "price ?? 3"},
            {"image": in_base64(b"x")},
        ):
            assert server.post("search", body, 422)["title"] == "Cannot be answered"
        server.get("/v1/items/p99/similar", 404)
        for query in ({"k": 0}, {"k": "many"}, {"k": 501}, {"where": "x=1"}, {"page": 2}):
            server.get("/v1/items/p04/similar", 422, **query)  # type: ignore[arg-type]
