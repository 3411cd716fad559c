"""Attribute columns to codes: one vocabulary for training, scoring and export, read off training's items alone."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from itertools import accumulate

import numpy as np
import pandas as pd

from mmrec.errors import ArtifactError, ConfigError, RequestError
from mmrec.storage import content_hash

SEPARATOR = "|"
_WHOLE = 2.0**53
_EPOCH = date(1970, 1, 1)
_YEAR = re.compile(r"\d{4}")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_DATES = ("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y")


@dataclass(frozen=True)
class Categories:
    """A column of names; a cell may list several.

    Args:
        values: names that have a code of their own, from 1 on; 0 stands for every other.
        separator: what stands between the names of a cell that lists several.
    """

    values: tuple[str, ...]
    separator: str = SEPARATOR

    @property
    def size(self) -> int:
        """Number of codes."""
        return 1 + len(self.values)

    def codes(self, text: str) -> tuple[int, ...]:
        """Return the codes of the different names in a cell, ascending; none for an empty one."""
        return tuple(sorted({self._places.get(value, 0) for value in cell_values(text, self.separator)}))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {value: place for place, value in enumerate(self.values, start=1)}

    def __str__(self) -> str:
        """Say how many names there are."""
        return f"{len(self.values):,} values"


@dataclass(frozen=True)
class Buckets:
    """A column of numbers, or of dates.

    Args:
        edges: rising; a bucket begins at each of them, and one lies below the first.
        dates: cells hold dates, which count in days.
    """

    edges: tuple[float, ...]
    dates: bool = False

    @property
    def size(self) -> int:
        """Number of codes."""
        return 1 + len(self.edges)

    def codes(self, text: str) -> tuple[int, ...]:
        """Return the bucket of a cell; none where it holds no number (or date)."""
        number = self.number(text)
        return () if number is None else (bisect_right(self.edges, number),)

    def number(self, text: str) -> float | None:
        """Return what a cell counts as, None where it holds nothing that does."""
        return as_days(text) if self.dates else as_number(text)

    def __str__(self) -> str:
        """Say how many buckets there are."""
        return f"{self.size:,} buckets"


Column = Categories | Buckets


@dataclass(frozen=True)
class AttributePreprocessor:
    """Turns the attributes of a post into codes; one object for training, scoring and export.

    Every column has a range of codes of its own, in the order of the columns.

    Args:
        columns: what each column holds, by name.

    Example:
        >>> colours = AttributePreprocessor({"colour": Categories(("blue", "red")), "price": Buckets((10.0,))})
        >>> colours.encode({"colour": "red|pink", "price": "12.5"})
        (0, 2, 4)
    """

    columns: Mapping[str, Column]

    @classmethod
    def fit(
        cls,
        table: pd.DataFrame,
        *,
        buckets: int,
        min_count: int,
        numbers: Sequence[str] | None = None,
        separators: Mapping[str, str] | None = None,
        where: str,
    ) -> AttributePreprocessor:
        """Read vocabulary and limits off the items that training may know.

        Args:
            table: one text column an attribute, one row an item; None or NaN where an item has none.
            buckets: buckets of numbers, about equally many items in each.
            min_count: a name that fewer items have gets no code of its own.
            numbers: columns that hold numbers or dates; None takes those in which everything is one, more than
                ``buckets`` different ones.
            separators: what stands between the names of a cell, by column; ``|`` where nothing is said.
            where: config key, for messages.

        Raises:
            ConfigError: a column without a value, or one without a number that should hold them.
        """
        columns: dict[str, Column] = {}
        for name in table.columns:
            cells = [text for text in table[name].dropna() if text.strip()]
            separator = (separators or {}).get(str(name), SEPARATOR)
            found, dates = _numbers(cells)
            every = len(found) == len(cells) and len(set(found)) > buckets
            is_number = every if numbers is None else name in numbers
            if is_number and name in (separators or {}):
                raise ConfigError(
                    f"values to separate in the attribute column {name!r}",
                    got="numbers or dates",
                    where=where,
                    fix="Leave it out of separators, or give numbers without it.",
                )
            if not (found if is_number else any(cell_values(text, separator) for text in cells)):
                raise ConfigError(
                    f"{'numbers or dates' if is_number else 'values'} in the attribute column {name!r}",
                    got="none among the items of training",
                    where=where,
                    fix="Leave the column out.",
                )
            columns[str(name)] = (
                Buckets(_edges(found, buckets), dates) if is_number else _categories(cells, min_count, separator)
            )
        return cls(columns)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each column."""
        return tuple(column.size for column in self.columns.values())

    @property
    def others(self) -> tuple[int, ...]:
        """The codes that stand for names without one of their own."""
        firsts = zip(self._firsts, self.columns.values(), strict=True)
        return tuple(first for first, column in firsts if isinstance(column, Categories))

    def encode(self, texts: Mapping[str, str]) -> tuple[int, ...]:
        """Return the codes of a post's attributes, ascending; those of columns that are not read are left out.

        Args:
            texts: cell by column, as a prepared feed holds them.
        """
        pieces = zip(self._firsts, self.columns.items(), strict=True)
        return tuple(
            first + code
            for first, (name, column) in pieces
            if (text := texts.get(name)) is not None
            for code in column.codes(text)
        )

    def column_codes(self, name: str, text: str) -> tuple[int, ...]:
        """Return the codes of one cell."""
        return self.encode({name: text})

    def check(self, texts: Mapping[str, str]) -> None:
        """Refuse attributes of a new post that cannot be meant as they are.

        Raises:
            RequestError: text where the model reads a number or a date.
        """
        for name, column in self.columns.items():
            if isinstance(column, Buckets) and name in texts and column.number(texts[name]) is None:
                expected = "a date, such as 2026-01-31," if column.dates else "a number"
                raise RequestError(expected, got=repr(texts[name][:80]), where=f"attribute {name!r}")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides the codes."""
        return content_hash("attributes", json.dumps(self.to_dict()))

    def to_dict(self) -> dict[str, object]:
        """Return vocabulary and limits as plain values for JSON, in the order of the codes."""
        return {name: _to_dict(column) for name, column in self.columns.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> AttributePreprocessor:
        """Read what :meth:`to_dict` gave.

        Raises:
            ArtifactError: it holds something else.
        """
        return cls({name: _column(name, entry) for name, entry in values.items()})

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    def __str__(self) -> str:
        """Say what was found, as the end of a sentence."""
        return ", ".join(f"{name} ({column})" for name, column in self.columns.items())


def cell_values(text: str, separator: str = SEPARATOR) -> list[str]:
    """Return the values of a cell: the entries of a JSON list, what stands between separators, or the cell itself."""
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            entries = None
        if isinstance(entries, list):
            return [value for entry in entries if (value := attribute_text(entry)) is not None]
    return [value for part in text.split(separator) if (value := part.strip())]


def as_number(text: str) -> float | None:
    """Return the number that a cell holds, None where it holds none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def as_days(text: str) -> float | None:
    """Return the date that a cell holds, in days since 1970, None where it holds none.

    Read are ``2026-01-31`` (a time of day may follow), ``31 Jan 2026`` and ``January 31, 2026``; not ``1/2/2026``, in which
    the month may be either.
    """
    # Most cells are names: trying every form on each would take a large table minutes.
    if not _YEAR.search(text):
        return None
    for form in _DATES:
        try:
            return float((datetime.strptime(text.strip(), form).date() - _EPOCH).days)  # noqa: DTZ007
        except ValueError:
            continue
    # The library reads more than is meant here: 20260131 may be any number.
    if not _ISO_DATE.match(text.strip()):
        return None
    try:
        return float((datetime.fromisoformat(text.strip()).date() - _EPOCH).days)
    except ValueError:
        return None


def attribute_text(value: object) -> str | None:
    """Return an attribute as a prepared feed would hold it: as text, a list as JSON; None where there is none.

    Raises:
        RequestError: neither text, number, truth value, nor a list of these.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < _WHOLE else repr(value)
    if isinstance(value, str | int):
        return str(value).strip() or None
    if isinstance(value, list | tuple | np.ndarray):
        entries = [entry for each in value if (entry := attribute_text(each)) is not None]
        return json.dumps(entries, ensure_ascii=False) if entries else None
    if value is None:
        return None
    raise RequestError("text, numbers or lists of them as attributes", got=type(value).__name__)


def _numbers(cells: Sequence[str]) -> tuple[list[float], bool]:
    """Return the numbers of a column, or its dates where these are more, and whether they are dates."""
    numbers = [number for text in cells if (number := as_number(text)) is not None]
    days = [number for text in cells if (number := as_days(text)) is not None]
    return (days, True) if len(days) > len(numbers) else (numbers, False)


def _categories(cells: Iterable[str], min_count: int, separator: str) -> Categories:
    counts = Counter(value for text in cells for value in set(cell_values(text, separator)))
    return Categories(tuple(sorted(value for value, count in counts.items() if count >= min_count)), separator)


def _edges(numbers: Sequence[float], count: int) -> tuple[float, ...]:
    """Begin a bucket at each quantile; values that are very common take several and so leave fewer buckets."""
    quantiles = np.quantile(np.asarray(numbers), np.arange(1, count) / count, method="higher")
    return tuple(edge for edge in np.unique(quantiles).tolist() if edge > min(numbers))


def _to_dict(column: Column) -> dict[str, object]:
    if isinstance(column, Buckets):
        return {"edges": list(column.edges), **({"dates": True} if column.dates else {})}
    said = {} if column.separator == SEPARATOR else {"separator": column.separator}
    return {"values": list(column.values), **said}


def _column(name: str, entry: object) -> Column:
    match entry:
        case {"values": list(values), **other} if all(isinstance(value, str) for value in values):
            separator = other.get("separator", SEPARATOR)
            if isinstance(separator, str) and separator:
                return Categories(tuple(values), separator)
        case {"edges": list(edges), **other} if all(isinstance(edge, int | float) for edge in edges):
            return Buckets(tuple(float(edge) for edge in edges), other.get("dates") is True)
    raise ArtifactError("the values or edges of an attribute column", got=repr(entry)[:80], where=repr(name))
