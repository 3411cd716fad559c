"""The interactions table as arrays sorted by user and time; what cannot be used goes to the quarantine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from data_tools.picture_store import Progress
from data_tools.quarantine import Quarantine, Refusal
from data_tools.tables import Chunk, Rows, Source
from data_tools.timestamps import (
    MISSING,
    UNREADABLE,
    Clock,
    ParsedTimes,
    Unit,
    find_clock,
    parse_times,
    to_milliseconds,
)
from mmrec import columns
from mmrec.errors import FeedError

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
REQUIRED = (columns.USER_ID, columns.ITEM_ID, columns.TIMESTAMP)


@dataclass(frozen=True)
class Events:
    """Interactions that were kept, sorted by user, then time, then row.

    Args:
        user_ids: ids as text, in order of first appearance in the table; every user has an event.
        user_rows: shape (events,).
        item_rows: shape (events,).
        timestamps: shape (events,), milliseconds, or the integers given where the unit is ``order``.
        codes: shape (events,), index in ``event_names``.
        values: shape (events,), NaN where absent.
        event_names: names in alphabetical order; empty where the table names no event.
        clock: unit of the table.
        given: rows of the table.
    """

    user_ids: list[str]
    user_rows: Rows
    item_rows: Rows
    timestamps: Rows
    codes: Rows
    values: Floats
    event_names: list[str]
    clock: Clock
    given: int

    def __len__(self) -> int:
        return len(self.item_rows)

    @property
    def has_values(self) -> bool:
        """Whether any event has a value."""
        return bool(np.any(~np.isnan(self.values)))

    @property
    def has_time(self) -> bool:
        """Whether timestamps are moments."""
        return self.clock.unit != "order"

    def offsets(self) -> Rows:
        """Return where each user's events begin, shape (users + 1,)."""
        counts = np.bincount(self.user_rows, minlength=len(self.user_ids))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@dataclass(frozen=True)
class _Piece:
    """Parallel columns of some rows."""

    rows: Rows
    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    codes: npt.NDArray[np.int32]
    values: Floats
    timestamps: Rows

    def take(self, index: npt.NDArray[np.generic]) -> _Piece:
        return _Piece(
            self.rows[index],
            self.users[index],
            self.items[index],
            self.codes[index],
            self.values[index],
            self.timestamps[index],
        )

    @classmethod
    def join(cls, pieces: Sequence[_Piece]) -> _Piece:
        none = np.zeros(0, np.int32)
        return cls(
            np.concatenate([np.zeros(0, np.int64), *(piece.rows for piece in pieces)]),
            np.concatenate([none, *(piece.users for piece in pieces)]),
            np.concatenate([none, *(piece.items for piece in pieces)]),
            np.concatenate([none, *(piece.codes for piece in pieces)]),
            np.concatenate([np.zeros(0, np.float32), *(piece.values for piece in pieces)]),
            np.concatenate([np.zeros(0, np.int64), *(piece.timestamps for piece in pieces)]),
        )


@dataclass
class _Reader:
    """Turns chunks of text into pieces of numbers."""

    source: Source
    item_of: dict[str, int]
    clock: Clock
    quarantine: Quarantine
    user_of: dict[str, int] = field(default_factory=dict)
    code_of: dict[str, int] = field(default_factory=dict)
    given: int = 0

    def read(self, progress: Progress) -> _Piece:
        optional = [name for name in (columns.EVENT, columns.VALUE) if name in self.source.column_names]
        pieces = []
        for chunk in self.source.chunks([*REQUIRED, *optional]):
            self.given += len(chunk.rows) + len(chunk.malformed)
            bad = [Refusal("interactions", row.row, "", "malformed_row", row.message) for row in chunk.malformed]
            self.quarantine.add(bad)
            if len(chunk.rows):
                pieces.append(self._piece(chunk))
            progress("interactions", self.given, 0)
        return _Piece.join(pieces)

    def _piece(self, chunk: Chunk) -> _Piece:
        table, size = chunk.table, len(chunk.rows)
        users = _coded(table.column(columns.USER_ID), lambda text: self.user_of.setdefault(text, len(self.user_of)))
        items = _coded(table.column(columns.ITEM_ID), lambda text: self.item_of.get(text, -1))
        times = parse_times(table.column(columns.TIMESTAMP))
        timestamps, plausible = to_milliseconds(times, self.clock.unit)
        codes, values, bad_values = (
            np.zeros(size, np.int32),
            np.full(size, np.nan, np.float32),
            np.zeros(size, np.bool_),
        )
        if columns.EVENT in table.column_names:
            codes = _coded(table.column(columns.EVENT), lambda text: self.code_of.setdefault(text, len(self.code_of)))
        if columns.VALUE in table.column_names:
            values, bad_values = _numbers(table.column(columns.VALUE))
        tests = [
            ("missing_user_id", users == self.user_of.get("", -1), "a user_id", columns.USER_ID),
            ("missing_item_id", _empty(table.column(columns.ITEM_ID)), "an item_id", columns.ITEM_ID),
            ("unknown_item", items < 0, "an item of the items table that was not refused", columns.ITEM_ID),
            ("missing_timestamp", times.kinds == MISSING, "a timestamp", columns.TIMESTAMP),
            ("unreadable_timestamp", times.kinds == UNREADABLE, "a number or an ISO date", columns.TIMESTAMP),
            ("absurd_timestamp", ~plausible, self._plausible(), columns.TIMESTAMP),
            ("unreadable_value", bad_values, "a finite number", columns.VALUE),
        ]
        kept = np.ones(size, dtype=np.bool_)
        for reason, mask, expected, name in tests:
            self._refuse(chunk.take(kept & mask), reason, expected, name)
            kept &= ~mask
        return _Piece(chunk.rows, users, items, codes, values, timestamps).take(kept)

    def _plausible(self) -> str:
        unit = self.clock.unit
        return "an integer" if unit == "order" else f"a time between 1990 and 2100 in the unit {unit}"

    def _refuse(self, chunk: Chunk, reason: str, expected: str, name: str) -> None:
        if not len(chunk.rows):
            return
        users, items = chunk.texts(columns.USER_ID), chunk.texts(columns.ITEM_ID)
        self.quarantine.add(
            [
                Refusal("interactions", row, f"{user} {item}", reason, f"expected {expected}, got {name} {text!r}")
                for row, user, item, text in zip(chunk.rows.tolist(), users, items, chunk.texts(name), strict=True)
            ]
        )


def read_clock(source: Source, declared: Unit | None) -> Clock:
    """Return the unit of the table's timestamps, reading the column where the unit is not declared.

    Raises:
        FeedError: the unit is neither declared nor certain, or the table is empty.
    """
    rows = 0

    def chunks() -> Iterator[ParsedTimes]:
        nonlocal rows
        for chunk in source.chunks([columns.TIMESTAMP]):
            rows += len(chunk.rows)
            yield parse_times(chunk.table.column(columns.TIMESTAMP))

    try:
        return find_clock(chunks(), declared, where=str(source.path))
    except FeedError:
        if not rows:
            raise _empty_table(source) from None
        raise


def read_interactions(
    source: Source, item_ids: Sequence[str], clock: Clock, quarantine: Quarantine, *, progress: Progress
) -> Events:
    """Read the table, refuse what cannot be used, sort the rest.

    Raises:
        FeedError: an empty table, or more kinds of event than can be numbered.
    """
    reader = _Reader(source, {item_id: row for row, item_id in enumerate(item_ids)}, clock, quarantine)
    piece = reader.read(progress)
    if not reader.given:
        raise _empty_table(source)
    user_ids = list(reader.user_of)
    piece = _distinct(piece, user_ids, item_ids, quarantine)
    piece = piece.take(np.lexsort((piece.timestamps, piece.users)))
    names, codes = _event_names(piece.codes, list(reader.code_of), where=str(source.path))
    present, user_rows = np.unique(piece.users, return_inverse=True)
    return Events(
        user_ids=[user_ids[user] for user in present],
        user_rows=user_rows.astype(np.int64),
        item_rows=piece.items.astype(np.int64),
        timestamps=piece.timestamps,
        codes=codes,
        values=piece.values,
        event_names=names,
        clock=clock,
        given=reader.given,
    )


def _empty_table(source: Source) -> FeedError:
    fix = "Export the table again."
    return FeedError("at least one interaction", got="an empty table", where=str(source.path), fix=fix)


def _distinct(piece: _Piece, user_ids: Sequence[str], item_ids: Sequence[str], quarantine: Quarantine) -> _Piece:
    """Keep the first of rows that agree in user, item, time, event and value."""
    keys = (piece.users, piece.timestamps, piece.items, piece.codes, piece.values.view(np.int32))
    order = np.lexsort(keys[::-1])
    same = np.ones(max(0, len(order) - 1), dtype=np.bool_)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    repeated = np.append(np.zeros(min(1, len(order)), dtype=np.bool_), same)
    firsts = np.maximum.accumulate(np.where(repeated, 0, np.arange(len(order))))
    first_row = np.zeros(len(order), dtype=np.int64)
    first_row[order] = piece.rows[order[firsts]]
    copy = np.zeros(len(order), dtype=np.bool_)
    copy[order] = repeated
    copies = piece.take(copy)
    parts = zip(copies.rows, copies.users, copies.items, first_row[copy], strict=True)
    quarantine.add(
        [
            Refusal(
                "interactions",
                int(row),
                f"{user_ids[user]} {item_ids[item]}",
                "exact_duplicate",
                f"expected a new interaction, got row {first} once more",
            )
            for row, user, item, first in parts
        ]
    )
    return piece.take(~copy)


def _event_names(codes: npt.NDArray[np.int32], names: list[str], *, where: str) -> tuple[list[str], Rows]:
    """Give the events that occur codes in alphabetical order; a column of empty texts names none."""
    used = sorted({names[code] for code in np.unique(codes)}) if names else []
    if used in ([], [""]):
        return [], np.zeros(len(codes), np.int64)
    if len(used) > np.iinfo(np.int16).max:
        fix = "Map the column 'event' to a few kinds such as like and click."
        raise FeedError("at most 32,767 kinds of event", got=f"{len(used):,}", where=where, fix=fix)
    rank = {name: code for code, name in enumerate(used)}
    return used, np.array([rank.get(name, -1) for name in names], dtype=np.int64)[codes]


def _coded(column: pa.ChunkedArray, code_of: Callable[[str], int]) -> npt.NDArray[np.int32]:
    """Replace texts by integers, asking once for each distinct text of the chunk."""
    encoded = pc.fill_null(column.combine_chunks(), "").dictionary_encode()
    codes = np.array([code_of(text) for text in encoded.dictionary.to_pylist()], dtype=np.int32)
    return np.asarray(codes[encoded.indices.to_numpy(zero_copy_only=False)])


def _empty(column: pa.ChunkedArray) -> Mask:
    return np.asarray(pc.equal(pc.fill_null(column, ""), "").to_numpy(), dtype=np.bool_)


def _numbers(column: pa.ChunkedArray) -> tuple[Floats, Mask]:
    """Return numbers, NaN where the text is empty, and where a text is no finite number."""
    texts = pd.Series(column.to_pylist(), dtype=object)
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    with np.errstate(over="ignore"):
        values = numbers.astype(np.float32)
    bad = ~np.isfinite(values) & ~_empty(column)
    values[~np.isfinite(values)] = np.nan
    return values, bad
