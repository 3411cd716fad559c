"""Vectors of a whole catalogue, kept beside the run, so that a feed that grew is encoded only where it is new."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmrec.assembly import Assembly
from mmrec.errors import ArtifactError
from mmrec.storage import atomic_folder, content_hash, read_array, read_json, write_array, write_json

ABOUT = "about.json"
_VECTORS, _KEYS = "vectors.npy", "keys.npy"


@dataclass(frozen=True)
class EmbeddingTable:
    """Score-ready vectors of items, and what each was made from; :func:`filling` makes one.

    Args:
        keys: shape (items,), see :func:`item_keys`.
        vectors: shape (items, width), float32.
    """

    keys: Sequence[str]
    vectors: npt.NDArray[np.float32]

    @classmethod
    def load(cls, folder: Path) -> EmbeddingTable:
        """Map a table on disk.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        keys = np.asarray(read_array(folder / _KEYS), dtype="S32").astype(str)
        return cls(keys.tolist(), cast("npt.NDArray[np.float32]", read_array(folder / _VECTORS)))


@contextmanager
def filling(folder: Path, keys: Sequence[str], *, width: int, model_hash: str) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the vectors of a new table, shape (items, width), to be filled; whole on disk afterwards, or not there.

    They are mapped into memory, so that a catalogue larger than it can be filled a piece at a time.
    """
    with atomic_folder(folder) as partial:
        shape = (len(keys), width)
        vectors = np.lib.format.open_memmap(partial / _VECTORS, mode="w+", dtype=np.float32, shape=shape)
        yield cast("npt.NDArray[np.float32]", vectors)
        vectors.flush()
        write_array(partial / _KEYS, np.array(keys, dtype="S32"))
        write_json(partial / ABOUT, {"model_hash": model_hash, "items": len(keys)})


def item_keys(assembly: Assembly) -> list[str]:
    """Return a hash of all that decides an item's vector but the model: its id, caption, pictures, given vectors, attributes."""
    catalogue = assembly.catalogue
    captions, pictures = (
        [bytes(row).hex() for row in np.asarray(hashes)]
        for hashes in (catalogue.captions.hashes, catalogue.pictures.hashes)
    )
    given = [built.table for built in assembly.encoders.values() if built.table is not None]
    keys = []
    for row, caption in enumerate(catalogue.caption_rows):
        shown = [pictures[int(image)] for image in catalogue.item_images[row]]
        vectors = [table.hashes[table.rows[row]].tobytes() if table.rows[row] >= 0 else b"" for table in given]
        text = captions[caption] if caption >= 0 else ""
        keys.append(content_hash(str(catalogue.item_ids[row]), text, *shown, "", *vectors))
    return keys


def saved_vectors(folder: Path) -> npt.NDArray[np.float32] | None:
    """Map the vectors of one table; None where there is no whole one."""
    try:
        return cast("npt.NDArray[np.float32]", read_array(folder / _VECTORS)) if (folder / ABOUT).is_file() else None
    except ArtifactError:
        return None


def saved_tables(folder: Path, *, model_hash: str) -> Iterator[EmbeddingTable]:
    """Yield the whole tables of a model under ``folder``, the newest first."""
    for about in sorted(folder.glob(f"*/{ABOUT}"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            if read_json(about).get("model_hash") == model_hash:
                yield EmbeddingTable.load(about.parent)
        except ArtifactError:
            continue


def remove_other_models(folder: Path, *, model_hashes: Collection[str]) -> None:
    """Delete the tables under ``folder`` that belong to earlier weights."""
    for about in folder.glob(f"*/{ABOUT}"):
        if read_json(about).get("model_hash") not in model_hashes:
            shutil.rmtree(about.parent, ignore_errors=True)


def reuse(
    keys: Sequence[str], tables: Iterator[EmbeddingTable], vectors: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """Look items up in tables, put what is found into ``vectors``, shape (items, width), and return the other rows."""
    wanted = pd.Index(keys)
    missing = np.arange(len(keys))
    for table in tables:
        found = pd.Index(table.keys).get_indexer(wanted[missing])
        vectors[missing[found >= 0]] = table.vectors[found[found >= 0]]
        missing = missing[found < 0]
        if not len(missing):
            break
    return missing
