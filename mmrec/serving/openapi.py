"""The description of the interface; bodies are read by hand, so FastAPI is told what they hold."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mmrec.serving import batch_schemas, schemas

_BODIES: dict[tuple[str, str], type[BaseModel]] = {
    ("/v1/score", "post"): schemas.ScoreRequest,
    ("/v1/recommend", "post"): schemas.RecommendRequest,
    ("/v1/search", "post"): schemas.SearchRequest,
    ("/v1/items/{item_id}", "put"): schemas.PublishRequest,
    ("/v1/feedback", "post"): schemas.FeedbackRequest,
    ("/v1/recommend:batch", "post"): batch_schemas.RecommendBatchRequest,
    ("/v1/items:batch", "post"): batch_schemas.PublishBatchRequest,
    ("/v1/embeddings", "post"): batch_schemas.EmbeddingRequest,
}
_PROBLEM = {
    "type": "object",
    "title": "Problem",
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
    components["schemas"]["Problem"] = _PROBLEM
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
    if path.endswith("/similar"):
        parameters = cast("list[object]", operation.setdefault("parameters", []))
        parameters += [
            {"name": "k", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 10}},
            {"name": "where", "in": "query", "schema": {"type": "string", "default": ""}},
        ]
    if path.startswith("/v1/log/"):
        parameters = cast("list[object]", operation.setdefault("parameters", []))
        parameters += [
            {"name": "after", "in": "query", "schema": {"type": "integer", "minimum": 0, "default": 0}},
            {
                "name": "limit",
                "in": "query",
                "schema": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1000},
            },
        ]
    if not path.startswith("/health"):
        operation["security"] = [{"key": []}, {}]
    responses = cast("_Tree", operation["responses"])
    responses.pop("422", None)
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses["default"] = {"description": "A problem.", "content": problem}
