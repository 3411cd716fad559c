"""Blocks of vectors in any place that fsspec reaches: whole or absent, and read by way of one manifest.

A block's file is named for its number and the hash of its bytes, in a folder named for everything that decides it.  So
an attempt that was given up and ends late can spoil nothing: it writes the same file, or one that no manifest lists.
"""

from __future__ import annotations

import json
import posixpath
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import fsspec

from mmrec.errors import ArtifactError
from mmrec.places import reach
from mmrec.storage import PARTIAL, bytes_hash

MANIFEST = "manifest.json"
BLOCKS_VERSION = 1
AGAIN = "Run the same command again: blocks that are whole are kept."
_NAME = re.compile(r"items-(\d{8})-([0-9a-f]{32})\.parquet")
_ATTEMPTS = "attempts-"
_FOLDER = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Block:
    """What the manifest says of a block.

    Args:
        number: its position among the blocks.
        file: its name.
        rows: vectors in it.
        hash: of its bytes.
    """

    number: int
    file: str
    rows: int
    hash: str


@dataclass(frozen=True)
class BlockStore:
    """The blocks of one catalogue by one model.

    Args:
        place: URL or absolute path that blocks of any catalogue are kept under.
        fingerprint: hash of everything that decides these blocks.
    """

    place: str
    fingerprint: str

    @property
    def folder(self) -> str:
        """Where these blocks lie."""
        return posixpath.join(self.place, self.fingerprint)

    def found(self) -> dict[int, list[str]]:
        """Return the names of the files that look like blocks, by number; whether they are whole is not known yet."""
        names: dict[int, list[str]] = {}
        for name in self._names():
            match = _NAME.fullmatch(name)
            if match:
                names.setdefault(int(match[1]), []).append(name)
        return names

    def write(self, number: int, rows: int, data: bytes) -> Block:
        """Write a block, whole or not at all; another attempt at the same bytes gives the same file."""
        found = bytes_hash(data)
        block = Block(number, f"items-{number:08}-{found}.parquet", rows, found)
        self._write(block.file, data)
        return block

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a block; None where it is gone, cut off, or otherwise not what its name says."""
        match = _NAME.fullmatch(name)
        try:
            data = self._read(name)
        except FileNotFoundError:
            return None
        return data if match and bytes_hash(data) == match[2] else None

    def whole(self, number: int, rows: int, name: str) -> Block | None:
        """Return a block that is there and whole."""
        data = self.read(name)
        return None if data is None else Block(number, name, rows, bytes_hash(data))

    def attempt(self, number: int, session: str) -> int:
        """Note that a worker begins a block, and return how often one did in this session, this time included."""
        system, root = self._open()
        folder = posixpath.join(root, f"{_ATTEMPTS}{session}")
        system.makedirs(folder, exist_ok=True)
        which = 1
        while system.exists(posixpath.join(folder, f"{number:08}-{which}")):
            which += 1
        system.pipe_file(posixpath.join(folder, f"{number:08}-{which}"), b"")
        return which

    def write_manifest(self, blocks: Sequence[Block], about: Mapping[str, object]) -> None:
        """List the blocks, and delete what attempts left that the list does not name."""
        listed = [asdict(block) for block in sorted(blocks, key=lambda block: block.number)]
        value = {"blocks_version": BLOCKS_VERSION, "fingerprint": self.fingerprint, **about, "blocks": listed}
        self._write(MANIFEST, (json.dumps(value, indent=1) + "\n").encode())
        system, root = self._open()
        kept = {block.file for block in blocks}
        for name in self._names():
            if name not in kept and (PARTIAL in name or name.startswith(_ATTEMPTS) or _NAME.fullmatch(name)):
                system.rm(posixpath.join(root, name), recursive=True)

    def listed(self) -> list[Block]:
        """Return the blocks that the manifest lists, in their order.

        Raises:
            ArtifactError: no manifest, or one of another version or of other blocks.
        """
        where, wanted = posixpath.join(self.folder, MANIFEST), (BLOCKS_VERSION, self.fingerprint)
        try:
            value = json.loads(self._read(MANIFEST))
            if (value["blocks_version"], value["fingerprint"]) != wanted:
                raise ArtifactError(
                    f"a manifest of {wanted}", got=str(list(value.values())[:2]), where=where, fix=AGAIN
                )
            return [Block(*(entry[name] for name in ("number", "file", "rows", "hash"))) for entry in value["blocks"]]
        except (FileNotFoundError, TypeError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ArtifactError("a manifest of blocks", got=repr(error)[:200], where=where, fix=AGAIN) from error

    def remove(self) -> None:
        """Delete all blocks under the place, those of other catalogues and models too, and the place where that was all."""
        system, place = reach(self.place, where="--blocks")
        if not system.isdir(place):
            return
        for path in system.ls(place, detail=False):
            if _FOLDER.fullmatch(posixpath.basename(str(path))):
                system.rm(str(path), recursive=True)
        system.invalidate_cache(place)
        with suppress(FileNotFoundError):  # an object store has no empty folders: the place is gone with its last block
            if not system.ls(place, detail=False):
                system.rmdir(place)

    def _open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return the file system, and the folder's path in it."""
        system, place = reach(self.place, where="--blocks")
        return system, posixpath.join(place, self.fingerprint)

    def _names(self) -> list[str]:
        system, root = self._open()
        system.invalidate_cache(root)
        if not system.isdir(root):
            return []
        return sorted(posixpath.basename(str(path)) for path in system.ls(root, detail=False))

    def _read(self, name: str) -> bytes:
        system, root = self._open()
        return bytes(system.cat_file(posixpath.join(root, name)))

    def _write(self, name: str, data: bytes) -> None:
        """Write beside and rename, so that no reader sees half a file, whatever kills the process."""
        system, root = self._open()
        system.makedirs(root, exist_ok=True)
        partial = posixpath.join(root, f"{name}{PARTIAL}-{uuid.uuid4().hex}")
        system.pipe_file(partial, data)
        system.mv(partial, posixpath.join(root, name))
