"""Tables of requests and results: read in pieces, written whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mmrec.errors import RequestError
from mmrec.storage import atomic_file

Row = dict[str, object]
FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
_PIECE = 4096


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a csv, tsv, jsonl or parquet file; text files give text, empty cells are left out.

    Raises:
        RequestError: no such file, an unknown format, or a line that is no row.
    """
    if path.suffix not in FORMATS:
        raise RequestError(f"a table ({', '.join(FORMATS)})", got=path.name, where=str(path))
    if not path.is_file():
        raise RequestError("a table", got="no file", where=str(path))
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".jsonl":
        yield from _json_rows(path)
    else:
        yield from _text_rows(path, "\t" if path.suffix == ".tsv" else ",")


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            for piece in file.iter_batches(_PIECE):
                for row in piece.to_pylist():
                    yield {key: value for key, value in row.items() if value is not None}
    except pa.ArrowInvalid as error:
        raise RequestError("a parquet file", got=str(error)[:200], where=str(path)) from error


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RequestError("a JSON object a line", got=str(error), where=f"{path}:{number}") from error
            if not isinstance(row, dict):
                raise RequestError("a JSON object a line", got=type(row).__name__, where=f"{path}:{number}")
            yield {key: value for key, value in row.items() if value is not None}


def _text_rows(path: Path, delimiter: str) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, delimiter=delimiter):
            yield {key: value for key, value in row.items() if key is not None and value not in {None, ""}}


@runtime_checkable
class RowWriter(Protocol):
    """Takes rows, piece by piece."""

    def write(self, columns: Mapping[str, Sequence[object]]) -> None:
        """Add rows, given as columns of equal length; every call has the same columns and types."""
        ...


class _ParquetWriter:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema)

    def write(self, columns: Mapping[str, Sequence[object]]) -> None:
        arrays = [pa.array(columns[field.name], type=field.type) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _TextWriter:
    def __init__(self, path: Path, suffix: str) -> None:
        self._path, self._suffix, self._first = path, suffix, True
        path.touch()

    def write(self, columns: Mapping[str, Sequence[object]]) -> None:
        frame = pd.DataFrame(dict(columns))
        if self._suffix == ".jsonl":
            frame.to_json(self._path, orient="records", lines=True, mode="a", force_ascii=False)
        else:
            separator = "\t" if self._suffix == ".tsv" else ","
            frame.to_csv(self._path, index=False, mode="a", header=self._first, sep=separator)
        self._first = False


@contextmanager
def row_writer(path: Path, schema: pa.Schema) -> Iterator[RowWriter]:
    """Yield a writer whose rows become the file ``path`` when the block ends well.

    Args:
        path: csv, tsv, jsonl or parquet.
        schema: columns and their types.

    Raises:
        RequestError: an unknown format.
    """
    if path.suffix not in FORMATS:
        raise RequestError(f"an output file ({', '.join(FORMATS)})", got=path.name, where=str(path))
    with atomic_file(path) as partial:
        if path.suffix != ".parquet":
            yield _TextWriter(partial, path.suffix)
            return
        writer = _ParquetWriter(partial, schema)
        yield writer
        writer.close()
