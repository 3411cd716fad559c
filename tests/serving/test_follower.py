"""Posts that other processes put: in order, never back to an earlier state, whatever fails on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrec.serving.follower import Follower
from mmrec.serving.posts.publishing import Publishing
from mmrec.serving.stores.sqlite_store import SqliteStore
from mmrec.serving.stores.store import StoredPost, StoreFailureError
from tests.serving.served import Serve, Server


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
        publishing = Publishing(server.service)
        other.put_post(post(server, "new"), [])
        assert caption(server, "new") is None
        publishing.follow()
        assert caption(server, "new") == "from afar"
        gone = post(server, "p04", vector=np.zeros(0, np.float32), deleted=True)
        other.put_post(gone, [])
        other.put_post(replace(gone, item_id="new"), [])
        publishing.follow()
        assert server.get("/v1/items/new", 404)
        assert server.get("/v1/items/p04", 404)

    def test_no_post_goes_back_to_an_earlier_state(self, server: Server, other: SqliteStore) -> None:
        publishing = Publishing(server.service)
        first = other.put_post(post(server, "new", caption="first"), [])
        second = post(server, "new", caption="second")
        # The answer to an own write and the follower's look may come in any order.
        assert server.service.changes.apply(other.put_post(second, []), second)
        assert not server.service.changes.apply(first, post(server, "new", caption="first"))
        publishing.follow()
        assert caption(server, "new") == "second"

    def test_a_post_of_another_model_is_encoded_here_and_left_alone_there(
        self, server: Server, other: SqliteStore
    ) -> None:
        strange = post(server, "new", model_hash="another", vector=np.zeros(3, np.float32))
        other.put_post(strange, [])
        Publishing(server.service).follow()
        item = server.service.items.find("new")
        assert item is not None
        assert item.vector.shape == server.service.items.exported.full[0].shape
        (kept,) = other.posts()
        assert kept.model_hash == "another", "two models would replace each other's vectors for ever"

    def test_what_could_not_be_read_is_read_later(
        self, server: Server, other: SqliteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publishing = Publishing(server.service)
        other.put_post(post(server, "new", model_hash="another"), [])

        def away(item_id: str) -> tuple[bytes, ...]:
            raise StoreFailureError("away")

        with monkeypatch.context() as patch:
            patch.setattr(server.service.store, "pictures", away)
            with pytest.raises(StoreFailureError):
                publishing.follow()
        publishing.follow()
        assert caption(server, "new") == "from afar"

    def test_a_post_is_not_restored_over_a_newer_one(self, serve: Serve, tmp_path: Path) -> None:
        server = serve("restored")
        store = server.service.store
        number = store.put_post(post(server, "new", model_hash="another"), [])
        newer = store.put_post(post(server, "new", caption="newer"), [])
        store.set_vector(number, post(server, "new", caption="older"))
        assert [(found, held.caption) for found, held in store.changes(0)] == [(newer, "newer")]


class TestFollower:
    def test_a_watcher_that_fails_stops_no_other_and_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        calls: list[str] = []
        well, done = threading.Event(), threading.Event()

        def failing() -> None:
            calls.append("failing")
            if not well.is_set():
                raise OSError("away")

        def other() -> None:
            calls.append("other")
            if calls.count("other") == 3:
                well.set()
            if calls.count("other") == 6:
                done.set()

        follower = Follower(failing, seconds=0.001)
        follower.add(other)
        assert done.wait(30)
        follower.close()
        count = len(calls)
        assert calls[-1] == "other"
        messages = [record.message for record in caplog.records if "followed" in record.message]
        assert messages == ["changes cannot be followed: OSError: away", "changes are followed again"]
        assert len(calls) == count, "closed is closed"
