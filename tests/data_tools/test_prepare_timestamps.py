"""Units of timestamps are declared or certain, and every reading is arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.arrow_text import as_text
from data_tools.feed_tables import open_table
from data_tools.interactions import read_clock
from data_tools.timestamps import (
    EARLIEST_MS,
    LATEST_MS,
    MISSING,
    UNITS,
    UNREADABLE,
    Clock,
    Unit,
    find_clock,
    parse_times,
    to_milliseconds,
)
from mmrec.errors import FeedError
from tests.data_tools.raw_feeds import START

HOUR = 3_600_000
NEW_YEAR = 18_262 * 24 * HOUR
"""2020-01-01: 50 years of 365 days and 12 leap days after 1970."""


def read(texts: Sequence[str | None], unit: Unit) -> list[int | None]:
    """Return milliseconds, None where the value is refused."""
    moments, valid = to_milliseconds(parse_times(pa.chunked_array([pa.array(texts, pa.string())])), unit)
    return [int(moment) if good else None for moment, good in zip(moments, valid, strict=True)]


def clock(texts: Sequence[str], declared: Unit | None = None) -> Clock:
    times = parse_times(pa.chunked_array([pa.array(texts, pa.string())]))
    return find_clock([times.take(np.arange(len(texts)) % 2 == part) for part in (0, 1)], declared, where="a table")


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        (str(START), "s", START * 1000),
        (f" +{START} ", "s", START * 1000),
        (f"{START}.25", "s", START * 1000 + 250),
        (f"{START}.0", "s", START * 1000),
        (str(START * 1000 + 7), "ms", START * 1000 + 7),
        (f"{START * 1000}.9", "ms", START * 1000),
        (f"{START * 1000}.9", "s", None),
        (f"{START}.9", "ms", None),
        ("2020-01-01", "iso", NEW_YEAR),
        ("2020-01-01T01:00", "iso", NEW_YEAR + HOUR),
        ("2020-01-01 01:00:00.5", "iso", NEW_YEAR + HOUR + 500),
        ("2020-01-01T01:00:00Z", "iso", NEW_YEAR + HOUR),
        ("2020-01-01T01:00:00+02:00", "iso", NEW_YEAR - HOUR),
        ("20200101", "iso", NEW_YEAR),
        ("-12", "order", -12),
        ("0", "order", 0),
        ("1.5", "order", None),
        ("2020-01-01", "order", None),
        ("2020-13-01", "iso", None),
        ("20201301", "iso", None),
        ("2020-01-01", "s", None),
        (str(START), "ms", None),
        (str(START * 1000), "s", None),
        (str(START), "iso", None),
        ("0", "s", None),
        ("-1", "s", None),
        ("999999999999999999", "s", None),
        ("1" * 30, "s", None),
        ("1989-12-31T23:59:59.999", "iso", None),
        ("2100-01-01", "iso", None),
        ("now", "iso", None),
        ("1e9", "s", None),
        ("nan", "s", None),
    ],
)
def test_reading(text: str, unit: Unit, expected: int | None) -> None:
    assert read([text], unit) == [expected]
    assert read([str(START), text, "2021-01-01", ""], unit)[1] == expected  # neighbours change nothing


def test_missing_is_not_unreadable() -> None:
    kinds = parse_times(pa.chunked_array([pa.array(["", None, "  ", "soon"])])).kinds
    assert kinds.tolist() == [MISSING, MISSING, MISSING, UNREADABLE]


def test_years_before_1970_can_be_publication_dates() -> None:
    times = parse_times(pa.chunked_array([pa.array(["1969-12-31T23:00"])]))
    moments, valid = to_milliseconds(times, "iso", earliest=np.iinfo(np.int64).min)
    assert (moments.tolist(), valid.tolist()) == ([-HOUR], [True])


def test_windows_of_seconds_and_milliseconds_do_not_overlap() -> None:
    assert LATEST_MS // 1000 < EARLIEST_MS
    assert pd.Timestamp("1990-01-01").value // 10**6 == EARLIEST_MS
    assert pd.Timestamp("2100-01-01").value // 10**6 == LATEST_MS


@given(st.lists(st.integers(EARLIEST_MS // 1000, LATEST_MS // 1000 - 1), min_size=1))
def test_units_are_detected(seconds: list[int]) -> None:
    assert clock([str(second) for second in seconds]) == Clock("s", detected=True)
    assert clock([str(second * 1000) for second in seconds]) == Clock("ms", detected=True)
    moments = [pd.Timestamp(second, unit="s").isoformat() for second in seconds]
    assert clock(moments) == Clock("iso", detected=True)
    assert read(moments, "iso") == read([str(second) for second in seconds], "s")


@pytest.mark.parametrize(
    ("texts", "got"),
    [
        (["0", "1", "2"], "integers from 0 to 2"),
        ([str(START), str(START * 1000)], "integers from 1600000000 to 1600000000000, 1 that fit s, 1 that fit ms"),
        (
            [str(START), "2020-01-01"],
            "integers from 1600000000 to 1600000000, 1 ISO dates, 1 that fit s, 1 that fit iso",
        ),
        ([str(START)] * 18 + ["5", "6"], "integers from 5 to 1600000000, 18 that fit s"),
        (["20200101"], "integers from 20200101"),
        (["", "soon"], "no readable timestamp"),
        (["3.5"], "1 decimals"),
    ],
)
def test_doubt_is_an_error(texts: list[str], got: str) -> None:
    with pytest.raises(FeedError, match=f"got {got}.*, in a table. Declare it with --timestamp-unit"):
        clock(texts)
    for unit in UNITS:
        assert clock(texts, unit) == Clock(unit, detected=False)


def test_one_absurd_value_in_twenty_does_not_hide_the_unit() -> None:
    assert clock([str(START)] * 19 + ["0", "", "soon"]) == Clock("s", detected=True)


def test_dates_and_floats_of_typed_files(tmp_path: Path) -> None:
    moments = pd.to_datetime([START, START + 1], unit="s")
    columns = {
        "naive": (pd.Series(moments), "iso"),
        "zoned": (pd.Series(moments.tz_localize("UTC").tz_convert("Asia/Tokyo")), "iso"),
        "integers": (pd.Series([START, START + 1]), "s"),
        "floats": (pd.Series([START, START + 1, None], dtype="float64"), "s"),
        "dates": (pd.Series([pd.Timestamp("2020-09-13").date()] * 2), "iso"),
    }
    for name, (column, unit) in columns.items():
        frame = pd.DataFrame({"user_id": "u", "item_id": "i", "timestamp": column})
        frame.to_parquet(tmp_path / f"{name}.parquet")
        source = open_table(tmp_path / f"{name}.parquet", required=["timestamp"])
        assert read_clock(source, None) == Clock(unit, detected=True), name
        (chunk,) = source.chunks(["timestamp"])
        moments_read, valid = to_milliseconds(parse_times(chunk.table.column("timestamp")), unit)
        expected = [START * 1000, START * 1000 + 1000] if name != "dates" else [18_518 * 24 * HOUR] * 2
        assert moments_read[valid].tolist() == expected, name


def test_typed_columns_as_text() -> None:
    floats = pa.chunked_array([pa.array([3.0, 2.5, 1.6e9, None, float("nan")])])
    assert as_text(floats).to_pylist() == ["3", "2.5", "1600000000", None, None]
    assert as_text(pa.chunked_array([pa.array([True, None])])).to_pylist() == ["true", None]
    assert as_text(pa.chunked_array([pa.array([["a", "é"], None])])).to_pylist() == ['["a", "é"]', None]
    assert as_text(pa.chunked_array([pa.array(["x", "y", "x"]).dictionary_encode()])).to_pylist() == ["x", "y", "x"]
    assert as_text(pa.chunked_array([pa.nulls(2)])).to_pylist() == [None, None]
