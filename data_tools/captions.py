"""Captions of a feed: columns joined in the order given, each distinct text stored once, byte for byte."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from mmrec.feed.catalogue import NO_CAPTION
from mmrec.storage import HASH_BYTES, content_hash, write_array

SEPARATOR: Final = ". "
_ENDS: Final = (".", "!", "?", "…", "。", "！", "？")  # noqa: RUF001


def join_fields(fields: Sequence[str], separator: str = SEPARATOR) -> str:
    """Join the fields of a caption; empty and blank ones are left out, the others stay as they are.

    After a field that already ends a sentence, a separator that begins with a full stop shrinks to what follows it:

    >>> join_fields(["Wool jumper", "", "Soft!", "Made in Porto"])
    'Wool jumper. Soft! Made in Porto'
    """
    joined = ""
    for text in fields:
        if not text.strip():
            continue
        if not joined:
            joined = text
            continue
        ended = separator.startswith(".") and joined.rstrip().endswith(_ENDS)
        joined += (separator[1:] if ended else separator) + text
    return joined


@dataclass
class CaptionStore:
    """Writes distinct captions end to end and gives each item its row.

    Args:
        work: folder for the text until it is whole.
        max_bytes: longer captions are cut at a character border, and counted; None keeps all.
    """

    work: Path
    max_bytes: int | None
    rows: array[int] = field(default_factory=lambda: array("q"))
    missing: int = 0
    blank: int = 0
    truncated: int = 0
    _distinct: dict[bytes, int] = field(default_factory=dict)
    _lengths: array[int] = field(default_factory=lambda: array("q"))
    _file: BinaryIO | None = None

    def __enter__(self) -> CaptionStore:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def __len__(self) -> int:
        return len(self._distinct)

    @property
    def _path(self) -> Path:
        return self.work / "captions.bin"

    def add(self, fields: Sequence[str], separator: str) -> None:
        """Store the caption of the next item."""
        text = join_fields(fields, separator)
        if not text:
            given = any(fields)
            self.blank += given
            self.missing += not given
            self.rows.append(NO_CAPTION)
            return
        data = text.encode("utf-8")
        if self.max_bytes is not None and len(data) > self.max_bytes:
            data = data[: self.max_bytes].decode("utf-8", errors="ignore").encode("utf-8")
            self.truncated += 1
        self.rows.append(self._row(data))

    def save(self, folder: Path) -> None:
        """Write the distinct captions into a prepared feed."""
        text = np.memmap(self._path, dtype=np.uint8, mode="r") if self._path.stat().st_size else np.zeros(0, np.uint8)
        write_array(folder / "captions.values.npy", text)
        offsets = np.concatenate([[0], np.cumsum(np.array(self._lengths, dtype=np.int64))])
        write_array(folder / "captions.offsets.npy", offsets.astype(np.int64))
        write_array(folder / "captions.hashes.npy", self.hashes())

    def hashes(self) -> npt.NDArray[np.uint8]:
        """Return the content hash of every distinct caption, shape (captions, 16)."""
        return np.frombuffer(b"".join(self._distinct), dtype=np.uint8).reshape(-1, HASH_BYTES)

    def _row(self, data: bytes) -> int:
        assert self._file is not None
        key = bytes.fromhex(content_hash(data))
        row = self._distinct.setdefault(key, len(self._distinct))
        if row == len(self._lengths):
            self._file.write(data)
            self._lengths.append(len(data))
        return row
