"""The routes: which request does what, and which key it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

import mmrec
from mmrec.errors import MissingExtraError
from mmrec.serving import schemas
from mmrec.serving.about import About
from mmrec.serving.body import Payload, parse, split_body, validated
from mmrec.serving.door import Door, Entrance, Work, plain_problem
from mmrec.serving.follower import Follower
from mmrec.serving.keys import KeyRing
from mmrec.serving.metrics import CONTENT_TYPE, Metrics
from mmrec.serving.openapi import describe
from mmrec.serving.problems import ProblemError
from mmrec.serving.publishing import Publishing
from mmrec.serving.request_log import RequestLog
from mmrec.serving.service import Parts, Service
from mmrec.serving.trace import Trace

try:
    from fastapi import FastAPI, Request, Response
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error

_Asked = TypeVar("_Asked", bound=BaseModel)
_ID: TypeAdapter[str | int] = TypeAdapter(schemas.Id)


def build_app(
    service: Service,
    *,
    metrics: Metrics | None = None,
    keys: KeyRing | None = None,
    reveal_ids: bool = False,
    follower: Follower | None = None,
) -> FastAPI:
    """Return the application around a service, which it closes when it ends.

    Args:
        service: what answers.
        metrics: counts; the service's batches, too, where it was given them.
        keys: of callers; None lets everybody in who speaks to this machine by a loopback name.
        reveal_ids: write user ids to the log as they are.
        follower: looks for what other processes do; ends with the application.
    """
    metrics = metrics or Metrics()
    about, publishing = About(service), Publishing(service)
    metrics.watch(about.state)
    door = Door(Entrance(keys), service.limits, metrics, RequestLog(service.store.secret(), reveal_ids=reveal_ids))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(door.close)
        if follower is not None:
            await asyncio.to_thread(follower.close)
        await asyncio.to_thread(service.close)

    app = FastAPI(title="mmrec", version=mmrec.__version__, lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _no_route)
    _add_questions(app, door, service, about)
    _add_writes(app, door, publishing)
    _add_health(app, door, about, metrics)
    describe(app)
    return app


def _add_questions(app: FastAPI, door: Door, service: Service, about: About) -> None:
    @app.post("/v1/score", responses=_answers(schemas.ScoreAnswer))
    async def score(request: Request) -> Response:
        """Score candidates for a user or a history."""
        return await door.answer(request, "score", "read", _asked(request, schemas.ScoreRequest, service.score))

    @app.post("/v1/recommend", responses=_answers(schemas.RecommendAnswer))
    async def recommend(request: Request) -> Response:
        """Return the best items for a user or a history."""
        work = _asked(request, schemas.RecommendRequest, service.recommend)
        return await door.answer(request, "recommend", "read", work)

    @app.post("/v1/search", responses=_answers(schemas.SearchAnswer))
    async def search(request: Request) -> Response:
        """Return items near a text, pictures, items, a user, or any mix."""
        return await door.answer(request, "search", "read", _asked(request, schemas.SearchRequest, service.search))

    @app.get("/v1/items/{item_id}", responses=_answers(schemas.ItemAnswer))
    async def item(request: Request, item_id: str) -> Response:
        """Return an item as it is known now."""
        return await door.answer(request, "item", "read", _told(lambda trace: about.item(_id(item_id), trace)))

    @app.get("/v1/items/{item_id}/similar", responses=_answers(schemas.SearchAnswer))
    async def similar(request: Request, item_id: str) -> Response:
        """Return items near one item; ``k`` and ``where`` in the query."""
        query = dict(request.query_params)

        def answer(trace: Trace) -> BaseModel:
            return service.similar(_id(item_id), _similar(query), trace)

        return await door.answer(request, "similar", "read", _told(answer))

    @app.get("/v1/model", responses=_answers(schemas.ModelAnswer))
    async def model(request: Request) -> Response:
        """Return what answers."""
        return await door.answer(request, "model", "read", _told(about.model))


def _add_writes(app: FastAPI, door: Door, publishing: Publishing) -> None:
    @app.put("/v1/items/{item_id}", responses=_answers(schemas.PublishAnswer))
    async def publish(request: Request, item_id: str) -> Response:
        """Take a post in: durable, recommended and searched from the answer on."""

        def take(asked: schemas.PublishRequest, parts: Parts, trace: Trace) -> BaseModel:
            return publishing.publish(_id(item_id), asked, parts, trace)

        return await door.answer(request, "publish", "write", _asked(request, schemas.PublishRequest, take))

    @app.delete("/v1/items/{item_id}", responses=_answers(schemas.DeleteAnswer))
    async def delete(request: Request, item_id: str) -> Response:
        """Take a post back."""
        work = _told(lambda trace: publishing.delete(_id(item_id), trace))
        return await door.answer(request, "delete", "write", work)

    @app.post("/v1/feedback", responses=_answers(schemas.FeedbackAnswer))
    async def feedback(request: Request) -> Response:
        """Append what users did: durable, and known to the next answer."""

        def take(asked: schemas.FeedbackRequest, parts: Parts, trace: Trace) -> BaseModel:
            return publishing.feedback(asked, trace)

        return await door.answer(request, "feedback", "write", _asked(request, schemas.FeedbackRequest, take))


def _add_health(app: FastAPI, door: Door, about: About, metrics: Metrics) -> None:
    @app.get("/health/live", responses=_answers(schemas.HealthAnswer))
    async def live(request: Request) -> Response:
        """Say that the process is there."""
        work = _told(lambda trace: schemas.HealthAnswer(request_id=trace.request_id, status="live"))
        return await door.answer(request, "live", None, work, lane="here")

    @app.get("/health/ready", responses=_answers(schemas.HealthAnswer))
    async def ready(request: Request) -> Response:
        """Encode a post, as a request would, and say whether that worked."""
        return await door.answer(request, "ready", None, _told(about.ready), lane="aside")

    @app.get("/metrics", include_in_schema=False)
    async def figures(request: Request) -> Response:
        """Return figures for Prometheus."""
        answer = await door.answer(request, "metrics", "read", lambda body, trace: metrics.page(), lane="here")
        if answer.status_code == 200:
            answer.headers["content-type"] = CONTENT_TYPE
        return answer


def _asked(request: Request, schema: type[_Asked], take: Callable[[_Asked, Parts, Trace], BaseModel]) -> Work:
    """Return the work of a route that has a body."""
    content_type = request.headers.get("content-type", "")

    def work(body: bytes, trace: Trace) -> bytes:
        with trace.stage("parse"):
            payload: Payload = split_body(body, content_type)
            asked = parse(payload.text, schema)
        return take(asked, payload.parts, trace).model_dump_json().encode("utf-8")

    return work


def _told(answer: Callable[[Trace], BaseModel]) -> Work:
    """Return the work of a route that has none."""
    return lambda body, trace: answer(trace).model_dump_json().encode("utf-8")


def _id(text: str) -> str:
    """Return the id in a path.

    Raises:
        ProblemError: text that can be no id.
    """
    try:
        return str(_ID.validate_python(text, strict=True))
    except ValidationError:
        raise ProblemError(422, "an id of printable characters", got="other text", where="the path") from None


def _similar(query: dict[str, str]) -> schemas.SimilarRequest:
    values: dict[str, object] = dict(query)
    k = query.get("k", "")
    if k.isascii() and k.isdecimal() and len(k) < 10:
        values["k"] = int(k)
    return validated(values, schemas.SimilarRequest)


def _answers(schema: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": schema}}


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {
        404: "expected a path of /docs, got another.",
        405: "expected a method that the path takes, got another.",
    }
    detail = details.get(error.status_code, "expected another request.")
    return plain_problem(error.status_code, detail, error.headers or {})
