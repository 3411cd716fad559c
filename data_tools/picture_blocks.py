"""Blocks of decoded pictures on disk.

A worker process leaves ``<index>.pixels``, pictures end to end, which is not flushed and does not outlive the run.
Once its pictures are safe in ``images.bin``, the parent writes ``<index>.json``, whose presence means that.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import cast

from mmrec.preprocessing.pictures import PictureError, load_picture
from mmrec.storage import content_hash, read_json, write_json


@dataclass(frozen=True)
class Decoded:
    """What became of one picture.

    Args:
        hash: hash of shape and pixels as hex, empty where the picture was refused.
        height: rows of pixels.
        width: columns of pixels.
        reason: class of the refusal.
        message: the refusal for people.
    """

    hash: str = ""
    height: int = 0
    width: int = 0
    reason: str = ""
    message: str = ""

    @property
    def size(self) -> int:
        """Bytes of pixels."""
        return self.height * self.width * 3


@dataclass(frozen=True)
class BlockFiles:
    """Names of the files of one block.

    Args:
        folder: where blocks are kept.
        index: number of the block.
    """

    folder: Path
    index: int

    @property
    def pixels(self) -> Path:
        """Pictures end to end; removed once they are in ``images.bin``."""
        return self.folder / f"{self.index:08d}.pixels"

    @property
    def about(self) -> Path:
        """What became of every picture of the block."""
        return self.folder / f"{self.index:08d}.json"

    def write(self, pictures: Sequence[Decoded]) -> None:
        """Record what became of every picture, atomically."""
        write_json(self.about, {"pictures": [_entry(picture) for picture in pictures]})

    def read(self) -> list[Decoded]:
        """Read what became of every picture."""
        entries = cast("list[dict[str, str | int]]", read_json(self.about)["pictures"])
        return [_decoded(entry) for entry in entries]


def _entry(picture: Decoded) -> dict[str, str | int]:
    if picture.reason:
        return {"reason": picture.reason, "message": picture.message}
    return {"hash": picture.hash, "height": picture.height, "width": picture.width}


def _decoded(entry: dict[str, str | int]) -> Decoded:
    if "reason" in entry:
        return Decoded(reason=str(entry["reason"]), message=str(entry["message"]))
    return Decoded(str(entry["hash"]), int(entry["height"]), int(entry["width"]))


def begin_worker() -> None:
    """Silence decoders' warnings in a worker process, for what matters comes as a refusal; end when its parent does.

    The queue that a worker waits for is held open by the other workers: without this they would outlive a parent that
    was killed.
    """
    warnings.simplefilter("ignore")
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_after, args=(parent.sentinel,), daemon=True, name="mmrec-parent").start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def decode_block(path: Path, sources: Sequence[Path | bytes], *, side: int, max_pixels: int) -> list[Decoded]:
    """Decode pictures one after the other, write their pixels to ``path``, return what became of each."""
    found: list[Decoded] = []
    with path.open("wb") as file:
        for source in sources:
            try:
                picture = load_picture(source, side=side, max_pixels=max_pixels)
            except PictureError as error:
                # the message must not depend on where the feed lies, hence no path
                found.append(Decoded(reason=error.reason, message=f"expected {error.expected}, got {error.got}"))
                continue
            height, width, _ = picture.shape
            pixels = picture.data
            found.append(Decoded(content_hash(f"{height}x{width}", pixels), height, width))
            file.write(pixels)
    return found
