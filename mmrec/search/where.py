"""Filters such as ``colour=Black and price<20`` over a table of attributes.

Grammar: conditions joined by ``and``; a condition is ``COLUMN OP VALUE`` with OP one of ``= != < <= > >= ~`` (``~``:
contains, whatever the case) or ``COLUMN in (A, B)``.  Values with spaces around ``and``, commas or brackets are quoted; a
quote in the middle of a value is one of its characters.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from mmrec.errors import RequestError, near_names
from mmrec.search.index import Mask

_VALUE = r"'[^']*'|\"[^\"]*\""
_LISTED = rf"{_VALUE}|[^\s'\",)][^,)]*"
# Atomic: whatever text comes, each of its characters can be read in one way, or matching would take exponential time.
_ENTRY = rf"(?>\s*(?:{_LISTED})?\s*)"
_CONDITION = re.compile(
    rf"\s*(?P<column>[\w.]+|`[^`]+`)\s*(?:(?P<op>!=|<=|>=|=|<|>|~)\s*(?P<value>{_VALUE}|.+?)"
    rf"|in\s*\((?P<values>{_ENTRY}(?:,{_ENTRY})*+)\))\s*(?:and\b|$)",
    re.IGNORECASE,
)
_ORDER: dict[str, Callable[[pd.Series, float | str], pd.Series]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def where_mask(table: pd.DataFrame, expression: str) -> Mask:
    """Return which rows of ``table`` meet every condition, shape (rows,).

    Raises:
        RequestError: an unknown column, or text that is no condition.
    """
    mask = np.ones(len(table), dtype=bool)
    position = 0
    while position < len(expression):
        match = _CONDITION.match(expression, position)
        if match is None or match.end() == position:
            raise RequestError(
                "conditions such as colour=Black and price<20", got=expression[position:], where="--where"
            )
        position = match.end()
        column = match["column"].strip("`")
        if column not in table.columns:
            raise RequestError(
                "an attribute column", got=repr(column), where="--where", fix=near_names(column, table.columns)
            )
        values = table[column]
        if match["values"] is not None:
            options = [_plain(option) for option in re.findall(_LISTED, match["values"])]
            mask &= values.astype("string").isin(options).fillna(False).to_numpy(dtype=bool)
        else:
            mask &= _compare(values, match["op"], _plain(match["value"]))
    return mask


def _plain(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _compare(values: pd.Series, op: str, wanted: str) -> Mask:
    text = values.astype("string")
    if op in {"=", "!="}:
        equal = (text == wanted).fillna(False).to_numpy(dtype=bool)
        return equal if op == "=" else ~equal
    if op == "~":
        return text.str.contains(wanted, case=False, regex=False).fillna(False).to_numpy(dtype=bool)
    number = _number(wanted)
    compared = _ORDER[op](text, wanted) if number is None else _ORDER[op](pd.to_numeric(text, errors="coerce"), number)
    return compared.fillna(False).to_numpy(dtype=bool)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
