"""Timestamps as text to milliseconds since 1970, with a unit that is declared or certain, never guessed.

Between 1990 and 2100 seconds and milliseconds cannot be confused: the one read as the other lies in January 1970
or beyond the year 20000.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mmrec.errors import FeedError

Unit = Literal["s", "ms", "iso", "order"]
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)
_DETECTED: Final[tuple[Unit, ...]] = ("s", "ms", "iso")
EARLIEST_MS: Final = 631_152_000_000
"""1990-01-01; an interaction before it is absurd."""
LATEST_MS: Final = 4_102_444_800_000
"""2100-01-01."""
MISSING, UNREADABLE, INTEGER, DECIMAL, ISO = 0, 1, 2, 3, 4
"""Kinds of a parsed value; a DECIMAL is kept as thousandths."""
DOUBT: Final = 0.05
"""Share of values that may fit no unit where the unit is detected."""

_INTEGER = r"^[+-]?[0-9]{1,18}$"
_DECIMAL = r"^[+-]?[0-9]{1,15}\.[0-9]*$"
_ISO = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
_DAY_DIGITS: Final = (10_000_101, 99_991_231)


@dataclass(frozen=True)
class ParsedTimes:
    """Timestamps whose unit is still open.

    Args:
        values: shape (rows,): the integer, thousandths of the decimal, or milliseconds of the ISO date.
        kinds: shape (rows,), uint8: MISSING, UNREADABLE, INTEGER, DECIMAL or ISO.
    """

    values: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]

    def take(self, index: npt.NDArray[np.generic]) -> ParsedTimes:
        """Return some of the rows, by mask or by position."""
        return ParsedTimes(self.values[index], self.kinds[index])

    @classmethod
    def join(cls, pieces: list[ParsedTimes]) -> ParsedTimes:
        """Put chunks end to end."""
        none = cls(np.zeros(0, np.int64), np.zeros(0, np.uint8))
        pieces = [none, *pieces]
        return cls(
            np.concatenate([piece.values for piece in pieces]), np.concatenate([piece.kinds for piece in pieces])
        )


@dataclass(frozen=True)
class Clock:
    """The unit of a column.

    Args:
        unit: its name.
        detected: False where the user declared it.
    """

    unit: Unit
    detected: bool


def parse_times(texts: pa.ChunkedArray) -> ParsedTimes:
    """Read a string column; dates without a zone are UTC."""
    trimmed = pc.utf8_trim_whitespace(pc.fill_null(texts.combine_chunks(), ""))
    size = len(trimmed)
    values, kinds = np.zeros(size, np.int64), np.full(size, UNREADABLE, np.uint8)
    kinds[_matches(pc.equal(trimmed, ""))] = MISSING
    integers = _matches(pc.match_substring_regex(trimmed, _INTEGER))
    values[integers] = _cast(trimmed, integers, pa.int64())
    kinds[integers] = INTEGER
    decimals = _matches(pc.match_substring_regex(trimmed, _DECIMAL))
    if decimals.any():
        numbers = _cast(trimmed, decimals, pa.float64())
        whole = np.floor(numbers) == numbers
        values[decimals] = np.where(whole, numbers, np.rint(numbers * 1000)).astype(np.int64)
        kinds[decimals] = np.where(whole, INTEGER, DECIMAL)
    dates = _matches(pc.match_substring_regex(trimmed, _ISO))
    if dates.any():
        moments, valid = _dates(trimmed.filter(pa.array(dates)).to_pylist(), "ISO8601")
        values[dates] = moments
        kinds[dates] = np.where(valid, ISO, UNREADABLE)
    return ParsedTimes(values, kinds)


def find_clock(chunks: Iterable[ParsedTimes], declared: Unit | None, *, where: str) -> Clock:
    """Return the unit declared, or the only one that fits; nothing is read where it is declared.

    Raises:
        FeedError: nothing is declared and more than one unit, or none, fits.
    """
    if declared is not None:
        return Clock(declared, detected=False)
    seen = _Seen()
    for times in chunks:
        seen.add(times)
    fitting = [unit for unit in _DETECTED if seen.fits[unit]]
    if len(fitting) == 1 and seen.fits[fitting[0]] >= (1 - DOUBT) * seen.readable:
        return Clock(fitting[0], detected=True)
    raise FeedError(
        "timestamps whose unit is certain (seconds, milliseconds or ISO dates between 1990 and 2100)",
        got=seen.describe(),
        where=where,
        fix="Declare it with --timestamp-unit s, ms, iso or order.",
    )


def to_milliseconds(
    times: ParsedTimes, unit: Unit, *, earliest: int = EARLIEST_MS, compact: bool = True
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return milliseconds (for ``order``: the integers as they are) and where they are plausible, shapes (rows,).

    Args:
        times: parsed values.
        unit: their unit.
        earliest: values before it are implausible.
        compact: whether ``iso`` also reads ``20200131``.
    """
    integer, decimal, iso = (times.kinds == kind for kind in (INTEGER, DECIMAL, ISO))
    values = times.values
    if unit == "order":
        return np.where(integer, values, 0), integer
    if unit == "iso":
        moments, valid = np.where(iso, values, 0), iso
        if compact:
            moments, valid = _with_compact_dates(times, moments, valid)
    else:
        bounded = np.clip(values, -(LATEST_MS + 1), LATEST_MS + 1)  # so that the product cannot overflow
        in_seconds = unit == "s"
        whole, thousandths = (bounded * 1000, values) if in_seconds else (bounded, values // 1000)
        moments, valid = np.where(decimal, thousandths, whole), integer | decimal
    return moments, np.asarray(valid & (moments >= earliest) & (moments < LATEST_MS))


def _with_compact_dates(
    times: ParsedTimes, moments: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    first, last = _DAY_DIGITS
    digits = (times.kinds == INTEGER) & (times.values >= first) & (times.values <= last)
    if not digits.any():
        return moments, valid
    moments, valid = moments.copy(), valid.copy()
    moments[digits], valid[digits] = _dates([str(value) for value in times.values[digits]], "%Y%m%d")
    return moments, valid


def _dates(texts: list[str], layout: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    moments = pd.Series(pd.to_datetime(pd.Series(texts, dtype=object), format=layout, utc=True, errors="coerce"))
    valid = moments.notna().to_numpy(dtype=np.bool_)
    naive = moments.dt.tz_localize(None).to_numpy().astype("datetime64[ms]")
    return np.where(valid, naive.astype(np.int64), 0), valid


def _matches(mask: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(mask.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _cast(texts: pa.Array, chosen: npt.NDArray[np.bool_], kind: pa.DataType) -> npt.NDArray[np.generic]:
    plain = pc.utf8_ltrim(texts.filter(pa.array(chosen)), "+")
    return np.asarray(plain.cast(kind).to_numpy(zero_copy_only=False))


@dataclass
class _Seen:
    """What a column holds, counted chunk by chunk."""

    readable: int = 0
    decimals: int = 0
    dates: int = 0
    lowest: int | None = None
    highest: int | None = None
    fits: dict[Unit, int] = field(default_factory=lambda: dict.fromkeys(_DETECTED, 0))

    def add(self, times: ParsedTimes) -> None:
        self.readable += int(np.count_nonzero(times.kinds >= INTEGER))
        self.decimals += int(np.count_nonzero(times.kinds == DECIMAL))
        self.dates += int(np.count_nonzero(times.kinds == ISO))
        for unit in _DETECTED:
            self.fits[unit] += int(np.count_nonzero(to_milliseconds(times, unit, compact=False)[1]))
        numbers = times.values[times.kinds == INTEGER]
        if len(numbers):
            low, high = int(numbers.min()), int(numbers.max())
            self.lowest = low if self.lowest is None else min(low, self.lowest)
            self.highest = high if self.highest is None else max(high, self.highest)

    def describe(self) -> str:
        """Say what was found."""
        parts = [] if self.lowest is None else [f"integers from {self.lowest} to {self.highest}"]
        parts += [f"{self.decimals} decimals"] if self.decimals else []
        parts += [f"{self.dates} ISO dates"] if self.dates else []
        parts += [f"{count} that fit {unit}" for unit, count in self.fits.items() if count]
        return ", ".join(parts) or "no readable timestamp"
