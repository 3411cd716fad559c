"""Columns of typed files as text: what a person would have written into a CSV file."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc


def is_integer(kind: pa.DataType) -> bool:
    """Whether a type holds whole numbers of any size."""
    return bool(pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0))


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text, dictionary-encoded or not."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type holds bytes."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def is_list(kind: pa.DataType) -> bool:
    """Whether a type holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as strings, nulls kept.

    Whole numbers in a float column (how some libraries store integers beside nulls) are written without a point;
    nested values become JSON.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return as_text(column.cast(kind.value_type))
    if pa.types.is_floating(kind):
        return _floats_as_text(column.cast(pa.float64()))
    if pa.types.is_nested(kind):
        values = [
            None if value is None else json.dumps(value, ensure_ascii=False, default=str)
            for value in column.to_pylist()
        ]
        return pa.chunked_array([pa.array(values, pa.string())])
    return column.cast(pa.string())


def _floats_as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    valid = pc.and_(pc.is_finite(column), pc.less(pc.abs(column), 2.0**53))
    whole = pc.fill_null(pc.and_(valid, pc.equal(pc.floor(column), column)), False)
    integers = pc.if_else(whole, column, None).cast(pa.int64()).cast(pa.string())
    absent = pc.fill_null(pc.is_nan(column), True)
    return pc.if_else(absent, None, pc.if_else(whole, integers, column.cast(pa.string())))
