"""Several processes behind one socket: the first prepares what all of them use, and one that dies is started again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

from mmrec.errors import ArtifactError, ConfigError, FeedError, MmrecError, RequestError
from mmrec.notices import Notify

_LOOK_SECONDS = 0.2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_STEADY_SECONDS = 60.0
"""A worker that lived as long starts again at once."""
_KINDS = {kind.__name__: kind for kind in (ArtifactError, ConfigError, FeedError, RequestError)}

Work = Callable[[int, Notify, Callable[[], None]], None]
"""What a worker does: given its number, it tells what it is about, says when it is ready, and returns when told to end."""


@dataclass
class _Worker:
    """A place among the workers, and the process that has it now."""

    number: int
    process: SpawnProcess | None = None
    messages: connection.Connection | None = None
    since: float = 0.0
    failures: int = 0
    not_before: float = field(default=0.0)


class Supervisor:
    """Starts workers, keeps their number, and ends them.

    SIGTERM and Ctrl-C end them all; each finishes what it took in.  Workers end, too, when this process dies.

    Args:
        work: what each does, in a fresh process: it must be picklable.
        workers: how many.
        grace: seconds that a worker may take to end.
        notify: told what happens to them.
    """

    def __init__(self, work: Work, *, workers: int, grace: float, notify: Notify) -> None:
        self._work, self._grace, self._notify = work, grace, notify
        self._workers = [_Worker(number) for number in range(workers)]
        self._context = multiprocessing.get_context("spawn")
        self._ending = threading.Event()

    def run(self, *, on_ready: Callable[[], None]) -> None:
        """Serve until told to end.

        Args:
            on_ready: called when the first worker serves; only then the others start.

        Raises:
            MmrecError: what kept the first worker from starting.
        """
        with self._signals():
            try:
                first = self._workers[0]
                self._start(first)
                if self._wait_for(first):
                    on_ready()
                    while not self._ending.is_set():
                        self._keep()
                        self._look()
            finally:
                self._end()

    def _start(self, worker: _Worker) -> None:
        worker.messages, theirs = self._context.Pipe(duplex=False)
        worker.process = self._context.Process(
            target=_run, args=(self._work, worker.number, theirs), name=f"mmrec-worker-{worker.number}"
        )
        worker.process.start()
        worker.since = time.monotonic()
        # With the only open end in the worker, its death ends the messages.
        theirs.close()

    def _wait_for(self, first: _Worker) -> bool:
        """Return whether the first worker serves, False when everything ends before.

        Raises:
            MmrecError: it cannot.
        """
        assert first.messages is not None
        while not self._ending.is_set():
            if not first.messages.poll(_LOOK_SECONDS):
                continue
            message = _receive(first.messages)
            if message is None:
                if self._ending.is_set():
                    return False
                assert first.process is not None
                first.process.join()
                raise ConfigError("a worker that starts", got=f"one that ended with code {first.process.exitcode}")
            if "error" in message:
                raise _error(message)
            if "ready" in message:
                return True
            self._notify(str(message["notify"]))
        return False

    def _keep(self) -> None:
        """Start the workers that are missing, those that keep dying not at once."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is None and now >= worker.not_before:
                self._start(worker)

    def _look(self) -> None:
        """Hear what workers say, and note who died."""
        open_ = {worker.messages: worker for worker in self._workers if worker.messages is not None}
        for messages in connection.wait(list(open_), timeout=_LOOK_SECONDS):
            assert isinstance(messages, connection.Connection)
            worker, message = open_[messages], _receive(messages)
            if message is None:
                self._bury(worker)
            elif "error" in message:
                self._notify(f"worker {worker.number}: {_error(message)}")
            elif "notify" in message:
                self._notify(f"worker {worker.number}: {message['notify']}")

    def _bury(self, worker: _Worker) -> None:
        assert worker.process is not None
        assert worker.messages is not None
        worker.process.join()
        worker.messages.close()
        code, worker.process, worker.messages = worker.process.exitcode, None, None
        if self._ending.is_set():
            return
        lived = time.monotonic() - worker.since
        worker.failures = 0 if lived >= _STEADY_SECONDS else worker.failures + 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (worker.failures - 1)) if worker.failures else 0.0
        worker.not_before = time.monotonic() + pause
        self._notify(f"worker {worker.number} ended with code {code} and is started again")

    def _end(self) -> None:
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            process.terminate()
        until = time.monotonic() + self._grace
        for process in running:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def end(number: int, frame: object) -> None:
            self._ending.set()

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _run(work: Work, number: int, messages: connection.Connection) -> None:
    """Be a worker."""
    # Ctrl-C reaches every process of a terminal; the supervisor passes it on in its own way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="mmrec-parent", daemon=True).start()

    def send(**message: object) -> None:
        messages.send_bytes(json.dumps(message).encode("utf-8"))

    try:
        work(number, lambda text: send(notify=text), lambda: send(ready=True))
    except MmrecError as error:
        parts = {"expected": error.expected, "got": error.got, "where": error.where, "fix": error.fix}
        send(error=type(error).__name__, parts=parts)
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _receive(messages: connection.Connection) -> dict[str, Any] | None:
    """Return the next message, None where there will be no more."""
    try:
        return dict(json.loads(messages.recv_bytes()))
    except (EOFError, OSError):
        return None


def _error(message: dict[str, Any]) -> MmrecError:
    return _KINDS.get(message["error"], MmrecError)(**message["parts"])
