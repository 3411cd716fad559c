"""What a table of a raw feed looks like to its readers: chunks of text columns with row numbers.

Nothing is inferred: an id keeps its zeros, a caption ``NA`` stays a caption.  Formats that know integers (Parquet, JSON)
have them remembered as the type of the id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmrec import columns
from mmrec.errors import FeedError

Rows = npt.NDArray[np.int64]
IdType = Literal["string", "integer"]
ID_COLUMNS: Final = (columns.ITEM_ID, columns.USER_ID)


@dataclass(frozen=True)
class Malformed:
    """A row that cannot be read as a row of its table.

    Args:
        row: its number.
        message: what is wrong with it.
    """

    row: int
    message: str


@dataclass(frozen=True)
class Chunk:
    """Some successive rows of a table.

    Args:
        rows: shape (rows,), numbers counted from 1, the header not counted.
        table: string columns; the column ``image`` may hold bytes or lists instead.
        malformed: rows of this stretch that could not be read.
    """

    rows: Rows
    table: pa.Table
    malformed: tuple[Malformed, ...] = ()

    def texts(self, name: str) -> list[str]:
        """Return a string column, absent values as the empty text."""
        return [value or "" for value in self.table.column(name).to_pylist()]

    def take(self, kept: npt.NDArray[np.bool_]) -> Chunk:
        """Return the rows where ``kept`` is True."""
        return Chunk(self.rows[kept], self.table.filter(pa.array(kept)))


@runtime_checkable
class Source(Protocol):
    """One table file."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of its columns, in order."""

    @property
    def splits_images(self) -> bool:
        """Whether one text holds several picture paths, divided by ``|``."""

    def id_type(self, name: str) -> IdType:
        """Return the type in which ids of a column come.

        Raises:
            FeedError: the column holds neither text nor integers.
        """

    def chunks(self, names: Sequence[str]) -> Iterator[Chunk]:
        """Read the named columns from the start; every call reads the file again.

        Raises:
            FeedError: the file cannot be read on.
        """


def wrong_type(path: Path, name: str, *, expected: str, got: str) -> FeedError:
    """Describe a column of a type that cannot be used."""
    return FeedError(
        f"{expected} in column {name!r}", got=got, where=str(path), fix="Convert the column when exporting the table."
    )
