"""Posts that other processes put, or an earlier one: in order, never back to an earlier state, whatever fails on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrec.commands.export import export_run
from mmrec.serving.answers.service import Service
from mmrec.serving.deployment.carry_over import carry_over, restore
from mmrec.serving.deployment.loading import load_pair
from mmrec.serving.model.exported import Exported, Pair
from mmrec.serving.stores.sqlite_store import SqliteStore
from mmrec.serving.stores.store import StoredPost, StoreFailureError
from tests.serving.served import LIMITS, Serve, Server, in_base64, picture

SCARF = {"caption": "an unheard-of crimson scarf", "image": in_base64(picture(1)), "attributes": {"colour": "red"}}


@pytest.fixture
def other(server: Server, tmp_path: Path) -> Iterator[SqliteStore]:
    """The store as another process of the service has it."""
    store = SqliteStore(tmp_path / "data", hold=False)
    yield store
    store.close()


def post(server: Server, item_id: str, **changes: object) -> StoredPost:
    vector = np.array(server.service.items.exported.full[0], dtype=np.float32)
    made = StoredPost(item_id, "from afar", {}, "c", server.service.model_hash, ("text",), vector, 5)
    return replace(made, **changes)  # type: ignore[arg-type]


def caption(server: Server, item_id: str) -> object:
    item = server.service.items.find(item_id)
    return None if item is None else server.service.items.caption(item)


class TestPosts:
    def test_what_others_put_and_take_back(self, server: Server, other: SqliteStore) -> None:
        other.put_post(post(server, "new"), [])
        assert caption(server, "new") is None
        carry_over(server.service)
        assert caption(server, "new") == "from afar"
        gone = post(server, "p04", vector=np.zeros(0, np.float32), deleted=True)
        other.put_post(gone, [])
        other.put_post(replace(gone, item_id="new"), [])
        carry_over(server.service)
        assert server.get("/v1/items/new", 404)
        assert server.get("/v1/items/p04", 404)

    def test_no_post_goes_back_to_an_earlier_state(self, server: Server, other: SqliteStore) -> None:
        first = other.put_post(post(server, "new", caption="first"), [])
        second = post(server, "new", caption="second")
        # The answer to an own write and the follower's look may come in any order.
        assert server.service.changes.apply(other.put_post(second, []), second)
        assert not server.service.changes.apply(first, post(server, "new", caption="first"))
        carry_over(server.service)
        assert caption(server, "new") == "second"

    def test_a_post_of_another_model_is_encoded_here_and_left_alone_there(
        self, server: Server, other: SqliteStore
    ) -> None:
        strange = post(server, "new", model_hash="another", vector=np.zeros(3, np.float32))
        other.put_post(strange, [])
        carry_over(server.service)
        item = server.service.items.find("new")
        assert item is not None
        assert item.vector.shape == server.service.items.exported.full[0].shape
        (kept,) = other.posts()
        assert kept.model_hash == "another", "two models would replace each other's vectors for ever"

    def test_what_could_not_be_read_is_read_later(
        self, server: Server, other: SqliteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other.put_post(post(server, "new", model_hash="another"), [])

        def away(item_id: str) -> tuple[bytes, ...]:
            raise StoreFailureError("away")

        with monkeypatch.context() as patch:
            patch.setattr(server.service.store, "pictures", away)
            with pytest.raises(StoreFailureError):
                carry_over(server.service)
        carry_over(server.service)
        assert caption(server, "new") == "from afar"

    def test_a_post_is_not_restored_over_a_newer_one(self, serve: Serve, tmp_path: Path) -> None:
        server = serve("restored")
        store = server.service.store
        number = store.put_post(post(server, "new", model_hash="another"), [])
        newer = store.put_post(post(server, "new", caption="newer"), [])
        store.set_vector(number, post(server, "new", caption="older"))
        assert [(found, held.caption) for found, held in store.changes(0)] == [(newer, "newer")]


class TestRestart:
    def test_everything_is_there_again(self, serve: Serve) -> None:
        first = serve("kept")
        first.put("new-1", SCARF)
        first.put("new-2", {"caption": "gone soon"})
        first.put("p05", {"caption": "replaced"})
        first.client.delete("/v1/items/new-2")
        first.client.delete("/v1/items/p06")
        first.post("feedback", {"events": [{"user_id": "newcomer", "item_id": "new-1"}]})
        bodies = [{"user_id": "newcomer", "k": 100}, {"user_id": "u01", "k": 100, "where": "colour=red"}]
        before = [first.results("recommend", body) for body in bodies]
        first.client.__exit__(None, None, None)
        second = serve("kept")
        assert [second.results("recommend", body) for body in bodies] == before
        assert second.batches == [1, 1], "no post is encoded again, only the two users"
        assert second.get("/v1/items/new-1")["attributes"] == {"colour": "red"}
        assert second.get("/v1/items/p05")["caption"] == "replaced"
        for gone in ("new-2", "p06"):
            second.get(f"/v1/items/{gone}", 404)

    def test_another_model_encodes_again_and_an_export_supersedes(
        self, serve: Serve, content_run: Path, tmp_path: Path
    ) -> None:
        first = serve("kept")
        first.put("new-1", SCARF)
        first.put("p05", {"caption": "replaced"})
        first.client.delete("/v1/items/p06")
        first.client.__exit__(None, None, None)
        export_run(content_run, out=tmp_path / "v", users=False, device="cpu")
        second = serve("kept", of=load_pair(content_run, tmp_path / "v", device="cpu"))
        post = {"caption": SCARF["caption"], "image": SCARF["image"]}
        by_id, by_content = second.results("score", {"user_id": "u01", "candidates": ["new-1", post]})
        assert by_id["score"] == pytest.approx(by_content["score"], abs=1e-6)
        assert second.get("/v1/items/p05")["source"] == "catalogue"
        second.get("/v1/items/p06", 404)
        models = {held.item_id: held.model_hash for held in second.service.store.posts()}
        assert models["new-1"] == second.service.model_hash


def test_it_is_told_what_the_export_supersedes(server: Server) -> None:
    old, told = server.service, list[str]()
    for item_id in ("p05", "p04", "new"):
        old.store.put_post(post(server, item_id, model_hash="another"), [])
    service = Service(Pair(old.recommender, old.items.exported), old.store, limits=LIMITS)
    restore(service, notify=told.append)
    service.stop()
    assert [line.partition(";")[0] for line in told] == [
        "2 published posts are taken from the export, which has their ids",
        "1 published posts are encoded again, by another model than before",
    ]


def test_posts_of_another_model_are_offered_without_what_the_export_does_not_have(
    server: Server, tmp_path: Path
) -> None:
    """A value that filters could not compare would spoil every filter."""
    server.put("new-1", {**SCARF, "attributes": {"colour": "red", "price": "cheap"}})
    service = server.service
    exported = service.items.exported
    table = exported.table.drop(columns=["colour"]).astype({"price": "float64"})
    other = Service(
        Pair(service.recommender, Exported(exported.layout, exported.store, exported.full, table, exported.row_of)),
        service.store,
        limits=LIMITS,
    )
    restore(other)
    post = other.items.find("new-1")
    assert post is not None
    assert post.published is not None
    assert dict(post.published.attributes) == {}
