"""Bodies of requests: read no further than allowed, JSON without NaN, multipart without a file on disk."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from mmrec.errors import MissingExtraError
from mmrec.serving.problems import ProblemError

try:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header
except ImportError as error:
    raise MissingExtraError("python_multipart", "serve") from error

_MOST_PARTS = 2000
MOST_VALUES = 200_000
"""Texts, numbers, names, lists and objects of a body: one megabyte of empty objects becomes hundreds in memory."""
_MARKS, _MOST_MARKS = (b",", b"[", b"{"), 10 * MOST_VALUES
"""Which stand before every value; text may hold them too."""
_MOST_ERRORS, _COUNTED_ERRORS = 10, 1000
_FIELD = "request"
_Schema = TypeVar("_Schema", bound=BaseModel)


@dataclass(frozen=True)
class Payload:
    """A body as it was sent.

    Args:
        text: the JSON part.
        parts: further parts of a multipart body, by name.
    """

    text: bytes
    parts: Mapping[str, bytes] = field(default_factory=dict)


async def read_body(chunks: AsyncIterator[bytes], *, declared: str | None, limit: int) -> bytes:
    """Read a body until it is whole, or longer than allowed.

    Args:
        chunks: the body as it comes.
        declared: its length as the request says, or None.
        limit: bytes allowed.

    Raises:
        ProblemError: it is, or says it is, longer than that.
    """
    if declared is not None and declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_long(limit)
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise _too_long(limit)
    return bytes(body)


def split_body(body: bytes, content_type: str) -> Payload:
    """Return the JSON of a body and its other parts.

    Raises:
        ProblemError: another content type than JSON or multipart/form-data, or a damaged body.
    """
    kind, options = parse_options_header(content_type)
    name = kind.decode("latin-1").lower()
    if name == "application/json" or name.endswith("+json"):
        return Payload(body)
    if name != "multipart/form-data":
        raise ProblemError(
            415, "application/json or multipart/form-data", got=name[:100] or "none", where="Content-Type"
        )
    boundary = options.get(b"boundary")
    if not boundary:
        raise ProblemError(400, "a boundary", got="none", where="Content-Type")
    parts = _parts(body, boundary)
    text = parts.pop(_FIELD, None)
    if text is None:
        raise ProblemError(422, f'a part "{_FIELD}" of JSON', got="none", where="the body")
    return Payload(text, parts)


def parse(text: bytes, schema: type[_Schema]) -> _Schema:
    """Return strict JSON as a request.

    Raises:
        ProblemError: no JSON, a number that is none, more values than any request has, or fields that are not the
            schema's.
    """
    if sum(map(text.count, _MARKS)) > _MOST_MARKS:
        raise _too_full()
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except ProblemError:
        raise
    except UnicodeDecodeError as error:
        raise ProblemError(422, "JSON in UTF-8", got=f"a wrong byte at {error.start}", where="the body") from None
    except json.JSONDecodeError as error:
        raise ProblemError(422, "JSON", got=f"{error.msg} at character {error.pos}", where="the body") from None
    except (RecursionError, ValueError):  # nested too deep; a number of thousands of digits
        raise ProblemError(422, "JSON of ordinary depth and numbers", got="other", where="the body") from None
    _check_values(value)
    return validated(value, schema)


def validated(value: object, schema: type[_Schema]) -> _Schema:
    """Return plain values as a request; the refusal says which fields are wrong, and never what they hold.

    Raises:
        ProblemError: fields that are not the schema's.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        count = error.error_count()
        # All of them or none are to be had.
        found = (
            []
            if count > _COUNTED_ERRORS
            else error.errors(include_url=False, include_input=False, include_context=False)
        )
        errors = [{"where": _place(entry["loc"]), "message": entry["msg"]} for entry in found[:_MOST_ERRORS]]
        got = f"{count} that are wrong"
        raise ProblemError(422, "fields as /openapi.json describes them", got=got, errors=errors) from None


def _place(steps: Sequence[str | int]) -> str:
    """Return the way to a field, without the names of the types that were tried."""
    return ".".join(str(step)[:100] for step in steps if "[" not in str(step))


def _refuse(constant: str) -> NoReturn:
    raise ProblemError(422, "finite numbers", got=constant, where="the body")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ProblemError(422, "finite numbers", got="one beyond the range of a double", where="the body")
    return number


def _check_values(value: object) -> None:
    """Refuse half characters (lone surrogates), which no encoder, store or answer can hold, and more than there may be."""
    waiting, count = [value], 0
    while waiting:
        entry, count = waiting.pop(), count + 1
        if count + len(waiting) > MOST_VALUES:
            raise _too_full()
        if isinstance(entry, str):
            if not entry.isascii() and any("\ud800" <= character <= "\udfff" for character in entry):
                raise ProblemError(422, "text of whole characters", got="a lone surrogate", where="the body")
        elif isinstance(entry, dict):
            waiting += [*entry.keys(), *entry.values()]
        elif isinstance(entry, list):
            waiting += entry


def _parts(body: bytes, boundary: bytes) -> dict[str, bytes]:
    """Return the parts of a multipart body by name, all in memory."""
    reader = _Reader()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": reader.begin,
            "on_header_field": reader.header_field,
            "on_header_value": reader.header_value,
            "on_header_end": reader.header_end,
            "on_part_data": reader.data,
            "on_part_end": reader.end,
            "on_end": reader.whole,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise ProblemError(400, "a multipart body", got="a damaged one", where="the body") from None
    if not reader.done:
        raise ProblemError(400, "a whole multipart body", got="one that ends early", where="the body")
    return reader.parts


class _Reader:
    """Takes what the parser finds."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}
        self.done = False
        self.begin()

    def begin(self) -> None:
        """Start a part."""
        self._field, self._value, self._disposition, self._data = b"", b"", b"", bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        """Take a piece of a header's name."""
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """Take a piece of a header's value."""
        self._value += data[start:end]

    def header_end(self) -> None:
        """Keep the header that names the part."""
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        """Take a piece of a part."""
        self._data += data[start:end]

    def end(self) -> None:
        """Keep a part."""
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name or name in self.parts or len(self.parts) >= _MOST_PARTS:
            got = "one without" if not name else "a name that came before, or too many parts"
            raise ProblemError(400, "parts of different names", got=got, where="the body")
        self.parts[name] = bytes(self._data)

    def whole(self) -> None:
        """Note that the body is whole."""
        self.done = True


def _too_full() -> ProblemError:
    return ProblemError(
        413, f"a body of at most {MOST_VALUES:,} values", got="more", where="the body", fix="Ask in several requests."
    )


def _too_long(limit: int) -> ProblemError:
    return ProblemError(
        413, f"a body of at most {limit:,} bytes", got="a longer one", fix="Send fewer or smaller pictures."
    )
