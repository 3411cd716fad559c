"""Find and open the two tables of a raw feed, in whichever of four formats they come."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from data_tools.json_lines import JsonLinesSource
from data_tools.table_files import DelimitedSource, ParquetSource
from data_tools.tables import Source
from mmrec.errors import FeedError, near_names

SUFFIXES: Final = (".csv", ".tsv", ".jsonl", ".parquet")
_BLOCK: Final = 1 << 20


def find_table(folder: Path, name: str) -> Path:
    """Return the one file ``<name>.{csv,tsv,jsonl,parquet}`` of a feed.

    Raises:
        FeedError: the folder is absent, or has no such file, or several.
    """
    kinds = "{csv,tsv,jsonl,parquet}"
    if not folder.is_dir():
        raise FeedError("the folder of a feed", got="no folder", where=str(folder))
    found = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) == 1:
        return found[0]
    got = f"{len(found)}: {', '.join(path.name for path in found)}" if found else "none"
    fix = "Keep one of them." if found else f"Export the table as {name}.csv or in another of these formats."
    raise FeedError(f"one file {name}.{kinds}", got=got, where=str(folder), fix=fix)


def open_table(path: Path, *, required: Sequence[str]) -> Source:
    """Open a table file and check that it has the columns it must have.

    Raises:
        FeedError: not UTF-8, no columns, a column twice, or a required column missing.
    """
    source: Source
    match path.suffix:
        case ".parquet":
            source = ParquetSource.open(path)
        case ".jsonl":
            check_utf8(path)
            source = JsonLinesSource.open(path)
        case _:
            check_utf8(path)
            source = DelimitedSource.open(path)
    _check_columns(source, required)
    return source


def _check_columns(source: Source, required: Sequence[str]) -> None:
    names, where = source.column_names, str(source.path)
    if not names:
        raise FeedError("a table with columns and rows", got="an empty table", where=where, fix="Export it again.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FeedError("column names that differ", got=f"{twice[0]!r} twice", where=where, fix="Rename one of them.")
    for name in required:
        if name not in names:
            fix = near_names(name, names)
            fix = f"Rename or add the column: {fix}."
            raise FeedError(f"a column {name!r}", got=f"columns {', '.join(names)}", where=where, fix=fix)


def check_utf8(path: Path) -> None:
    """Read a text file once to know that all of it is UTF-8.

    Raises:
        FeedError: it is not; the message names the line.
    """
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK)
            pending = decoder.getstate()[0]
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line += (pending + block)[: error.start].count(b"\n")
                byte = error.object[error.start]
                fix = "Convert the file, for instance: iconv -f LATIN1 -t UTF-8."
                got = f"byte 0x{byte:02x}, which is not UTF-8"
                raise FeedError("UTF-8 text", got=got, where=f"{path}, line {line}", fix=fix) from error
            if not block:
                return
            line += block.count(b"\n")
