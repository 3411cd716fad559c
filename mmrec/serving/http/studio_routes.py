"""The routes of the page: its files, and what it asks that nobody else does."""

from __future__ import annotations

from mmrec.errors import MissingExtraError
from mmrec.serving.deployment.deployment import Deployment
from mmrec.serving.http.body import validated
from mmrec.serving.http.door import Door
from mmrec.serving.http.id_path import ITEM, USER
from mmrec.serving.http.recent_problems import RecentProblems
from mmrec.serving.http.route_work import answers, asked, numbers, path_id, told
from mmrec.serving.studio import schemas
from mmrec.serving.studio.page import HEADERS, INDEX, load_files
from mmrec.serving.studio.thumbnails import MEDIA_TYPE, Thumbnail
from mmrec.serving.trace import Trace

try:
    from fastapi import FastAPI, Request, Response
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error

_SECONDS = 60
"""How long a browser may show a picture without asking again."""


def add_studio(app: FastAPI, door: Door, deployment: Deployment, recent: RecentProblems, *, keys_needed: bool) -> None:
    """Add the page and its routes to an application.

    Args:
        app: the application.
        door: lets requests in.
        deployment: what answers.
        recent: the last refusals.
        keys_needed: whether callers need keys.
    """
    _add_page(app, keys_needed=keys_needed)
    _add_pictures(app, door, deployment)
    _add_items(app, door, deployment)
    _add_people(app, door, deployment)

    @app.get("/v1/problems", responses=answers(schemas.ProblemsAnswer))
    async def problems(request: Request) -> Response:
        """Return the last refusals of this process, without anything that was sent."""

        def answer(trace: Trace) -> schemas.ProblemsAnswer:
            results = [schemas.Problem(**vars(refusal)) for refusal in recent.newest()]
            return schemas.ProblemsAnswer(request_id=trace.request_id, total=recent.total, results=results)

        return await door.answer(request, "problems", "read", told(answer), lane="here")


def _add_page(app: FastAPI, *, keys_needed: bool) -> None:
    files = load_files(keys_needed=keys_needed)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _file(request, INDEX)

    @app.get("/studio/{name}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        return _file(request, name)

    def _file(request: Request, name: str) -> Response:
        found = files.get(name)
        if found is None:
            raise HTTPException(404)
        headers = {**HEADERS, "ETag": found.tag}
        if found.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(found.data, media_type=found.media_type, headers=headers)


def _add_pictures(app: FastAPI, door: Door, deployment: Deployment) -> None:
    @app.get(
        f"{ITEM}/image",
        responses={200: {"content": {MEDIA_TYPE: {}}, "description": "A JPEG."}, 304: {"description": "Unchanged."}},
    )
    async def image(request: Request, item_id: str) -> Response:
        """Return the first picture of an item, made small."""
        find = deployment.reading(lambda now: now.studio.thumbnails.of)
        known, found = request.headers.get("if-none-match", ""), list[Thumbnail]()

        def work(body: bytes, trace: Trace) -> bytes:
            found.append(find(path_id(item_id), known_tags=known))
            if found[0].data is None:
                trace.status = 304
            return found[0].data or b""

        answer = await door.answer(request, "image", "read", work)
        if answer.status_code in {200, 304}:
            answer.headers.update(
                {"ETag": found[0].tag, "Cache-Control": f"private, max-age={_SECONDS}", "Content-Type": MEDIA_TYPE}
            )
        return answer


def _add_items(app: FastAPI, door: Door, deployment: Deployment) -> None:
    @app.post("/v1/cards", responses=answers(schemas.CardsAnswer))
    async def card(request: Request) -> Response:
        """Return what a page shows of some items."""
        take = deployment.reading(lambda now: now.studio.cards.answer)
        work = asked(request.headers.get("content-type", ""), schemas.CardsRequest, take)
        return await door.answer(request, "cards", "read", work)

    @app.post("/v1/inspect", responses=answers(schemas.InspectAnswer))
    async def inspect(request: Request) -> Response:
        """Look at a post that need not be published: what is near it, who would like it, what its modalities do."""
        take = deployment.reading(lambda now: now.studio.inspection.inspect)
        work = asked(request.headers.get("content-type", ""), schemas.InspectRequest, take)
        return await door.answer(request, "inspect", "read", work)

    @app.get("/v1/map", responses=answers(schemas.MapAnswer))
    async def catalogue_map(request: Request) -> Response:
        """Return where the items of the export lie in two dimensions; ``colour`` in the query."""
        query, draw = dict(request.query_params), deployment.reading(lambda now: now.studio.maps.answer)
        work = told(lambda trace: draw(validated(query, schemas.MapQuery), trace))
        return await door.answer(request, "map", "read", work)


def _add_people(app: FastAPI, door: Door, deployment: Deployment) -> None:
    @app.get("/v1/users", responses=answers(schemas.UsersAnswer))
    async def users(request: Request) -> Response:
        """Return users whose ids begin with ``prefix``, the most active first; ``k`` and ``held_out`` in the query."""
        query = numbers(dict(request.query_params), "k")
        find = deployment.reading(lambda now: now.studio.people.listed)
        work = told(lambda trace: find(validated(query, schemas.UsersRequest), trace))
        return await door.answer(request, "users", "read", work)

    @app.get(USER, responses=answers(schemas.UserAnswer))
    async def user(request: Request, user_id: str) -> Response:
        """Return a user with the most recent ``k`` events, and what the split holds out."""
        query = numbers(dict(request.query_params), "k")
        find = deployment.reading(lambda now: now.studio.people.one)
        work = told(lambda trace: find(path_id(user_id), validated(query, schemas.UserQuery), trace))
        return await door.answer(request, "user", "read", work)
