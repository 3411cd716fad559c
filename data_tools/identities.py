"""Which rows of the items table are items: the first pass, which settles ids and duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_tools.quarantine import Quarantine, Refusal
from data_tools.tables import Chunk, Rows, Source
from mmrec import columns
from mmrec.errors import FeedError

OnDuplicate = Literal["error", "last"]


@dataclass(frozen=True)
class ItemRows:
    """The items, in the order of their table.

    Args:
        ids: ids as text.
        rows: shape (items,), row of each in the table, ascending.
        given: rows of the table, refused ones included.
    """

    ids: list[str]
    rows: Rows
    given: int

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, kept: npt.NDArray[np.bool_]) -> ItemRows:
        """Return the items where ``kept`` is True."""
        return ItemRows([self.ids[item] for item in np.flatnonzero(kept)], self.rows[kept], self.given)

    def chunks(self, source: Source, names: list[str]) -> Iterator[tuple[int, Chunk]]:
        """Read the table again, these rows only; yield the position of each chunk's first item, and the chunk."""
        start = 0
        for chunk in source.chunks(names):
            if not len(chunk.rows):
                continue
            stop = int(np.searchsorted(self.rows, chunk.rows[-1], side="right"))
            yield start, chunk.take(np.isin(chunk.rows, self.rows[start:stop], assume_unique=True))
            start = stop


def read_item_rows(source: Source, quarantine: Quarantine, *, on_duplicate: OnDuplicate) -> ItemRows:
    """Read all ids; quarantine rows without one and repeated rows.

    Raises:
        FeedError: no rows at all, or one id with two contents while ``on_duplicate`` is ``error``.
    """
    ids: list[str] = []
    rows: list[Rows] = [np.zeros(0, np.int64)]
    given = 0
    for chunk in source.chunks([columns.ITEM_ID]):
        quarantine.add([Refusal("items", bad.row, "", "malformed_row", bad.message) for bad in chunk.malformed])
        texts = chunk.texts(columns.ITEM_ID)
        present = np.array([bool(text) for text in texts], dtype=np.bool_)
        for row in chunk.rows[~present]:
            quarantine.add([Refusal("items", int(row), "", "missing_item_id", "expected an item_id, got an empty one")])
        ids.extend(text for text in texts if text)
        rows.append(chunk.rows[present])
        given += len(chunk.rows) + len(chunk.malformed)
    if not given:
        fix = "Export the table again."
        raise FeedError("at least one item", got="an empty table", where=str(source.path), fix=fix)
    return _without_duplicates(ItemRows(ids, np.concatenate(rows), given), source, quarantine, on_duplicate)


def _without_duplicates(items: ItemRows, source: Source, quarantine: Quarantine, on_duplicate: OnDuplicate) -> ItemRows:
    repeated = _repeated(items)
    if not repeated:
        return items
    contents = _contents(source, {int(items.rows[item]) for group in repeated.values() for item in group})
    dropped: set[int] = set()
    for item_id, group in repeated.items():
        rows = [int(items.rows[item]) for item in group]
        if len({contents[row] for row in rows}) == 1:
            refused, reason, message = group[1:], "exact_duplicate", f"expected a new item, got row {rows[0]} once more"
        elif on_duplicate == "last":
            refused, reason = group[:-1], "replaced_by_later_row"
            message = f"expected one row an item, got another in row {rows[-1]}, which is kept"
        else:
            raise _two_contents(source, item_id, rows, contents)
        quarantine.add([Refusal("items", int(items.rows[item]), item_id, reason, message) for item in refused])
        dropped.update(refused)
    return items.take(np.array([item not in dropped for item in range(len(items))]))


def _repeated(items: ItemRows) -> dict[str, list[int]]:
    """Return the positions of every id that occurs more than once."""
    first = {item_id: item for item, item_id in reversed(list(enumerate(items.ids)))}
    if len(first) == len(items):
        return {}
    groups: dict[str, list[int]] = {}
    for item, item_id in enumerate(items.ids):
        if first[item_id] != item:
            groups.setdefault(item_id, [first[item_id]]).append(item)
    return groups


def _contents(source: Source, wanted: set[int]) -> Mapping[int, str]:
    """Return the whole content of some rows."""
    names = list(source.column_names)
    found: dict[int, str] = {}
    for chunk in source.chunks(names):
        kept = np.isin(chunk.rows, list(wanted))
        if kept.any():
            part = chunk.take(kept)
            found.update(zip(part.rows.tolist(), map(repr, part.table.to_pylist()), strict=True))
    return found


def _two_contents(source: Source, item_id: str, rows: list[int], contents: Mapping[int, str]) -> FeedError:
    other = next(row for row in rows if contents[row] != contents[rows[0]])
    return FeedError(
        "one content for every item_id",
        got=f"item_id {item_id!r} in row {rows[0]} and, with other content, in row {other}",
        where=str(source.path),
        fix="Remove one of the rows, or keep the last with --on-duplicate last.",
    )
