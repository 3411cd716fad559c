"""Which store a service uses: a folder, Postgres or Qdrant, each behind its own library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmrec.errors import ConfigError
from mmrec.serving.stores.store import Store, StoreFailureError

StoreName = Literal["folder", "postgres", "qdrant"]
_QDRANT = "qdrant+"


@dataclass(frozen=True, repr=False)
class StorePlace:
    """Where a store is.  Its address may hold a password, so it is not shown.

    Args:
        kind: what keeps it.
        address: a path, or a URL.
    """

    kind: StoreName
    address: str

    @classmethod
    def parse(cls, text: str) -> StorePlace:
        """Read ``DIR``, ``postgresql://...`` or ``qdrant+http://...``.

        Raises:
            ConfigError: another kind of URL, or files of Qdrant's local mode.
        """
        if text.startswith(("postgresql://", "postgres://")):
            return cls("postgres", text)
        if text.startswith((f"{_QDRANT}http://", f"{_QDRANT}https://")):
            return cls("qdrant", text.removeprefix(_QDRANT))
        if text.startswith(_QDRANT) or _is_local_qdrant(Path(text)):
            raise ConfigError(
                "a server (qdrant+http://HOST:PORT), which processes share",
                got="files of Qdrant's local mode, which are for one process only",
                where="--store",
                fix="Leave them to their program and start a Qdrant server, or give another folder.",
            )
        if "://" in text:
            raise ConfigError(
                "a folder, postgresql://..., qdrant+http://... or qdrant+https://...",
                got=f"{text.partition('://')[0]}://...",
                where="--store",
            )
        return cls("folder", text)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other services out of a folder; other stores are there for several.

        Raises:
            ConfigError: another service uses the folder.
        """
        if self.kind != "folder":
            yield
            return
        from mmrec.serving.stores.sqlite_store import hold_folder

        lock = hold_folder(Path(self.address))
        try:
            yield
        finally:
            lock.close()

    def open(self, *, shared: bool = False, make: bool = True) -> Store:
        """Open the store.

        Args:
            shared: the process that started this one holds the folder.
            make: make a store in a server that has none.

        Raises:
            ArtifactError: a store that is damaged, of another version, or not there.
            ConfigError: a server that cannot be reached, or a folder that another service uses.
            MissingExtraError: its library is not installed.
        """
        if self.kind == "postgres":
            from mmrec.serving.stores.postgres_store import PostgresStore

            return PostgresStore(self.address, make=make)
        if self.kind == "qdrant":
            from mmrec.search.qdrant_server import Qdrant
            from mmrec.serving.stores.qdrant_store import QdrantStore

            try:
                return QdrantStore(Qdrant.open(self.address), make=make)
            except StoreFailureError as error:
                raise ConfigError("a Qdrant server that keeps what it is given", got=str(error)) from error
        from mmrec.serving.stores.sqlite_store import SqliteStore

        return SqliteStore(Path(self.address), hold=not shared)


def _is_local_qdrant(folder: Path) -> bool:
    return (folder / "meta.json").is_file() and (folder / "collection").is_dir()
