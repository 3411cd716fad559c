"""The routes: which request does what, and which key it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import BaseModel

import mmrec
from mmrec.errors import MissingExtraError
from mmrec.serving import schemas
from mmrec.serving.about import About
from mmrec.serving.body import validated
from mmrec.serving.door import Door, Entrance, plain_problem
from mmrec.serving.keys import KeyRing
from mmrec.serving.metrics import CONTENT_TYPE, Metrics
from mmrec.serving.openapi import describe
from mmrec.serving.publishing import Publishing
from mmrec.serving.recent_problems import RecentProblems
from mmrec.serving.request_log import RequestLog
from mmrec.serving.route_work import answers, asked, numbers, path_id, told
from mmrec.serving.service import Parts, Service
from mmrec.serving.studio.routes import add_studio
from mmrec.serving.trace import Trace

try:
    from fastapi import FastAPI, Request, Response
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error


def build_app(
    service: Service,
    *,
    metrics: Metrics | None = None,
    keys: KeyRing | None = None,
    reveal_ids: bool = False,
    studio: bool = True,
) -> FastAPI:
    """Return the application around a service, which it closes when it ends.

    Args:
        service: what answers.
        metrics: counts; the service's batches, too, where it was given them.
        keys: of callers; None lets everybody in who speaks to this machine by a loopback name.
        reveal_ids: write user ids to the log as they are.
        studio: serve the page at / too.
    """
    metrics = metrics or Metrics()
    about, publishing = About(service), Publishing(service)
    metrics.watch(about.state)
    recent = RecentProblems()
    log = RequestLog(service.store.secret(), reveal_ids=reveal_ids)
    door = Door(Entrance(keys), service.limits, metrics, log, recent)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(door.close)
        await asyncio.to_thread(service.close)

    app = FastAPI(title="mmrec", version=mmrec.__version__, lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _no_route)
    _add_questions(app, door, service, about)
    _add_writes(app, door, publishing)
    _add_health(app, door, about, metrics)
    if studio:
        add_studio(app, door, service, recent, keys_needed=keys is not None)
    describe(app)
    return app


def _add_questions(app: FastAPI, door: Door, service: Service, about: About) -> None:
    @app.post("/v1/score", responses=answers(schemas.ScoreAnswer))
    async def score(request: Request) -> Response:
        """Score candidates for a user or a history."""
        return await door.answer(request, "score", "read", asked(_kind(request), schemas.ScoreRequest, service.score))

    @app.post("/v1/recommend", responses=answers(schemas.RecommendAnswer))
    async def recommend(request: Request) -> Response:
        """Return the best items for a user or a history."""
        work = asked(_kind(request), schemas.RecommendRequest, service.recommend)
        return await door.answer(request, "recommend", "read", work)

    @app.post("/v1/search", responses=answers(schemas.SearchAnswer))
    async def search(request: Request) -> Response:
        """Return items near a text, pictures, items, a user, or any mix."""
        return await door.answer(
            request, "search", "read", asked(_kind(request), schemas.SearchRequest, service.search)
        )

    @app.get("/v1/items/{item_id}", responses=answers(schemas.ItemAnswer))
    async def item(request: Request, item_id: str) -> Response:
        """Return an item as it is known now."""
        return await door.answer(request, "item", "read", told(lambda trace: about.item(path_id(item_id), trace)))

    @app.get("/v1/items/{item_id}/similar", responses=answers(schemas.SearchAnswer))
    async def similar(request: Request, item_id: str) -> Response:
        """Return items near one item; ``k`` and ``where`` in the query."""
        query = dict(request.query_params)

        def answer(trace: Trace) -> BaseModel:
            return service.similar(path_id(item_id), validated(numbers(query, "k"), schemas.SimilarRequest), trace)

        return await door.answer(request, "similar", "read", told(answer))

    @app.get("/v1/model", responses=answers(schemas.ModelAnswer))
    async def model(request: Request) -> Response:
        """Return what answers."""
        return await door.answer(request, "model", "read", told(about.model))


def _add_writes(app: FastAPI, door: Door, publishing: Publishing) -> None:
    @app.put("/v1/items/{item_id}", responses=answers(schemas.PublishAnswer))
    async def publish(request: Request, item_id: str) -> Response:
        """Take a post in: durable, recommended and searched from the answer on."""

        def take(body: schemas.PublishRequest, parts: Parts, trace: Trace) -> BaseModel:
            return publishing.publish(path_id(item_id), body, parts, trace)

        return await door.answer(request, "publish", "write", asked(_kind(request), schemas.PublishRequest, take))

    @app.delete("/v1/items/{item_id}", responses=answers(schemas.DeleteAnswer))
    async def delete(request: Request, item_id: str) -> Response:
        """Take a post back."""
        work = told(lambda trace: publishing.delete(path_id(item_id), trace))
        return await door.answer(request, "delete", "write", work)

    @app.post("/v1/feedback", responses=answers(schemas.FeedbackAnswer))
    async def feedback(request: Request) -> Response:
        """Append what users did: durable, and known to the next answer."""

        def take(body: schemas.FeedbackRequest, parts: Parts, trace: Trace) -> BaseModel:
            return publishing.feedback(body, trace)

        return await door.answer(request, "feedback", "write", asked(_kind(request), schemas.FeedbackRequest, take))


def _add_health(app: FastAPI, door: Door, about: About, metrics: Metrics) -> None:
    @app.get("/health/live", responses=answers(schemas.HealthAnswer))
    async def live(request: Request) -> Response:
        """Say that the process is there."""
        work = told(lambda trace: schemas.HealthAnswer(request_id=trace.request_id, status="live"))
        return await door.answer(request, "live", None, work, lane="here")

    @app.get("/health/ready", responses=answers(schemas.HealthAnswer))
    async def ready(request: Request) -> Response:
        """Encode a post, as a request would, and say whether that worked."""
        return await door.answer(request, "ready", None, told(about.ready), lane="aside")

    @app.get("/metrics", include_in_schema=False)
    async def figures(request: Request) -> Response:
        """Return figures for Prometheus."""
        answer = await door.answer(request, "metrics", "read", lambda body, trace: metrics.page(), lane="here")
        if answer.status_code == 200:
            answer.headers["content-type"] = CONTENT_TYPE
        return answer


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "")


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {
        404: "expected a path of /docs, got another.",
        405: "expected a method that the path takes, got another.",
    }
    detail = details.get(error.status_code, "expected another request.")
    return plain_problem(error.status_code, detail, error.headers or {})
