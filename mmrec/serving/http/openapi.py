"""The description of the interface; bodies are read by hand, so FastAPI is told what they hold."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mmrec.serving import batch_schemas, schemas
from mmrec.serving.deployment.admin_schemas import RollbackRequest, SwapRequest
from mmrec.serving.log_schemas import LogRequest
from mmrec.serving.studio import schemas as studio_schemas

_BODIES: dict[tuple[str, str], type[BaseModel]] = {
    ("/v1/score", "post"): schemas.ScoreRequest,
    ("/v1/recommend", "post"): schemas.RecommendRequest,
    ("/v1/search", "post"): schemas.SearchRequest,
    ("/v1/items/{item_id}", "put"): schemas.PublishRequest,
    ("/v1/feedback", "post"): schemas.FeedbackRequest,
    ("/admin/model", "post"): SwapRequest,
    ("/admin/rollback", "post"): RollbackRequest,
    ("/v1/cards", "post"): studio_schemas.CardsRequest,
    ("/v1/inspect", "post"): studio_schemas.InspectRequest,
    ("/v1/recommend:batch", "post"): batch_schemas.RecommendBatchRequest,
    ("/v1/items:batch", "post"): batch_schemas.PublishBatchRequest,
    ("/v1/embeddings", "post"): batch_schemas.EmbeddingRequest,
}
_QUERIES: dict[str, type[BaseModel]] = {
    "/v1/items/{item_id}/similar": schemas.SimilarRequest,
    "/v1/users": studio_schemas.UsersRequest,
    "/v1/users/{user_id}": studio_schemas.UserQuery,
    "/v1/map": studio_schemas.MapQuery,
    "/v1/log/posts": LogRequest,
    "/v1/log/feedback": LogRequest,
    "/v1/log/served": LogRequest,
}
_PROBLEM = {
    "type": "object",
    "title": "ProblemDetails",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
_Tree = dict[str, object]


def describe(app: FastAPI) -> None:
    """Make the application describe bodies, query, keys and problems too."""

    def description() -> _Tree:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return cast("_Tree", app.openapi_schema)

    app.openapi = description  # type: ignore[method-assign]


def _described(app: FastAPI) -> _Tree:
    tree = cast("_Tree", get_openapi(title=app.title, version=app.version, routes=app.routes))
    components = cast("dict[str, _Tree]", tree.setdefault("components", {}))
    _, made = models_json_schema(
        [(schema, "validation") for schema in _BODIES.values()], ref_template="#/components/schemas/{model}"
    )
    components.setdefault("schemas", {}).update(cast("_Tree", made.get("$defs", {})))
    components["schemas"]["ProblemDetails"] = _PROBLEM
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    paths = cast("dict[str, dict[str, _Tree]]", tree["paths"])
    for path, methods in paths.items():
        for method, operation in methods.items():
            _complete(operation, path, method)
    return tree


def _complete(operation: _Tree, path: str, method: str) -> None:
    schema = _BODIES.get((path, method))
    if schema is not None:
        reference = {"schema": {"$ref": f"#/components/schemas/{schema.__name__}"}}
        form = {
            "schema": {
                "type": "object",
                "required": ["request"],
                "properties": {"request": reference["schema"]},
                "additionalProperties": {"type": "string", "format": "binary"},
            }
        }
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": reference, "multipart/form-data": form},
        }
    query = _QUERIES.get(path)
    if query is not None:
        fields = cast("dict[str, _Tree]", query.model_json_schema()["properties"])
        parameters = cast("list[object]", operation.setdefault("parameters", []))
        parameters += [{"name": name, "in": "query", "schema": field} for name, field in fields.items()]
    if not path.startswith("/health"):
        operation["security"] = [{"key": []}, {}]
    responses = cast("_Tree", operation["responses"])
    responses.pop("422", None)
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    responses["default"] = {"description": "A problem.", "content": problem}
