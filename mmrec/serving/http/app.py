"""The routes: which request does what, and which key it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import BaseModel

import mmrec
from mmrec.errors import MissingExtraError
from mmrec.serving import schemas
from mmrec.serving.answers.service import Service
from mmrec.serving.deployment.admin import Admin
from mmrec.serving.deployment.admin_schemas import AdminModelAnswer, RollbackRequest, SwapRequest
from mmrec.serving.deployment.choice import UNCHOSEN
from mmrec.serving.deployment.deployment import Deployment
from mmrec.serving.deployment.swapping import OUTCOMES, Models, Swaps
from mmrec.serving.figures.metrics import CONTENT_TYPE, Metrics
from mmrec.serving.follower import Follower
from mmrec.serving.http.body import validated
from mmrec.serving.http.bulk_routes import add_bulk
from mmrec.serving.http.docs_page import HEADERS, docs_page
from mmrec.serving.http.door import Door, Entrance, plain_problem
from mmrec.serving.http.id_path import ITEM
from mmrec.serving.http.keys import KeyRing
from mmrec.serving.http.openapi import describe
from mmrec.serving.http.recent_problems import RecentProblems
from mmrec.serving.http.request_log import RequestLog
from mmrec.serving.http.route_work import answers, asked, numbers, path_id, told
from mmrec.serving.http.studio_routes import add_studio
from mmrec.serving.posts.references import Parts
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
    models: Models | None = None,
    follower: Follower | None = None,
) -> FastAPI:
    """Return the application around a service, which it closes when it ends.

    Args:
        service: what answers.
        metrics: counts; the service's batches, too, where it was given them.
        keys: of callers; None lets everybody in who speaks to this machine by a loopback name.
        reveal_ids: write user ids to the log as they are.
        studio: serve the page at / too.
        models: what may take the place of the service while it runs; None leaves the routes for that out.
        follower: looks for what other processes do; ends with the application.
    """
    metrics = metrics or Metrics()
    deployment = Deployment(service, choice=UNCHOSEN if models is None else models.choice)
    swaps = None if models is None else Swaps(deployment, models, on_swap=metrics.on_swap)
    metrics.watch(deployment.state, reads=deployment.reads)
    if follower is not None:
        follower.add(deployment.follow)
        if swaps is not None:
            follower.add(swaps.follow)
    recent = RecentProblems()
    log = RequestLog(service.store.secret(), reveal_ids=reveal_ids)
    door = Door(Entrance(keys), service.limits, metrics, log, recent)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if follower is not None:
            await asyncio.to_thread(follower.close)
        if swaps is not None:
            await asyncio.to_thread(swaps.close)
        await asyncio.to_thread(door.close)
        await asyncio.to_thread(deployment.close)

    app = FastAPI(
        title="mmrec",
        version=mmrec.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(HTTPException, _no_route)
    _add_questions(app, door, deployment)
    _add_feedback(app, door, deployment)
    add_bulk(app, door, deployment)
    _add_health(app, door, deployment, metrics)
    if swaps is not None:
        metrics.expect_swaps(OUTCOMES)
        _add_models(app, door, Admin(swaps))
    if studio:
        add_studio(app, door, deployment, recent, keys_needed=keys is not None)
    # After all that go on below it: this path takes whatever begins like an item's.
    _add_items(app, door, deployment)
    describe(app)
    _add_description(app)
    return app


def _add_questions(app: FastAPI, door: Door, deployment: Deployment) -> None:
    @app.post("/v1/score", responses=answers(schemas.ScoreAnswer))
    async def score(request: Request) -> Response:
        """Score candidates for a user or a history."""
        take = deployment.reading(lambda now: now.service.score)
        return await door.answer(request, "score", "read", asked(_kind(request), schemas.ScoreRequest, take))

    @app.post("/v1/recommend", responses=answers(schemas.RecommendAnswer))
    async def recommend(request: Request) -> Response:
        """Return the best items for a user or a history."""
        take = deployment.reading(lambda now: now.service.recommend)
        return await door.answer(request, "recommend", "read", asked(_kind(request), schemas.RecommendRequest, take))

    @app.post("/v1/search", responses=answers(schemas.SearchAnswer))
    async def search(request: Request) -> Response:
        """Return items near a text, pictures, items, a user, or any mix."""
        take = deployment.reading(lambda now: now.service.search)
        return await door.answer(request, "search", "read", asked(_kind(request), schemas.SearchRequest, take))

    @app.get(f"{ITEM}/similar", responses=answers(schemas.SearchAnswer))
    async def similar(request: Request, item_id: str) -> Response:
        """Return items near one item; ``k`` and ``where`` in the query."""
        query, find = dict(request.query_params), deployment.reading(lambda now: now.service.similar)

        def answer(trace: Trace) -> BaseModel:
            return find(path_id(item_id), validated(numbers(query, "k"), schemas.SimilarRequest), trace)

        return await door.answer(request, "similar", "read", told(answer))

    @app.get("/v1/model", responses=answers(schemas.ModelAnswer))
    async def model(request: Request) -> Response:
        """Return what answers."""
        return await door.answer(request, "model", "read", told(deployment.reading(lambda now: now.model)))


def _add_feedback(app: FastAPI, door: Door, deployment: Deployment) -> None:
    @app.post("/v1/feedback", responses=answers(schemas.FeedbackAnswer))
    async def feedback(request: Request) -> Response:
        """Append what users did: durable, and known to the next answer."""
        append = deployment.reading(lambda now: now.publishing.feedback)

        def take(body: schemas.FeedbackRequest, parts: Parts, trace: Trace) -> BaseModel:
            return append(body, trace)

        return await door.answer(request, "feedback", "write", asked(_kind(request), schemas.FeedbackRequest, take))


def _add_items(app: FastAPI, door: Door, deployment: Deployment) -> None:
    @app.get(ITEM, responses=answers(schemas.ItemAnswer))
    async def item(request: Request, item_id: str) -> Response:
        """Return an item as it is known now."""
        find = deployment.reading(lambda now: now.about.item)
        return await door.answer(request, "item", "read", told(lambda trace: find(path_id(item_id), trace)))

    @app.put(ITEM, responses=answers(schemas.PublishAnswer))
    async def publish(request: Request, item_id: str) -> Response:
        """Take a post in: durable, recommended and searched from the answer on."""
        put = deployment.writing(lambda now: now.publishing.publish)

        def take(body: schemas.PublishRequest, parts: Parts, trace: Trace) -> BaseModel:
            return put(path_id(item_id), body, parts, trace)

        return await door.answer(request, "publish", "write", asked(_kind(request), schemas.PublishRequest, take))

    @app.delete(ITEM, responses=answers(schemas.DeleteAnswer))
    async def delete(request: Request, item_id: str) -> Response:
        """Take a post back."""
        remove = deployment.writing(lambda now: now.publishing.delete)
        return await door.answer(request, "delete", "write", told(lambda trace: remove(path_id(item_id), trace)))


def _add_health(app: FastAPI, door: Door, deployment: Deployment, metrics: Metrics) -> None:
    @app.get("/health/live", responses=answers(schemas.HealthAnswer))
    async def live(request: Request) -> Response:
        """Say that the process is there."""
        work = told(lambda trace: schemas.HealthAnswer(request_id=trace.request_id, status="live"))
        return await door.answer(request, "live", None, work, lane="here")

    @app.get("/health/ready", responses=answers(schemas.HealthAnswer))
    async def ready(request: Request) -> Response:
        """Encode a post, as a request would, and say whether that worked."""
        return await door.answer(
            request, "ready", None, told(deployment.reading(lambda now: now.about.ready)), lane="aside"
        )

    @app.get("/metrics", include_in_schema=False)
    async def figures(request: Request) -> Response:
        """Return figures for Prometheus."""
        answer = await door.answer(request, "metrics", "read", lambda body, trace: metrics.page(), lane="here")
        if answer.status_code == 200:
            answer.headers["content-type"] = CONTENT_TYPE
        return answer


def _add_models(app: FastAPI, door: Door, admin: Admin) -> None:
    @app.get("/admin/model", responses=answers(AdminModelAnswer))
    async def models(request: Request) -> Response:
        """Return what answers, what answered before, and how far a swap is."""
        return await door.answer(request, "models", "admin", told(admin.model), lane="aside")

    @app.post("/admin/model", responses=answers(AdminModelAnswer, 200, 202))
    async def swap(request: Request) -> Response:
        """Put another run and its export in the place of what answers: checked first, and with all that was published."""
        work = asked(_kind(request), SwapRequest, admin.swap)
        return await door.answer(request, "swap", "admin", work, lane="long")

    @app.post("/admin/rollback", responses=answers(AdminModelAnswer, 200, 202))
    async def rollback(request: Request) -> Response:
        """Put back what answered before, with all that was published since."""
        work = asked(_kind(request), RollbackRequest, admin.rollback)
        return await door.answer(request, "rollback", "admin", work, lane="long")


def _add_description(app: FastAPI) -> None:
    page: list[bytes] = []

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        if not page:
            page.append(docs_page(app.openapi()))
        return Response(page[0], media_type="text/html", headers=HEADERS)


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
