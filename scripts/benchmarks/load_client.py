"""Clients that ask a service as fast as it answers, in a process of their own; run as a program, with a plan on stdin.

    python scripts/benchmarks/load_client.py < plan.json

Plain sockets with keep-alive and ready-made requests, so that what is measured is the service.  A second line on stdin, or
its end, stops the clients before their time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

NUMBER = "@@"
"""In a body: stands for the number of the request, so that no two are the same."""


@dataclass(frozen=True)
class Ask:
    """A request.

    Args:
        method: of HTTP.
        path: with its slash.
        body: JSON, or empty.
        shared: so many requests in a row have the same number.
    """

    method: str
    path: str
    body: str = ""
    shared: int = 1


@dataclass(frozen=True)
class Plan:
    """What clients do.

    Args:
        port: of the service, on this machine.
        clients: how many ask at once, each one request at a time.
        seconds: for how long.
        asks: what they ask, in turn, from the beginning again at the end.
        first: number of the first request.
        warm_up: requests that are not measured.
    """

    port: int
    clients: int
    seconds: float
    asks: Sequence[Ask]
    first: int = 0
    warm_up: int = 0


@dataclass
class Answers:
    """What came back.

    Args:
        seconds: how long the clients asked, without the warm-up.
        milliseconds: of every good answer.
        statuses: how often each status came; 0 stands for a connection that broke.
    """

    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)


async def run(plan: Plan, stop: threading.Event) -> Answers:
    """Ask until the time is over, or ``stop`` is set."""
    prepared = [(ask.method.encode(), ask.path.encode(), ask.body.encode(), ask.shared) for ask in plan.asks]
    found, number = Answers(), plan.first

    def take() -> bytes:
        nonlocal number
        method, path, body, shared = prepared[number % len(prepared)]
        own = str(number // shared).encode()
        number += 1
        data = body.replace(NUMBER.encode(), own)
        return (
            b"%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (
                method,
                path.replace(NUMBER.encode(), own),
                len(data),
                data,
            )
        )

    async def client(until: float, most: int | None, answers: Answers) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        asked = 0
        while time.perf_counter() < until and not stop.is_set() and (most is None or asked < most):
            asked += 1
            start = time.perf_counter()
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", plan.port)
                status = await _exchange(*connection, take())
            except (OSError, asyncio.IncompleteReadError):
                status, connection = 0, None
            answers.statuses[str(status)] = answers.statuses.get(str(status), 0) + 1
            if status == 200:
                answers.milliseconds.append(1000 * (time.perf_counter() - start))
        if connection is not None:
            connection[1].close()

    if plan.warm_up:
        share = -(-plan.warm_up // plan.clients)
        patience = time.perf_counter() + 60
        await asyncio.gather(*(client(patience, share, Answers()) for _ in range(plan.clients)))
    start = time.perf_counter()
    await asyncio.gather(*(client(start + plan.seconds, None, found) for _ in range(plan.clients)))
    found.seconds = time.perf_counter() - start
    return found


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> int:
    """Send a request, read its answer whole, and return the status."""
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    (length,) = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
    await reader.readexactly(length)
    return int(head[9:12])


def main() -> None:
    """Read a plan, carry it out, print what came back."""
    values = json.loads(sys.stdin.readline())
    plan = Plan(**{**values, "asks": [Ask(**ask) for ask in values["asks"]]})
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    print(json.dumps(asdict(asyncio.run(run(plan, stop)))))


if __name__ == "__main__":
    main()
