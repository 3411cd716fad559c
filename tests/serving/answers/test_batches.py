"""Many users, posts or texts in one request: as one by one, encoded together, and none spoils another."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

from mmrec.inference.posts import Post
from mmrec.serving.model.exported import Pair
from tests.serving.served import LIMITS, Serve, Server, in_base64, picture
from tests.tiny_run import NUM_ITEMS

SLOW = replace(LIMITS, batch_seconds=0.05)


def data_url(seed: int) -> str:
    return "data:image/png;base64," + base64.b64encode(picture(seed)).decode("ascii")


class TestRecommend:
    def test_equals_one_by_one(self, serve: Serve) -> None:
        server = serve(limits=SLOW)
        asked: list[dict[str, object]] = [
            {"user_id": "u03", "k": 4},
            {"history": ["p01", {"caption": "a red scarf"}], "k": 3, "diversity": 0.5, "reasons": 2},
            {"history": [], "k": 5},
            {"user_id": "u07", "k": 2, "seen": "exclude", "where": "colour=red"},
            {"user_id": "nobody", "k": 2},
        ]
        before = len(server.batches)
        answer = server.post("recommend:batch", {"requests": asked})
        assert len(server.batches) - before <= 4, "one post and five users: encoded together"
        results: list[dict[str, dict[str, object]]] = answer["results"]  # type: ignore[assignment]
        for number, (body, result) in enumerate(zip(asked, results, strict=True)):
            alone = server.post("recommend", body)
            assert result["error"] is None
            assert result["answer"].pop("request_id") == f"{answer['request_id']}-{number}"
            alone.pop("request_id")
            scores = [[row.pop("score") for row in rows["results"]] for rows in (alone, result["answer"])]  # type: ignore[attr-defined]
            assert result["answer"] == alone
            np.testing.assert_allclose(*np.array(scores, dtype=np.float64), rtol=1e-5, atol=1e-5)

    def test_what_each_was_shown_is_kept(self, server: Server) -> None:
        requests = [{"user_id": "u01", "k": 2}, {"history": ["p01"], "k": 1}]
        answer = server.post("recommend:batch", {"requests": requests})
        server.post("feedback", {"events": [{"user_id": "u01", "item_id": "p01"}]})
        kept = [server.service.store.served(f"{answer['request_id']}-{number}") for number in range(2)]
        assert [(one.route, one.user_id, len(one.shown)) for one in kept if one] == [
            ("recommend_batch", "u01", 2),
            ("recommend_batch", None, 1),
        ]

    def test_a_bad_request_spoils_no_other(self, serve: Serve) -> None:
        server = serve(limits=replace(LIMITS, users=6))
        bad: list[dict[str, object]] = [
            {"user_id": "u01", "k": 501},
            {"user_id": "u01", "history": []},
            {"history": ["unknown"]},
            {"user_id": "u01", "where": "color=red"},
            {"user_id": "u01", "modality_weights": {"sound": 0.5}},
        ]
        answer = server.post("recommend:batch", {"requests": [*bad, {"user_id": "u01", "k": 2}]})
        results: list[dict[str, object]] = answer["results"]  # type: ignore[assignment]
        assert [result["answer"] is None for result in results] == [True] * 5 + [False]
        assert all(str(result["error"]).startswith("expected") for result in results[:5])
        for body in ({"requests": []}, {"requests": [{"user_id": "u01"}] * 7}, {}, {"requests": [{"user": "u01"}]}):
            server.post("recommend:batch", body, 422)


class TestPublish:
    def test_all_are_found_and_stay(self, serve: Serve) -> None:
        server = serve(limits=SLOW)
        posts: list[dict[str, object]] = [
            {"item_id": f"n{number}", "caption": f"a soft scarf {number}", "attributes": {"colour": "red"}}
            for number in range(20)
        ]
        posts[3] = {"item_id": "n3", "image": in_base64(picture(3)), "published_at": 5}
        posts[4] = {"item_id": "p04", "caption": "instead of an old one"}
        before = len(server.batches)
        answer = server.post("items:batch", {"items": posts})
        results: list[dict[str, object]] = answer["results"]  # type: ignore[assignment]
        assert len(server.batches) < before + 10, "encoded together"
        assert [result["item_id"] for result in results] == [post["item_id"] for post in posts]
        assert [result["created"] for result in results] == [number != 4 for number in range(20)]
        assert answer["items"] == NUM_ITEMS + 19
        every = server.ids("recommend", {"user_id": "u03", "k": 100})
        assert set(every) >= {post["item_id"] for post in posts}
        alone = server.put("alone", {"caption": "a soft scarf 7"})
        assert alone["present"] == results[7]["present"]
        both = server.results("score", {"user_id": "u03", "candidates": ["alone", "n7"]})
        assert both[0]["score"] == pytest.approx(both[1]["score"], abs=1e-5)
        server.client.__exit__(None, None, None)
        again = serve()
        assert set(again.ids("recommend", {"user_id": "u03", "k": 100})) == {*every, "alone"}
        assert again.get("/v1/items/n3")["published_at"] == 5

    def test_a_bad_post_spoils_no_other(self, serve: Serve) -> None:
        server = serve(limits=replace(LIMITS, posts=7))
        bad: list[dict[str, object]] = [
            {"item_id": "b1"},
            {"item_id": "b2", "image": in_base64(b"no picture")},
            {"item_id": "b3", "image": "https://example.org/a.jpg"},
            {"item_id": "b4", "caption": "x", "attributes": {"color": "red"}},
            {"item_id": "good", "caption": "again"},
        ]
        answer = server.post("items:batch", {"items": [{"item_id": "good", "caption": "a"}, *bad]})
        results: list[dict[str, object]] = answer["results"]  # type: ignore[assignment]
        assert [result["error"] is None for result in results] == [True] + [False] * 5
        assert "colour" in str(results[4]["error"])
        assert answer["items"] == NUM_ITEMS + 1
        assert server.get("/v1/items/good")["caption"] == "a"
        server.get("/v1/items/b2", 404)
        for body in ({"items": []}, {"items": [bad[0]] * 8}, {"items": [{"caption": "no id"}]}, {"items": {}}):
            server.post("items:batch", body, 422)


class TestEmbeddings:
    def vectors(self, server: Server, body: dict[str, object]) -> np.ndarray:
        return np.array([entry["embedding"] for entry in server.post("embeddings", body)["data"]])  # type: ignore[attr-defined]

    def test_the_exact_request_of_the_official_client(self, server: Server, pair: Pair) -> None:
        body = {"input": ["a red scarf", "a blue dress"], "model": "mmrec", "encoding_format": "base64"}
        answer = server.post("embeddings", body)
        assert answer["object"] == "list"
        data: list[dict[str, object]] = answer["data"]  # type: ignore[assignment]
        assert [(entry["object"], entry["index"]) for entry in data] == [("embedding", 0), ("embedding", 1)]
        decoded = [np.frombuffer(base64.b64decode(str(entry["embedding"])), dtype="float32") for entry in data]
        dim = pair.recommender.assembly.model.dim
        wanted = pair.recommender.embed([Post("a red scarf"), Post("a blue dress")])[:, :dim]
        np.testing.assert_allclose(decoded, wanted, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1.0, atol=1e-5)
        words = pair.recommender.assembly.words
        assert words is not None
        tokens = len(words.encode(["a red scarf", "a blue dress"]).token_ids.values)
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        assert answer["model"] == server.get("/v1/model")["model"]

    def test_numbers_base64_and_one_text_agree(self, server: Server) -> None:
        one = self.vectors(server, {"input": "a red scarf", "user": "u1"})
        many = self.vectors(server, {"input": ["a blue dress", "a red scarf"], "encoding_format": "float"})
        np.testing.assert_allclose(one[0], many[1], atol=1e-6)

    def test_pictures(self, server: Server, pair: Pair) -> None:
        both = {"text": "a red scarf", "image": in_base64(picture(1))}
        found = self.vectors(server, {"input": [data_url(1), {"image": data_url(1)}, both, {"text": "a red scarf"}]})
        posts = [Post(image=picture(1)), Post(image=picture(1)), Post("a red scarf", picture(1)), Post("a red scarf")]
        wanted = pair.recommender.embed(posts)[:, : pair.recommender.assembly.model.dim]
        np.testing.assert_allclose(found, wanted, atol=1e-6)

    def test_fewer_dimensions(self, server: Server) -> None:
        whole = self.vectors(server, {"input": "a red scarf"})[0]
        short = self.vectors(server, {"input": "a red scarf", "dimensions": 4})[0]
        np.testing.assert_allclose(short, whole[:4] / np.linalg.norm(whole[:4]), atol=1e-6)

    def test_refusals(self, server: Server) -> None:
        for body in (
            {},
            {"input": []},
            {"input": ""},
            {"input": [1, 2, 3]},
            {"input": "a", "encoding_format": "hex"},
            {"input": "a", "dimensions": 0},
            {"input": "a", "dimensions": 1000},
            {"input": ["a"] * 257},
            {"input": "https://example.org/a.jpg"},
            {"input": {"image": "https://example.org/a.jpg"}},
            {"input": {"image": "data:text/plain;base64,YQ=="}},
            {"input": "data:image/png;base64,%%"},
            {"input": {"url": "x"}},
        ):
            server.post("embeddings", body, 422)
        problem = server.post("embeddings", {"input": ["fine", "", data_url(1)[:60]]}, 422)
        assert [entry["where"] for entry in problem["errors"]] == ["input.1", "input.2"]  # type: ignore[attr-defined]
        assert "mmrec" in str(
            server.post("embeddings", {"input": "a", "model": "text-embedding-3-small"}, 404)["detail"]
        )


class TestWeightedSearch:
    def test_a_weight_of_nothing_is_as_if_it_were_not_asked(self, server: Server) -> None:
        body: dict[str, object] = {"text": "red scarf", "image": in_base64(picture(1)), "items": ["p02"], "k": 6}
        for part, weights in (
            ({"text": "red scarf"}, {"image": 0, "items": 0}),
            ({"image": body["image"]}, {"text": 0.0, "items": 0.0}),
            ({"items": ["p02"]}, {"text": 0, "image": 0, "items": 3.5}),
        ):
            assert server.ids("search", {**body, "weights": weights}) == server.ids("search", {**part, "k": 6})
        users = server.results("search", {**body, "user_id": "u03", "weights": {"text": 0, "image": 0, "items": 0}})
        alone = server.results("search", {"user_id": "u03", "k": 6})
        np.testing.assert_allclose([r["score"] for r in users], [r["score"] for r in alone], rtol=1e-4)

    def test_scores_are_those_of_the_weighted_mean(self, server: Server, pair: Pair) -> None:
        weights = {"text": 3, "image": 1.5, "items": 0.5}
        body = {"text": "red scarf", "image": in_base64(picture(1)), "items": ["p02", "p09"], "k": NUM_ITEMS}
        results = server.results("search", {**body, "weights": weights})
        dim = pair.recommender.assembly.model.dim
        parts = pair.recommender.embed([Post("red scarf"), Post(image=picture(1)), "p02", "p09"])[:, :dim]
        units = parts / np.linalg.norm(parts, axis=1, keepdims=True)
        query = np.array([3, 1.5, 0.5, 0.5]) @ units / 5.5
        wanted = pair.recommender.embed([str(row["item_id"]) for row in results])[:, :dim] @ query
        np.testing.assert_allclose([row["score"] for row in results], wanted, atol=1e-5)

    def test_refusals(self, server: Server) -> None:
        for weights in ({"text": 0}, {"text": -1}, {"colour": 1}, {"text": "much"}, {"image": 1001}):
            server.post("search", {"text": "red", "weights": weights}, 422)
