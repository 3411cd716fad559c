"""Another index for an export that is there: no run, no encoder, only the folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import cast

from mmrec.errors import ArtifactError
from mmrec.inference.export import MANIFEST, VectorFolder
from mmrec.inference.export_index import (
    INDEX_FILES,
    IndexChoice,
    IndexKind,
    StoreKind,
    build_index,
    hash_index,
    is_index,
    shown,
)
from mmrec.storage import atomic_folder, write_json


def index_export(export: Path, *, store: StoreKind = "faiss", index: IndexKind | None = None) -> dict[str, object]:
    """Replace the index of an export; its vectors stay as they are.

    Folder and manifest change together, or not at all.

    Args:
        export: folder of an export.
        store: who keeps the index; ``none`` removes it.
        index: kind of a FAISS index, by default HNSW.

    Returns:
        What was built, with its recall@10 against exact search.

    Raises:
        ArtifactError: no export, one whose vectors were changed, or one that does not know its temperature.
        MissingExtraError: the store's library is not installed.
        RequestError: too few vectors for the index, or a column that the store cannot hold.
    """
    choice = IndexChoice(store, index)
    folder = VectorFolder.open(export)
    folder.verify("items.parquet")
    temperature = _temperature(folder)
    place = export.resolve()
    with atomic_folder(place) as partial:
        gone = shutil.ignore_patterns(MANIFEST, *INDEX_FILES)
        shutil.copytree(place, partial, copy_function=_link, ignore=gone, dirs_exist_ok=True)
        about = build_index(partial, choice, temperature=temperature)
        files = cast("dict[str, str]", folder.manifest["files"])
        kept = {name: value for name, value in files.items() if not is_index(name)}
        manifest = {**folder.manifest, "store": store, "index": about, "files": kept | hash_index(partial)}
        write_json(partial / MANIFEST, manifest)
    return {"folder": str(export), "items": folder.manifest["items"], "store": store, **shown(about)}


def _link(file: str, name: str) -> None:
    """Give a file that stays a second name, which takes no room; copy it where the disk knows no such thing."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copy2(file, name)


def _temperature(folder: VectorFolder) -> float | None:
    if "temperature" not in folder.manifest:
        raise ArtifactError(
            "a manifest with the key 'temperature'",
            got="one of an earlier version",
            where=str(folder.folder / MANIFEST),
            fix="Export once more: mmrec export RUN --out DIR.",
        )
    return cast("float | None", folder.manifest["temperature"])
