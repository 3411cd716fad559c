"""Which pictures an item has, and whether their files lie where a feed's files may lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

import pyarrow as pa

from data_tools.arrow_text import is_list
from mmrec.preprocessing.pictures import Reason

IMAGES: Final = "images"
_SUPPORTED: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")
_OTHERS: Final = (".tif", ".tiff", ".heic", ".jp2", ".jxl", ".svg", ".ico", ".psd")  # found, so that they are reported
_SUFFIXES: Final = (*_SUPPORTED, *(suffix.upper() for suffix in _SUPPORTED), *_OTHERS)
_FOLDERS: Final = 4096
"""Folders of pictures whose whereabouts are remembered at a time."""


@dataclass(frozen=True)
class PictureRef:
    """One picture of one item, not yet decoded.

    Args:
        item: position of the item among the rows kept so far.
        row: row of the item in its table.
        label: the picture's name in reports.
        source: its file or its bytes; None where it is refused already.
        reason: why it is refused already, if it is.
        message: the same for people.
    """

    item: int
    row: int
    label: str
    source: Path | bytes | None
    reason: Reason | None = None
    message: str = ""


@dataclass(frozen=True)
class PictureFinder:
    """Resolves what an item says about its pictures.

    Args:
        feed: the raw feed; paths are relative to it, or else to ``images``.
        images: folder of pictures named by item id.
    """

    feed: Path
    images: Path

    @cached_property
    def _roots(self) -> tuple[Path, ...]:
        """Folders that a picture may lie in.  A link ``feed/images`` to elsewhere does not widen them."""
        roots = [self.feed.resolve()]
        if self.images != self.feed / IMAGES:
            roots.append(self.images.resolve())
        return tuple(roots)

    @cached_property
    def _has_images(self) -> bool:
        return self.images.is_dir()

    def named(self, text: str, *, item: int, row: int) -> PictureRef:
        """Return the picture at a path that the table gives."""
        return self._first([self.feed / text, self.images / text], text, item=item, row=row)

    def of_item(self, item_id: str, *, item: int, row: int) -> list[PictureRef]:
        """Return ``images/<item_id>.<suffix>`` where there is one, the first of the known suffixes."""
        if not self._has_images:
            return []
        for suffix in _SUFFIXES:
            path = self.images / f"{item_id}{suffix}"
            if os.path.lexists(path):
                return [self._first([path], f"{self.images.name}/{item_id}{suffix}", item=item, row=row)]
        return []

    def _first(self, paths: Sequence[Path], label: str, *, item: int, row: int) -> PictureRef:
        """Return the first path that exists inside a root, else say what is wrong with the last."""
        reason: Reason = "missing_file"
        message = "expected a picture file, got no file of this name"
        for path in paths:
            try:
                inside = self._is_inside(path)
                if inside and path.exists():
                    return PictureRef(item, row, label, path)
            except (OSError, ValueError, RuntimeError) as error:  # name too long, NUL in the name, loop of links
                reason, message = "unreadable", f"expected a picture file, got {type(error).__name__}: {error}"
                continue
            if not inside:
                reason = "outside_feed"
                message = (
                    "expected a file inside the feed, got a path or link that leaves it; name a folder with --images"
                )
        return PictureRef(item, row, label, None, reason, message)

    @cached_property
    def _holds(self) -> Callable[[str], bool]:
        """Whether a folder lies inside a root: following its links for every picture in it would be the finder's work."""
        return lru_cache(maxsize=_FOLDERS)(self._leads_inside)

    def _is_inside(self, path: Path) -> bool:
        """Whether a path, links followed, lies inside a root."""
        folder, name = os.path.split(path)
        is_plain = name not in ("", os.curdir, os.pardir) and "\0" not in name and not path.is_symlink()
        return (is_plain and self._holds(folder)) or self._leads_inside(str(path))

    def _leads_inside(self, path: str) -> bool:
        real = Path(path).resolve()
        return any(real.is_relative_to(root) for root in self._roots)


def image_values(column: pa.ChunkedArray, *, split: bool) -> list[list[str | bytes]]:
    """Return the paths or bytes of every row.

    Args:
        column: text, bytes, or lists of them.
        split: whether one text holds several paths, divided by ``|``.
    """
    several = is_list(column.type)
    rows: list[list[str | bytes]] = []
    for value in column.to_pylist():
        values = (value or []) if several else [value]
        if split and isinstance(value, str):
            values = [part.strip() for part in value.split("|")]
        rows.append([one for one in values if one])
    return rows
