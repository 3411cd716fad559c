"""The routes for programs that handle much at once: many users or posts, embeddings, and the logs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pydantic import BaseModel

from mmrec.errors import MissingExtraError
from mmrec.serving import batch_schemas
from mmrec.serving.answers.embedding import embed
from mmrec.serving.deployment.deployment import Deployment
from mmrec.serving.http.body import validated
from mmrec.serving.http.door import Door
from mmrec.serving.http.route_work import answers, asked, numbers, told
from mmrec.serving.log_schemas import FeedbackPage, LogRequest, PostsPage, ServedPage
from mmrec.serving.stores.log_pages import External, feedback_page, posts_page, served_page
from mmrec.serving.stores.store import Store
from mmrec.serving.trace import Trace

try:
    from fastapi import FastAPI, Request, Response
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error


def add_bulk(app: FastAPI, door: Door, deployment: Deployment) -> None:
    """Add the routes to an application.

    Args:
        app: the application.
        door: takes requests in.
        deployment: what answers.
    """
    _add_batches(app, door, deployment)
    _add_logs(app, door, deployment)


def _add_batches(app: FastAPI, door: Door, deployment: Deployment) -> None:
    @app.post("/v1/recommend:batch", responses=answers(batch_schemas.RecommendBatchAnswer))
    async def recommend_batch(request: Request) -> Response:
        """Recommend to several users or after several histories."""
        take = deployment.reading(lambda now: now.service.recommend_batch)
        work = asked(request.headers.get("content-type", ""), batch_schemas.RecommendBatchRequest, take)
        return await door.answer(request, "recommend_batch", "read", work)

    @app.post("/v1/items:batch", responses=answers(batch_schemas.PublishBatchAnswer))
    async def publish_batch(request: Request) -> Response:
        """Take several posts in: each durable, recommended and searched from the answer on, or with an error."""
        take = deployment.writing(lambda now: now.publishing.publish_batch)
        work = asked(request.headers.get("content-type", ""), batch_schemas.PublishBatchRequest, take)
        return await door.answer(request, "publish_batch", "write", work)

    @app.post("/v1/embeddings", responses=answers(batch_schemas.EmbeddingAnswer))
    async def embeddings(request: Request) -> Response:
        """Return the vectors of texts and pictures, in the shape of OpenAI's interface."""
        take = deployment.reading(lambda now: partial(embed, now.service))
        work = asked(request.headers.get("content-type", ""), batch_schemas.EmbeddingRequest, take)
        return await door.answer(request, "embeddings", "read", work)


def _add_logs(app: FastAPI, door: Door, deployment: Deployment) -> None:
    async def answer(request: Request, page: Callable[[Store, External, LogRequest, Trace], BaseModel]) -> Response:
        query = numbers(dict(request.query_params), "after", "limit")
        take = deployment.reading(lambda now: partial(page, now.service.store, now.service.items.external))
        return await door.answer(request, "log", "admin", told(lambda trace: take(validated(query, LogRequest), trace)))

    @app.get("/v1/log/posts", responses=answers(PostsPage))
    async def posts(request: Request) -> Response:
        """Return a page of the posts that were published, with their pictures."""
        return await answer(request, posts_page)

    @app.get("/v1/log/feedback", responses=answers(FeedbackPage))
    async def feedback_log(request: Request) -> Response:
        """Return a page of the feedback."""
        return await answer(request, feedback_page)

    @app.get("/v1/log/served", responses=answers(ServedPage))
    async def served(request: Request) -> Response:
        """Return a page of what answers showed."""
        return await answer(request, served_page)
