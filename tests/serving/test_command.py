"""The commands as a user types them, in processes of their own."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import uvicorn
from threadpoolctl import ThreadpoolController

from mmrec.commands.serve import bound_socket, serve_run
from mmrec.errors import ConfigError, MmrecError
from mmrec.serving.stores.sqlite_store import SqliteStore

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PATIENCE = 60


def mmrec(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmrec.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Process:
    """``mmrec serve`` as a process."""

    def __init__(self, run: Path, vectors: Path, folder: Path, *options: object) -> None:
        self.port, self.folder = free_port(), folder
        command = [sys.executable, "-m", "mmrec.cli", "serve", run, "--vectors", vectors, "--port", self.port]
        command += ["--device", "cpu", *options]
        self._errors = (folder / f"stderr-{self.port}").open("w+")
        self.process = subprocess.Popen(
            [*map(str, command)], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=self._errors
        )
        self._wait()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> dict[str, object]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return dict(json.loads(answer.read()))

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def _wait(self) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            try:
                assert self.ask("GET", "/health/ready")["status"] == "ready"
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
            else:
                return
        self.process.kill()
        raise AssertionError(f"it did not start: {self.errors()}")


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def ended_amid_a_request(process: Process, bearer: dict[str, str]) -> int:
    """Tell a service to end between two halves of a request, and return the status of the answer."""
    body = json.dumps({"history": ["p01"], "candidates": ["p02", {"caption": "red scarf"}]}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=PATIENCE)
    connection.putrequest("POST", "/v1/score")
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **bearer}.items():
        connection.putheader(name, value)
    connection.endheaders(body[:10])
    other = urllib.request.Request(f"http://127.0.0.1:{process.port}/metrics", headers=bearer)
    until = time.monotonic() + PATIENCE
    while b"\nmmrec_requests_in_work 1.0" not in urllib.request.urlopen(other, timeout=PATIENCE).read():
        assert time.monotonic() < until, "the request did not begin"
    process.process.send_signal(signal.SIGTERM)
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE).close()
        except OSError:  # it takes no more
            break
    connection.send(body[10:])
    answer = connection.getresponse()
    answer.read()
    return answer.status


def test_killed_at_any_moment_it_loses_nothing_that_it_acknowledged(
    tiny_run: Path, served_vectors: Path, tmp_path: Path, processes: list[Process]
) -> None:
    """Killed, started again, and then open to other machines, with a key."""
    processes.append(Process(tiny_run, served_vectors, tmp_path))
    first = processes[-1]
    acknowledged: list[object] = []

    def write() -> None:
        """Publish and feed back until nobody answers any more."""
        for number in range(10_000):
            try:
                answer = first.ask("PUT", f"/v1/items/new-{number}", {"caption": f"post {number}"})
                first.ask("POST", "/v1/feedback", {"events": [{"user_id": "newcomer", "item_id": f"new-{number}"}]})
            except (OSError, http.client.HTTPException):
                return
            acknowledged.append(answer["item_id"])

    writer = threading.Thread(target=write)
    writer.start()
    while len(acknowledged) < 20 and writer.is_alive():
        time.sleep(0.01)
    assert (tmp_path / "mmrec-data").is_dir(), "the default place"
    with pytest.raises(ConfigError, match="no other service"):
        SqliteStore(tmp_path / "mmrec-data")
    assert first.end(signal.SIGKILL) == -signal.SIGKILL, "in the middle of a write"
    writer.join(PATIENCE)
    assert len(acknowledged) >= 20

    made = mmrec("keys", "create", "--scope", "read", "--name", "feed-ranker", "--file", "keys.toml", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key not in (tmp_path / "keys.toml").read_text() + made.stderr
    processes.append(Process(tiny_run, served_vectors, tmp_path, "--host", "0.0.0.0", "--keys", "keys.toml"))
    second, bearer = processes[-1], {"Authorization": f"Bearer {key}"}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        second.ask("GET", "/v1/model")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        second.ask("PUT", "/v1/items/other", {"caption": "x"}, **bearer)
    for number, item_id in enumerate(acknowledged):
        assert second.ask("GET", f"/v1/items/{item_id}", **bearer)["caption"] == f"post {number}"
    answer = second.ask("POST", "/v1/recommend", {"user_id": "newcomer", "k": 500}, **bearer)
    assert answer["user"] == {"kind": "known", "history_length": 8, "unused": []}, "8: train.history_length"
    assert set(acknowledged) <= {row["item_id"] for row in answer["results"]}  # type: ignore[attr-defined]
    assert ended_amid_a_request(second, bearer) == 200, "what was begun is finished"
    assert second.end(signal.SIGTERM) in {0, -signal.SIGTERM}
    assert "Traceback" not in second.errors()
    assert "newcomer" not in second.errors()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "mmrec keys create"),
        (["--host", "example.org"], "--host example.org without --keys"),
        (["--keys", "nothing.toml"], "a file of keys"),
        (["--vectors", "."], "a folder of vectors"),
    ],
)
def test_refusals(tiny_run: Path, served_vectors: Path, tmp_path: Path, options: list[str], words: str) -> None:
    named = {name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    arguments: dict[str, object] = {"vectors": served_vectors, "data": tmp_path / "data"}
    arguments |= {name: value if name == "host" else tmp_path / value for name, value in named.items()}
    with pytest.raises(MmrecError, match=words):
        serve_run(tiny_run, **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "data").exists()


def test_while_it_serves_products_of_numpys_take_one_thread(
    tiny_run: Path, served_vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exact search is such a product; a team of threads for all of them would have requests wait for each other."""
    found: list[set[int]] = []

    def look(server: uvicorn.Server, sockets: object) -> None:
        libraries = ThreadpoolController().select(internal_api="openblas").lib_controllers
        found.append({int(one.num_threads) for one in libraries if "numpy" in str(one.filepath)})

    monkeypatch.setattr(uvicorn.Server, "run", look)
    monkeypatch.setattr("mmrec.commands.serving_process.set_objects_aside", lambda: None)
    with ThreadpoolController().select(internal_api="openblas").limit(limits=2):
        serve_run(tiny_run, vectors=served_vectors, data=tmp_path / "data", port=0)
    (numbers,) = found
    assert numbers <= {1}


def test_while_it_serves_arrow_takes_its_memory_from_the_system(
    tiny_run: Path, served_vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda server, sockets: found.append(pa.default_memory_pool().backend_name)
    )
    monkeypatch.setattr("mmrec.commands.serving_process.set_objects_aside", lambda: None)
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.mimalloc_memory_pool())
    try:
        serve_run(tiny_run, vectors=served_vectors, data=tmp_path / "data", port=0)
    finally:
        pa.set_memory_pool(before)
    assert found == ["system"]


def test_answers_are_sent_at_once() -> None:
    """Without TCP_NODELAY an answer in two writes waits for the caller's delayed acknowledgement, 40 ms."""
    delays: list[int] = []

    async def serve() -> None:
        done = asyncio.Event()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            delays.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            done.set()

        with bound_socket("127.0.0.1", 0) as listening:
            server = await asyncio.start_server(accept, sock=listening)
            await asyncio.open_connection(*listening.getsockname())
            await asyncio.wait_for(done.wait(), PATIENCE)
            server.close()

    asyncio.run(serve())
    assert len(delays) == 1
    assert delays[0]
