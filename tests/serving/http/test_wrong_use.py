"""What callers do wrong, in one table: every refusal is a problem with its status and a text that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mmrec.serving.http.keys import KeyRing, create_key
from mmrec.serving.model.exported import Pair
from tests.serving.served import LIMITS, Server, in_base64, picture

JSON, FORM = "application/json", "multipart/form-data; boundary=X"
SCORE = {"user_id": "u01", "candidates": ["p01"]}
SCARF = {"caption": "red scarf"}
PNG = in_base64(picture(1))
EVENT = {"user_id": "a", "item_id": "b"}


def post(image: object) -> dict[str, object]:
    return {"caption": "x", "image": image}


@dataclass(frozen=True)
class Wrong:
    """A request, and the refusal that it must get.

    Args:
        asked: method and path.
        status: of the refusal.
        words: of the refusal.
        body: JSON, or bytes as they are.
        key: whose key it bears; None for none.
        kind: content type.
    """

    asked: str
    status: int
    words: str
    body: object = None
    key: str | None = "admin"
    kind: str = JSON

    def __str__(self) -> str:
        return f"{self.asked} {self.status} {self.words}"[:70]


TABLE = [
    # who
    Wrong("POST /v1/score", 401, "expected a key, got none", SCORE, key=None),
    Wrong("POST /v1/score", 401, "expected a key, got an unknown one", SCORE, key="unknown"),
    Wrong("GET /metrics", 401, "expected a key", key=None),
    Wrong("PUT /v1/items/x", 403, "a key of scope write, got one of scope read", SCARF, key="read"),
    Wrong("DELETE /v1/items/p01", 403, "a key of scope write", key="read"),
    Wrong("POST /v1/feedback", 403, "a key of scope write", {"events": [EVENT]}, key="read"),
    Wrong("GET /admin/model", 403, "a key of scope admin, got one of scope write", key="write"),
    Wrong("POST /admin/model", 403, "a key of scope admin", {"run": "content", "vectors": "x"}, key="write"),
    Wrong("POST /admin/rollback", 403, "a key of scope admin", {}, key="read"),
    # how much
    Wrong("POST /v1/score", 429, "expected at most 0.001 requests a second", SCORE, key="slow"),
    Wrong("POST /v1/score", 413, "a body of at most 200,000 bytes", b"x" * 200_001),
    Wrong("POST /v1/score", 422, "at most 1000 candidates, got 1001", {**SCORE, "candidates": ["p01"] * 1001}),
    Wrong("POST /v1/score", 422, "at most 1000 entries of a history", {**SCORE, "user_id": None, "history": ["p"] * 1001}),
    Wrong("POST /v1/recommend", 422, "at most 500 items", {"user_id": "u01", "k": 501}),
    Wrong("POST /v1/recommend", 422, "at most 1000 items to leave out", {"user_id": "u01", "exclude": ["x"] * 1001}),
    Wrong("POST /v1/feedback", 422, "at most 1000 events", {"events": [EVENT] * 1001}),
    Wrong("POST /v1/search", 422, "a caption of at most 10000 characters", {"text": "x" * 10_001}),
    Wrong("PUT /v1/items/x", 422, "at most 8 pictures, got 9", post([PNG] * 9)),
    Wrong("GET /v1/items/p01/similar?k=501", 422, "at most 500 items"),
    # pictures
    Wrong("PUT /v1/items/x", 422, "600 pixels (at most 599)", post(PNG)),
    Wrong("PUT /v1/items/x", 422, "a whole picture (JPEG, PNG, WEBP, GIF, BMP, AVIF), got a damaged GIF", post(in_base64(b"GIF89a nothing"))),
    Wrong("PUT /v1/items/x", 422, "expected", post(in_base64(picture(1, height=10)[:200]))),
    Wrong("PUT /v1/items/x", 422, "more than one pixel", post(in_base64(picture(1, height=1, width=1)))),
    Wrong("PUT /v1/items/x", 422, "a picture in base64", post({"base64": "%%%"})),
    Wrong("PUT /v1/items/x", 422, "nothing is fetched", post("https://example.org/a.jpg")),
    Wrong("PUT /v1/items/x", 422, "nothing is fetched", post("file:///etc/passwd")),
    Wrong("PUT /v1/items/x", 422, "no part of that name", post("part:../../etc/passwd")),
    # JSON
    Wrong("POST /v1/score", 422, "finite numbers, got NaN", b'{"user_id": "u", "candidates": [NaN]}'),
    Wrong("POST /v1/score", 422, "finite numbers, got -Infinity", b'{"user_id": "u", "candidates": [-Infinity]}'),
    Wrong("POST /v1/feedback", 422, "beyond the range of a double", b'{"events": [{"value": 1e999}]}'),
    Wrong("POST /v1/score", 422, "expected JSON, got", b"{"),
    Wrong("POST /v1/score", 422, "expected JSON, got", b""),
    Wrong("POST /v1/score", 422, "JSON in UTF-8", b"\xff\xfe"),
    Wrong("POST /v1/score", 422, "JSON of ordinary depth", b"[" * 100_000),
    Wrong("POST /v1/score", 422, "a lone surrogate", b'{"user_id": "\\ud800", "candidates": ["a"]}'),
    Wrong("POST /v1/score", 422, "valid dictionary", b"[]"),
    Wrong("POST /v1/score", 415, "application/json or multipart/form-data, got text/plain", b"{}", kind="text/plain"),
    Wrong("POST /v1/score", 415, "application/json or multipart", b"a=b", kind="application/x-www-form-urlencoded"),
    Wrong("POST /v1/score", 400, "a multipart body, got a damaged one", b"nothing of the kind", kind=FORM),
    Wrong("POST /v1/score", 400, "a boundary, got none", b"", kind="multipart/form-data"),
    # fields
    Wrong("POST /v1/score", 422, "either user_id or history, got neither", {"candidates": ["p01"]}),
    Wrong("POST /v1/score", 422, "either user_id or history, got both", {**SCORE, "history": []}),
    Wrong("POST /v1/score", 422, "at least 1 item", {**SCORE, "candidates": []}),
    Wrong("POST /v1/score", 422, "Extra inputs are not permitted", {**SCORE, "k": 3}),
    Wrong("POST /v1/score", 422, "a history with an entry that can be used", {"history": ["x"], "candidates": ["p01"]}),
    Wrong("POST /v1/recommend", 422, "greater than or equal to 1", {"user_id": "u01", "k": 0}),
    Wrong("POST /v1/recommend", 422, "valid integer", {"user_id": "u01", "k": 2.5}),
    Wrong("POST /v1/recommend", 422, "'include' or 'exclude'", {"user_id": "u01", "seen": "maybe"}),
    Wrong("POST /v1/recommend", 422, "conditions such as", {"user_id": "u01", "where": "price"}),
    Wrong("POST /v1/recommend", 422, "color", {"user_id": "u01", "where": "color=red"}),
    Wrong("POST /v1/search", 422, "a text, an image, items or a user_id, got none", {}),
    Wrong("POST /v1/feedback", 422, "at least 1 item", {"events": []}),
    Wrong("PUT /v1/items/x", 422, "a caption or an image, got neither", {}),
    Wrong("PUT /v1/items/x", 422, "did you mean 'colour'", {**SCARF, "attributes": {"color": "red"}}),
    # ids that nothing has, and ids that are none
    Wrong("GET /v1/items/p99", 404, "the id of a known item, got 'p99'"),
    Wrong("DELETE /v1/items/p99", 404, "the id of a known item"),
    Wrong("GET /v1/items/p99/similar", 404, "the id of a known item"),
    Wrong("POST /v1/search", 422, "the id of a known item, got 'p99'", {"items": ["p99"]}),
    Wrong("POST /v1/search", 422, "a user who chose something, got an unknown one", {"user_id": "nobody"}),
    Wrong("GET /v1/items/a%00b", 422, "an id of printable characters"),
    Wrong("GET /v1/items/a%0Ab", 422, "an id of printable characters"),
    Wrong("DELETE /v1/items/p01%0A", 422, "an id of printable characters"),
    Wrong(f"GET /v1/items/{'x' * 257}", 422, "an id of printable characters"),
    Wrong("POST /v1/score", 422, "1 to 256 printable characters", {"user_id": "", "candidates": ["p01"]}),
    # paths
    Wrong("GET /v1", 404, "a path of /docs"),
    Wrong("GET /etc/passwd", 404, "a path of /docs"),
    Wrong("GET /v1/items/", 404, "a path of /docs"),
    Wrong("DELETE /v1/items/", 404, "a path of /docs"),
    Wrong("GET /v1/users/", 404, "a path of /docs"),
    Wrong("GET /v1/items/a/b", 404, "the id of a known item, got 'a/b'"),
    Wrong("GET /v1/items/..%2f..%2fetc%2fpasswd", 404, "the id of a known item, got '../../etc/passwd'"),
    Wrong("GET /studio/..%2f..%2fapp.py", 404, "a path of /docs"),
    Wrong("GET /v1/score/", 404, "a path of /docs"),
    Wrong("GET /v1/score", 405, "a method that the path takes"),
    Wrong("DELETE /v1/feedback", 405, "a method that the path takes"),
    Wrong("POST /admin/model", 422, "the name of a run", {"run": "../tiny", "vectors": "tiny-vectors"}),
    Wrong("POST /admin/model", 422, "the name of a run", {"run": "/etc", "vectors": "tiny-vectors"}),
    Wrong("POST /admin/model", 422, "the name of an export", {"run": "tiny", "vectors": "tiny-vectors/../tiny-vectors"}),
    Wrong("POST /admin/rollback", 409, "a model that answered before", {}),
    Wrong("POST /admin/rollback", 415, "application/json", b"", kind="text/plain"),
]  # fmt: skip


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys by name; "file" is where they are kept."""
    file = tmp_path_factory.mktemp("wrong") / "keys.toml"
    made = {scope: create_key(file, name=scope, scope=scope) for scope in ("read", "write", "admin")}  # type: ignore[arg-type]
    slow = create_key(file, name="slow", scope="read", rate=0.001, burst=1)
    return {**made, "slow": slow, "unknown": "mmrec_nobody", "file": str(file)}


@pytest.fixture(scope="module")
def client(
    pair: Pair, models_folder: Path, keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    limits = replace(LIMITS, body_bytes=200_000, pixels=599)
    ring = KeyRing.load(Path(keys["file"]))
    data = tmp_path_factory.mktemp("wrong") / "data"
    server = Server(pair, data, limits=limits, keys=ring, reveal_ids=False, models=models_folder)
    with server.client as client:
        once = client.post("/v1/score", json=SCORE, headers={"Authorization": f"Bearer {keys['slow']}"})
        assert once.status_code == 200, "its only one"
        yield client


@pytest.mark.parametrize("wrong", TABLE, ids=str)
def test_refused(client: TestClient, keys: dict[str, str], wrong: Wrong) -> None:
    method, _, path = wrong.asked.partition(" ")
    headers = {} if wrong.key is None else {"Authorization": f"Bearer {keys[wrong.key]}"}
    body: dict[str, object] = {}
    if isinstance(wrong.body, bytes):
        headers["Content-Type"], body = wrong.kind, {"content": wrong.body}
    elif wrong.body is not None:
        body = {"json": wrong.body}
    answer = client.request(method, path, headers=headers, **body)  # type: ignore[arg-type]
    assert (answer.status_code, answer.headers["content-type"]) == (wrong.status, "application/problem+json"), (
        answer.text
    )
    assert wrong.words in answer.text
    problem = answer.json()
    assert {"type", "title", "status", "detail", "request_id"} <= set(problem)
    assert problem["status"] == wrong.status
    if answer.status_code == 429:
        assert int(answer.headers["retry-after"]) > 0
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    assert "Traceback" not in answer.text
    assert "/" + "site-packages" not in answer.text


def test_nothing_of_it_was_kept(client: TestClient, keys: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {keys['admin']}"}
    assert client.get("/v1/items/x", headers=headers).status_code == 404
    about = client.get("/v1/model", headers=headers).json()
    assert (about["published"], about["run"]) == (0, "tiny")
    assert client.get("/v1/items/p01", headers=headers).status_code == 200
    assert client.get("/health/ready").status_code == 200


def test_ids_that_look_like_paths_are_ids(client: TestClient, keys: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {keys['admin']}"}
    for item_id in ("%2e%2e", "~root", "C:", "a%5cb"):
        answer = client.put(f"/v1/items/{item_id}", json=SCARF, headers=headers)
        assert answer.status_code in {200, 404, 405}
