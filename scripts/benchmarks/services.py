"""Services and their clients as processes on this machine."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import load_client
from benchmarks.load_client import Answers, Plan
from benchmarks.processes import memory

PATIENCE = 300.0
"""Seconds that a service may take to be ready."""
SCRIPTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Service:
    """A service that answers.

    Args:
        port: where it listens, on this machine.
        process: its process.
    """

    port: int
    process: subprocess.Popen[bytes]

    def ask(self, method: str, path: str, body: object = None, *, timeout: float = PATIENCE) -> dict[str, object]:
        """Return the answer to a request.

        Raises:
            RuntimeError: it is a refusal.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {text}")
        return dict(json.loads(text))

    @property
    def memory_mb(self) -> float:
        """Resident memory of its processes."""
        return memory(self.process.pid) / 1e6


@contextmanager
def service(module: str, *arguments: object, log: Path) -> Iterator[Service]:
    """Start a module with ``--port``, yield it when it is ready, and end it.

    Raises:
        RuntimeError: it does not come up; the message is the end of its log.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = int(taken.getsockname()[1])
    command = [sys.executable, "-m", module, *map(str, arguments), "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=_environment(), stdout=file, stderr=file)
        try:
            started = Service(port, process)
            _wait(started, log)
            yield started
        finally:
            process.terminate()
            process.wait(60)


def _wait(started: Service, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and started.process.poll() is None:
        try:
            started.ask("GET", "/health/ready", timeout=10)
        except (OSError, RuntimeError, http.client.HTTPException):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"it did not start: {log.read_text(errors='replace')[-2000:]}")


class Clients:
    """Clients at work in a process of their own, until their time is over or they are stopped.

    Args:
        plan: what they do.
    """

    def __init__(self, plan: Plan) -> None:
        # As a file, not as a module of the package, whose other parts bring a model's libraries along.
        command = [sys.executable, str(Path(load_client.__file__))]
        self._process = subprocess.Popen(
            command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(plan)) + "\n")
        self._process.stdin.flush()

    def stop(self) -> Answers:
        """Let them finish what they asked, and return what came back."""
        output, _ = self._process.communicate("stop\n")
        return Answers(**json.loads(output))

    def wait(self) -> Answers:
        """Return what came back when their time is over."""
        assert self._process.stdout is not None
        output = self._process.stdout.read()
        self._process.communicate()
        return Answers(**json.loads(output))


def load(plan: Plan) -> Answers:
    """Carry a plan out."""
    return Clients(plan).wait()


class MemoryWatch:
    """Reads the memory of a service every second.

    Args:
        watched: the service.
    """

    def __init__(self, watched: Service) -> None:
        self._watched, self._stop = watched, threading.Event()
        self.minutes: list[float] = []
        self.megabytes: list[float] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        start = time.monotonic()
        while not self._stop.wait(1.0):
            self.minutes.append((time.monotonic() - start) / 60)
            self.megabytes.append(self._watched.memory_mb)


def _environment() -> dict[str, str]:
    paths = [str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "HF_HUB_OFFLINE": "1"}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of some values does not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
