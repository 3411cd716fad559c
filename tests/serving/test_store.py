"""What every store of the service must do; the embedded one is the first of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrec.errors import ArtifactError, ConfigError
from mmrec.serving.sqlite_store import DATABASE, SqliteStore
from mmrec.serving.store import Event, Served, Store, StoredPost, StoreFailureError

Open = Callable[[], Store]


def post(item_id: str = "p1", **changes: object) -> StoredPost:
    made = StoredPost(
        item_id=item_id,
        caption="A red scarf, größer",
        attributes={"colour": "red", "price": 1.5, "stock": 3, "new": True, "tag": None},
        content_hash="c1",
        model_hash="m1",
        present=("text", "image"),
        vector=np.array([0.25, -1, 3e-8], dtype=np.float32),
        published_at=1_700_000_000_000,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def same(one: StoredPost, other: StoredPost) -> bool:
    nothing = np.zeros(0, np.float32)
    return replace(one, vector=nothing).__dict__.keys() == other.__dict__.keys() and all(
        np.array_equal(value, getattr(other, name)) for name, value in vars(one).items()
    )


def twice(store: Store, reopen: Open) -> Iterator[Store]:
    """Yield a store as it is, and then opened again."""
    yield store
    yield reopen()


@pytest.mark.parametrize("kind", ["sqlite"])
class TestStoreContract:
    @pytest.fixture
    def reopen(self, kind: str, tmp_path: Path) -> Iterator[Open]:
        """Open the store; the one before is closed first."""
        opened: list[Store] = []

        def again() -> Store:
            if opened:
                opened[-1].close()
            opened.append(SqliteStore(tmp_path / kind))
            return opened[-1]

        yield again
        opened[-1].close()

    def test_satisfies_the_protocol(self, reopen: Open) -> None:
        assert isinstance(reopen(), Store)

    def test_posts_come_back_as_they_were_put(self, reopen: Open) -> None:
        store = reopen()
        store.put_post(post(), [b"\x00one", b"two"])
        store.put_post(post("p2", caption=None, attributes={}, present=("image",)), [])
        store.put_post(post("p3", vector=np.zeros(0, np.float32), deleted=True), [])
        for held in twice(store, reopen):
            first, second, third = held.posts()
            assert same(first, post())
            assert (second.caption, second.attributes, second.present) == (None, {}, ("image",))
            assert (third.deleted, len(third.vector)) == (True, 0)
            assert held.pictures("p1") == (b"\x00one", b"two")
            assert held.pictures("p2") == held.pictures("unknown") == ()

    def test_a_post_replaces_one_of_its_id_and_comes_last(self, reopen: Open) -> None:
        store = reopen()
        store.put_post(post("p1"), [b"one", b"two"])
        store.put_post(post("p2"), [])
        store.put_post(post("p1", caption="new"), [b"three"])
        assert [(held.item_id, held.caption) for held in store.posts()][1] == ("p1", "new")
        assert len(list(store.posts())) == 2
        assert store.pictures("p1") == (b"three",)

    def test_feedback_is_read_as_it_came(self, reopen: Open) -> None:
        store = reopen()
        events = [
            Event("u1", "p1", 30, event="like", value=0.5, request_id="r1"),
            Event("u2", "p1", 20),
            Event("u1", "p2", 10, chosen=False),
        ]
        store.add_feedback(events)
        store.add_feedback([Event("u1", "p3", 5)])
        for held in twice(store, reopen):
            assert held.feedback_of("u1", limit=10) == [events[0], events[2], Event("u1", "p3", 5)]
            assert held.feedback_of("u1", limit=2) == [events[2], Event("u1", "p3", 5)]
            assert held.feedback_of("nobody", limit=10) == []

    def test_events_that_cannot_be_kept_leave_none(self, reopen: Open) -> None:
        store = reopen()
        with pytest.raises(StoreFailureError):
            store.add_feedback([Event("u1", "p1", 1), Event("u1", "p1", 1 << 70)])
        assert store.feedback_of("u1", limit=10) == []
        store.add_feedback([Event("u1", "p1", 1)])
        assert len(store.feedback_of("u1", limit=10)) == 1

    def test_what_was_served_is_there_before_later_feedback(self, reopen: Open) -> None:
        store = reopen()
        served = Served("r1", "recommend", "u1", 5, "m1", [("p1", 0.5), ("p2", None)])
        store.log_served(served)
        store.log_served(Served("r2", "score", None, 6, "m1", []))
        store.add_feedback([Event("u1", "p1", 6, request_id="r1")])
        for held in twice(store, reopen):
            assert held.served("r1") == served
            assert held.served("r2") == Served("r2", "score", None, 6, "m1", [])
            assert held.served("r3") is None

    def test_the_secret_stays(self, reopen: Open) -> None:
        secret = reopen().secret()
        assert len(secret) == 32
        assert reopen().secret() == secret

    def test_many_threads_write_and_read(self, reopen: Open) -> None:
        store = reopen()

        def work(number: int) -> int:
            store.add_feedback([Event(f"u{number % 3}", f"p{number}", number)])
            return sum(event.item_id == f"p{number}" for event in store.feedback_of(f"u{number % 3}", limit=100))

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(60))) == [1] * 60

    def test_after_it_is_closed_it_takes_nothing(self, reopen: Open) -> None:
        store = reopen()
        store.close()
        with pytest.raises(StoreFailureError):
            store.add_feedback([Event("u1", "p1", 1)])


class TestSqlite:
    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        store = SqliteStore(tmp_path)
        with pytest.raises(ConfigError, match="--data"):
            SqliteStore(tmp_path)
        store.close()
        SqliteStore(tmp_path).close()

    def test_every_commit_is_synced(self, tmp_path: Path) -> None:
        store = SqliteStore(tmp_path)
        assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
        store.close()

    def test_something_else_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / DATABASE).write_bytes(b"no database at all" * 100)
        with pytest.raises(ArtifactError, match="a store of mmrec serve"):
            SqliteStore(tmp_path)
        assert (tmp_path / DATABASE).read_bytes().startswith(b"no database")

    def test_another_version_is_refused(self, tmp_path: Path) -> None:
        SqliteStore(tmp_path).close()
        with sqlite3.connect(tmp_path / DATABASE) as connection:
            connection.execute("UPDATE about SET value = ? WHERE name = 'schema_version'", (b"99",))
        with pytest.raises(ArtifactError, match="version 1.*99"):
            SqliteStore(tmp_path)
