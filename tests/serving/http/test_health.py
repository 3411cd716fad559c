"""What the service says of itself: health, metrics, log lines, its description."""

from __future__ import annotations

import json
import logging
import re

import pytest

from mmrec.serving.answers.about import About
from mmrec.serving.http.request_log import RequestLog
from mmrec.serving.problems import ProblemError
from mmrec.serving.trace import Trace
from tests.serving.served import Serve, Server, in_base64, picture, trace
from tests.tiny_run import NUM_ITEMS, NUM_USERS


class TestHealth:
    def test_ready_runs_the_model(self, server: Server) -> None:
        for _ in range(2):
            assert server.get("/health/ready")["status"] == "ready"
        assert server.batches == [1, 1, 1, 1], "a post and a user each time, never from the cache"
        assert len(server.service.posts) == 0
        assert server.get("/health/live")["status"] == "live"

    def test_a_crowd_makes_the_model_work_twice_at_most(self, server: Server) -> None:
        about, came = About(server.service), [trace() for _ in range(5)]
        assert {about.ready(one).request_id for one in came} == {one.request_id for one in came}
        assert server.batches == [1, 1], "a post and a user: all came before the first check began"
        about.ready(trace())
        assert server.batches == [1, 1] * 2

    def test_a_crowd_learns_how_the_check_ended(self, server: Server) -> None:
        about, came = About(server.service), [trace() for _ in range(3)]
        server.service.worker.close()
        for one in came:
            with pytest.raises(ProblemError, match="is stopping"):
                about.ready(one)

    def test_a_call_that_waited_too_long_encodes_nothing(self, server: Server) -> None:
        with pytest.raises(ProblemError, match="within 0 seconds"):
            About(server.service).ready(Trace("ready", seconds=0.0))
        assert server.batches == []

    def test_not_ready_when_the_model_fails(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(posts: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(server.service.recommender.vectors, "encode", fail)
        assert "RuntimeError" in str(server.get("/health/ready", 503)["detail"])
        assert server.get("/health/live")["status"] == "live"

    def test_not_ready_when_the_worker_is_gone(self, server: Server) -> None:
        server.service.worker.close()
        server.get("/health/ready", 503)

    def test_model(self, server: Server) -> None:
        answer = server.get("/v1/model")
        assert answer["model"] == server.service.recommender.model_hash
        assert (answer["items"], answer["published"], answer["users"]) == (NUM_ITEMS, 0, NUM_USERS)
        assert answer["modalities"] == ["text", "image", "item_id"]
        assert {"colour", "price", "stock"} <= set(answer["attributes"])  # type: ignore[call-overload]
        assert (answer["run"], answer["vectors"], answer["index"]) == ("tiny", "vectors", "faiss flat")

    def test_an_item_of_the_catalogue(self, server: Server) -> None:
        item = server.get("/v1/items/p04")
        assert item["source"] == "catalogue"
        assert item["present"] == ["text", "image", "item_id"]
        attributes: dict[str, object] = item["attributes"]  # type: ignore[assignment]
        assert (attributes["colour"], attributes["price"], attributes["stock"]) == ("green", "6", "4"), (
            "as the feed has them"
        )
        assert server.get("/v1/items/p03")["caption"] is None
        server.get("/v1/items/p99", 404)


class TestMetrics:
    @staticmethod
    def figures(server: Server) -> dict[str, float]:
        answer = server.client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def test_figures(self, server: Server) -> None:
        body = {"user_id": "u01", "candidates": [{"caption": "red", "image": in_base64(picture(1))}]}
        for _ in range(2):
            server.post("score", body)
        server.post("score", {}, 422)
        server.put("new-1", {"caption": "x"})
        found = self.figures(server)
        assert found['mmrec_requests_total{route="score",status="200"}'] == 2
        assert found['mmrec_requests_total{route="score",status="422"}'] == 1
        assert found['mmrec_request_seconds_count{route="score"}'] == 3
        for stage in ("read", "parse", "decode", "encode", "user", "score", "store"):
            assert found[f'mmrec_stage_seconds_count{{route="score",stage="{stage}"}}'] >= 2
        assert (found["mmrec_cache_hits_total"], found["mmrec_cache_misses_total"]) == (1, 2)
        assert found["mmrec_batch_size_sum"] == sum(server.batches) == 4
        assert found['mmrec_index_items{source="exported"}'] == NUM_ITEMS
        assert found['mmrec_index_items{source="published"}'] == 1
        assert (found["mmrec_queue_depth"], found["mmrec_requests_in_work"]) == (0, 0)
        assert found[f'mmrec_model_info{{hash="{server.service.model_hash}"}}'] == 1

    def test_no_label_holds_an_id(self, server: Server) -> None:
        server.get("/v1/items/p04")
        server.post("score", {"user_id": "u01", "candidates": ["p05"]})
        text = server.client.get("/metrics").text
        assert not [word for word in ("p04", "p05", "u01") if word in text]


class TestLog:
    @staticmethod
    def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
        return [json.loads(record.message) for record in caplog.records if record.name == "mmrec.serving.requests"]

    @pytest.mark.parametrize("reveal", [False, True])
    def test_a_line_a_request(self, serve: Serve, caplog: pytest.LogCaptureFixture, reveal: bool) -> None:
        server = serve(reveal_ids=reveal)
        with caplog.at_level(logging.INFO, logger="mmrec.serving"):
            first = server.post("recommend", {"user_id": "u01"})
            server.post("score", {"user_id": "u01", "candidates": ["p05", {"caption": "secret words"}]})
            server.get("/v1/items/p04")
        lines = self.lines(caplog)
        assert [(line["route"], line["status"]) for line in lines] == [
            ("recommend", 200),
            ("score", 200),
            ("item", 200),
        ]
        assert lines[0]["request_id"] == first["request_id"]
        assert lines[0]["user"] == lines[1]["user"]
        assert (lines[0]["user"] == "u01") is reveal
        assert "user" not in lines[2]
        assert not [word for word in ("secret", "p04", "p05") if word in caplog.text]

    def test_hashes_depend_on_the_key_and_stay(self, serve: Serve) -> None:
        first = serve("one").service.store.secret()
        other = serve("two").service.store.secret()
        shown = [RequestLog(secret, reveal_ids=False).shown("u01") for secret in (first, first, other)]
        assert shown[0] == shown[1] != shown[2]


class TestDescription:
    def test_every_route_is_described_with_its_body(self, server: Server) -> None:
        tree = server.get("/openapi.json")
        paths: dict[str, dict[str, dict[str, object]]] = tree["paths"]  # type: ignore[assignment]
        assert set(paths) == {
            "/v1/score",
            "/v1/recommend",
            "/v1/search",
            "/v1/items/{item_id}",
            "/v1/items/{item_id}/similar",
            "/v1/feedback",
            "/v1/recommend:batch",
            "/v1/items:batch",
            "/v1/embeddings",
            "/v1/log/posts",
            "/v1/log/feedback",
            "/v1/log/served",
            "/v1/model",
            "/v1/items/{item_id}/image",
            "/v1/cards",
            "/v1/inspect",
            "/v1/users",
            "/v1/users/{user_id}",
            "/v1/map",
            "/v1/problems",
            "/health/live",
            "/health/ready",
        }
        for path, method in (("/v1/score", "post"), ("/v1/items/{item_id}", "put"), ("/v1/feedback", "post")):
            assert "multipart/form-data" in paths[path][method]["requestBody"]["content"]  # type: ignore[index]
        names = set(tree["components"]["schemas"])  # type: ignore[index]
        text = json.dumps(tree)
        used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
        assert used <= names

    def test_the_page_of_the_description_has_it_all_and_nothing_from_elsewhere(self, server: Server) -> None:
        answer, tree = server.client.get("/docs"), server.get("/openapi.json")
        assert answer.status_code == 200
        assert not re.findall(r"//[^\s<]+|url\(|<script|\ssrc=|@import", answer.text), "no other host, no script"
        links = set(re.findall(r'href="([^"]+)"', answer.text))
        names = {f"#{name}" for name in tree["components"]["schemas"]}  # type: ignore[index]
        assert links <= names | {"openapi.json"}
        assert all(f'id="{name[1:]}"' in answer.text for name in names)
        assert all(f"<code>{path}</code>" in answer.text for path in tree["paths"])  # type: ignore[attr-defined]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert 'list of string or integer or <a href="#RawPost">RawPost</a>' in answer.text
