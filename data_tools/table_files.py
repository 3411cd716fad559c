"""Readers of table files that carry types or a header: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet

from data_tools.arrow_text import as_text, is_bytes, is_integer, is_list, is_text
from data_tools.tables import ID_COLUMNS, Chunk, IdType, Malformed, wrong_type
from mmrec import columns
from mmrec.errors import FeedError

_CSV_BLOCK: Final = 8 << 20
_ROWS: Final = 65_536
_ROWS_WITH_BYTES: Final = 256
_SHOWN: Final = 80


@dataclass(frozen=True)
class DelimitedSource:
    """A CSV or TSV file: one header line, fields quoted as in RFC 4180."""

    path: Path
    column_names: tuple[str, ...]
    splits_images: bool = True

    @classmethod
    def open(cls, path: Path) -> DelimitedSource:
        """Read the header."""
        with path.open(encoding="utf-8-sig", newline="") as file:
            return cls(path, tuple(next(csv.reader(file, delimiter=_delimiter(path)), [])))

    def id_type(self, name: str) -> IdType:
        """Ids of a text file are text."""
        return "string"

    def chunks(self, names: Sequence[str]) -> Iterator[Chunk]:
        """Read every column as text; rows with too few or too many fields come as malformed."""
        bad: list[arrow_csv.InvalidRow] = []
        try:
            yield from self._numbered(self._batches(names, bad), names, bad)
        except pa.ArrowInvalid as error:
            raise FeedError(
                "rows of the same fields", got=str(error), where=str(self.path), fix="Look for an unclosed quote mark."
            ) from error

    def _batches(self, names: Sequence[str], bad: list[arrow_csv.InvalidRow]) -> Iterator[pa.RecordBatch]:
        def skip(row: arrow_csv.InvalidRow) -> str:
            bad.append(row)
            return "skip"

        last = self.column_names[-1]  # read in any case, to notice a quote mark that swallows the rest of the file
        return iter(
            arrow_csv.open_csv(
                self.path,
                read_options=arrow_csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=_delimiter(self.path), newlines_in_values=True, invalid_row_handler=skip
                ),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=[*names, *([] if last in names else [last])],
                    column_types={name: pa.string() for name in self.column_names},
                    null_values=[],
                    strings_can_be_null=False,
                ),
            )
        )

    def _numbered(
        self, batches: Iterator[pa.RecordBatch], names: Sequence[str], bad: list[arrow_csv.InvalidRow]
    ) -> Iterator[Chunk]:
        """Give rows their numbers, leaving out those of rows that Arrow skipped."""
        row, tail = 1, ""
        for batch in batches:
            if not batch.num_rows:
                continue
            skipped = np.array(sorted(item.number - 1 for item in bad), dtype=np.int64)
            window = np.arange(row, row + batch.num_rows + len(skipped), dtype=np.int64)
            rows = window[~np.isin(window, skipped)][: batch.num_rows]
            row = int(rows[-1]) + 1
            malformed = tuple(_malformed(item) for item in bad if item.number - 1 < row)
            del bad[: len(malformed)]
            tail = self._last_field(batch)
            yield Chunk(rows, pa.Table.from_batches([batch]).select(list(names)), malformed)
        self._check_closed([tail, *(item.text for item in bad)])
        if bad:
            empty = pa.table({name: pa.array([], pa.string()) for name in names})
            yield Chunk(np.zeros(0, np.int64), empty, tuple(_malformed(item) for item in bad))

    def _last_field(self, batch: pa.RecordBatch) -> str:
        return str(batch.column(batch.schema.get_field_index(self.column_names[-1]))[-1])

    def _check_closed(self, tails: Sequence[str]) -> None:
        """Notice an unclosed quote mark: the last field runs over lines, yet the file does not end with a quote."""
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - 64))
            closed = file.read().rstrip(b"\r\n").endswith(b'"')
        if not closed and any("\n" in tail.rstrip("\r\n") for tail in tails):
            got = f"one that is still open at the end of the file: {tails[-1][:_SHOWN]!r}"
            raise FeedError("quote marks in pairs", got=got, where=str(self.path), fix="Close or remove it.")


def _malformed(row: arrow_csv.InvalidRow) -> Malformed:
    got = f"{row.actual_columns}: {row.text[:_SHOWN]!r}"
    return Malformed(row.number - 1, f"expected {row.expected_columns} fields, got {got}")


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


@dataclass(frozen=True)
class ParquetSource:
    """A Parquet file; numbers, dates and categories are read as the text they would have in a CSV file."""

    path: Path
    column_names: tuple[str, ...]
    schema: pa.Schema
    splits_images: bool = False

    @classmethod
    def open(cls, path: Path) -> ParquetSource:
        """Read the schema.

        Raises:
            FeedError: not a Parquet file, or a column of a type that has no text.
        """
        try:
            metadata = parquet.read_metadata(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise FeedError("a Parquet file", got=str(error), where=str(path), fix="Export it again.") from error
        schema = metadata.schema.to_arrow_schema()
        source = cls(path, tuple(schema.names), schema)
        # A table without rows is refused for that: its columns may have no type at all.
        for name in schema.names if metadata.num_rows else ():
            source._check_type(name)
        return source

    def id_type(self, name: str) -> IdType:
        """Return ``integer`` for whole-number columns."""
        return "integer" if is_integer(self.schema.field(name).type) else "string"

    def chunks(self, names: Sequence[str]) -> Iterator[Chunk]:
        """Read batches; a picture column stays as it is, everything else becomes text."""
        heavy = any(self._holds_bytes(name) for name in names)
        row = 1
        try:
            with parquet.ParquetFile(self.path, memory_map=True, pre_buffer=False) as file:
                for batch in file.iter_batches(_ROWS_WITH_BYTES if heavy else _ROWS, columns=list(names)):
                    batch.validate(full=True)
                    table = self._as_text(pa.Table.from_batches([batch]).select(list(names)))
                    yield Chunk(np.arange(row, row + batch.num_rows, dtype=np.int64), table)
                    row += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            where = f"{self.path}, row {row} or after"
            raise FeedError("whole rows of UTF-8 text", got=str(error), where=where, fix="Export it again.") from error

    def _as_text(self, table: pa.Table) -> pa.Table:
        arrays = [
            table.column(name) if name == columns.IMAGE and not is_text(table.schema.field(name).type)
            else as_text(table.column(name))
            for name in table.column_names
        ]  # fmt: skip
        return pa.table(arrays, names=table.column_names)

    def _holds_bytes(self, name: str) -> bool:
        kind = self.schema.field(name).type
        return is_bytes(kind) or (is_list(kind) and is_bytes(kind.value_type))

    def _check_type(self, name: str) -> None:
        kind = self.schema.field(name).type
        absent = pa.types.is_null(kind)
        if name in ID_COLUMNS and not (is_integer(kind) or is_text(kind)):
            raise wrong_type(self.path, name, expected="text or whole numbers", got=str(kind))
        if name == columns.IMAGE:
            inner = kind.value_type if is_list(kind) else kind
            if not (is_text(inner) or is_bytes(inner) or absent or pa.types.is_null(inner)):
                raise wrong_type(self.path, name, expected="paths, bytes, or lists of them", got=str(kind))
        elif self._holds_bytes(name):
            raise wrong_type(self.path, name, expected="text (bytes are for the column 'image')", got=str(kind))
        scalar = (columns.TIMESTAMP, columns.PUBLISHED_AT, columns.EVENT, columns.VALUE)
        if name in scalar and (pa.types.is_nested(kind) or (name != columns.VALUE and pa.types.is_boolean(kind))):
            raise wrong_type(self.path, name, expected="one value a row", got=str(kind))
