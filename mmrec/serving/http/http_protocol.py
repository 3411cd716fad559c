"""HTTP on the wire: parsed by llhttp, which is several times faster than Python, with a bound on what is no body."""

from __future__ import annotations

import asyncio

from mmrec.errors import MissingExtraError

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError as error:
    raise MissingExtraError("httptools", "serve") from error

HEAD_BYTES = 64 << 10
"""Of request line and headers, or of whatever else comes between two pieces of a body."""
HEAD_SECONDS = 10.0
"""In which request line and headers must be whole, from the connection or their first byte on; and in which what is left of a
body must have come whose request has its answer."""

_TOO_LONG = "Request headers are too long."
_BETWEEN = len(b": \r\n")


class BoundedHttp(HttpToolsProtocol):
    """A connection whose headers end, and soon: the parser alone waits for them however long they are, or take.

    A request in work has a time of its own, and a connection between two requests uvicorn's keep-alive time.
    """

    _head = 0
    _named = 0
    _whole = True
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self._wait(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing."""
        self._wait(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, and refuse the request where too much of it in a row is no body."""
        self._head += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._head > HEAD_BYTES:
            self.send_400_response(_TOO_LONG)
        elif self._idle and self._deadline is None:
            # uvicorn's time ended with the first byte, whatever that belongs to.
            self._wait(HEAD_SECONDS)

    def on_message_begin(self) -> None:
        """Note the beginning of a request."""
        self._whole, self._named = False, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._count(len(name) + len(value) + _BETWEEN)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin a request, which has a time of its own."""
        self._wait(None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        self._head, self._whole = 0, True
        super().on_message_complete()
        if self._idle:  # its answer went out before
            self._wait(float(self.timeout_keep_alive))

    def on_response_complete(self) -> None:
        """Take what is left of the request, so that who sends it gets to read the answer, but not for long."""
        super().on_response_complete()
        if self._idle and not self._whole and not self.transport.is_closing():
            self._wait(HEAD_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Refuse a request, and say so where that is because of its headers."""
        super().send_400_response(_TOO_LONG if self._named > HEAD_BYTES else msg)

    def _count(self, length: int) -> None:
        """Count what a request has beside its body, however few pieces it came in; an error here stops the parser.

        Raises:
            ValueError: it is too much.
        """
        self._named += length
        if self._named > HEAD_BYTES:
            raise ValueError(_TOO_LONG)

    @property
    def _idle(self) -> bool:
        """Whether no request is in work."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self, seconds: float | None) -> None:
        """Close the connection after a time, unless something else is waited for by then; None waits for nothing."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.close)
