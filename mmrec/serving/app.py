"""The routes: which request does what, and which key it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

import mmrec
from mmrec.errors import MissingExtraError
from mmrec.serving import schemas
from mmrec.serving.admin import Admin
from mmrec.serving.admin_schemas import AdminModelAnswer, RollbackRequest, SwapRequest
from mmrec.serving.body import Payload, parse, split_body, validated
from mmrec.serving.choice import UNCHOSEN
from mmrec.serving.deployment import Active, Deployment
from mmrec.serving.door import Door, Entrance, Work, plain_problem
from mmrec.serving.keys import KeyRing
from mmrec.serving.metrics import CONTENT_TYPE, Metrics
from mmrec.serving.openapi import describe
from mmrec.serving.problems import ProblemError
from mmrec.serving.request_log import RequestLog
from mmrec.serving.service import Parts, Service
from mmrec.serving.swapping import Models, Swaps
from mmrec.serving.trace import Trace

try:
    from fastapi import FastAPI, Request, Response
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error

_Asked = TypeVar("_Asked", bound=BaseModel)
_Used = TypeVar("_Used")
Take = Callable[[_Asked, Parts, Trace], BaseModel]
"""Answers a request."""
Using = Callable[[], AbstractContextManager[_Used]]
"""Hands out what answers a request."""
_ID: TypeAdapter[str | int] = TypeAdapter(schemas.Id)


def build_app(
    service: Service,
    *,
    metrics: Metrics | None = None,
    keys: KeyRing | None = None,
    reveal_ids: bool = False,
    models: Models | None = None,
) -> FastAPI:
    """Return the application around a service, which it closes when it ends.

    Args:
        service: what answers.
        metrics: counts; the service's batches, too, where it was given them.
        keys: of callers; None lets everybody in who speaks to this machine by a loopback name.
        reveal_ids: write user ids to the log as they are.
        models: lets the model be swapped; None leaves the routes for that out.
    """
    metrics = metrics or Metrics()
    deployment = Deployment(service, choice=UNCHOSEN if models is None else models.choice)
    swaps = None if models is None else Swaps(deployment, models, on_swap=metrics.on_swap)
    metrics.watch(deployment.state)
    door = Door(Entrance(keys), service.limits, metrics, RequestLog(service.store.secret(), reveal_ids=reveal_ids))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if swaps is not None:
            await asyncio.to_thread(swaps.close)
        await asyncio.to_thread(door.close)
        await asyncio.to_thread(deployment.close)

    app = FastAPI(title="mmrec", version=mmrec.__version__, lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _no_route)
    _add_questions(app, door, deployment)
    _add_writes(app, door, deployment)
    _add_health(app, door, deployment, metrics)
    if swaps is not None:
        _add_models(app, door, Admin(swaps))
    describe(app)
    return app


def _add_questions(app: FastAPI, door: Door, deployment: Deployment) -> None:
    @app.post("/v1/score", responses=_answers(schemas.ScoreAnswer))
    async def score(request: Request) -> Response:
        """Score candidates for a user or a history."""
        work = _asked(request, schemas.ScoreRequest, deployment.use, lambda now: now.service.score)
        return await door.answer(request, "score", "read", work)

    @app.post("/v1/recommend", responses=_answers(schemas.RecommendAnswer))
    async def recommend(request: Request) -> Response:
        """Return the best items for a user or a history."""
        work = _asked(request, schemas.RecommendRequest, deployment.use, lambda now: now.service.recommend)
        return await door.answer(request, "recommend", "read", work)

    @app.post("/v1/search", responses=_answers(schemas.SearchAnswer))
    async def search(request: Request) -> Response:
        """Return items near a text, pictures, items, a user, or any mix."""
        work = _asked(request, schemas.SearchRequest, deployment.use, lambda now: now.service.search)
        return await door.answer(request, "search", "read", work)

    @app.get("/v1/items/{item_id}", responses=_answers(schemas.ItemAnswer))
    async def item(request: Request, item_id: str) -> Response:
        """Return an item as it is known now."""
        work = _told(deployment.use, lambda now, trace: now.about.item(_id(item_id), trace))
        return await door.answer(request, "item", "read", work)

    @app.get("/v1/items/{item_id}/similar", responses=_answers(schemas.SearchAnswer))
    async def similar(request: Request, item_id: str) -> Response:
        """Return items near one item; ``k`` and ``where`` in the query."""
        query = dict(request.query_params)

        def answer(now: Active, trace: Trace) -> BaseModel:
            return now.service.similar(_id(item_id), _similar(query), trace)

        return await door.answer(request, "similar", "read", _told(deployment.use, answer))

    @app.get("/v1/model", responses=_answers(schemas.ModelAnswer))
    async def model(request: Request) -> Response:
        """Return what answers."""
        work = _told(deployment.use, lambda now, trace: now.about.model(trace, since=now.since))
        return await door.answer(request, "model", "read", work)


def _add_writes(app: FastAPI, door: Door, deployment: Deployment) -> None:
    @app.put("/v1/items/{item_id}", responses=_answers(schemas.PublishAnswer))
    async def publish(request: Request, item_id: str) -> Response:
        """Take a post in: durable, recommended and searched from the answer on."""

        def take(now: Active) -> Take[schemas.PublishRequest]:
            return lambda asked, parts, trace: now.publishing.publish(_id(item_id), asked, parts, trace)

        work = _asked(request, schemas.PublishRequest, deployment.write, take)
        return await door.answer(request, "publish", "write", work)

    @app.delete("/v1/items/{item_id}", responses=_answers(schemas.DeleteAnswer))
    async def delete(request: Request, item_id: str) -> Response:
        """Take a post back."""
        work = _told(deployment.write, lambda now, trace: now.publishing.delete(_id(item_id), trace))
        return await door.answer(request, "delete", "write", work)

    @app.post("/v1/feedback", responses=_answers(schemas.FeedbackAnswer))
    async def feedback(request: Request) -> Response:
        """Append what users did: durable, and known to the next answer."""

        def take(now: Active) -> Take[schemas.FeedbackRequest]:
            return lambda asked, parts, trace: now.publishing.feedback(asked, trace)

        work = _asked(request, schemas.FeedbackRequest, deployment.use, take)
        return await door.answer(request, "feedback", "write", work)


def _add_health(app: FastAPI, door: Door, deployment: Deployment, metrics: Metrics) -> None:
    @app.get("/health/live", responses=_answers(schemas.HealthAnswer))
    async def live(request: Request) -> Response:
        """Say that the process is there."""
        work = _told(
            deployment.use, lambda now, trace: schemas.HealthAnswer(request_id=trace.request_id, status="live")
        )
        return await door.answer(request, "live", None, work, lane="here")

    @app.get("/health/ready", responses=_answers(schemas.HealthAnswer))
    async def ready(request: Request) -> Response:
        """Encode a post, as a request would, and say whether that worked."""
        work = _told(deployment.use, lambda now, trace: now.about.ready(trace))
        return await door.answer(request, "ready", None, work, lane="aside")

    @app.get("/metrics", include_in_schema=False)
    async def figures(request: Request) -> Response:
        """Return figures for Prometheus."""
        answer = await door.answer(request, "metrics", "read", lambda body, trace: metrics.page(), lane="here")
        if answer.status_code == 200:
            answer.headers["content-type"] = CONTENT_TYPE
        return answer


def _add_models(app: FastAPI, door: Door, admin: Admin) -> None:
    def use() -> AbstractContextManager[Admin]:
        return nullcontext(admin)

    @app.get("/admin/model", responses=_answers(AdminModelAnswer))
    async def models(request: Request) -> Response:
        """Return what answers, what answered before, and how far a swap is."""
        work = _told(use, lambda now, trace: now.model(trace))
        return await door.answer(request, "models", "admin", work, lane="aside")

    @app.post("/admin/model", responses=_answers(AdminModelAnswer, 200, 202))
    async def swap(request: Request) -> Response:
        """Put another run and its export in the place of what answers: checked first, and with all that was published."""
        work = _asked(request, SwapRequest, use, lambda now: lambda asked, parts, trace: now.swap(asked, trace))
        return await door.answer(request, "swap", "admin", work, lane="long")

    @app.post("/admin/rollback", responses=_answers(AdminModelAnswer, 200, 202))
    async def rollback(request: Request) -> Response:
        """Put back what answered before, with all that was published since."""
        work = _asked(request, RollbackRequest, use, lambda now: lambda asked, parts, trace: now.rollback(asked, trace))
        return await door.answer(request, "rollback", "admin", work, lane="long")


def _asked(request: Request, schema: type[_Asked], using: Using[_Used], take: Callable[[_Used], Take[_Asked]]) -> Work:
    """Return the work of a route that has a body; what it uses stays the same from its beginning to its end."""
    content_type = request.headers.get("content-type", "")

    def work(body: bytes, trace: Trace) -> bytes:
        with trace.stage("parse"):
            payload: Payload = split_body(body, content_type)
            asked = parse(payload.text, schema)
        with using() as now:
            answer = take(now)(asked, payload.parts, trace)
        return answer.model_dump_json().encode("utf-8")

    return work


def _told(using: Using[_Used], answer: Callable[[_Used, Trace], BaseModel]) -> Work:
    """Return the work of a route that has none."""

    def work(body: bytes, trace: Trace) -> bytes:
        with using() as now:
            told = answer(now, trace)
        return told.model_dump_json().encode("utf-8")

    return work


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


def _answers(schema: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schema} for status in statuses or (200,)}


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {
        404: "expected a path of /docs, got another.",
        405: "expected a method that the path takes, got another.",
    }
    detail = details.get(error.status_code, "expected another request.")
    return plain_problem(error.status_code, detail, error.headers or {})
