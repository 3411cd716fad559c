"""Rows and pictures that were refused: every one in ``quarantine.parquet``, counted by reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, cast

import pyarrow as pa
import pyarrow.parquet as parquet

from mmrec import columns

TableName = Literal["items", "interactions", "pictures"]
QUARANTINE: Final = "quarantine.parquet"
LISTED: Final = 1000
"""Refusals that are also listed in the report."""
_BUFFER: Final = 8192
_SCHEMA: Final = pa.schema(
    [
        ("table", pa.string()),
        ("row", pa.int64()),
        ("identity", pa.string()),
        ("reason", pa.string()),
        (columns.ERROR_MESSAGE, pa.string()),
    ]
)


@dataclass(frozen=True)
class Refusal:
    """One refused row or picture.

    Args:
        table: where it came from; a picture has the row of its item.
        row: counted from 1, the header not counted.
        identity: the id, the pair of ids, or the file.
        reason: class of the refusal, one word.
        message: what was expected and what was found.
    """

    table: TableName
    row: int
    identity: str
    reason: str
    message: str

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Refusal:
        """Undo :meth:`record`."""
        return cls(
            table=cast("TableName", record["table"]),
            row=cast("int", record["row"]),
            identity=str(record["identity"]),
            reason=str(record["reason"]),
            message=str(record[columns.ERROR_MESSAGE]),
        )

    def record(self) -> dict[str, object]:
        """Return the columns of ``quarantine.parquet``."""
        return {
            "table": self.table,
            "row": self.row,
            "identity": self.identity,
            "reason": self.reason,
            columns.ERROR_MESSAGE: self.message,
        }


@dataclass
class Quarantine:
    """Writes refusals to a Parquet file as they come; use as a context manager.

    Args:
        path: the file.
    """

    path: Path
    listing: list[Refusal] = field(default_factory=list)
    _counts: dict[TableName, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _buffer: list[Refusal] = field(default_factory=list)
    _writer: parquet.ParquetWriter | None = None

    def __enter__(self) -> Quarantine:
        self._writer = parquet.ParquetWriter(self.path, _SCHEMA)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        assert self._writer is not None
        self._writer.close()

    def add(self, refusals: Sequence[Refusal]) -> None:
        """Record refusals."""
        for refusal in refusals:
            self._counts[refusal.table][refusal.reason] += 1
        self.listing.extend(refusals[: max(0, LISTED - len(self.listing))])
        self._buffer.extend(refusals)
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def counts(self, table: TableName) -> Mapping[str, int]:
        """Return refusals of a table by reason, reasons in alphabetical order."""
        return dict(sorted(self._counts[table].items()))

    def total(self) -> int:
        """Return all refusals."""
        return sum(counts.total() for counts in self._counts.values())

    def _flush(self) -> None:
        assert self._writer is not None
        if self._buffer:
            rows = [refusal.record() for refusal in self._buffer]
            self._writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
            self._buffer.clear()
