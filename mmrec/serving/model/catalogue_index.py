"""What finds candidates in the catalogue: the export's own index, or a table of vectors in the service's store."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mmrec.errors import ConfigError, MmrecError
from mmrec.inference.export import VectorFolder
from mmrec.inference.export_index import last_scale, open_store
from mmrec.notices import Notify
from mmrec.search.index import ExactStore, Store, VectorRows
from mmrec.search.spare import SpareStore
from mmrec.serving.stores.store_place import StorePlace
from mmrec.storage import content_hash

_LOG = logging.getLogger("mmrec.serving")

Rebuild = Callable[[VectorFolder], None]

OpenIndex = Callable[[VectorFolder, VectorRows, Notify], Store]
"""Opens what searches the vectors of an export, and tells of what it meets."""


def exported_index(
    folder: VectorFolder, vectors: VectorRows, notify: Notify, *, rebuild: Rebuild | None = None
) -> Store:
    """Open the export's own index; one that is damaged is made again, or else every vector is looked at.

    Args:
        folder: the export.
        vectors: its vectors, shape (items, dim).
        notify: told of damage, and of what is done about it.
        rebuild: makes the index again from the export's vectors.
    """
    try:
        return _guarded(open_store(folder, vectors), vectors)
    except MmrecError as damage:
        notify(f"the index of the export cannot be used: {damage}")
    if rebuild is not None:
        try:
            notify("it is made again from the export's vectors")
            rebuild(folder)
            return _guarded(open_store(VectorFolder.open(folder.folder), vectors), vectors)
        except (MmrecError, OSError) as error:
            notify(f"it cannot be made again: {error}")
    notify("every vector is looked at instead: exact, and slower where there are many")
    return ExactStore(vectors)


def stored_index(folder: VectorFolder, vectors: VectorRows, notify: Notify, *, place: StorePlace) -> Store:
    """Open the vectors of an export in Postgres or Qdrant; write them where they are missing, or not all there.

    They are named by the hash of the export's vectors, so those of another model or export are never taken for them.

    Args:
        folder: the export.
        vectors: its vectors, shape (items, dim).
        notify: told what is written.
        place: the service's store.

    Raises:
        ArtifactError: the server refuses them.
        ConfigError: a store that searches no vectors, or cannot be reached.
    """
    scale = last_scale(vectors) if folder.format.ends_in_bias else 1.0
    files = folder.manifest["files"]
    assert isinstance(files, dict)
    name = f"items_{content_hash(str(files['items.parquet']), repr(scale))[:24]}"
    store: Store
    if place.kind == "postgres":
        from mmrec.search.pgvector import PgVectorStore
        from mmrec.search.postgres import open_pool

        store, written = PgVectorStore.load(open_pool(place.address), name, vectors, last_scale=scale)
    elif place.kind == "qdrant":
        from mmrec.search.qdrant import QdrantVectors
        from mmrec.search.qdrant_server import Qdrant

        store, written = QdrantVectors.load(Qdrant.open(place.address), f"mmrec_{name}", vectors, last_scale=scale)
    else:
        raise ConfigError(
            "a store that searches vectors: postgresql://... or qdrant+http://...",
            got="a folder",
            where="--index store",
            fix="Give --store, or leave --index out.",
        )
    if written:
        notify(f"{len(vectors)} vectors of the export were written to {place.kind} as {name}")
    return _guarded(store, vectors)


def _guarded(store: Store, vectors: VectorRows) -> Store:
    """Return a store that answers even while its files or its server fail."""
    return store if isinstance(store, ExactStore) else SpareStore(store, ExactStore(vectors), notify=_LOG.error)
