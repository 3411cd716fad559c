"""Several processes of one service: what one takes in all of them know, and one that is killed takes nothing along."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmrec.serving.stores.sqlite_store import SqliteStore
from tests.serving.test_command import PATIENCE, Process

WORKERS = 2
INDEX = 'mmrec_index_items{{source="exported",worker="{}"}}'


def until(true: Callable[[], bool]) -> None:
    """Wait for something that is to become true soon."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The worker processes of a service."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


class Line:
    """A connection that stays open, and so stays with one worker."""

    def __init__(self, process: Process) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=PATIENCE)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def figures(self) -> dict[str, float]:
        lines = [line for line in self.ask("GET", "/metrics")[1].decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def lines_to_each(process: Process) -> list[Line]:
    """A connection to each worker, told apart by the worker that counts its requests."""
    name = 'mmrec_requests_total{{route="metrics",status="200",worker="{}"}}'
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found: dict[int, Line] = {}
        # A connection that waits for five seconds is closed: found at about one time, or looked for again.
        since = time.monotonic()
        while len(found) < WORKERS and time.monotonic() < since + 2:
            line = Line(process)
            before, after = line.figures(), line.figures()
            # Its own figures are fresh on the page, those of the others as they were up to a second ago.
            own = [n for n in range(WORKERS) if after.get(name.format(n), 0) == before.get(name.format(n), 0) + 1]
            if len(own) == 1:
                found.setdefault(own[0], line)
        if len(found) == WORKERS:
            return [found[number] for number in sorted(found)]
    raise AssertionError("not every worker answers")


@pytest.fixture(scope="module")
def process(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder, models = tmp_path_factory.mktemp("workers"), models_folder
    options = ["--workers", WORKERS, "--store", folder / "store", "--models", models]
    started = Process(models / "tiny", models / "tiny-vectors", folder, *options)
    until(lambda: {INDEX.format(number) for number in range(WORKERS)} <= set(Line(started).figures()))
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.wait()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not show its processes")
class TestWorkers:
    def test_what_one_takes_in_the_others_offer_within_moments(self, process: Process) -> None:
        one, other = lines_to_each(process)
        for number in range(3):
            assert one.ask("PUT", "/v1/items/shared", {"caption": f"caption {number}"})[0] == 200

            def arrived(wanted: str = f"caption {number}") -> bool:
                status, body = other.ask("GET", "/v1/items/shared")
                return status == 200 and json.loads(body)["caption"] == wanted

            until(arrived)
        status, body = other.ask("POST", "/v1/search", {"text": "caption 2", "k": 500})
        assert status == 200
        assert "shared" in [row["item_id"] for row in json.loads(body)["results"]]
        assert other.ask("DELETE", "/v1/items/shared")[0] == 200
        until(lambda: one.ask("GET", "/v1/items/shared")[0] == 404)
        assert one.ask("POST", "/v1/feedback", {"events": [{"user_id": "n", "item_id": "p01"}]})[0] == 200
        known = json.loads(other.ask("POST", "/v1/recommend", {"user_id": "n"})[1])
        assert known["user"]["history_length"] == 1, "feedback is read from the store: at once"

    def test_the_page_of_figures_has_all_workers(self, process: Process) -> None:
        one, other = lines_to_each(process)
        for line in (one, other):
            assert {INDEX.format(number) for number in range(WORKERS)} <= set(line.figures())
        page = one.ask("GET", "/metrics")[1].decode()
        assert page.count("# TYPE mmrec_requests_total counter") == 1

    def test_a_swap_reaches_all_workers(self, process: Process) -> None:
        def model(line: Line) -> object:
            return json.loads(line.ask("GET", "/v1/model")[1])["model"]

        one, other = lines_to_each(process)
        first = model(one)
        assert one.ask("PUT", "/v1/items/before", {"caption": "published before"})[0] == 200
        assert one.ask("POST", "/admin/model", {"run": "content", "vectors": "content-vectors"})[0] == 200
        until(lambda: model(other) == model(one) != first)
        assert other.ask("PUT", "/v1/items/after", {"caption": "published after"})[0] == 200
        for item_id in ("before", "after"):
            for line in (one, other):
                until(lambda line=line, item_id=item_id: line.ask("GET", f"/v1/items/{item_id}")[0] == 200)
        assert other.ask("POST", "/admin/rollback", {})[0] == 200
        until(lambda: model(one) == model(other) == first)
        assert one.ask("GET", "/v1/items/after")[0] == 200

    def test_who_is_killed_loses_nothing_one_worker_first_then_all(self, process: Process) -> None:
        acknowledged: Counter[str] = Counter()
        stop = threading.Event()

        def write(writer: int) -> None:
            number = 0
            while not stop.is_set():
                item_id, number = f"k{writer}-{number}", number + 1
                try:
                    process.ask("PUT", f"/v1/items/{item_id}", {"caption": item_id})
                    event = {"user_id": f"w{writer}", "item_id": item_id}
                    process.ask("POST", "/v1/feedback", {"events": [event]})
                except (OSError, http.client.HTTPException):
                    continue  # the worker that had it is gone; nothing was acknowledged
                acknowledged[item_id] += 1

        writers = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
        for writer in writers:
            writer.start()
        until(lambda: len(acknowledged) > 20)
        before = children(process.process.pid)
        assert len(before) == WORKERS
        os.kill(before[0], signal.SIGKILL)
        served = len(acknowledged)
        until(lambda: len(acknowledged) > served + 20)
        until(lambda: len(set(children(process.process.pid)) - set(before)) == 1)
        stop.set()
        for writer in writers:
            writer.join(PATIENCE)
        assert f"ended with code {-signal.SIGKILL}" in process.errors()
        lines = lines_to_each(process)
        for item_id in acknowledged:
            for line in lines:
                until(lambda item_id=item_id, line=line: line.ask("GET", f"/v1/items/{item_id}")[0] == 200)
        workers = children(process.process.pid)
        process.end(signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        assert "Traceback" not in process.errors()
        store = SqliteStore(process.folder / "store")
        kept = {event.item_id for _, event in store.feedback_log(0, limit=100_000)}
        store.close()
        assert set(acknowledged) <= kept
