"""The item side of a prepared feed, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from mmrec import columns
from mmrec.errors import FeedError, RequestError, near_names
from mmrec.storage import RaggedArray, read_array, read_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ITEMS = "items.parquet"
USERS = "users.parquet"
NO_CAPTION = -1
_OWN_COLUMNS = frozenset({columns.ITEM_ID, columns.CAPTION_ROW, columns.FIRST_SEEN, columns.PUBLISHED_AT})
NEVER = np.iinfo(np.int64).max
"""``first_seen`` of an item that no interaction and no publication date places in time."""


def read_manifest(folder: Path) -> dict[str, object]:
    """Read the manifest of a prepared feed.

    Raises:
        FeedError: the folder is not a prepared feed, or one of another schema version.
    """
    if not (folder / MANIFEST).is_file():
        raise FeedError(
            "a prepared feed", got="a folder without manifest.json", where=str(folder), fix="Run: mmrec-data prepare."
        )
    manifest = read_json(folder / MANIFEST)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise FeedError(
            f"schema version {SCHEMA_VERSION}",
            got=repr(manifest.get("schema_version")),
            where=str(folder / MANIFEST),
            fix="Prepare the feed again with this version.",
        )
    return manifest


@dataclass(frozen=True)
class Pictures:
    """Distinct pictures as uint8 RGB of any height and width, end to end in one file.

    Args:
        pixels: shape (total,), uint8, row-major height x width x 3 of each picture.
        offsets: shape (images + 1,), int64.
        shapes: shape (images, 2), int32 height and width.
        hashes: shape (images, 16), uint8 content hash.
    """

    pixels: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    shapes: npt.NDArray[np.int32]
    hashes: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, row: int) -> npt.NDArray[np.uint8]:
        """Return one picture, shape (height, width, 3)."""
        height, width = (int(side) for side in self.shapes[row])
        return self.pixels[self.offsets[row] : self.offsets[row + 1]].reshape(height, width, 3)

    @classmethod
    def load(cls, folder: Path) -> Pictures:
        """Map ``images.bin`` and its companions."""
        offsets = np.asarray(read_array(folder / "images.offsets.npy"), dtype=np.int64)
        path = folder / "images.bin"
        empty = offsets[-1] == 0
        pixels = (
            np.zeros(0, np.uint8) if empty else np.memmap(path, dtype=np.uint8, mode="r", shape=(int(offsets[-1]),))
        )
        return cls(
            pixels=pixels,
            offsets=offsets,
            shapes=cast("npt.NDArray[np.int32]", read_array(folder / "images.shapes.npy")),
            hashes=cast("npt.NDArray[np.uint8]", read_array(folder / "images.hashes.npy")),
        )


@dataclass(frozen=True)
class Captions:
    """Distinct captions as UTF-8, end to end.

    Args:
        text: the bytes and where each caption starts.
        hashes: shape (captions, 16), uint8 content hash.
    """

    text: RaggedArray
    hashes: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, row: int) -> str:
        return self.text[row].tobytes().decode("utf-8")


@dataclass(frozen=True)
class Catalogue:
    """Items of a prepared feed; ``item_row`` is the position everywhere.

    Args:
        folder: the prepared feed.
        manifest: its manifest.
        item_ids: shape (items,), ids as text.
        caption_rows: shape (items,), row in ``captions`` or ``NO_CAPTION``.
        captions: distinct captions.
        item_images: row in ``pictures`` of each of an item's pictures, in the order given.
        pictures: distinct pictures.
        first_seen: shape (items,), milliseconds (or order) from which the item is a candidate; ``NEVER`` if unknown.
    """

    folder: Path
    manifest: dict[str, object]
    item_ids: npt.NDArray[np.object_]
    caption_rows: npt.NDArray[np.int64]
    captions: Captions
    item_images: RaggedArray
    pictures: Pictures
    first_seen: npt.NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """Map the catalogue of a prepared feed.

        Raises:
            FeedError: not a prepared feed, or of another schema version.
            ArtifactError: a file is missing or damaged.
        """
        manifest = read_manifest(folder)
        names = [columns.ITEM_ID, columns.CAPTION_ROW, columns.FIRST_SEEN]
        items = pd.read_parquet(folder / ITEMS, columns=names)
        return cls(
            folder=folder,
            manifest=manifest,
            item_ids=items[columns.ITEM_ID].to_numpy(dtype=object),
            caption_rows=items[columns.CAPTION_ROW].to_numpy(dtype=np.int64),
            captions=Captions(
                RaggedArray.load(folder, "captions"),
                cast("npt.NDArray[np.uint8]", read_array(folder / "captions.hashes.npy")),
            ),
            item_images=RaggedArray.load(folder, "item_images"),
            pictures=Pictures.load(folder),
            first_seen=items[columns.FIRST_SEEN].to_numpy(dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def feed_hash(self) -> str:
        """Hash of everything the prepared feed holds."""
        return str(self.manifest["feed_hash"])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {str(item_id): row for row, item_id in enumerate(self.item_ids)}

    def __contains__(self, item_id: object) -> bool:
        return str(item_id) in self._rows

    def find(self, item_id: str) -> int:
        """Return the row of an id, -1 of one that it has not."""
        return self._rows.get(item_id, -1)

    def row(self, item_id: object) -> int:
        """Return the row of an id.

        Raises:
            RequestError: no such item; near ids are listed.
        """
        try:
            return self._rows[str(item_id)]
        except KeyError:
            near = near_names(str(item_id), list(self._rows)[:2000]).partition("known:")[0]
            raise RequestError("the id of a known item", got=repr(item_id), where=str(self.folder), fix=near) from None

    def caption(self, item_row: int) -> str | None:
        """Return an item's caption, None where it has none."""
        row = int(self.caption_rows[item_row])
        return None if row == NO_CAPTION else self.captions[row]

    def images(self, item_row: int) -> list[npt.NDArray[np.uint8]]:
        """Return an item's pictures, each of shape (height, width, 3), uint8 RGB."""
        return [self.pictures[int(row)] for row in self.item_images[item_row]]

    @cached_property
    def attributes(self) -> pd.DataFrame:
        """All columns of ``items.parquet``, one row an item, in row order."""
        return pd.read_parquet(self.folder / ITEMS)

    @cached_property
    def attribute_names(self) -> list[str]:
        """Names of the columns of the raw table that were kept as text, caption columns included."""
        return [name for name in pq.read_schema(self.folder / ITEMS).names if name not in _OWN_COLUMNS]

    def attribute_texts(self, names: Sequence[str]) -> pd.DataFrame:
        """Return some of these columns, one row an item, in row order; None or NaN where an item has none."""
        return pd.read_parquet(self.folder / ITEMS, columns=list(names))

    def external_ids(self, rows: npt.NDArray[np.int64]) -> list[str] | list[int]:
        """Return ids in the type they came in: text or integers."""
        return restore_ids(self.item_ids[rows], str(self.manifest.get("item_id_type", "string")))


def restore_ids(ids: npt.NDArray[np.object_], kind: str) -> list[str] | list[int]:
    """Turn ids kept as text back into the type of the raw table (``string`` or ``integer``)."""
    return [int(value) for value in ids] if kind == "integer" else [str(value) for value in ids]
