"""The way to a Qdrant server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from mmrec.errors import ConfigError, MissingExtraError

try:
    from qdrant_client import QdrantClient
except ImportError as error:
    raise MissingExtraError("qdrant_client", "qdrant") from error

_PATIENCE = 10
"""Seconds that a call may take."""


class QdrantFailureError(Exception):
    """A call that Qdrant refused or did not answer."""


class Qdrant:
    """A server, or a folder of the client's local mode, which takes one call at a time.

    Args:
        client: speaks to it.
    """

    def __init__(self, client: QdrantClient, *, local: bool = False) -> None:
        self._client, self._turn = client, threading.Lock() if local else None

    @classmethod
    def open(cls, url: str) -> Qdrant:
        """Return the server of a URL.

        Args:
            url: ``http://HOST:PORT`` or ``https://:API_KEY@HOST:PORT``.

        Raises:
            ConfigError: it cannot be reached, or lets nobody in.
        """
        parts = urlsplit(url)
        key = None if parts.password is None else unquote(parts.password)
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        client = QdrantClient(url=place, api_key=key, timeout=_PATIENCE, check_compatibility=False)
        try:
            client.get_collections()
        except Exception as error:  # of the transport, of the protocol or of the answer
            client.close()
            raise ConfigError(
                "a Qdrant server that can be reached",
                got=_brief(error),
                where=place,
                fix="Start it, or correct --store.",
            ) from error
        return cls(client)

    @contextmanager
    def calling(self) -> Iterator[QdrantClient]:
        """Lend the client.

        Raises:
            QdrantFailureError: whatever the server or the way to it refuses.
        """
        if self._turn is not None:
            self._turn.acquire()
        try:
            yield self._client
        except Exception as error:  # the client raises those of its transport, of its models and its own
            raise QdrantFailureError(_brief(error)) from error
        finally:
            if self._turn is not None:
                self._turn.release()

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


def _brief(error: Exception) -> str:
    """Return what an error says, without the request, which it may quote below."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
