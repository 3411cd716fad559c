"""What every store of the service must do; the embedded one is the first of them."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrec.errors import ArtifactError, ConfigError
from mmrec.serving.stores.sqlite_store import DATABASE, SqliteStore
from mmrec.serving.stores.store import Event, Served, Store, StoredPost, StoreFailureError
from tests.databases import WITHOUT_POSTGRES, WITHOUT_QDRANT, PostgresServer, local_qdrant

Open = Callable[[], Store]
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")


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


KINDS = [
    "sqlite",
    pytest.param("postgres", marks=WITHOUT_POSTGRES),
    pytest.param("qdrant", marks=WITHOUT_QDRANT),
]


@pytest.fixture
def make(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Open:
    """Open the store of this test."""
    if kind == "postgres":
        from mmrec.serving.stores.postgres_store import PostgresStore

        url, schema = request.getfixturevalue("postgres").url, f"s{uuid.uuid4().hex}"
        return lambda: PostgresStore(url, schema=schema)
    if kind == "qdrant":
        from mmrec.serving.stores.qdrant_store import QdrantStore

        return lambda: QdrantStore(local_qdrant(tmp_path), settle_seconds=0.0)
    return lambda: SqliteStore(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
class TestStoreContract:
    @pytest.fixture
    def reopen(self, make: Open) -> Iterator[Open]:
        """Open the store; the one before is closed first."""
        opened: list[Store] = []

        def again() -> Store:
            if opened:
                opened[-1].close()
            opened.append(make())
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

    def test_another_vector_of_a_post_that_is_still_the_same(self, reopen: Open) -> None:
        store = reopen()
        numbers = [store.put_post(post(name), [b"one"]) for name in ("p1", "p2")]
        new = post(
            "p1", model_hash="m2", present=("text",), vector=np.array([1, 2], np.float32), caption="not looked at"
        )
        store.set_vector(numbers[0], new)
        for held in twice(store, reopen):
            assert [number for number, _ in held.changes(0)] == numbers
            first, second = held.posts()
            assert same(first, replace(new, caption=post().caption))
            assert same(second, post("p2"))
            assert held.pictures("p1") == (b"one",)
        again = reopen()
        again.put_post(post("p1", caption="newer"), [])
        again.set_vector(numbers[0], new)
        assert [held.model_hash for held in again.posts()] == ["m1", "m1"]

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

    def test_posts_have_rising_numbers_and_changes_are_told_after_one(self, reopen: Open) -> None:
        store = reopen()
        numbers = [store.put_post(post(name), []) for name in ("p1", "p2", "p3")]
        assert 0 < numbers[0] < numbers[1] < numbers[2]
        numbers.append(store.put_post(post("p1", vector=np.zeros(0, np.float32), deleted=True), []))
        for held in twice(store, reopen):
            every = [(number, change.item_id, change.deleted) for number, change in held.changes(0)]
            assert every == [(numbers[1], "p2", False), (numbers[2], "p3", False), (numbers[3], "p1", True)]
            # What is recent may be told again, but nothing new is left out.
            assert [number for number, _ in held.changes(numbers[1]) if number > numbers[1]] == numbers[2:]
            assert not [number for number, _ in held.changes(numbers[3]) if number > numbers[3]]
        after = reopen()
        assert after.put_post(post("p4"), []) > numbers[3], "numbers go on after a restart"

    def test_the_logs_are_read_piece_by_piece(self, reopen: Open) -> None:
        store = reopen()
        events = [Event(f"u{number}", "p1", number) for number in range(5)]
        answers = [Served(f"r{number}", "recommend", None, number, "m1", [("p1", 0.5)]) for number in range(5)]
        for answer in answers:
            store.log_served(answer)
        store.add_feedback(events[:3])
        store.add_feedback(events[3:])
        for held in twice(store, reopen):
            for read, wanted in ((held.feedback_log, events), (held.served_log, answers)):
                found, after = [], 0
                while piece := read(after, limit=2):  # type: ignore[operator]
                    assert len(piece) <= 2
                    assert piece[0][0] > after
                    found += [entry for _, entry in piece]
                    after = piece[-1][0]
                assert found == wanted

    def test_a_setting_is_the_last_one(self, reopen: Open) -> None:
        store = reopen()
        assert store.setting("model") is None
        store.set_setting("model", "one")
        store.set_setting("model", "größer")
        store.set_setting("other", "")
        for held in twice(store, reopen):
            assert (held.setting("model"), held.setting("other")) == ("größer", "")

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
        connection = store._writer.connection
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
        store.close()

    def test_something_else_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / DATABASE).write_bytes(b"no database at all" * 100)
        with pytest.raises(ArtifactError, match="a store of mmrec serve"):
            SqliteStore(tmp_path)
        assert (tmp_path / DATABASE).read_bytes().startswith(b"no database")

    def test_two_processes_of_one_service_see_each_other(self, tmp_path: Path) -> None:
        first = SqliteStore(tmp_path)
        second = SqliteStore(tmp_path, hold=False)
        numbers = [store.put_post(post(f"p{turn}"), []) for turn, store in enumerate([first, second, first])]
        assert numbers == sorted(numbers)
        assert [number for number, _ in second.changes(0)] == numbers
        second.add_feedback([Event("u1", "p1", 1)])
        assert len(first.feedback_of("u1", limit=9)) == 1
        assert first.secret() == second.secret()
        second.close()
        first.close()

    def test_a_store_of_version_1_is_brought_up_to_date(self, tmp_path: Path) -> None:
        store = SqliteStore(tmp_path)
        secret = store.secret()
        for name in ("r2", "r1"):
            store.log_served(Served(name, "score", None, 6, "m1", []))
        store.close()
        with sqlite3.connect(tmp_path / DATABASE) as connection:
            connection.executescript("""
                UPDATE about SET value = x'31' WHERE name = 'schema_version'; DROP TABLE settings;
                ALTER TABLE served RENAME TO new;
                CREATE TABLE served (request_id TEXT PRIMARY KEY, route TEXT NOT NULL, user_id TEXT,
                    timestamp INTEGER NOT NULL, model_hash TEXT NOT NULL, shown TEXT NOT NULL);
                INSERT INTO served SELECT request_id, route, user_id, timestamp, model_hash, shown FROM new ORDER BY number;
                DROP TABLE new;
            """)
        for _ in range(2):
            store = SqliteStore(tmp_path)
            assert [answer.request_id for _, answer in store.served_log(0, limit=9)] == ["r2", "r1"]
            assert (store.setting("x"), store.secret()) == (None, secret)
            store.close()

    def test_another_version_is_refused(self, tmp_path: Path) -> None:
        SqliteStore(tmp_path).close()
        with sqlite3.connect(tmp_path / DATABASE) as connection:
            connection.execute("UPDATE about SET value = ? WHERE name = 'schema_version'", (b"99",))
        with pytest.raises(ArtifactError, match="version 2.*99"):
            SqliteStore(tmp_path)


@WITHOUT_POSTGRES
class TestPostgres:
    @pytest.fixture
    def schema(self) -> str:
        return f"s{uuid.uuid4().hex}"

    def test_processes_that_start_at_once_make_one_store(self, postgres: PostgresServer, schema: str) -> None:
        from mmrec.serving.stores.postgres_store import PostgresStore

        with ThreadPoolExecutor(4) as pool:
            stores = list(pool.map(lambda _: PostgresStore(postgres.url, schema=schema), range(4)))
        assert len({store.secret() for store in stores}) == 1
        numbers = [store.put_post(post(f"p{turn}"), []) for turn, store in enumerate(stores)]
        assert [number for number, _ in stores[0].changes(0)] == numbers
        for store in stores:
            store.close()

    def test_a_write_under_way_is_waited_for_not_left_out(self, postgres: PostgresServer, schema: str) -> None:
        import psycopg

        from mmrec.serving.stores.postgres_store import PostgresStore

        store = PostgresStore(postgres.url, schema=schema)
        with psycopg.connect(postgres.url) as slow, ThreadPoolExecutor(1) as pool:
            slow.execute(f"SELECT pg_advisory_xact_lock_shared(hashtextextended('{schema}.feedback', 0))")
            values = "('u1', 'first', 1, true)"
            slow.execute(f"INSERT INTO {schema}.feedback (user_id, item_id, timestamp, chosen) VALUES {values}")
            store.add_feedback([Event("u1", "second", 2)])
            reading = pool.submit(store.feedback_log, 0, limit=9)
            with pytest.raises(TimeoutError):
                reading.result(timeout=0.2)
            slow.commit()
            assert [event.item_id for _, event in reading.result(timeout=30)] == ["first", "second"]
        store.close()

    def test_it_comes_back_when_the_server_does(
        self, postgres: PostgresServer, schema: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mmrec.serving.stores.postgres_store import PostgresStore

        monkeypatch.setattr("mmrec.search.postgres._PATIENCE", 1.0)
        store = PostgresStore(postgres.url, schema=schema)
        store.put_post(post(), [])
        postgres.stop()
        try:
            with pytest.raises(StoreFailureError):
                store.add_feedback([Event("u1", "p1", 1)])
            with pytest.raises(StoreFailureError):
                list(store.posts())
        finally:
            postgres.start()
        store.add_feedback([Event("u1", "p1", 2)])
        assert [event.timestamp for event in store.feedback_of("u1", limit=9)] == [2]
        assert [held.item_id for held in store.posts()] == ["p1"]
        store.close()

    def test_text_that_postgres_cannot_hold(self, postgres: PostgresServer, schema: str) -> None:
        from mmrec.serving.stores.postgres_store import PostgresStore

        store = PostgresStore(postgres.url, schema=schema)
        store.put_post(post(caption="a\0b", attributes={"colour": "a\0b"}), [])
        (held,) = store.posts()
        assert (held.caption, held.attributes) == ("a\ufffdb", {"colour": "a\0b"})
        store.close()

    def test_a_server_that_is_not_there(self) -> None:
        from mmrec.serving.stores.postgres_store import PostgresStore

        with pytest.raises(ConfigError, match="can be reached.*127.0.0.1:1/db") as caught:
            PostgresStore("postgresql://me:hunter2@127.0.0.1:1/db")
        assert "hunter2" not in str(caught.value)

    def test_another_version_is_refused(self, postgres: PostgresServer, schema: str) -> None:
        import psycopg

        from mmrec.serving.stores.postgres_store import PostgresStore

        PostgresStore(postgres.url, schema=schema).close()
        with psycopg.connect(postgres.url) as connection:
            connection.execute(f"UPDATE {schema}.about SET value = '99' WHERE name = 'schema_version'")
        with pytest.raises(ArtifactError, match="version 1.*99"):
            PostgresStore(postgres.url, schema=schema)


@WITHOUT_QDRANT
class TestQdrant:
    def test_the_later_number_stays_whoever_comes_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from mmrec.serving.stores.qdrant_store import QdrantStore

        store = QdrantStore(local_qdrant(tmp_path))
        store.put_post(post(caption="later"), [])
        monkeypatch.setattr(store, "_numbers", lambda count: range(5, 5 + count))
        store.put_post(post(caption="drawn before, written after"), [])
        assert [held.caption for held in store.posts()] == ["later"]
        store.close()

    def test_what_may_still_get_company_is_told_again_or_not_yet(self, tmp_path: Path) -> None:
        from mmrec.serving.stores.qdrant_store import QdrantStore

        store = QdrantStore(local_qdrant(tmp_path), settle_seconds=60.0)
        number = store.put_post(post(), [])
        store.add_feedback([Event("u1", "p1", 1)])
        assert [told for told, _ in store.changes(number)] == [number]
        assert store.feedback_log(0, limit=9) == []
        store.close()

    def test_a_page_never_ends_between_two_of_one_number(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from mmrec.serving.stores.qdrant_store import QdrantStore

        store = QdrantStore(local_qdrant(tmp_path), settle_seconds=0.0)
        for number in (1, 2, 2, 3):
            monkeypatch.setattr(store, "_numbers", lambda count, first=number: range(first, first + count))
            store.add_feedback([Event("u1", "p1", number)])
        assert [number for number, _ in store.feedback_log(0, limit=2)] == [1]
        assert [number for number, _ in store.feedback_log(1, limit=1)] == [2, 2]
        assert [number for number, _ in store.feedback_log(1, limit=3)] == [2, 2, 3]
        store.close()

    def test_a_server_that_is_not_there(self) -> None:
        from mmrec.search.qdrant_server import Qdrant

        with pytest.raises(ConfigError, match="can be reached.*http://127.0.0.1:1") as caught:
            Qdrant.open("http://:hunter2@127.0.0.1:1")
        assert "hunter2" not in str(caught.value)
