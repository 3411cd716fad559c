"""What the routes share: from a request to the work of its route, and what they tell the description."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from mmrec.serving import schemas
from mmrec.serving.http.body import Payload, parse, split_body
from mmrec.serving.posts.references import Parts
from mmrec.serving.problems import ProblemError
from mmrec.serving.trace import Trace

Work = Callable[[bytes, Trace], bytes]
"""What a route does with a body, in a thread of its own; returns the answer."""
_Asked = TypeVar("_Asked", bound=BaseModel)
_ID: TypeAdapter[str | int] = TypeAdapter(schemas.Id)


def asked(content_type: str, schema: type[_Asked], take: Callable[[_Asked, Parts, Trace], BaseModel]) -> Work:
    """Return the work of a route that has a body.

    Args:
        content_type: of the request.
        schema: what the body holds.
        take: answers it.
    """

    def work(body: bytes, trace: Trace) -> bytes:
        with trace.stage("parse"):
            payload: Payload = split_body(body, content_type)
            question = parse(payload.text, schema)
        return take(question, payload.parts, trace).model_dump_json().encode("utf-8")

    return work


def told(answer: Callable[[Trace], BaseModel]) -> Work:
    """Return the work of a route that has no body."""
    return lambda body, trace: answer(trace).model_dump_json().encode("utf-8")


def path_id(text: str) -> str:
    """Return the id in a path.

    Raises:
        ProblemError: text that can be no id.
    """
    try:
        return str(_ID.validate_python(text, strict=True))
    except ValidationError:
        raise ProblemError(422, "an id of printable characters", got="other text", where="the path") from None


def numbers(query: dict[str, str], *names: str) -> dict[str, object]:
    """Return a query whose named entries are whole numbers where they look like some."""
    values: dict[str, object] = dict(query)
    for name in names:
        text = query.get(name, "")
        if text.isascii() and text.isdecimal() and len(text) < 19:
            values[name] = int(text)
    return values


def answers(schema: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the description says of a route's answer; its status is 200 where none is given."""
    return {status: {"model": schema} for status in statuses or (200,)}
