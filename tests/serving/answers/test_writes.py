"""Posts and feedback: there before the answer, and known to the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrec.commands.export import export_run
from mmrec.commands.train import train_run
from mmrec.inference.scoring import Request
from mmrec.serving.answers.pasts import Pasts
from mmrec.serving.deployment.loading import load_pair
from mmrec.serving.model.jobs import Times, UserJob
from mmrec.serving.stores.sqlite_store import SqliteStore
from mmrec.serving.stores.store import Event
from tests.serving.served import Serve, Server, in_base64, picture, trace
from tests.tiny_run import NUM_ITEMS, NUM_USERS, TinyEncoders, TinyFeed, tiny_config

SCARF = {"caption": "an unheard-of crimson scarf", "image": in_base64(picture(1)), "attributes": {"colour": "red"}}


class TestPublish:
    def test_a_post_is_found_at_once_by_every_way(self, server: Server) -> None:
        answer = server.put("new-1", SCARF)
        assert (answer["created"], answer["present"], answer["items"]) == (True, ["text", "image"], NUM_ITEMS + 1)
        post = {"caption": SCARF["caption"], "image": SCARF["image"]}
        by_id, by_content = server.results("score", {"user_id": "u01", "candidates": ["new-1", post]})
        assert by_id["score"] == pytest.approx(by_content["score"], abs=1e-6)
        assert server.ids("search", {"text": SCARF["caption"], "image": SCARF["image"], "k": 1}) == ["new-1"]
        assert "new-1" in server.ids("recommend", {"user_id": "u01", "k": 100})
        assert server.get("/v1/items/p01/similar", k=100)["results"]
        assert server.get("/v1/items/new-1/similar", k=3)["results"]
        item = server.get("/v1/items/new-1")
        assert (item["source"], item["caption"], item["attributes"]) == (
            "published",
            SCARF["caption"],
            {"colour": "red"},
        )
        history = server.results("recommend", {"history": ["new-1"], "k": 3})
        assert len(history) == 3

    def test_its_score_stands_where_recommend_puts_it(self, server: Server) -> None:
        server.put("new-1", SCARF)
        rows = server.results("recommend", {"user_id": "u07", "k": 100})
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
        (scored,) = server.results("score", {"user_id": "u07", "candidates": ["new-1"]})
        (found,) = [row for row in rows if row["item_id"] == "new-1"]
        assert found["score"] == pytest.approx(scored["score"], abs=1e-5)

    def test_filters_see_it(self, server: Server) -> None:
        server.put("new-1", {**SCARF, "attributes": {"colour": "red", "price": 3.5, "stock": 4}})
        server.put("new-2", {**SCARF, "attributes": {}})

        def found(where: str) -> set[object]:
            return {i for i in server.ids("search", {"text": "scarf", "k": 100, "where": where}) if "new" in str(i)}

        assert found("price<4") == {"new-1"}
        assert found("stock=4 and colour=red") == {"new-1"}
        assert found("price>=4") == found("stock=3") == set()
        assert found("caption~crimson") == {"new-1", "new-2"}
        server.put("new-2", {**SCARF, "attributes": {"price": 1}})
        assert found("price<4") == {"new-1", "new-2"}

    def test_attributes_that_the_export_does_not_have(self, server: Server) -> None:
        problem = server.put("new-1", {**SCARF, "attributes": {"color": "red"}}, 422)
        assert "did you mean 'colour'" in str(problem["detail"])
        server.get("/v1/items/new-1", 404)

    @pytest.mark.parametrize(("name", "value"), [("price", "cheap"), ("stock", 1.5), ("stock", 1 << 70)])
    def test_values_that_filters_could_not_compare(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, name: str, value: object
    ) -> None:
        """An export of a feed that was read as text has text only; others have numbers."""
        table = server.service.items.exported.table.astype({"price": "float64", "stock": "int64"})
        monkeypatch.setattr(server.service.items.exported, "table", table)
        problem = server.put("new-1", {**SCARF, "attributes": {name: value}}, 422)
        assert f"attributes.{name}" in str(problem["detail"])
        assert server.put("new-1", {**SCARF, "attributes": {"price": 2, "stock": 3}})["created"]

    @pytest.mark.parametrize("body", [{}, {"caption": " "}, {"image": in_base64(b"x")}, {"caption": "a", "id": "b"}])
    def test_posts_that_cannot_be_read_are_not_kept(self, server: Server, body: object) -> None:
        server.put("new-1", body, 422)
        server.get("/v1/items/new-1", 404)
        assert list(server.service.store.posts()) == []

    def test_a_post_replaces_what_had_its_id(self, server: Server) -> None:
        assert server.put("p04", SCARF)["created"] is False
        assert server.get("/v1/items/p04")["source"] == "published"
        assert server.put("p04", {"caption": "something else"})["items"] == NUM_ITEMS
        assert server.get("/v1/items/p04")["caption"] == "something else"
        assert server.ids("recommend", {"user_id": "u01", "k": 100}).count("p04") == 1
        assert len(server.ids("search", {"text": "else", "k": 100})) == NUM_ITEMS

    def test_delete(self, server: Server) -> None:
        server.put("new-1", SCARF)
        for item_id in ("new-1", "p03"):
            assert server.client.delete(f"/v1/items/{item_id}").status_code == 200
            assert server.client.delete(f"/v1/items/{item_id}").status_code == 404
            server.get(f"/v1/items/{item_id}", 404)
            assert item_id not in server.ids("recommend", {"user_id": "u00", "k": 100})
            assert item_id not in server.ids("recommend", {"history": [], "k": 100})
            assert item_id not in server.ids("search", {"text": "scarf", "k": 100})
            (scored,) = server.results("score", {"user_id": "u00", "candidates": [item_id]})
            assert "known item" in str(scored["error"])
        assert server.get("/v1/model")["items"] == NUM_ITEMS - 1
        assert server.put("p03", SCARF)["created"] is True
        assert "p03" in server.ids("recommend", {"user_id": "u00", "k": 100})

    def test_many_posts_and_many_readers(self, server: Server) -> None:
        stop, wrong = threading.Event(), []

        def read() -> None:
            while not stop.wait(0.02):
                ids = server.ids("recommend", {"user_id": "u01", "k": 500, "where": "price>=0"})
                if len(ids) != len(set(ids)):
                    wrong.append(ids)

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(75):
            server.put(f"n{number % 20}", {"caption": f"post {number}", "attributes": {"price": number}})
        stop.set()
        reader.join()
        assert wrong == []
        ids = server.ids("recommend", {"user_id": "u01", "k": 500})
        assert len(ids) == NUM_ITEMS + 20
        assert server.get("/v1/items/n19")["caption"] == "post 59"
        assert server.get("/v1/items/n10")["attributes"] == {"price": 70}


class TestFeedback:
    def test_the_next_answer_knows_it(self, server: Server) -> None:
        assert server.post("recommend", {"user_id": "newcomer"})["strategy"] == "popular_and_fresh"
        events = [{"user_id": "newcomer", "item_id": f"p{number:02}"} for number in (1, 4, 7)]
        answer = server.post("feedback", {"events": events})
        assert (answer["accepted"], answer["unknown_items"]) == (3, 0)
        known = server.post("recommend", {"user_id": "newcomer", "k": 9})
        assert (known["strategy"], known["user"]["history_length"]) == ("model", 3)  # type: ignore[index]
        wanted = server.results("recommend", {"history": ["p01", "p04", "p07"], "k": 9})
        assert [row["item_id"] for row in known["results"]] == [row["item_id"] for row in wanted]  # type: ignore[attr-defined]
        assert {"p01", "p04", "p07"}.isdisjoint(server.ids("recommend", {"user_id": "newcomer", "seen": "exclude"}))

    def test_it_continues_the_history_of_the_feed(self, server: Server) -> None:
        before = server.results("recommend", {"user_id": "u01", "k": 9})
        server.post("feedback", {"events": [{"user_id": "u01", "item_id": "p29"}]})
        after = server.post("recommend", {"user_id": "u01", "k": 9})
        assert after["user"]["history_length"] == 7  # type: ignore[index]
        assert [row["score"] for row in before] != [row["score"] for row in after["results"]]  # type: ignore[attr-defined]

    def test_what_was_not_chosen_or_is_unknown_is_in_no_history(self, server: Server) -> None:
        events = [
            {"user_id": "n", "item_id": "p01", "event": "skip", "chosen": False},
            {"user_id": "n", "item_id": "x"},
        ]
        answer = server.post("feedback", {"events": events})
        assert (answer["accepted"], answer["unknown_items"]) == (2, 1)
        assert server.post("recommend", {"user_id": "n"})["user"]["kind"] == "stranger"  # type: ignore[index]
        server.put("x", SCARF)
        assert server.post("recommend", {"user_id": "n"})["user"]["history_length"] == 1  # type: ignore[index]

    def test_a_deleted_item_stays_in_the_history(self, server: Server) -> None:
        before = server.results("score", {"user_id": "u01", "candidates": ["p20"]})
        past = server.service.histories
        row = int(past.item_rows[past.offsets[past.row("u01")]])
        server.client.delete(f"/v1/items/p{row:02}")
        assert server.results("score", {"user_id": "u01", "candidates": ["p20"]}) == before

    @pytest.mark.parametrize(
        "event",
        [
            {"user_id": "a"},
            {"user_id": "a", "item_id": "b", "timestamp": -1},
            {"user_id": "a", "item_id": "b", "timestamp": "yesterday"},
            {"user_id": "a", "item_id": "b", "value": "much"},
            {"user_id": "", "item_id": "b"},
            {"user_id": "a", "item_id": "b", "rating": 3},
        ],
    )
    def test_one_bad_event_and_none_is_kept(self, server: Server, event: dict[str, object]) -> None:
        server.post("feedback", {"events": [{"user_id": "a", "item_id": "b"}, event]}, 422)
        assert server.service.store.feedback_of("a", limit=9) == []

    def test_integers_and_text_are_the_same_id(self, server: Server) -> None:
        server.put("77", SCARF)
        server.post("feedback", {"events": [{"user_id": 5, "item_id": 77}]})
        assert server.post("recommend", {"user_id": "5"})["user"]["history_length"] == 1  # type: ignore[index]


class TestTimes:
    """On a feed with times, names of events and values."""

    @pytest.fixture(scope="class")
    def rich(
        self, rich_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, Path]:
        root = tmp_path_factory.mktemp("rich-served")
        train_run(tiny_config(tiny_encoders), feed=rich_feed.prepared, out=root / "run", device="cpu")
        export_run(root / "run", out=root / "vectors", users=False, device="cpu")
        return root / "run", root / "vectors"

    def test_users_of_the_feed_are_encoded_as_in_the_library(self, rich: tuple[Path, Path], serve: Serve) -> None:
        server = serve("rich", of=load_pair(*rich, device="cpu"))
        service, ids = server.service, [f"u{number:02}" for number in range(NUM_USERS)]
        wanted = service.recommender.scoring.users([Request(user, (), user_id=user) for user in ids]).vectors.numpy()
        for user, vectors in zip(ids, wanted, strict=True):
            asking = service.askers.one(user, None, {}, trace())
            np.testing.assert_allclose(asking.vectors, vectors, rtol=1e-5, atol=1e-5)

    def test_feedback_takes_its_place_in_time(self, rich: tuple[Path, Path], tmp_path: Path) -> None:
        pair = load_pair(*rich, device="cpu")
        assembly, store = pair.recommender.assembly, SqliteStore(tmp_path / "data")
        histories = assembly.histories
        row = histories.row("u03")
        own = slice(int(histories.offsets[row]), int(histories.offsets[row + 1]))
        times = np.asarray(histories.timestamps[own])
        between = int(times[1]) + 1
        store.add_feedback(
            [Event("u03", "p29", int(times[-1]) + 5, event="like", value=0.25), Event("u03", "p28", between)]
        )
        pasts = Pasts(histories, assembly.catalogue.item_ids, store, length=100)
        past = pasts.of("u03", known=lambda item_id: True)
        store.close()
        assert past is not None
        feed = [f"p{item:02}" for item in histories.item_rows[own]]
        assert list(past.item_ids) == [*feed[:2], "p28", *feed[2:], "p29"]
        assert past.times.timestamps is not None
        assert (np.diff(past.times.timestamps) >= 0).all()
        assert past.times.instants.tolist() == list(range(len(feed) + 2))
        assert past.times.codes is not None
        assert past.times.values is not None
        assert past.times.codes[-1] == list(histories.event_names).index("like")
        assert (past.times.codes[2], past.times.values[-1]) == (-1, 0.25)
        assert np.isnan(past.times.values[2])
        assert past.seen == frozenset(past.item_ids)

    def test_users_of_different_lengths_together_and_alone(self, rich: tuple[Path, Path], serve: Serve) -> None:
        server = serve("rich", of=load_pair(*rich, device="cpu"))
        service = server.service
        jobs = [job(service.recommender.item_embeddings(), count) for job in (timed, bare) for count in (1, 5, 3, 0)]
        jobs = [one for one in jobs if len(one.items) or one.times is None]
        together = service.worker._encoded_users(jobs)
        for one, vectors in zip(jobs, together, strict=True):
            np.testing.assert_allclose(service.worker._encoded_users([one])[0], vectors, rtol=1e-5, atol=1e-5)


Job = Callable[[np.ndarray, int], UserJob]


def bare(vectors: np.ndarray, count: int) -> UserJob:
    return UserJob(np.array(vectors[:count]), None)


def timed(vectors: np.ndarray, count: int) -> UserJob:
    order = np.arange(count, dtype=np.int64)
    times = Times(order, 1_600_000_000_000 + order * 86_400_000, order % 2, np.full(count, 0.5, np.float32))
    return replace(bare(vectors, count), times=times)
