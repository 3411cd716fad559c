"""Tables of requests and results: read in pieces, written whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from mmrec.errors import RequestError
from mmrec.storage import atomic_file

Row = dict[str, object]
FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
_ROWS_AT_ONCE = 4096
_ROWS_WITH_BYTES = 64
_ROWS_OF_A_GROUP = 1 << 16
_LONGEST_CELL = 1 << 30


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a csv, tsv, jsonl or parquet file; text files give text, empty cells are left out.

    Raises:
        RequestError: no such file, an unknown format, or a line that is no row.
    """
    _check_input(path)
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".jsonl":
        yield from _json_rows(path)
    else:
        yield from _text_rows(path)


def column_names(path: Path) -> list[str]:
    """Return the columns of a table; of jsonl, which does not declare any, those of its first thousand rows.

    Raises:
        RequestError: no such file, an unknown format, or a line that is no row.
    """
    _check_input(path)
    if path.suffix == ".jsonl":
        return list(dict.fromkeys(name for row in islice(_json_rows(path), 1000) for name in row))
    if path.suffix == ".parquet":
        with _parquet_file(path) as file:
            return list(file.schema_arrow.names)
    return next(csv.reader(_lines(path), delimiter=_delimiter(path)), [])


def check_output(path: Path) -> None:
    """Refuse an output file of unknown format.

    Raises:
        RequestError: it has none of the known suffixes.
    """
    if path.suffix not in FORMATS:
        raise RequestError(f"an output file ({', '.join(FORMATS)})", got=path.name, where=str(path))


def _check_input(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise RequestError(f"a table ({', '.join(FORMATS)})", got=path.name, where=str(path))
    if not path.is_file():
        raise RequestError("a table", got="no file", where=str(path))


@contextmanager
def _parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:  # damaged pages are an OSError without a file's name
        raise RequestError("a parquet file", got=str(error)[:200], where=str(path)) from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    with _parquet_file(path) as file:
        heavy = "binary" in str(file.schema_arrow)
        for piece in file.iter_batches(_ROWS_WITH_BYTES if heavy else _ROWS_AT_ONCE):
            for row in piece.to_pylist():
                yield {key: value for key, value in row.items() if value is not None}


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, line ends included; a byte order mark is left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise RequestError("UTF-8 text", got=str(error), where=f"{path}:{number}") from error


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise RequestError("a JSON object a line", got=str(error), where=f"{path}:{number}") from error
        if not isinstance(row, dict):
            raise RequestError("a JSON object a line", got=type(row).__name__, where=f"{path}:{number}")
        yield {key: value for key, value in row.items() if value is not None}


def _text_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)  # a cell may list a great many candidates
    reader = csv.DictReader(_lines(path), delimiter=_delimiter(path))
    try:
        for row in reader:
            yield {key: value for key, value in row.items() if key is not None and value not in {None, ""}}
    except csv.Error as error:
        raise RequestError("delimited text", got=str(error), where=f"{path}:{reader.line_num}") from error


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


def id_type(ids: Sequence[str] | Sequence[int]) -> pa.DataType:
    """Return the type that holds ids as they are: text, integers of 64 bits, or decimals for larger ones."""
    numbers = [value for value in ids if isinstance(value, int)]
    if not numbers:
        return pa.string()
    low, high = min(numbers), max(numbers)
    if low >= -(2**63) and high < 2**63:
        return pa.int64()
    return pa.uint64() if low >= 0 and high < 2**64 else pa.decimal256(76)


@runtime_checkable
class RowWriter(Protocol):
    """Takes rows, piece by piece."""

    def write(self, columns: Mapping[str, Sequence[object]]) -> None:
        """Add rows, given as columns of equal length; every call has the same columns and types."""
        ...


class _ParquetWriter:
    """Gathers rows, for a row group each time would make files slow and large."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema)
        self._waiting: list[pa.Table] = []

    def write(self, columns: Mapping[str, Sequence[object]]) -> None:
        arrays = [pa.array(columns[field.name], type=field.type) for field in self._schema]
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        if sum(len(table) for table in self._waiting) >= _ROWS_OF_A_GROUP:
            self._flush()

    def close(self, *, whole: bool) -> None:
        if whole:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting = []


class _TextWriter:
    def __init__(self, path: Path, suffix: str, schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._lines = csv.writer(self._file, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
        self._names, self._json = list(schema.names), suffix == ".jsonl"
        if not self._json:
            self._lines.writerow(self._names)

    def write(self, columns: Mapping[str, Sequence[object]]) -> None:
        for row in zip(*(columns[name] for name in self._names), strict=True):
            if self._json:
                self._file.write(json.dumps(dict(zip(self._names, row, strict=True)), ensure_ascii=False) + "\n")
            else:
                self._lines.writerow(row)

    def close(self, *, whole: bool) -> None:
        self._file.close()


@contextmanager
def row_writer(path: Path, schema: pa.Schema) -> Iterator[RowWriter]:
    """Yield a writer whose rows become the file ``path`` when the block ends well.

    Args:
        path: csv, tsv, jsonl or parquet.
        schema: columns and their types.

    Raises:
        RequestError: an unknown format.
    """
    check_output(path)
    with atomic_file(path) as partial:
        rich = path.suffix == ".parquet"
        writer = _ParquetWriter(partial, schema) if rich else _TextWriter(partial, path.suffix, schema)
        whole = False
        try:
            yield writer
            whole = True
        finally:
            writer.close(whole=whole)
