"""Reader of JSON lines: one object a line, columns in the order in which they first appear."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from data_tools.tables import ID_COLUMNS, Chunk, IdType, Malformed, wrong_type
from mmrec import columns

_ROWS: Final = 16_384
_SHOWN: Final = 80


@dataclass(frozen=True)
class JsonLinesSource:
    """A JSON lines file; numbers keep the digits they were written with."""

    path: Path
    column_names: tuple[str, ...]
    id_types: Mapping[str, IdType]
    splits_images: bool = False

    @classmethod
    def open(cls, path: Path) -> JsonLinesSource:
        """Read the whole file once, for its columns and the types of its ids.

        Raises:
            FeedError: ids that are neither text nor integers, or both.
        """
        names: dict[str, None] = {}
        id_types: dict[str, IdType] = {}
        for row, record in _records(path):
            if isinstance(record, Malformed):
                continue
            names.update(dict.fromkeys(record))
            for name in ID_COLUMNS:
                if (value := record.get(name)) is not None:
                    kind = _id_type(path, row, name, value)
                    if id_types.setdefault(name, kind) != kind:
                        got = f"{id_types[name]} ids, and in row {row} {value!r}"
                        raise wrong_type(path, name, expected="ids of one type", got=got)
        return cls(path, tuple(names), id_types)

    def id_type(self, name: str) -> IdType:
        """Return ``integer`` where all ids were written as numbers."""
        return self.id_types.get(name, "string")

    def chunks(self, names: Sequence[str]) -> Iterator[Chunk]:
        """Read some thousand lines at a time; lines that hold no JSON object come as malformed."""
        rows: list[int] = []
        records: list[Mapping[str, object]] = []
        bad: list[Malformed] = []
        for row, record in _records(self.path):
            if isinstance(record, Malformed):
                bad.append(record)
            else:
                rows.append(row)
                records.append(record)
            if len(rows) + len(bad) == _ROWS:
                yield _chunk(rows, records, bad, names)
                rows, records, bad = [], [], []
        if rows or bad:
            yield _chunk(rows, records, bad, names)


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, object] | Malformed]]:
    """Yield the number and the object of every line that is not blank."""
    row = 0
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            if not line.strip():
                continue
            row += 1
            yield row, _parse(row, line)


def _parse(row: int, line: str) -> Mapping[str, object] | Malformed:
    try:
        record = json.loads(line, parse_float=_Number, parse_constant=_Number)
        if "\\ud" in line or "\\uD" in line:  # half of a surrogate pair is no text
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        return Malformed(row, f"expected a JSON object, got {type(error).__name__}: {error}: {line[:_SHOWN]!r}")
    if not isinstance(record, dict):
        return Malformed(row, f"expected a JSON object, got {type(record).__name__}: {line[:_SHOWN]!r}")
    return record


class _Number(str):
    """A number with a point, as it was written."""

    __slots__ = ()


def _id_type(path: Path, row: int, name: str, value: object) -> IdType:
    if isinstance(value, int) and not isinstance(value, bool):
        return "integer"
    if isinstance(value, str) and not isinstance(value, _Number):
        return "string"
    raise wrong_type(
        path,
        name,
        expected="text or whole numbers",
        got=f"{json.dumps(value) if not isinstance(value, _Number) else value} in row {row}",
    )


def _chunk(
    rows: Sequence[int], records: Sequence[Mapping[str, object]], bad: Sequence[Malformed], names: Sequence[str]
) -> Chunk:
    arrays = [
        pa.array([_paths(record.get(name)) for record in records], pa.list_(pa.string()))
        if name == columns.IMAGE
        else pa.array([_text(record.get(name)) for record in records], pa.string())
        for name in names
    ]
    return Chunk(np.array(rows, dtype=np.int64), pa.table(arrays, names=list(names)), tuple(bad))


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _paths(value: object) -> list[str | None]:
    values = value if isinstance(value, list) else [value]
    return [_text(one) for one in values]
