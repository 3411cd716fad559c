"""Refusals as their callers get them: RFC 9457 problem details, never a stack trace, never a caption."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mmrec.errors import MmrecError

_T = TypeVar("_T")
MEDIA_TYPE = "application/problem+json"
_TITLES = {
    400: "Bad request",
    401: "No valid key",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "The request came too slowly",
    413: "Too large",
    415: "Unknown content type",
    422: "Cannot be answered",
    429: "Too many requests",
    500: "Internal error",
    503: "Not available",
}


class ProblemError(MmrecError):
    """A request that is refused.

    Args:
        status: of HTTP.
        expected: what the service needed, as a noun phrase.
        got: what it found instead.
        where: the part of the request.
        fix: one imperative sentence.
        headers: further headers of the answer.
        errors: one entry a place that is wrong: ``where`` and ``message``.
    """

    def __init__(
        self,
        status: int,
        expected: str,
        *,
        got: str = "",
        where: str = "",
        fix: str = "",
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(expected, got=got, where=where, fix=fix)
        self.status, self.headers, self.errors = status, dict(headers or {}), list(errors)


def overloaded(what: str, *, limit: int) -> ProblemError:
    """Return the refusal of work beyond a queue that is full."""
    return ProblemError(
        429,
        f"at most {limit} {what} at once",
        got="one more",
        fix="Try again after the time in Retry-After.",
        headers={"Retry-After": "1"},
    )


def too_slow(seconds: float) -> ProblemError:
    """Return the refusal of a request that took longer than it may."""
    return ProblemError(
        503,
        f"an answer within {seconds:g} seconds",
        got="more work than that",
        fix="Try again, or ask for less at once.",
        headers={"Retry-After": "1"},
    )


def too_late() -> ProblemError:
    """Return the refusal of work whose turn came after everybody had given it up."""
    return ProblemError(
        503, "a turn in time", got="too much work before it", fix="Try again later.", headers={"Retry-After": "5"}
    )


def unknown_item(item_id: str) -> ProblemError:
    """Return the refusal of an id in a path that nothing has."""
    return ProblemError(404, "the id of a known item", got=repr(item_id), where="the path")


def too_many(what: str, *, limit: int, got: int, where: str, fix: str = "") -> ProblemError:
    """Return the refusal of more than a request may ask for."""
    return ProblemError(422, f"at most {limit} {what}", got=str(got), where=where, fix=fix)


def settled(work: Callable[[], _T]) -> _T | MmrecError:
    """Return what some work brings, or why an entry cannot be used; what stops the whole request goes on."""
    try:
        return work()
    except MmrecError as error:
        if isinstance(error, ProblemError) and error.status != 422:
            raise
        return error


def or_raise(outcome: _T | MmrecError) -> _T:
    """Return what some work brought, see :func:`settled`, or raise its error."""
    if isinstance(outcome, MmrecError):
        raise outcome
    return outcome


def problem_body(status: int, detail: str, *, request_id: str, errors: Sequence[Mapping[str, str]] = ()) -> bytes:
    """Return the problem details of a refusal as JSON."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": _TITLES.get(status, "Refused"),
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }
    if errors:
        body["errors"] = list(errors)
    return json.dumps(body, ensure_ascii=True, allow_nan=False).encode("ascii")


def places_of(error: BaseException) -> str:
    """Return where an error came from, the innermost place first, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
