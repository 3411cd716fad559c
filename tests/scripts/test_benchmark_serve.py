"""The benchmark of the service: its clients count what came back, ask what the service takes, and its peer scores alike."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from benchmarks.load_client import NUMBER, Ask, Plan
from benchmarks.serve import RAW, Served, questions
from benchmarks.services import Clients, load, percentile
from fastapi.testclient import TestClient
from field.serving import build_app

from mmrec import Post, Recommender
from mmrec.commands.export import export_run
from mmrec.serving.http.body import parse
from mmrec.serving.schemas import RecommendRequest, ScoreRequest, SearchRequest


class Server(ThreadingHTTPServer):
    """Says 503 to /bad, hangs up on /broken, and is content with the rest."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        assert isinstance(self.server, Server)
        self.server.bodies.append(body)
        if self.path == "/broken":
            self.close_connection = True
            return
        self.send_response(503 if self.path == "/bad" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_clients_count_what_came_back(server: Server) -> None:
    asks = [Ask("POST", "/good", json.dumps({"number": NUMBER})), Ask("POST", "/bad"), Ask("POST", "/broken")]
    answers = load(Plan(server.server_port, 3, 0.3, asks, warm_up=9))
    assert set(answers.statuses) == {"200", "503", "0"}
    assert len(answers.milliseconds) == answers.statuses["200"] > 3
    assert answers.seconds >= 0.3
    assert sum(answers.statuses.values()) == len(server.bodies) - 9, "without the warm-up"
    numbered = [body for body in server.bodies if body]
    assert len(set(numbered)) == len(numbered), "no two are the same"
    assert NUMBER not in "".join(numbered)


def test_some_in_a_row_are_the_same_where_they_are_to_be(server: Server) -> None:
    load(Plan(server.server_port, 1, 0.0, [Ask("POST", "/good", NUMBER, shared=3)], first=300, warm_up=9))
    assert server.bodies == [str(number // 3) for number in range(300, 309)]


def test_clients_stop_when_they_are_told_to(server: Server) -> None:
    clients = Clients(Plan(server.server_port, 2, 600.0, [Ask("POST", "/good")]))
    while len(server.bodies) < 10:
        pass
    assert clients.stop().statuses["200"] >= 9


def test_percentiles() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([], 0.5)) == (51.0, 100.0, 0.0)


def test_what_is_asked_is_what_the_service_takes(tiny_run: Path, tmp_path: Path) -> None:
    export_run(tiny_run, out=tmp_path / "vectors", users=False, device="cpu")
    served = Served.read(tiny_run, tmp_path / "vectors")
    asks = questions(served, side=32)
    schemas = {"/v1/score": ScoreRequest, "/v1/recommend": RecommendRequest, "/v1/search": SearchRequest}
    for some in asks.values():
        for ask in some:
            assert parse(ask.body.encode(), schemas[ask.path])
    recommender = Recommender.load(tiny_run, device="cpu")
    body = json.loads(asks[RAW][0].body)
    found = TestClient(build_app(recommender)).post("/v1/score", json=body).json()["results"]
    posts = [
        Post(caption=candidate["caption"], image=base64.b64decode(candidate["image"]["base64"]))
        for candidate in body["candidates"]
    ]
    wanted = recommender.score(history=body["history"], candidates=posts)
    np.testing.assert_allclose([entry["score"] for entry in found], wanted["score"].to_numpy(), rtol=1e-5)
