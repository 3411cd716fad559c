"""Connections to Postgres that come back by themselves when the server does."""

from __future__ import annotations

import logging
from typing import Any

from mmrec.errors import ConfigError, MissingExtraError

try:
    import psycopg
    from pgvector.psycopg import register_vector
    from psycopg.conninfo import conninfo_to_dict
    from psycopg_pool import ConnectionPool
except ImportError as error:
    raise MissingExtraError("psycopg", "postgres") from error

Connection = psycopg.Connection[Any]
Pool = ConnectionPool[Connection]

CONNECTIONS = 10
"""Of one process at most."""
_PATIENCE = 5.0
"""Seconds that a call waits for a connection, and after which a try to connect is given up and begun anew."""


def open_pool(url: str, *, make: bool = True) -> Pool:
    """Return connections to a database, in which the type ``vector`` exists from then on.

    Args:
        url: ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``.
        make: create the extension where it is missing; else it is the caller who knows that it is there.

    Raises:
        ConfigError: no such database, or one without pgvector.
    """
    # The pool tells of every failed try; its callers are told by an error.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=int(_PATIENCE)) as connection:
            if make:
                _make_vectors(connection, url)
    except psycopg.Error as error:
        raise ConfigError(
            "a Postgres database that can be reached",
            got=first_line(error),
            where=address(url),
            fix="Start it, or correct --store.",
        ) from error
    return ConnectionPool(
        url,
        min_size=1,
        max_size=CONNECTIONS,
        open=True,
        timeout=_PATIENCE,
        reconnect_timeout=_PATIENCE,
        kwargs={"autocommit": True},
        configure=_configure,
        check=ConnectionPool.check_connection,
        name="mmrec",
    )


def address(url: str) -> str:
    """Return which database a URL names, without user and password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        return "postgresql://"
    return f"postgresql://{parts.get('host', '')}:{parts.get('port', '')}/{parts.get('dbname', '')}"


def first_line(error: BaseException) -> str:
    """Return what an error says, without the statement and its values, which it may quote below."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _make_vectors(connection: Connection, url: str) -> None:
    """Create the extension where it is missing; of several processes one does."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('mmrec.extension', 0))")
        if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
            return
        try:
            connection.execute("CREATE EXTENSION vector")
        except psycopg.Error as error:
            raise ConfigError(
                "a database with pgvector",
                got=first_line(error),
                where=address(url),
                fix="Install it, and let its owner run there: CREATE EXTENSION vector.",
            ) from error


def _configure(connection: Connection) -> None:
    register_vector(connection)
    # What is acknowledged is durable, also where the server's default is not.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
