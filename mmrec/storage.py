"""Files that are either whole or absent: atomic writes, content hashes, ragged arrays on disk.

A writer writes beside the final name, flushes to the disk, renames and flushes the folder, so that no reader ever
sees half a file, whatever kills the process.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from mmrec.errors import ArtifactError

HASH_BYTES = 16
PARTIAL = ".partial"
ASIDE = ".old"


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well, it becomes ``path``.

    When the block raises (or the process dies) ``path`` keeps its old content or stays absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}{PARTIAL}-{os.getpid()}")
    try:
        yield partial
        _flush_file(partial)
        partial.replace(path)
        _flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; when the block ends well, it becomes ``path``.

    Every file in it is flushed before the rename.  An existing ``path`` is moved aside first and removed last; a process
    that dies between the two renames leaves it aside, where :func:`recover_folder` finds it.

    Args:
        path: of the folder.
        replace: put it in the place of what is there; otherwise what is there, also since a moment ago, stays and is never
            away: for folders that are named for their content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    partial = path.with_name(f"{path.name}{PARTIAL}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            flush = _flush_folder if file.is_dir() else _flush_file
            flush(file)
        _flush_folder(partial)
        old = path.with_name(f"{path.name}{ASIDE}-{os.getpid()}")
        if replace and path.exists():
            path.replace(old)
        try:
            partial.replace(path)
        except OSError:
            # A folder that is there and holds something is in the way of a rename.
            if replace or not path.is_dir():
                raise
        _flush_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undo what a process that died while replacing ``path`` left: its folder moved aside, its half-written folder."""
    for kind in (ASIDE, PARTIAL):
        for left in sorted(path.parent.glob(f"{glob.escape(path.name)}{kind}-*")):
            number = left.name.rpartition("-")[2]
            if not left.is_dir() or not number.isdigit() or _alive(int(number)):
                continue
            if kind == ASIDE and not path.exists():
                left.replace(path)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON object atomically, keys in the order given, floats as they are."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        ArtifactError: the file is absent, is not JSON, or holds something other than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError("a JSON file", got="no file", where=str(path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError("a whole JSON file", got=str(error), where=str(path)) from error
    if not isinstance(value, dict):
        raise ArtifactError("a JSON object", got=type(value).__name__, where=str(path))
    return cast("dict[str, object]", value)


def content_hash(*pieces: bytes | str | memoryview) -> str:
    """Return a 128-bit BLAKE2b hash as 32 hex digits; pieces are length-prefixed, so their borders count."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for piece in pieces:
        data = piece.encode("utf-8") if isinstance(piece, str) else memoryview(piece).cast("B")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def bytes_hash(data: bytes) -> str:
    """Return the hash that :func:`file_hash` gives a file of these bytes."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES).hexdigest()


def file_hash(path: Path) -> str:
    """Return the 128-bit BLAKE2b hash of a file's bytes, read in blocks."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_array(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write ``array`` to ``path`` (``.npy``, no pickle) atomically."""
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path) -> npt.NDArray[np.generic]:
    """Memory-map a ``.npy`` file read-only.

    Raises:
        ArtifactError: the file is absent or damaged.
    """
    try:
        return cast("npt.NDArray[np.generic]", np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError as error:
        raise ArtifactError("an array file", got="no file", where=str(path)) from error
    except (ValueError, OSError, EOFError) as error:
        raise ArtifactError("a whole array file", got=str(error), where=str(path)) from error


@dataclass(frozen=True)
class RaggedArray:
    """Rows of different lengths in one flat array: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.

    Args:
        values: shape (total, ...), usually memory-mapped.
        offsets: shape (rows + 1,), int64, starting at 0.
    """

    values: npt.NDArray[np.generic]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> npt.NDArray[np.generic]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Length of every row, shape (rows,)."""
        return np.diff(self.offsets)

    def gather(self, rows: npt.NDArray[np.int64]) -> RaggedArray:
        """Return the given rows, in that order, as a new ragged array in memory."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64)
        values = np.empty((int(offsets[-1]), *self.values.shape[1:]), self.values.dtype)
        self.gather_into(rows, values)
        return RaggedArray(values, offsets)

    def gather_into(self, rows: npt.NDArray[np.int64], room: npt.NDArray[np.generic]) -> None:
        """Copy the given rows, in that order, end to end into ``room``, which they fill."""
        offsets = np.asarray(self.offsets)
        starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
        ends = np.cumsum(lengths)
        index = np.arange(len(room)) + np.repeat(starts - (ends - lengths), lengths)
        # Any mode but "raise" copies without a buffer; the index cannot leave the array.
        np.take(self.values, index, axis=0, out=room, mode="clip")

    @classmethod
    def load(cls, folder: Path, name: str) -> RaggedArray:
        """Memory-map ``<name>.values.npy`` and ``<name>.offsets.npy`` of ``folder``."""
        offsets = np.asarray(read_array(folder / f"{name}.offsets.npy"), dtype=np.int64)
        return cls(read_array(folder / f"{name}.values.npy"), offsets)

    def save(self, folder: Path, name: str) -> None:
        """Write both arrays under ``folder``, the offsets last."""
        write_array(folder / f"{name}.values.npy", self.values)
        write_array(folder / f"{name}.offsets.npy", self.offsets)
