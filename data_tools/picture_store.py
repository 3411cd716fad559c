"""All pictures of a feed into one file, each distinct one once: decoded by all cores, merged in order, resumable.

Workers leave the pixels of blocks in the work folder; the parent appends the distinct pictures of each block, in
order, to ``images.bin``, flushes it and only then records the block as done.  What is on disk therefore always says
how far the work had come, and a worker never waits for the disk.
"""

from __future__ import annotations

import itertools
import os
import shutil
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from data_tools.picture_blocks import BlockFiles, Decoded, begin_worker, decode_block
from data_tools.picture_files import PictureRef
from data_tools.quarantine import Quarantine, Refusal
from mmrec.errors import FeedError
from mmrec.storage import HASH_BYTES, PARTIAL, write_array

PIXELS: Final = "images.bin"
_BLOCK_BYTES: Final = 64 << 20


@runtime_checkable
class Progress(Protocol):
    """Told how far a stage has come."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report ``done`` of ``total`` steps."""


@dataclass(frozen=True)
class DecodeSettings:
    """How pictures are decoded.

    Args:
        side: longest side kept.
        max_pixels: larger pictures are refused.
        workers: processes.
        block_size: pictures a block.
    """

    side: int
    max_pixels: int
    workers: int
    block_size: int = 64


@dataclass
class PictureStore:
    """Decodes pictures into ``<work>/images.bin`` and remembers where each lies.

    Args:
        work: folder that survives a killed run.
        settings: how to decode.
    """

    work: Path
    settings: DecodeSettings
    reused_blocks: int = 0
    given: int = 0
    items: array[int] = field(default_factory=lambda: array("q"))
    """Item of every picture kept, in order."""
    rows: array[int] = field(default_factory=lambda: array("q"))
    """Row among the distinct pictures of every picture kept."""
    _distinct: dict[bytes, int] = field(default_factory=dict)
    _shapes: array[int] = field(default_factory=lambda: array("i"))

    def __len__(self) -> int:
        return len(self._distinct)

    def add(self, refs: Iterable[PictureRef], quarantine: Quarantine, *, total: int, progress: Progress) -> None:
        """Decode all pictures, those of an earlier killed run excepted.

        Raises:
            FeedError: a worker process died.
        """
        _recover(self.work)
        blocks = _blocks(refs, self.settings.block_size)
        first = list(itertools.islice(blocks, 2))
        workers = 1 if len(first) < 2 else self.settings.workers
        waiting: deque[_Waiting] = deque()
        pool = _pool(workers)

        def finish(block: _Waiting) -> None:
            self._finish(block, pixels, quarantine)
            progress("pictures", block.refs[0].item, total)

        with (self.work / PIXELS).open("ab") as pixels:
            try:
                for index, block in enumerate(itertools.chain(first, blocks)):
                    waiting.append(self._start(BlockFiles(self.work, index), block, pool))
                    if len(waiting) > 2 * workers:
                        finish(waiting.popleft())
                while waiting:
                    finish(waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)
        progress("pictures", total, total)

    def save(self, folder: Path) -> None:
        """Put the distinct pictures and their index into a prepared feed."""
        shapes = np.array(self._shapes, dtype=np.int32).reshape(-1, 2)
        sizes = shapes.astype(np.int64).prod(axis=1) * 3
        write_array(folder / "images.offsets.npy", np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
        write_array(folder / "images.shapes.npy", shapes)
        write_array(folder / "images.hashes.npy", self.hashes())
        try:
            (folder / PIXELS).hardlink_to(self.work / PIXELS)
        except OSError:  # a file system without links
            shutil.copyfile(self.work / PIXELS, folder / PIXELS)

    def hashes(self) -> npt.NDArray[np.uint8]:
        """Return the content hash of every distinct picture, shape (images, 16)."""
        return np.frombuffer(b"".join(self._distinct), dtype=np.uint8).reshape(-1, HASH_BYTES)

    def _start(self, files: BlockFiles, refs: list[PictureRef], pool: Executor) -> _Waiting:
        """Let a worker decode a block, unless an earlier run has done it."""
        if files.about.exists():
            self.reused_blocks += 1
            return _Waiting(files, refs, files.read(), is_merged=True)
        sources = [ref.source for ref in refs if ref.source is not None]
        side, max_pixels = self.settings.side, self.settings.max_pixels
        try:
            future = pool.submit(decode_block, files.pixels, sources, side=side, max_pixels=max_pixels)
        except BrokenProcessPool as error:
            raise _dead_worker(refs) from error
        return _Waiting(files, refs, future)

    def _finish(self, waiting: _Waiting, pixels: BinaryIO, quarantine: Quarantine) -> None:
        """Wait for a block, append what is new in it, record what became of every picture."""
        decoded = waiting.result()
        new = self._merge(decoded)
        if not waiting.is_merged:
            _append(waiting.files.pixels, pixels, decoded, new)
            waiting.files.write(decoded)
            waiting.files.pixels.unlink()
        self._record(waiting.refs, decoded, quarantine)

    def _merge(self, decoded: Sequence[Decoded]) -> list[bool]:
        """Give every new picture a row; return which are new."""
        new = []
        for picture in decoded:
            key = bytes.fromhex(picture.hash)
            new.append(bool(key) and key not in self._distinct)
            if new[-1]:
                self._distinct[key] = len(self._distinct)
                self._shapes.extend((picture.height, picture.width))
        return new

    def _record(self, refs: Sequence[PictureRef], decoded: Sequence[Decoded], quarantine: Quarantine) -> None:
        results = iter(decoded)
        refusals: list[Refusal] = []
        for ref in refs:
            self.given += 1
            picture = Decoded(reason=ref.reason or "", message=ref.message) if ref.source is None else next(results)
            if picture.reason:
                refusals.append(Refusal("pictures", ref.row, ref.label, picture.reason, picture.message))
            else:
                self.items.append(ref.item)
                self.rows.append(self._distinct[bytes.fromhex(picture.hash)])
        quarantine.add(refusals)


@dataclass(frozen=True)
class _Waiting:
    """A block that is decoded or being decoded."""

    files: BlockFiles
    refs: list[PictureRef]
    decoded: list[Decoded] | Future[list[Decoded]]
    is_merged: bool = False

    def result(self) -> list[Decoded]:
        """Wait for the block if need be; return what became of its pictures."""
        if isinstance(self.decoded, list):
            return self.decoded
        try:
            return self.decoded.result()
        except BrokenProcessPool as error:
            raise _dead_worker(self.refs) from error


def _pool(workers: int) -> Executor:
    """Start clean processes, for forking one that has Arrow's threads is not safe; for one worker a thread will do.

    It decodes while what it decoded before is flushed to the disk.
    """
    if workers == 1:
        return ThreadPoolExecutor(1, thread_name_prefix="mmrec-decode")
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=begin_worker)


def _dead_worker(refs: Sequence[PictureRef]) -> FeedError:
    return FeedError(
        "worker processes that live until their block is done",
        got="one that was killed",
        where=f"the block of pictures that begins with {refs[0].label}",
        fix="Run again, with fewer --workers if memory was short: finished blocks are kept.",
    )


def _blocks(refs: Iterable[PictureRef], size: int) -> Iterator[list[PictureRef]]:
    """Group pictures, at most ``size`` and some megabytes of given bytes a block."""
    block: list[PictureRef] = []
    weight = 0
    for ref in refs:
        block.append(ref)
        weight += len(ref.source) if isinstance(ref.source, bytes) else 0
        if len(block) == size or weight >= _BLOCK_BYTES:
            yield block
            block, weight = [], 0
    if block:
        yield block


def _append(source: Path, target: BinaryIO, decoded: Sequence[Decoded], new: Sequence[bool]) -> None:
    """Copy the new pictures of a block to the end of the file and flush it to the disk."""
    with source.open("rb") as file:
        for picture, wanted in zip(decoded, new, strict=True):
            data = file.read(picture.size)
            if wanted:
                target.write(data)
    target.flush()
    os.fsync(target.fileno())


def _recover(work: Path) -> None:
    """Bring the work folder of a killed run to the end of the last block that was wholly merged."""
    pixels = work / PIXELS
    available = pixels.stat().st_size if pixels.exists() else 0
    for left in (*work.glob(f"*{PARTIAL}-*"), *work.glob("*.pixels")):
        left.unlink()
    seen: set[str] = set()
    size = 0
    intact = True
    for index, about in enumerate(sorted(work.glob("[0-9]*.json"))):
        files = BlockFiles(work, index)
        intact = intact and about == files.about
        pictures = files.read() if intact else []
        fresh = {picture.hash: picture.size for picture in pictures if picture.hash not in seen}
        intact = intact and size + sum(fresh.values()) <= available
        if not intact:
            about.unlink()
            continue
        seen |= fresh.keys()
        size += sum(fresh.values())
    if available > size:
        os.truncate(pixels, size)
