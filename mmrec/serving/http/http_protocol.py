"""HTTP on the wire: parsed by llhttp, which is several times faster than Python, with a bound on what is no body."""

from __future__ import annotations

from mmrec.errors import MissingExtraError

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError as error:
    raise MissingExtraError("httptools", "serve") from error

HEAD_BYTES = 64 << 10
"""Of request line and headers, or of whatever else comes between two pieces of a body."""


class BoundedHttp(HttpToolsProtocol):
    """A connection whose headers end: the parser alone keeps them however long they are, before any key is asked for."""

    _head = 0

    def data_received(self, data: bytes) -> None:
        """Take what came, and refuse the request where too much of it in a row is no body."""
        self._head += len(data)
        super().data_received(data)
        if self._head > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Request headers are too long.")

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        self._head = 0
        super().on_message_complete()
