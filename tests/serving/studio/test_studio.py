"""The routes of the page: its files, pictures, users, inspection of posts, map, last refusals."""

from __future__ import annotations

import io
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Split
from mmrec.inference.recommender import Recommender
from mmrec.serving.http.app import build_app
from mmrec.serving.http.recent_problems import KEPT
from mmrec.serving.studio.audience import Audience
from mmrec.serving.studio.cards import Cards
from mmrec.serving.studio.page import load_files
from mmrec.serving.studio.people import People
from mmrec.serving.studio.schemas import UsersRequest
from tests.serving.served import Serve, Server, in_base64, picture, trace
from tests.tiny_run import CAPTION_ONLY, NUM_ITEMS, NUM_USERS, TWO_PICTURES, TinyFeed

POST = {"caption": "a soft green scarf", "image": in_base64(picture(7))}


def inspected(server: Server, **more: object) -> dict[str, object]:
    """Inspect a post once every user was asked."""
    until = time.monotonic() + 30
    while True:
        answer = server.post("inspect", POST | more)
        audience: dict[str, int] = answer["audience"]  # type: ignore[assignment]
        if audience["encoded"] == audience["wanted"]:
            return answer
        assert time.monotonic() < until, "the users do not come"
        time.sleep(0.02)


class TestPage:
    def test_nothing_else_may_be_loaded_run_or_framed(self, server: Server) -> None:
        for path in ("/", "/studio/main.js", "/studio/app.css"):
            answer = server.client.get(path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert not {"unsafe-inline", "unsafe-eval", "http:", "https:", "*"} & set(policy.replace("'", " ").split())
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
        for file in load_files(keys_needed=False).values():
            text = file.data.decode().replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text
            assert "https://" not in text
            assert "innerHTML" not in text

    def test_sent_once(self, server: Server) -> None:
        tag = server.client.get("/").headers["etag"]
        again = server.client.get("/", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")

    @pytest.mark.parametrize("name", ["nothing.js", "..%2Fpage.py", "%2e%2e/routes.py", "..%5Cpage.py", ""])
    def test_no_path_reaches_the_disk(self, server: Server, name: str) -> None:
        assert server.client.get(f"/studio/{name}").status_code == 404

    def test_it_knows_whether_keys_are_needed(self) -> None:
        assert b'data-keys="off"' in load_files(keys_needed=False)["index.html"].data
        assert b'data-keys="on"' in load_files(keys_needed=True)["index.html"].data

    def test_it_can_be_left_out(self, server: Server) -> None:
        bare = TestClient(build_app(server.service, studio=False), base_url="http://localhost")
        for path in ("/", "/studio/main.js", "/v1/users", "/v1/problems", "/v1/map", "/v1/items/p04/image"):
            assert bare.get(path).status_code == 404, path
        assert "/v1/users" not in bare.get("/openapi.json").json()["paths"]
        assert bare.get("/v1/model").status_code == 200


class TestPictures:
    def test_of_the_feed(self, server: Server, tiny_feed: TinyFeed) -> None:
        answer = server.client.get("/v1/items/p04/image")
        assert answer.headers["content-type"] == "image/jpeg"
        shown = np.asarray(Image.open(io.BytesIO(answer.content)), dtype=np.int64)
        given = np.asarray(Image.open(tiny_feed.image("p04")).convert("RGB"), dtype=np.int64)
        assert np.abs(shown - given).mean() < 10
        again = server.client.get("/v1/items/p04/image", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == answer.headers["etag"]
        assert again.headers["cache-control"] == answer.headers["cache-control"]
        assert server.client.get("/v1/items/p05/image").headers["etag"] != answer.headers["etag"]

    def test_one_that_is_known_already_is_logged_and_counted(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        tag = server.client.get("/v1/items/p04/image").headers["etag"]
        with caplog.at_level(logging.INFO, logger="mmrec.serving"):
            caplog.clear()  # the first is there, too, where this process logs requests since an earlier test
            again = server.client.get("/v1/items/p04/image", headers={"If-None-Match": tag})
        (line,) = [json.loads(record.message) for record in caplog.records if record.name == "mmrec.serving.requests"]
        assert (line["route"], line["status"]) == ("image", 304)
        assert line["request_id"] == again.headers["x-request-id"]
        assert 'mmrec_requests_total{route="image",status="304"} 1.0' in server.client.get("/metrics").text

    def test_of_a_published_post_made_small(self, server: Server) -> None:
        server.put("new-1", {"image": in_base64(picture(1, height=900, width=600))})
        answer = server.client.get("/v1/items/new-1/image")
        assert Image.open(io.BytesIO(answer.content)).size == (213, 320)
        server.put("new-1", {"image": in_base64(picture(2))})
        assert server.client.get("/v1/items/new-1/image").headers["etag"] != answer.headers["etag"]

    def test_there_may_be_none(self, server: Server) -> None:
        server.put("new-2", {"caption": "words"})
        for item_id in (CAPTION_ONLY, "new-2", "nothing"):
            assert "picture" in str(server.get(f"/v1/items/{item_id}/image", 404)["detail"])

    def test_cards(self, server: Server) -> None:
        server.put("new-1", POST)
        server.client.delete("/v1/items/p04")
        cards = server.results("cards", {"items": ["new-1", CAPTION_ONLY, "p04", "nothing", TWO_PICTURES]})
        found = [(card["item_id"], card["picture"], card["published"], card["offered"]) for card in cards]
        assert found == [
            ("new-1", True, True, True),
            (CAPTION_ONLY, False, False, True),
            ("p04", True, False, False),
            (TWO_PICTURES, True, False, True),
        ]
        server.post("cards", {"items": ["p04"] * 501}, 422)


class TestPeople:
    def test_found_by_the_beginning_of_the_id(self, server: Server) -> None:
        answer = server.get("/v1/users", prefix="u1", k=3)
        assert (answer["found"], answer["users"]) == (10, NUM_USERS)
        results: list[dict[str, object]] = answer["results"]  # type: ignore[assignment]
        assert [user["user_id"] for user in results] == ["u10", "u11", "u12"], "equally active, so by name"
        assert (
            [card["item_id"] for card in results[0]["latest"]]
            == [  # type: ignore[attr-defined]
                event["item_id"]
                for event in server.get("/v1/users/u10")["history"][:1:-1]  # type: ignore[index]
            ]
        )
        assert server.get("/v1/users", prefix="x")["results"] == []
        server.get("/v1/users", 422, k=101)

    def test_the_most_active_first(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        counts = np.array([5] * 18 + [12, 18])
        offsets = np.concatenate([[0], np.cumsum(counts)])
        monkeypatch.setattr(server.service, "histories", replace(server.service.histories, offsets=offsets))
        people = People(server.service, Cards(server.service))
        answer = people.listed(UsersRequest(k=3), trace())
        assert [(user.user_id, user.events) for user in answer.results] == [("u19", 18), ("u18", 12), ("u00", 5)]

    def test_known_by_feedback_alone(self, server: Server) -> None:
        assert server.get("/v1/users/newcomer")["known"] is False
        server.post("feedback", {"events": [{"user_id": "newcomer", "item_id": "p07"}]})
        answer = server.get("/v1/users/newcomer")
        assert (answer["known"], answer["events"], answer["held_out"]) == (True, 0, None)
        assert [event["item_id"] for event in answer["history"]] == ["p07"]  # type: ignore[attr-defined]
        listed: list[dict[str, object]] = server.get("/v1/users", prefix="newcomer")["results"]  # type: ignore[assignment]
        assert [user["user_id"] for user in listed] == ["newcomer"]

    def test_what_the_split_holds_out(self, server: Server, tiny_feed: TinyFeed) -> None:
        split, histories = Split.load(tiny_feed.prepared), Histories.load(tiny_feed.prepared)
        catalogue, row = Catalogue.load(tiny_feed.prepared), histories.row("u03")
        case = int(np.flatnonzero(split.validation.user_rows == row)[-1])
        stop = int(split.validation.history_stops[case])
        held_out: dict[str, object] = server.get("/v1/users/u03")["held_out"]  # type: ignore[assignment]
        ids = catalogue.item_ids[histories.item_rows[histories.offsets[row] : stop]]
        assert held_out["before"] == [*ids]
        assert [card["item_id"] for card in held_out["chosen"]] == [  # type: ignore[attr-defined]
            catalogue.item_ids[histories.item_rows[stop]]
        ]
        assert held_out["part"] == "validation", "the test part stays closed"
        answer = server.get("/v1/users", held_out="true", k=1)
        assert answer["found"] == len(np.unique(split.validation.user_rows))


class TestInspection:
    def test_it_agrees_with_search_score_and_recommend(self, server: Server) -> None:
        answer = inspected(server, users=3)
        fans: list[dict[str, object]] = answer["fans"]  # type: ignore[assignment]
        assert (answer["present"], answer["published"]) == (["text", "image"], False)
        found = server.results("search", {"text": POST["caption"], "image": POST["image"], "k": 12})
        nearest: list[dict[str, object]] = answer["nearest"]  # type: ignore[assignment]
        assert [(card["item_id"], card["score"]) for card in nearest] == [
            (entry["item_id"], pytest.approx(entry["score"], abs=1e-5)) for entry in found
        ]
        bare = [{"image": POST["image"]}, {"caption": POST["caption"]}]
        everyone = {}
        for number in range(NUM_USERS):
            body = {"user_id": f"u{number:02}", "candidates": [POST, *bare]}
            everyone[f"u{number:02}"] = [entry["score"] for entry in server.results("score", body)]
        best = sorted(everyone, key=lambda user: -float(str(everyone[user][0])))[:3]
        assert [fan["user_id"] for fan in fans] == best
        for fan in fans:
            whole, without_text, without_image = everyone[str(fan["user_id"])]
            assert fan["score"] == pytest.approx(whole, abs=1e-4)
            assert fan["scores_without"] == {
                "text": pytest.approx(without_text, abs=1e-4),
                "image": pytest.approx(without_image, abs=1e-4),
            }
        variants: list[dict[str, float]] = answer["variants"]  # type: ignore[assignment]
        assert [one["without"] for one in variants] == [None, "text", "image"]
        means = np.array([[float(str(score)) for score in scores] for scores in everyone.values()]).mean(axis=0)
        assert [one["mean_score"] for one in variants] == pytest.approx(means.tolist(), abs=1e-4)
        assert variants[0]["same_nearest"] == len(nearest)

    def test_its_rank_is_the_one_it_gets(self, server: Server) -> None:
        before = inspected(server, users=5)
        server.client.delete("/v1/items/p11")
        server.put("rival", {"caption": "a soft green scarf"})
        server.put("it", POST)
        after = inspected(server, users=5, item_id="it")
        assert (after["published"], after["items"]) == (True, NUM_ITEMS + 1)
        assert "it" not in [card["item_id"] for card in after["nearest"]]  # type: ignore[attr-defined]
        for fan in after["fans"]:  # type: ignore[attr-defined]
            ids = server.ids("recommend", {"user_id": fan["user_id"], "k": 100})
            assert ids.index("it") + 1 == fan["rank"]
        assert [fan["user_id"] for fan in before["fans"]] == [fan["user_id"] for fan in after["fans"]]  # type: ignore[attr-defined]

    def test_one_modality_has_no_other_to_lose(self, server: Server) -> None:
        answer = server.post("inspect", {"caption": "words"})
        assert [one["without"] for one in answer["variants"]] == [None]  # type: ignore[attr-defined]
        server.post("inspect", {}, 422)
        assert len(server.service.items.published) == 0, "nothing is kept"

    def test_a_sample_is_the_same_every_time(self, server: Server) -> None:
        crowds = []
        for _ in range(2):
            audience = Audience(server.service, most=7)
            while len(audience.crowd().user_ids) < 7:
                time.sleep(0.01)
            crowds.append(audience.crowd())
        assert list(crowds[0].user_ids) == list(crowds[1].user_ids)
        recommender: Recommender = server.service.recommender
        rows = np.array([server.service.histories.row(user_id) for user_id in crowds[0].user_ids])
        expected = recommender.scoring.feed_user_vectors(rows, recommender.catalogue_tensor).numpy()
        np.testing.assert_allclose(crowds[0].vectors, expected, atol=1e-5)


class TestMapAndProblems:
    def test_without_one_in_the_export_it_is_made_here(self, server: Server) -> None:
        server.client.delete("/v1/items/p04")
        answer = server.get("/v1/map", colour="colour")
        assert (answer["method"], answer["exported"], answer["shown"]) == ("PCA", False, NUM_ITEMS - 1)
        assert "p04" not in answer["item_ids"]  # type: ignore[operator]
        groups: list[str] = answer["groups"]  # type: ignore[assignment]
        named = [groups[place] for place in answer["group"]]  # type: ignore[attr-defined]
        assert named[:3] == ["red", "green", "blue"]
        assert "secret" not in str(server.get("/v1/map", 422, colour="secret words")["detail"])

    def test_problems_hold_nothing_that_was_sent(self, server: Server) -> None:
        server.post("score", {"user_id": "u01", "candidates": []}, 422)
        server.get("/v1/items/secret-item", 404)
        server.post("search", {"text": "secret words", "where": "secret=1"}, 422)
        answer = server.get("/v1/problems")
        results: list[dict[str, object]] = answer["results"]  # type: ignore[assignment]
        assert [(one["route"], one["status"]) for one in results] == [("search", 422), ("item", 404), ("score", 422)]
        assert "secret" not in str(answer)
        for _ in range(KEPT):
            server.get("/v1/items/nothing", 404)
        answer = server.get("/v1/problems")
        assert (answer["total"], len(answer["results"])) == (KEPT + 3, KEPT)  # type: ignore[arg-type]


def test_every_route_needs_a_key(serve: Serve, tmp_path: Path) -> None:
    from mmrec.serving.http.keys import KeyRing, create_key

    create_key(tmp_path / "keys.toml", name="reader", scope="read")
    server = serve(keys=KeyRing.load(tmp_path / "keys.toml"))
    for path in ("/v1/users", "/v1/users/u01", "/v1/map", "/v1/problems", "/v1/items/p04/image"):
        assert server.client.get(path).status_code == 401, path
    for path in ("/v1/cards", "/v1/inspect"):
        assert server.client.post(path, json={}).status_code == 401, path
    assert server.client.get("/").status_code == 200, "it asks for the key"
