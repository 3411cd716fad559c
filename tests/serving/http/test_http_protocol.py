"""What arrives before any key is asked for has a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from mmrec.serving.http import http_protocol
from mmrec.serving.http.http_protocol import HEAD_BYTES, BoundedHttp

START = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
LENGTH = 3 * HEAD_BYTES
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"

App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def count(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    body = str(length).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without reading the body."""
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def exchange(
    pieces: Sequence[bytes | float], answers: int, app: App = count, *, keep_alive: int = 5
) -> tuple[bytes, float]:
    """Send pieces one after the other; numbers among them are seconds of silence.

    Returns:
        what comes back: as many lines ``HTTP/1.1``, or until the end; and the seconds that took.
    """
    config = uvicorn.Config(
        app, http=BoundedHttp, lifespan="off", log_level="critical", access_log=False, timeout_keep_alive=keep_alive
    )
    server = uvicorn.Server(config)
    config.load()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: BoundedHttp(config, server.server_state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    start = loop.time()
    found = bytearray()

    async def read() -> None:
        while found.count(b"HTTP/1.1") < answers and (more := await asyncio.wait_for(reader.read(1 << 16), 20)):
            found.extend(more)

    # Read while it is written: what came before a reset is lost to who reads after it.
    reading = asyncio.create_task(read())
    try:
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.wait([reading], timeout=piece)
            else:
                writer.write(piece)
                await writer.drain()
                for _ in range(5):
                    await asyncio.sleep(0)
            if reading.done():
                break
        await reading
    except ConnectionError:
        await asyncio.wait([reading])
        reading.exception()
    finally:
        writer.close()
        listening.close()
    return bytes(found), loop.time() - start


@pytest.mark.parametrize(
    "pieces",
    [
        [START + b"X: "] + [b"y" * 10_000] * 20,
        [START] + [b"X: y\r\n" * 1000] * 20,
        [b"POST /"] + [b"y" * 10_000] * 20,
        [START + b"Transfer-Encoding: chunked\r\n\r\n1\r\ny\r\n0\r\nX: "] + [b"y" * 10_000] * 20,
    ],
    ids=["one value", "many", "path", "trailer"],
)
def test_what_does_not_end_is_refused(pieces: list[bytes]) -> None:
    answer, _ = asyncio.run(exchange(pieces, 1))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"Request headers are too long.")


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 12_000 + b"\r\n",
    ],
    ids=["one value", "path", "many"],
)
def test_what_is_too_long_in_one_piece_never_reaches_the_application(request_head: bytes) -> None:
    ran: list[str] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        ran.append(scope["type"])
        await count(scope, receive, send)

    answer, _ = asyncio.run(exchange([request_head], 1, note))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"Request headers are too long.")
    assert not ran


def test_bodies_and_many_requests_have_no_such_bound() -> None:
    whole = START + b"Content-Length: %d\r\n\r\n" % LENGTH + b"y" * LENGTH
    assert asyncio.run(exchange([whole], 1))[0].endswith(b"\r\n\r\n%d" % LENGTH)
    many = [START + b"X: " + b"y" * 10_000 + b"\r\nContent-Length: 0\r\n\r\n"] * 20
    assert asyncio.run(exchange(many, 20))[0].count(b"HTTP/1.1 200") == 20


@pytest.mark.parametrize(
    ("pieces", "app", "answers"),
    [
        ([], count, 0),
        ([b"G", b"E", b"T", b" ", *[piece for _ in range(200) for piece in (b"/", 0.05)]], count, 0),
        ([GET, *[piece for _ in range(200) for piece in (b"\r\n", 0.05)]], count, 1),
        ([GET, START, *[piece for _ in range(200) for piece in (b"X: y\r\n", 0.05)]], count, 1),
        ([CHUNKED, *[piece for _ in range(200) for piece in (b"1\r\ny\r\n", 0.05)]], refuse, 1),
        ([CHUNKED, b"1\r\ny\r\n"], refuse, 1),
    ],
    ids=["silent", "drip", "empty lines", "second head", "goes on after its answer", "stops after its answer"],
)
def test_who_sends_no_whole_request_is_gone_soon(
    pieces: list[bytes | float], app: App, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.4)
    found, seconds = asyncio.run(exchange(pieces, 9, app, keep_alive=60))
    assert found.count(b"HTTP/1.1") == answers
    assert 0.3 < seconds < 5


def test_others_have_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.2)
    found, _ = asyncio.run(exchange([GET, 0.5, GET, 0.5, GET], 3))
    assert found.count(b"HTTP/1.1 200") == 3, "between two requests it is the keep-alive time that counts"
    body: list[bytes | float] = [piece for _ in range(5) for piece in (b"1\r\ny\r\n", 0.1)]
    found, _ = asyncio.run(exchange([CHUNKED, *body, b"0\r\n\r\n"], 1))
    assert found.endswith(b"\r\n\r\n5"), "who answers waits for the body as long as he likes"
    rest: list[bytes | float] = [CHUNKED, 0.05, b"1\r\ny\r\n0\r\n\r\n", 0.5, GET]
    found, _ = asyncio.run(exchange(rest, 2, refuse))
    assert found.count(b"HTTP/1.1 413") == 2, "a body that comes after its answer ends as others do"


def test_after_the_rest_of_a_body_the_connection_does_not_stay_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 20.0)
    rest: list[bytes | float] = [CHUNKED, 0.05, b"1\r\ny\r\n0\r\n\r\n"]
    found, seconds = asyncio.run(exchange(rest, 2, refuse, keep_alive=1))
    assert found.count(b"HTTP/1.1") == 1
    assert 0.9 < seconds < 10
