"""What arrives before any key is asked for has a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from mmrec.serving.http.http_protocol import HEAD_BYTES, BoundedHttp

START = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
LENGTH = 3 * HEAD_BYTES


async def count(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    body = str(length).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def exchange(pieces: Sequence[bytes], answers: int) -> bytes:
    """Send pieces one after the other, and return what comes back: as many lines ``HTTP/1.1``, or until the end."""
    config = uvicorn.Config(count, http=BoundedHttp, lifespan="off", log_level="critical", access_log=False)
    server = uvicorn.Server(config)
    config.load()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: BoundedHttp(config, server.server_state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    found = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        while found.count(b"HTTP/1.1") < answers and (more := await asyncio.wait_for(reader.read(1 << 16), 20)):
            found += more
    except ConnectionError:
        pass
    finally:
        writer.close()
        listening.close()
    return found


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
    answer = asyncio.run(exchange(pieces, 1))
    assert answer.startswith(b"HTTP/1.1 400 ") or not answer, "refused, or the connection is gone"


def test_bodies_and_many_requests_have_no_such_bound() -> None:
    whole = START + b"Content-Length: %d\r\n\r\n" % LENGTH + b"y" * LENGTH
    assert asyncio.run(exchange([whole], 1)).endswith(b"\r\n\r\n%d" % LENGTH)
    many = [START + b"X: " + b"y" * 10_000 + b"\r\nContent-Length: 0\r\n\r\n"] * 20
    assert asyncio.run(exchange(many, 20)).count(b"HTTP/1.1 200") == 20
