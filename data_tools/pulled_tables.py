"""The tables of a pulled feed, written whole: items and interactions for ``prepare``, all feedback, and what was shown."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as parquet

from data_tools.feed_tables import find_table, open_table
from data_tools.interactions import REQUIRED
from data_tools.picture_files import IMAGES, PictureFinder, image_values
from data_tools.service_log import PULLED, Record
from data_tools.tables import Chunk, Source
from data_tools.timestamps import Unit, find_clock, parse_times, to_milliseconds
from mmrec import columns
from mmrec.errors import FeedError
from mmrec.storage import atomic_file

_ROWS: Final = 65_536
_EVENT_COLUMNS: Final = (columns.USER_ID, columns.ITEM_ID, columns.TIMESTAMP, columns.EVENT, columns.VALUE)
Row = Mapping[str, object]


@dataclass(frozen=True)
class RawFeed:
    """The feed that a service was trained on.

    Args:
        folder: with items.*, interactions.* and images/.
        caption: the column that captions of published posts go to.
        unit: of its timestamps; None: detected where that is certain.
    """

    folder: Path
    caption: str = columns.CAPTION
    unit: Unit | None = None

    @cached_property
    def items(self) -> Source:
        """Its items."""
        return open_table(find_table(self.folder, "items"), required=[columns.ITEM_ID])

    @cached_property
    def interactions(self) -> Source:
        """Its interactions."""
        return open_table(find_table(self.folder, "interactions"), required=REQUIRED)


@dataclass(frozen=True)
class PulledItems:
    """What the items table holds.

    Args:
        ids: of all items, as text.
        published: rows that came through the service.
        pictures: files of these rows.
    """

    ids: frozenset[str]
    published: int
    pictures: frozenset[str]


@dataclass(frozen=True)
class PulledInteractions:
    """What the interactions table holds, and what was left out of it."""

    rows: int
    not_chosen: int
    of_other_items: int
    unreadable_times: int


def write_items(out: Path, posts: Iterable[Record], feed: RawFeed | None) -> PulledItems:
    """Write ``items.parquet``: the feed's items, without those that were replaced or taken back, then published posts.

    Pictures of the feed get a second name in ``out/images`` (a hard link where the disk allows it).
    """
    latest = _latest(posts)
    alive = {item_id: post for item_id, post in latest.items() if not post["deleted"]}
    caption = columns.CAPTION if feed is None else feed.caption
    own = (columns.ITEM_ID, columns.IMAGE, columns.PUBLISHED_AT)
    named = [] if feed is None else [name for name in feed.items.column_names if name not in own]
    attributes = {name for post in alive.values() for name in _attributes(post)}
    names = list(dict.fromkeys([*named, caption, *sorted(attributes)]))
    ids: dict[str, None] = {}

    def rows() -> Iterator[Row]:
        for row in [] if feed is None else _feed_items(feed, out, named):
            if str(row[columns.ITEM_ID]) not in latest:
                ids[str(row[columns.ITEM_ID])] = None
                yield row
        for item_id, post in alive.items():
            ids[item_id] = None
            texts = {name: _text(value) for name, value in _attributes(post).items()}
            yield texts | {
                columns.ITEM_ID: item_id,
                caption: post["caption"],
                columns.IMAGE: post["pictures"],
                columns.PUBLISHED_AT: _text(post["published_at"]),
            }

    whole = all(_is_integer(post["item_id"]) for post in alive.values())
    integers = whole and (bool(alive) if feed is None else feed.items.id_type(columns.ITEM_ID) == "integer")
    schema = pa.schema(
        [
            (columns.ITEM_ID, pa.int64() if integers else pa.string()),
            (columns.IMAGE, pa.list_(pa.string())),
            (columns.PUBLISHED_AT, pa.string()),
            *((name, pa.string()) for name in names),
        ]
    )
    _write(out / "items.parquet", schema, rows(), integers=(columns.ITEM_ID,) if integers else ())
    pictures = frozenset(str(name) for post in alive.values() for name in _list(post["pictures"]))
    return PulledItems(frozenset(ids), len(alive), pictures)


def write_interactions(
    out: Path, events: Iterable[Record], known: frozenset[str], feed: RawFeed | None
) -> PulledInteractions:
    """Write ``interactions.parquet``: the feed's, then chosen events of known items; times in milliseconds."""
    counts = dict.fromkeys(("rows", "not_chosen", "of_other_items", "unreadable_times"), 0)

    def rows() -> Iterator[Row]:
        for row in [] if feed is None else _feed_interactions(feed):
            if row[columns.TIMESTAMP] is None:
                counts["unreadable_times"] += 1
            elif str(row[columns.ITEM_ID]) in known:
                counts["rows"] += 1
                yield row
            else:
                counts["of_other_items"] += 1
        for event in events:
            if not event["chosen"]:
                counts["not_chosen"] += 1
            elif str(event[columns.ITEM_ID]) not in known:
                counts["of_other_items"] += 1
            else:
                counts["rows"] += 1
                yield {name: event[name] for name in _EVENT_COLUMNS} | {
                    columns.ITEM_ID: str(event[columns.ITEM_ID]),
                    columns.VALUE: None if event[columns.VALUE] is None else _text(event[columns.VALUE]),
                }

    text = pa.string()
    kinds = (text, text, pa.int64(), text, text)
    _write(out / "interactions.parquet", pa.schema(list(zip(_EVENT_COLUMNS, kinds, strict=True))), rows())
    return PulledInteractions(**counts)


def write_feedback(out: Path, events: Iterable[Record]) -> None:
    """Write ``feedback.parquet``: every event, chosen or not, with the answer that showed its item."""
    schema = pa.schema(
        [
            ("number", pa.int64()),
            (columns.USER_ID, pa.string()),
            (columns.ITEM_ID, pa.string()),
            (columns.TIMESTAMP, pa.int64()),
            (columns.EVENT, pa.string()),
            (columns.VALUE, pa.float64()),
            ("chosen", pa.bool_()),
            (columns.REQUEST_ID, pa.string()),
        ]
    )
    rows = (event | {columns.ITEM_ID: str(event[columns.ITEM_ID])} for event in map(dict, events))
    _write(out / "feedback.parquet", schema, rows)


def write_served(out: Path, answers: Iterable[Record]) -> int:
    """Write ``served.parquet``: every answer, its items and scores as lists, best first; return how many there are."""
    schema = pa.schema(
        [
            ("number", pa.int64()),
            (columns.REQUEST_ID, pa.string()),
            ("route", pa.string()),
            (columns.USER_ID, pa.string()),
            (columns.TIMESTAMP, pa.int64()),
            ("model", pa.string()),
            (columns.ITEM_ID, pa.list_(pa.string())),
            (columns.SCORE, pa.list_(pa.float64())),
        ]
    )

    def rows() -> Iterator[Row]:
        for answer in answers:
            shown = _list(answer["shown"])
            yield dict(answer) | {
                columns.ITEM_ID: [str(entry[columns.ITEM_ID]) for entry in shown],
                columns.SCORE: [entry[columns.SCORE] for entry in shown],
            }

    return _write(out / "served.parquet", schema, rows())


def _latest(posts: Iterable[Record]) -> dict[str, Record]:
    """Return what was put last under every id, in the order of the numbers."""
    ordered = sorted(posts, key=lambda post: int(str(post["number"])))
    found: dict[str, Record] = {}
    for post in ordered:
        item_id = str(post["item_id"])
        found.pop(item_id, None)
        found[item_id] = post
    return found


def _feed_items(feed: RawFeed, out: Path, names: Sequence[str]) -> Iterator[Row]:
    """Yield the items of a feed, with their pictures under names in ``out``."""
    source, finder = feed.items, PictureFinder(feed.folder, feed.folder / IMAGES)
    extra = [name for name in (columns.IMAGE, columns.PUBLISHED_AT) if name in source.column_names]
    unit = _unit(source, columns.PUBLISHED_AT, feed.unit) if columns.PUBLISHED_AT in extra else None
    for chunk in source.chunks([columns.ITEM_ID, *names, *extra]):
        given = None
        if columns.IMAGE in extra:
            given = image_values(chunk.table.column(columns.IMAGE), split=source.splits_images)
        texts = chunk.table.select([name for name in chunk.table.column_names if name != columns.IMAGE]).to_pylist()
        dates: list[int | None] = [None] * len(texts)
        if unit is not None:
            dates = _moments(chunk, columns.PUBLISHED_AT, unit)
        for position, row in enumerate(texts):
            item_id = str(row[columns.ITEM_ID])
            found = finder.of_item(item_id, item=0, row=0) if given is None else []
            labels: list[str | bytes] = [ref.label for ref in found] if given is None else given[position]
            yield row | {
                columns.IMAGE: [_linked(feed.folder, out, label, finder) for label in labels],
                columns.PUBLISHED_AT: _text(dates[position]),
            }


def _linked(folder: Path, out: Path, label: str | bytes, finder: PictureFinder) -> str:
    """Give a picture of a feed a name in ``out``; one that is not there keeps its label, for ``prepare`` to report."""
    if isinstance(label, bytes):
        fix = "Export pictures as files, or pull without --feed."
        raise FeedError("pictures as files", got="a column of bytes", where=str(folder), fix=fix)
    source = finder.named(label, item=0, row=0).source
    if not isinstance(source, Path):
        return label
    place = out / IMAGES / "feed" / source.relative_to(folder)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.resolve(), place)
        except OSError:  # another disk, or one without links
            with atomic_file(place) as partial:
                shutil.copyfile(source, partial)
    return str(place.relative_to(out))


def _feed_interactions(feed: RawFeed) -> Iterator[Row]:
    """Yield the interactions of a feed, times in milliseconds, None where one cannot be read.

    Raises:
        FeedError: the feed knows an order only.
    """
    source = feed.interactions
    optional = [name for name in (columns.EVENT, columns.VALUE) if name in source.column_names]
    unit = _unit(source, columns.TIMESTAMP, feed.unit)
    for chunk in source.chunks([*REQUIRED, *optional]):
        times = _moments(chunk, columns.TIMESTAMP, unit)
        for row, moment in zip(chunk.table.to_pylist(), times, strict=True):
            yield row | {columns.TIMESTAMP: moment}


def _unit(source: Source, column: str, declared: Unit | None) -> Unit:
    """Return the unit of a column of times.

    Raises:
        FeedError: it is not certain, or the column knows an order only.
    """
    times = (parse_times(chunk.table.column(column)) for chunk in source.chunks([column]))
    unit = find_clock(times, declared, where=f"{source.path}, column {column!r}").unit
    if unit == "order":
        fix = "Pull without --feed."
        raise FeedError("a feed whose timestamps are times", got="ranks", where=str(source.path), fix=fix)
    return unit


def _moments(chunk: Chunk, column: str, unit: Unit) -> list[int | None]:
    """Return a column's times in milliseconds, None where one cannot be read."""
    moments, valid = to_milliseconds(parse_times(chunk.table.column(column)), unit)
    return [moment if readable else None for moment, readable in zip(moments.tolist(), valid.tolist(), strict=True)]


def _write(path: Path, schema: pa.Schema, rows: Iterable[Row], *, integers: Sequence[str] = ()) -> int:
    """Write rows as a table, some thousand at a time; absent fields are null.  Return how many there were."""
    count = 0
    with atomic_file(path) as partial, parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
        waiting: list[Row] = []

        def flush() -> None:
            found = {
                name: [int(str(row[name])) if name in integers else row.get(name) for row in waiting]
                for name in schema.names
            }
            writer.write_table(pa.table(found, schema=schema))
            waiting.clear()

        for row in rows:
            waiting.append(row)
            count += 1
            if len(waiting) == _ROWS:
                flush()
        flush()
    return count


def _attributes(post: Record) -> dict[str, object]:
    attributes = post["attributes"]
    assert isinstance(attributes, dict)
    return attributes


def _list(value: object) -> list[Any]:
    assert isinstance(value, list)
    return value


def _text(value: object) -> str | None:
    """Return a value as the tables hold it."""
    return value if isinstance(value, str) or value is None else json.dumps(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def remove_unused(out: Path, used: frozenset[str]) -> None:
    """Remove pictures of posts that were replaced or taken back."""
    for path in (out / PULLED).glob("*"):
        if f"{PULLED}/{path.name}" not in used:
            path.unlink()
