"""Faults of the program, too much use, and who may; wrong use has a table of its own in test_wrong_use.py."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from mmrec.serving.answers.service import Service
from mmrec.serving.figures.metrics import Metrics
from mmrec.serving.http.keys import KeyRing, create_key
from mmrec.serving.trace import Trace
from tests.serving.served import LIMITS, Serve, Server, in_base64, picture

SCORE = {"user_id": "u01", "candidates": ["p01"]}
SECRET = "a caption that nobody may read"


def test_an_answer_is_counted_once_it_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sent, counted = Response.__call__, Metrics.on_answer

    async def send_noted(self: Response, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            order.append(message["type"])
            await send(message)

        await sent(self, scope, receive, noted)

    def count_noted(self: Metrics, trace: Trace, status: int) -> None:
        order.append("counted")
        counted(self, trace, status)

    monkeypatch.setattr(Response, "__call__", send_noted)
    monkeypatch.setattr(Metrics, "on_answer", count_noted)
    server.post("score", SCORE)
    assert order == ["http.response.start", "http.response.body", "counted"]


class TestProblems:
    def test_no_caption_in_any_refusal(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        image = in_base64(picture(1)[:50])
        with caplog.at_level(logging.DEBUG):
            texts = [
                server.client.post(
                    "/v1/score", json={"history": [], "candidates": [{"caption": SECRET, "image": image}]}
                ),
                server.client.post("/v1/score", json={"history": [], "candidates": [{"caption": [SECRET]}]}),
                server.client.post("/v1/search", json={"text": SECRET, "where": "nothing=3"}),
                server.client.post("/v1/search", json={"text": SECRET * 1000}),
                server.client.put("/v1/items/x", json={"caption": SECRET, "image": image}),
                server.client.put("/v1/items/x", json={"caption": SECRET, "attributes": {"stock": SECRET}}),
                server.client.put("/v1/items/x", json={"caption": SECRET}),
            ]
        assert not [text.text for text in texts if SECRET in text.text]
        assert SECRET not in caplog.text

    def test_a_fault_of_the_program_tells_nothing(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*arguments: object, **named: object) -> None:
            raise ZeroDivisionError(SECRET)

        monkeypatch.setattr(server.service.items, "best", fail)
        with caplog.at_level(logging.INFO):
            problem = server.post("search", {"text": SECRET}, 500)
        assert SECRET not in json.dumps(problem) + caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert "service.py" in caplog.text
        assert str(problem["request_id"]) in caplog.text

    def test_a_post_that_breaks_the_model_gets_an_error(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        vectors = server.service.recommender.vectors
        encode = vectors.encode

        def break_down(posts: Sequence[object]) -> object:
            if any(getattr(post, "caption", None) == "poison" for post in posts):
                raise RuntimeError("shape mismatch")
            return encode(posts)  # type: ignore[arg-type]

        monkeypatch.setattr(vectors, "encode", break_down)
        good, bad = server.results("score", {"history": [], "candidates": [{"caption": "fine"}, {"caption": "poison"}]})
        assert (good["error"], good["rank"]) == (None, 1)
        assert "RuntimeError" in str(bad["error"])
        assert server.get("/health/ready")["status"] == "ready"

    def test_scores_that_are_no_numbers_are_no_answer(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        scorer = server.service.recommender.assembly.model.scorer
        monkeypatch.setattr(scorer, "compare", lambda users, items: torch.full((len(users), len(items)), torch.nan))
        answer = server.client.post("/v1/score", json=SCORE)
        assert answer.status_code == 200
        assert "NaN" not in answer.text
        (row,) = answer.json()["results"]
        assert (row["score"], row["rank"]) == (None, None)
        assert "finite" in row["error"]
        assert server.results("recommend", {"user_id": "u01"}) == []

    def test_a_store_that_fails_acknowledges_nothing(self, server: Server) -> None:
        server.service.store.close()
        for answer in (
            server.client.put("/v1/items/new-1", json={"caption": "x"}),
            server.client.post("/v1/feedback", json={"events": [{"user_id": "a", "item_id": "b"}]}),
        ):
            assert answer.status_code == 503
            assert "nothing was changed" in answer.text
        server.get("/v1/items/new-1", 404)
        server.get("/health/ready", 503)


class TestLimits:
    def test_a_long_body_is_refused(self, serve: Serve) -> None:
        server = serve(limits=replace(LIMITS, body_bytes=1000))
        body = json.dumps({"history": [], "candidates": [{"caption": "x" * 2000}]})
        for content in (body, iter([body.encode()[:600], body.encode()[600:]])):
            answer = server.client.post("/v1/score", content=content, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["title"]) == (413, "Too large")
        assert server.results("score", SCORE)

    def test_a_large_picture_is_refused_before_it_is_decoded(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = serve(limits=replace(LIMITS, pixels=599))
        candidates = [
            {"image": in_base64(picture(1, height=20, width=30))},
            {"image": in_base64(picture(1, height=10))},
        ]
        large, small = server.results("score", {"history": [], "candidates": candidates})
        assert "600 pixels (at most 599)" in str(large["error"])
        assert small["error"] is None

    def test_too_many_pictures(self, server: Server) -> None:
        (row,) = server.results("score", {"history": [], "candidates": [{"image": [in_base64(picture(1))] * 9}]})
        assert "at most 8 pictures, got 9" in str(row["error"])

    def test_beyond_the_queue_is_429_and_nothing_accepted_is_lost(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = serve(limits=replace(LIMITS, requests=3, threads=2))
        go, resolve = threading.Event(), server.service.resolver.resolve

        def wait(*arguments: object, **named: object) -> object:
            go.wait(10)
            return resolve(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(server.service.resolver, "resolve", wait)
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(server.client.post, "/v1/score", json=SCORE) for _ in range(8)]
            while sum(future.done() for future in futures) < 5:
                pass
            assert server.client.get("/health/live").status_code == 200
            assert server.client.get("/health/ready").status_code == 200
            go.set()
            answers = [future.result() for future in futures]
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        assert server.client.post("/v1/score", json=SCORE).status_code == 200

    def test_too_many_posts_wait(self, serve: Serve) -> None:
        server = serve(limits=replace(LIMITS, posts_waiting=3, batch_seconds=0.2))
        body = {"history": [], "candidates": [{"caption": f"post {number}"} for number in range(20)]}
        answer = server.client.post("/v1/score", json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        while server.service.worker.depth:
            pass
        assert server.results("score", SCORE)

    def test_a_request_that_takes_too_long(self, serve: Serve) -> None:
        server = serve(limits=replace(LIMITS, request_seconds=0.05, batch_seconds=0.5))
        assert server.client.post("/v1/score", json=SCORE).status_code == 503
        assert server.client.get("/health/live").status_code == 200

    def test_stopping_finishes_what_was_accepted(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        server = serve(limits=replace(LIMITS, batch_seconds=0.3))
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(server.client.post, "/v1/score", json=SCORE)
            while not server.service.worker.depth:
                pass
            service: Service = server.service
            service.worker.close()
            assert future.result().status_code == 200
        assert server.client.post("/v1/score", json=SCORE).status_code == 503


class TestKeys:
    @pytest.fixture
    def keys(self, tmp_path: Path) -> dict[str, str]:
        return {
            scope: create_key(tmp_path / "keys.toml", name=scope, scope=scope) for scope in ("read", "write", "admin")
        }  # type: ignore[arg-type]

    @pytest.fixture
    def guarded(self, serve: Serve, keys: dict[str, str], tmp_path: Path) -> Server:
        return serve("guarded", keys=KeyRing.load(tmp_path / "keys.toml"))

    @staticmethod
    def statuses(server: Server, headers: dict[str, str]) -> list[int]:
        client = server.client
        return [
            client.post("/v1/score", json=SCORE, headers=headers).status_code,
            client.get("/metrics", headers=headers).status_code,
            client.put("/v1/items/new-1", json={"caption": "x"}, headers=headers).status_code,
            client.post(
                "/v1/feedback", json={"events": [{"user_id": "a", "item_id": "b"}]}, headers=headers
            ).status_code,
            client.delete("/v1/items/new-1", headers=headers).status_code,
        ]

    def test_scopes(self, guarded: Server, keys: dict[str, str]) -> None:
        assert self.statuses(guarded, {}) == [401] * 5
        assert self.statuses(guarded, {"Authorization": "Bearer wrong"}) == [401] * 5
        assert self.statuses(guarded, {"Authorization": keys["write"]}) == [401] * 5
        assert self.statuses(guarded, {"Authorization": f"Bearer {keys['read']}"}) == [200, 200, 403, 403, 403]
        assert self.statuses(guarded, {"Authorization": f"bearer {keys['write']}"}) == [200] * 5
        assert self.statuses(guarded, {"X-API-Key": keys["admin"]}) == [200] * 5

    def test_health_needs_none(self, guarded: Server) -> None:
        assert guarded.client.get("/health/live").status_code == 200
        assert guarded.client.get("/health/ready").status_code == 200

    def test_without_keys_other_names_of_this_machine_are_refused(self, server: Server, guarded: Server) -> None:
        for host, status in {
            "localhost": 200, "127.0.0.1:8000": 200, "[::1]:8000": 200, "evil.example": 403, "evil.example:8000": 403,
        }.items():  # fmt: skip
            assert server.client.post("/v1/score", json=SCORE, headers={"host": host}).status_code == status
        assert guarded.client.get("/health/live", headers={"host": "shop.example"}).status_code == 200

    def test_without_keys_no_page_of_another_origin_gets_in(self, server: Server, guarded: Server) -> None:
        """What browsers send unasked: forms and pictures for any page, and what they say of where it comes from."""
        form = {"request": (None, json.dumps({"events": [{"user_id": "a", "item_id": "p01"}]}))}
        for headers, status in (
            ({}, 200),
            ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, 200),
            ({"Sec-Fetch-Site": "none"}, 200),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://localhost:3000"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
        ):
            assert server.client.post("/v1/feedback", files=form, headers=headers).status_code == status, headers
            assert server.client.get("/v1/items/p04/similar", headers=headers).status_code == status, headers
        assert len(server.service.store.feedback_of("a", limit=100)) == 3
        key = {"Origin": "https://shop.example", "Authorization": "Bearer wrong"}
        assert guarded.client.post("/v1/feedback", files=form, headers=key).status_code == 401, "its key decides"

    def test_no_browser_page_of_another_origin_may_read(self, server: Server) -> None:
        answer = server.client.post("/v1/score", json=SCORE, headers={"Origin": "https://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        assert server.client.options("/v1/score", headers=asked).status_code == 405
