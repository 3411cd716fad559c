"""What a service took in becomes a feed that can be prepared, whatever interrupts the pull."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from data_tools import cli
from data_tools.prepare import PrepareOptions, SplitPlan, prepare
from data_tools.pull import KEY_VARIABLE, pull, read_key
from data_tools.pulled_tables import RawFeed
from data_tools.service_log import Kind, Page, ServiceLog
from data_tools.store_log import StoreLog, open_store, source_name
from mmrec.errors import ArtifactError, FeedError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.preprocessing.pictures import load_picture
from mmrec.serving.http.keys import KeyRing, create_key
from mmrec.serving.stores.store import Event, Store
from tests.databases import WITHOUT_POSTGRES, WITHOUT_QDRANT, PostgresServer, local_qdrant
from tests.serving.served import Serve, Server, in_base64, picture
from tests.tiny_run import NUM_EVENTS, NUM_ITEMS, NUM_USERS, interactions_table, items_table, write_raw

START = 1_600_000_000_000
DAY = 86_400_000
PREPARE = PrepareOptions(image_side=32, split=SplitPlan(kind="leave_last_out"), workers=1, max_bad=0.0)


class ClientLog:
    """The logs of a service in this process, a few entries a page; may end suddenly."""

    def __init__(self, server: Server, *, limit: int = 3, pages: int = 1000) -> None:
        self._server, self._limit, self._pages = server, limit, pages
        self.asked: list[tuple[Kind, int]] = []

    def page(self, kind: Kind, after: int) -> Page:
        if len(self.asked) == self._pages:
            raise FeedError("a service that answers", got="none")
        self.asked.append((kind, after))
        body = self._server.get(f"/v1/log/{kind}", after=after, limit=self._limit)
        return Page(list(body["entries"]), int(str(body["next"])), bool(body["more"]))  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawFeed:
    """The tiny feed, with days for its steps."""
    events = interactions_table()
    events["timestamp"] = START + DAY * events["timestamp"]
    return RawFeed(write_raw(tmp_path_factory.mktemp("raw") / "feed", items_table(), events))


@pytest.fixture
def used(server: Server) -> Server:
    """A service to which things happened."""
    server.put("n1", {"caption": "a red scarf", "image": in_base64(picture(1)), "attributes": {"price": 2.5}})
    server.put("n2", {"image": [in_base64(picture(2)), in_base64(picture(3))], "published_at": START})
    server.put("gone", {"caption": "soon taken back", "image": in_base64(picture(4))})
    server.put("p04", {"caption": "instead of an old one"})
    server.put("n1", {"caption": "a blue scarf", "image": in_base64(picture(1)), "attributes": {"price": 2}})
    server.client.delete("/v1/items/gone")
    server.client.delete("/v1/items/p07")
    shown = server.post("recommend", {"user_id": "u01", "k": 3})
    events = [
        {"user_id": "u01", "item_id": "n1", "event": "like", "value": 2.5, "timestamp": START + 90 * DAY},
        {"user_id": "u01", "item_id": "p02", "timestamp": START + 91 * DAY, "request_id": shown["request_id"]},
        {"user_id": "new", "item_id": "n2", "event": "click", "timestamp": START + 92 * DAY},
        {"user_id": "new", "item_id": "p03", "event": "skip", "chosen": False},
        {"user_id": "new", "item_id": "gone"},
    ]
    server.post("feedback", {"events": events})
    return server


def test_the_feed_behind_it_can_be_prepared_and_all_agrees(used: Server, raw: RawFeed, tmp_path: Path) -> None:
    out = tmp_path / "pulled"
    log = ClientLog(used)
    report = pull(log, out, source="here", feed=raw)
    assert (report.items, report.published, report.answers) == (NUM_ITEMS - 1 + 2, 3, 1)
    before = int((interactions_table()["item_id"] == "p07").sum())
    assert (report.not_chosen, report.of_other_items, report.new_events) == (1, 1 + before, 5)
    prepare(out, tmp_path / "prepared", options=PREPARE)
    catalogue, histories = Catalogue.load(tmp_path / "prepared"), Histories.load(tmp_path / "prepared")
    expected = [item_id for item_id in items_table()["item_id"] if item_id not in ("p04", "p07")]
    assert set(catalogue.item_ids) == {*expected, "n1", "n2", "p04"}
    assert [catalogue.caption(catalogue.row(i)) for i in ("n1", "n2", "p04")] == [
        "a blue scarf",
        None,
        "instead of an old one",
    ]
    row = catalogue.row("n2")
    for seed, found in zip((2, 3), catalogue.images(row), strict=True):
        np.testing.assert_array_equal(found, load_picture(picture(seed), side=32))
    assert catalogue.first_seen[row] == START
    assert len(catalogue.images(catalogue.row("p04"))) == 0, "the old one's picture went with it"
    attributes = catalogue.attributes.set_index("item_id")
    assert attributes.loc["n1", "price"] == "2"
    prepare(raw.folder, tmp_path / "old", options=PREPARE)
    old = Catalogue.load(tmp_path / "old")
    for item_id in expected:
        one, other = catalogue.row(item_id), old.row(item_id)
        assert catalogue.caption(one) == old.caption(other)
        for picture_now, picture_then in zip(catalogue.images(one), old.images(other), strict=True):
            np.testing.assert_array_equal(picture_now, picture_then)
    then = old.attributes.set_index("item_id").loc[expected, ["colour", "price", "stock", "tags"]]
    pd.testing.assert_frame_equal(attributes.loc[expected, then.columns], then)
    events = events_of(catalogue, histories)
    assert events["u01"][-2:] == [("n1", START + 90 * DAY, "like", 2.5), ("p02", START + 91 * DAY, None, None)]
    assert events["new"] == [("n2", START + 92 * DAY, "click", None)]
    assert sum(map(len, events.values())) == NUM_USERS * NUM_EVENTS - before + 3
    assert events["u05"] == [
        (str(item), START + DAY * int(step), None, None)
        for user, item, step in interactions_table().itertuples(index=False)
        if user == "u05" and item != "p07"
    ]
    feedback, served = pd.read_parquet(out / "feedback.parquet"), pd.read_parquet(out / "served.parquet")
    assert feedback["chosen"].tolist() == [True, True, True, False, True]
    assert served["request_id"].tolist() == [feedback["request_id"][1]]
    assert (served["user_id"][0], served["route"][0], len(served["item_id"][0])) == ("u01", "recommend", 3)
    kept = {path.name for path in (out / "images" / "pulled").iterdir()}
    assert len(kept) == 3, "not that of the post that was taken back"


def test_a_store_tells_what_its_service_tells(used: Server, raw: RawFeed, tmp_path: Path) -> None:
    """A store of files is read beside the service that writes to it."""
    pull(ClientLog(used), tmp_path / "served", source="here", feed=raw)
    for number in range(2):
        options = ["--feed", str(raw.folder), "--out", str(tmp_path / "stored"), "--json"]
        done = CliRunner().invoke(cli.app, ["pull", "--from", str(tmp_path / "data"), *options])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["new_events"] == (5, 0)[number], "the second time nothing is new"
    assert tables(tmp_path / "stored") == tables(tmp_path / "served")
    names = [{path.name for path in (tmp_path / of / "images" / "pulled").iterdir()} for of in ("stored", "served")]
    assert names[0] == names[1]
    with pytest.raises(FeedError, match="the service .*data, got"):
        pull(ClientLog(used), tmp_path / "stored", source="http://localhost:8000", feed=raw)


@pytest.mark.parametrize(
    "kind", [pytest.param("postgres", marks=WITHOUT_POSTGRES), pytest.param("qdrant", marks=WITHOUT_QDRANT)]
)
@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
def test_databases_tell_the_same(kind: str, used: Server, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = used.service.store
    other: Store
    if kind == "postgres":
        from mmrec.serving.stores.postgres_store import PostgresStore

        other = PostgresStore(request.getfixturevalue("postgres").url, schema="pulled")
    else:
        from mmrec.serving.stores.qdrant_store import QdrantStore

        other = QdrantStore(local_qdrant(), settle_seconds=0.0)
    for post in store.posts():
        other.put_post(post, store.pictures(post.item_id))
    other.add_feedback([event for _, event in store.feedback_log(0, limit=100)])
    for _, served in store.served_log(0, limit=100):
        other.log_served(served)
    other.add_feedback([Event("last", "p01", START)])
    store.add_feedback([Event("last", "p01", START)])
    pull(ClientLog(used), tmp_path / "served", source="here")
    pull(StoreLog(other, integer_ids=False, limit=2), tmp_path / "stored", source="there")
    other.close()

    def unnumbered(folder: Path) -> dict[str, list[dict[str, object]]]:
        found = tables(folder)
        return {name: [row | {"number": 0} for row in rows] for name, rows in found.items()}

    assert unnumbered(tmp_path / "stored") == unnumbered(tmp_path / "served")


def test_what_is_no_store_stays_as_it_is_and_passwords_stay_secret(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="a folder with the store"), open_store(str(tmp_path)):
        pass
    assert not list(tmp_path.iterdir())
    for place, name in [
        ("postgresql://me:secret@db/mmrec?password=secret&host=/run", "postgresql://db/mmrec?host=/run"),
        ("postgresql://db/mmrec?passfile=/home/me/x&port=5433&options=secret", "postgresql://db/mmrec?port=5433"),
        ("qdrant+https://:secret@host:6333", "qdrant+https://host:6333"),
        ("qdrant+https://host:6333?api_key=secret#secret", "qdrant+https://host:6333"),
        (str(tmp_path / "x" / ".." / "data"), str(tmp_path / "data")),
    ]:
        assert source_name(place) == name


@WITHOUT_POSTGRES
def test_a_database_without_a_store_is_refused_and_stays_as_it_is(postgres: PostgresServer) -> None:
    import psycopg

    from mmrec.serving.stores.postgres_store import PostgresStore

    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS mistyped CASCADE")
        with pytest.raises(ArtifactError, match="a store of mmrec serve, got"):
            PostgresStore(postgres.url, schema="mistyped", make=False)
        row = connection.execute("SELECT to_regnamespace('mistyped')").fetchone()
        assert row == (None,)
    PostgresStore(postgres.url, schema="mistyped").close()
    PostgresStore(postgres.url, schema="mistyped", make=False).close()


@WITHOUT_QDRANT
@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
def test_a_server_without_a_store_is_refused_and_stays_as_it_is() -> None:
    from mmrec.serving.stores.qdrant_store import QdrantStore

    qdrant = local_qdrant()
    with pytest.raises(ArtifactError, match="a store of mmrec serve, got"):
        QdrantStore(qdrant, make=False)
    with qdrant.calling() as client:
        assert not client.get_collections().collections
    QdrantStore(qdrant)
    QdrantStore(qdrant, make=False).close()


def events_of(catalogue: Catalogue, histories: Histories) -> dict[str, list[tuple[object, ...]]]:
    """Every user's events: item, time, name, value."""
    found: dict[str, list[tuple[object, ...]]] = {}
    for row, user_id in enumerate(histories.user_ids):
        for event in range(int(histories.offsets[row]), int(histories.offsets[row + 1])):
            code = -1 if histories.event_codes is None else int(histories.event_codes[event])
            value = np.nan if histories.values is None else float(histories.values[event])
            entry = (
                str(catalogue.item_ids[histories.item_rows[event]]),
                int(histories.timestamps[event]),
                histories.event_names[code] or None if code >= 0 else None,
                None if np.isnan(value) else value,
            )
            found.setdefault(str(user_id), []).append(entry)
    return found


def tables(folder: Path) -> dict[str, list[dict[str, object]]]:
    names = ("items", "interactions", "feedback", "served")
    return {name: json.loads(pd.read_parquet(folder / f"{name}.parquet").to_json(orient="records")) for name in names}


def test_a_pull_that_was_interrupted_goes_on(used: Server, tmp_path: Path) -> None:
    pull(ClientLog(used), tmp_path / "whole", source="here")
    for _ in range(20):
        log = ClientLog(used, limit=1, pages=1)
        try:
            pull(log, tmp_path / "pieces", source="here")
        except FeedError:
            continue
        raise AssertionError("one page is not enough")
    last = ClientLog(used, limit=1)
    pull(last, tmp_path / "pieces", source="here")
    assert tables(tmp_path / "pieces") == tables(tmp_path / "whole")
    assert all(after > 0 for _, after in last.asked[:1])
    assert not list((tmp_path / "pieces").rglob("*.partial*"))
    used.post("feedback", {"events": [{"user_id": "new", "item_id": "n1", "timestamp": START}]})
    later = ClientLog(used, limit=10)
    report = pull(later, tmp_path / "pieces", source="here")
    assert (report.new_posts, report.new_events, report.new_answers) == (0, 1, 0)
    assert len(later.asked) == 3
    assert tables(tmp_path / "pieces")["interactions"][-1]["timestamp"] == START


def test_alone_it_holds_what_was_published(used: Server, tmp_path: Path) -> None:
    report = pull(ClientLog(used), tmp_path / "alone", source="here")
    assert (report.items, report.interactions, report.of_other_items) == (3, 2, 2)
    prepare(tmp_path / "alone", tmp_path / "prepared", options=replace(PREPARE, split=None))
    assert set(Catalogue.load(tmp_path / "prepared").item_ids) == {"n1", "n2", "p04"}


def test_folders_that_are_something_else(used: Server, tmp_path: Path, raw: RawFeed) -> None:
    with pytest.raises(FeedError, match="a folder that a pull made"):
        pull(ClientLog(used), raw.folder, source="here")
    pull(ClientLog(used), tmp_path / "one", source="here")
    with pytest.raises(FeedError, match="the service here, got there"):
        pull(ClientLog(used), tmp_path / "one", source="there")
    ranks = RawFeed(raw.folder, unit="order")
    with pytest.raises(FeedError, match="timestamps are times"):
        pull(ClientLog(used), tmp_path / "two", source="here", feed=ranks)


def test_logs_need_an_admin(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys = {scope: create_key(path, name=scope, scope=scope) for scope in ("read", "write", "admin")}  # type: ignore[arg-type]
    server = serve(keys=KeyRing.load(path))
    for kind in ("posts", "feedback", "served"):
        statuses = [
            server.client.get(f"/v1/log/{kind}", headers={"Authorization": f"Bearer {key}"}).status_code
            for key in (*keys.values(), "wrong")
        ]
        assert statuses == [403, 403, 200, 401]
    headers = {"Authorization": f"Bearer {keys['admin']}"}
    for query in ("after=-1", "after=x", "limit=0", "limit=10001", "page=2", "after=99999999999999999999"):
        assert server.client.get(f"/v1/log/feedback?{query}", headers=headers).status_code == 422, query


class _Answers(BaseHTTPRequestHandler):
    """Gives prepared answers, one after the other."""

    answers: list[tuple[int, dict[str, str], str]]
    keys: list[str | None]

    def do_GET(self) -> None:
        status, headers, body = self.answers.pop(0)
        self.keys.append(self.headers.get("Authorization"))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@contextmanager
def answering(*answers: tuple[int, dict[str, str], str]) -> Iterator[tuple[str, list[str | None]]]:
    """A server that gives these answers; yields its address and the keys that it was shown."""
    keys: list[str | None] = []
    handler = type("Handler", (_Answers,), {"answers": list(answers), "keys": keys})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", keys
        server.shutdown()
        thread.join()


class TestOverHttp:
    page = '{"entries": [{"number": 4}], "next": 4, "more": false, "request_id": "r"}'

    def test_what_is_busy_is_asked_again_with_the_key(self) -> None:
        slept: list[float] = []
        busy = [(429, {"Retry-After": "7"}, "{}"), (503, {}, "")]
        with answering(*busy, (200, {}, self.page)) as (url, keys):
            assert ServiceLog(url, "k1", sleep=slept.append).page("posts", 3) == Page([{"number": 4}], 4, more=False)
        assert keys == ["Bearer k1"] * 3
        assert slept == [7.0, 1.0]

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            ((401, {}, '{"detail": "expected a key"}'), "401: expected a key.*--key-file"),
            ((403, {}, "<html>"), "status 403.*--key-file"),
            ((302, {"Location": "http://127.0.0.1:1/"}, ""), "status 302"),
            ((200, {}, "<html>"), "a page of a log"),
            ((200, {}, '{"entries": 3}'), "a page of a log"),
        ],
    )
    def test_refusals(self, answer: tuple[int, dict[str, str], str], words: str) -> None:
        with answering(answer) as (url, _), pytest.raises(FeedError, match=words):
            ServiceLog(url, None, sleep=lambda seconds: None).page("feedback", 0)

    def test_nobody_there(self) -> None:
        slept: list[float] = []
        with pytest.raises(FeedError, match="a service that answers"):
            ServiceLog("http://127.0.0.1:1", None, sleep=slept.append).page("feedback", 0)
        assert slept == [0.5, 1, 2, 4, 8]

    @pytest.mark.parametrize(
        "url", ["localhost:8000", "file:///etc/passwd", "http://", "http://u:p@host", "http://a?b=c"]
    )
    def test_no_address(self, url: str) -> None:
        with pytest.raises(FeedError, match="the address of a service"):
            ServiceLog(url, None)

    def test_the_command_takes_the_key_from_a_file_or_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "key"
        path.write_text("k2\n", encoding="utf-8")
        empty = '{"entries": [], "next": 0, "more": false}'
        monkeypatch.setenv(KEY_VARIABLE, "k1")
        with answering(*[(200, {}, empty)] * 6) as (url, keys):
            for number, options in enumerate([[], ["--key-file", str(path)]]):
                command = ["pull", "--from", url, "--out", str(tmp_path / f"out{number}"), "--json", *options]
                done = CliRunner().invoke(cli.app, command)
                assert done.exit_code == 0, done.output
                assert json.loads(done.stdout)["items"] == 0
        assert keys == ["Bearer k1"] * 3 + ["Bearer k2"] * 3
        path.write_text("two words", encoding="utf-8")
        with pytest.raises(FeedError, match="a key and nothing else"):
            read_key(path)
        with pytest.raises(FeedError, match="a file that holds a key"):
            read_key(tmp_path / "nothing")
