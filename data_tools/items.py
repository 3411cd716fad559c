"""The item side of a raw feed: ids, captions, pictures, publication dates, attributes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from data_tools.captions import CaptionStore
from data_tools.identities import ItemRows, OnDuplicate, read_item_rows
from data_tools.picture_files import PictureFinder, PictureRef, image_values
from data_tools.picture_store import PictureStore, Progress
from data_tools.quarantine import Quarantine, Refusal
from data_tools.tables import Rows, Source
from data_tools.timestamps import MISSING, ParsedTimes, Unit, find_clock, parse_times, to_milliseconds
from mmrec import columns
from mmrec.errors import FeedError
from mmrec.feed.catalogue import ITEMS, NEVER, NO_CAPTION
from mmrec.storage import HASH_BYTES, RaggedArray

_OWN: Final = (columns.CAPTION_ROW, columns.FIRST_SEEN)


@dataclass(frozen=True)
class ItemChoices:
    """What the user chose about items.

    Args:
        caption: caption columns, in order; None: the column ``caption`` where there is one.
        separator: between caption columns.
        on_duplicate: what to do with one id of two contents.
        keep_empty: whether items with neither caption nor picture stay.
        unit: declared unit of timestamps.
    """

    caption: tuple[str, ...] | None
    separator: str
    on_duplicate: OnDuplicate
    keep_empty: bool
    unit: Unit | None


@dataclass(frozen=True)
class Published:
    """Publication dates.

    Args:
        moments: shape (items,), ``NEVER`` where there is none.
        given: dates in the table.
        unreadable: dates that could not be read.
    """

    moments: Rows
    given: int
    unreadable: int


@dataclass(frozen=True)
class ItemSide:
    """Everything about the items that were kept, but for their attributes.

    Args:
        items: ids and rows.
        captions: distinct captions.
        caption_rows: shape (items,).
        pictures: distinct pictures.
        item_images: picture rows of every item.
        published: publication dates.
    """

    items: ItemRows
    captions: CaptionStore
    caption_rows: Rows
    pictures: PictureStore
    item_images: RaggedArray
    published: Published

    def first_seen(self, item_rows: Rows, timestamps: Rows) -> Rows:
        """Return when each item begins to exist: when published, or when first chosen if that is earlier.

        ``NEVER`` where neither is known.
        """
        first = self.published.moments.copy()
        np.minimum.at(first, item_rows, timestamps)
        return first


def read_items(
    source: Source,
    choices: ItemChoices,
    *,
    captions: CaptionStore,
    pictures: PictureStore,
    finder: PictureFinder,
    quarantine: Quarantine,
    progress: Progress,
) -> ItemSide:
    """Read the items table: first ids, then captions, then pictures; drop what has no content.

    Raises:
        FeedError: a caption column that does not exist, a reserved column name, no rows, duplicates, dead workers.
    """
    names = caption_columns(source, choices.caption)
    _check_names(source)
    items = read_item_rows(source, quarantine, on_duplicate=choices.on_duplicate)
    with captions:
        times = _read_captions(source, items, names, choices.separator, captions)
    published = _published(times, choices.unit, size=len(items), where=str(source.path))
    pictures.add(_refs(source, items, finder), quarantine, total=len(items), progress=progress)
    caption_rows = np.array(captions.rows, dtype=np.int64)
    counts = np.bincount(np.array(pictures.items, dtype=np.int64), minlength=len(items))
    kept = (caption_rows != NO_CAPTION) | (counts > 0) | choices.keep_empty
    message = "expected a caption or a picture, got neither"
    quarantine.add(
        [
            Refusal("items", int(items.rows[item]), items.ids[item], "no_content", message)
            for item in np.flatnonzero(~kept)
        ]
    )
    offsets = np.concatenate([[0], np.cumsum(counts[kept])]).astype(np.int64)
    return ItemSide(
        items=items.take(kept),
        captions=captions,
        caption_rows=caption_rows[kept],
        pictures=pictures,
        item_images=RaggedArray(np.array(pictures.rows, dtype=np.int64), offsets),
        published=Published(published.moments[kept], published.given, published.unreadable),
    )


def caption_columns(source: Source, chosen: tuple[str, ...] | None) -> list[str]:
    """Return the caption columns of a table.

    Raises:
        FeedError: a chosen column is not there.
    """
    names = source.column_names
    if chosen is None:
        return [columns.CAPTION] if columns.CAPTION in names else []
    for name in chosen:
        if name not in names or name in (columns.ITEM_ID, columns.IMAGE):
            fix = "Name text columns with --caption."
            got = f"columns {', '.join(names)}"
            raise FeedError(f"a caption column {name!r}", got=got, where=str(source.path), fix=fix)
    return list(chosen)


def write_items(path: Path, source: Source, side: ItemSide, *, first_seen: Rows, has_published: bool) -> str:
    """Write ``items.parquet``, all other columns as text beside ours; return a hash of what they hold."""
    given = (columns.ITEM_ID, columns.IMAGE, columns.PUBLISHED_AT)
    names = [name for name in source.column_names if name not in given]
    own = [(columns.ITEM_ID, pa.string()), (columns.CAPTION_ROW, pa.int64()), (columns.FIRST_SEEN, pa.int64())]
    own += [(columns.PUBLISHED_AT, pa.int64())] if has_published else []
    schema = pa.schema([*own, *((name, pa.string()) for name in names)])
    digest = _TextDigest()
    with parquet.ParquetWriter(path / ITEMS, schema, compression="zstd") as writer:
        for start, chunk in side.items.chunks(source, [columns.ITEM_ID, *names]):
            part = slice(start, start + len(chunk.rows))
            moments = side.published.moments[part]
            arrays = [
                chunk.table.column(columns.ITEM_ID),
                pa.array(side.caption_rows[part]),
                pa.array(first_seen[part]),
            ]
            arrays += [pa.array(moments, mask=moments == NEVER)] if has_published else []
            texts = [chunk.table.column(name) for name in names]
            for name, column in zip(names, texts, strict=True):
                digest.add(name, column)
            writer.write_table(pa.table([*arrays, *texts], schema=schema))
    return digest.hexdigest()


class _TextDigest:
    """Hash of text columns that does not depend on how they are cut into chunks."""

    def __init__(self) -> None:
        self._lengths: dict[str, hashlib.blake2b] = {}
        self._texts: dict[str, hashlib.blake2b] = {}

    def add(self, name: str, column: pa.ChunkedArray) -> None:
        """Add the next texts of a column; an absent one differs from an empty one."""
        texts = column.to_pylist()
        encoded = [b"" if text is None else text.encode("utf-8") for text in texts]
        lengths = [-1 if text is None else len(data) for text, data in zip(texts, encoded, strict=True)]
        self._of(self._lengths, name).update(np.array(lengths, dtype="<i8").tobytes())
        self._of(self._texts, name).update(b"".join(encoded))

    def hexdigest(self) -> str:
        """Return 32 hex digits."""
        total = hashlib.blake2b(digest_size=HASH_BYTES)
        for name, lengths in self._lengths.items():
            total.update(lengths.digest() + self._texts[name].digest())
        return total.hexdigest()

    @staticmethod
    def _of(digests: dict[str, hashlib.blake2b], name: str) -> hashlib.blake2b:
        return digests.setdefault(name, hashlib.blake2b(name.encode("utf-8"), digest_size=HASH_BYTES))


def _check_names(source: Source) -> None:
    for name in _OWN:
        if name in source.column_names:
            got = "a column of that name"
            raise FeedError(f"no column {name!r}", got=got, where=str(source.path), fix="Rename the column.")


def _read_captions(
    source: Source, items: ItemRows, names: Sequence[str], separator: str, captions: CaptionStore
) -> ParsedTimes | None:
    """Store every item's caption; return its publication date, if the table has such a column."""
    dated = columns.PUBLISHED_AT in source.column_names
    wanted = list(dict.fromkeys([columns.ITEM_ID, *names, *([columns.PUBLISHED_AT] if dated else [])]))
    times: list[ParsedTimes] = []
    for _, chunk in items.chunks(source, wanted):
        fields = [chunk.texts(name) for name in names]
        for row in range(len(chunk.rows)):
            captions.add([column[row] for column in fields], separator)
        if dated:
            times.append(parse_times(chunk.table.column(columns.PUBLISHED_AT)))
    return ParsedTimes.join(times) if dated else None


def _published(times: ParsedTimes | None, declared: Unit | None, *, size: int, where: str) -> Published:
    """Find the unit of the dates by themselves, and where that is not certain take the declared one."""
    if times is None or not np.any(times.kinds != MISSING):
        return Published(np.full(size, NEVER), 0, 0)
    unit = declared
    if declared != "order":  # an order is no clock that a date could be compared with
        try:
            unit = find_clock([times], None, where=f"{where}, column {columns.PUBLISHED_AT!r}").unit
        except FeedError:
            if declared is None:
                raise
    assert unit is not None
    moments, valid = to_milliseconds(times, unit, earliest=np.iinfo(np.int64).min)
    given = int(np.count_nonzero(times.kinds != MISSING))
    return Published(np.where(valid, moments, NEVER), given, given - int(np.count_nonzero(valid)))


def _refs(source: Source, items: ItemRows, finder: PictureFinder) -> Iterator[PictureRef]:
    """Yield the pictures of all items in order: those the column ``image`` names, else those named by id."""
    has_column = columns.IMAGE in source.column_names
    names = [columns.ITEM_ID, *([columns.IMAGE] if has_column else [])]
    for start, chunk in items.chunks(source, names):
        ids = chunk.texts(columns.ITEM_ID)
        given = image_values(chunk.table.column(columns.IMAGE), split=source.splits_images) if has_column else None
        for position, (item_id, row) in enumerate(zip(ids, chunk.rows.tolist(), strict=True)):
            item = start + position
            if given is None:
                yield from finder.of_item(item_id, item=item, row=row)
                continue
            for number, value in enumerate(given[position], start=1):
                if isinstance(value, str):
                    yield finder.named(value, item=item, row=row)
                else:
                    yield PictureRef(item, row, f"{item_id}, picture {number}", value)
