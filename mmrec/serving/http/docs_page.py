"""The description of the interface as a page: plain HTML without a script, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#fbfaf8, #121214); --raised: light-dark(#fff, #1b1b1f);
  --ink: light-dark(#1c1b1a, #f0eeeb); --soft: light-dark(#6a6763, #a5a19b); --line: light-dark(#e6e3dd, #2e2e34);
  --accent: light-dark(#5151cd, #a5a3ff); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
body { margin: 0; background: var(--paper); color: var(--ink); }
main { max-width: 70rem; margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 6rem; }
h1 { letter-spacing: -0.025em; } h2 { margin-top: 3rem; } h3 { margin: 1.2rem 0 0.3rem; font-size: 0.95rem; }
a { color: var(--accent); } .soft, small { color: var(--soft); } code { overflow-wrap: anywhere; }
.route { background: var(--raised); border: 1px solid var(--line); border-radius: 14px; margin: 0.5rem 0; padding: 0.6rem 1rem; }
summary { cursor: pointer; } .method { color: var(--accent); display: inline-block; min-width: 4rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 1rem 0.3rem 0; border-top: 1px solid var(--line); font-weight: 400; }
section { scroll-margin-top: 1rem; } section:target h3 { color: var(--accent); }
"""
_SHEET = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_SHEET}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_Tree = Mapping[str, Any]
_REFERENCE = "#/components/schemas/"
_BOUNDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minItems": "{} or more",
    "maxLength": "at most {} characters",
    "default": "default {}",
}


@dataclass(frozen=True)
class _Field:
    """A field of a schema, or a parameter; its type in pieces of text, each with the schema that it names, or None."""

    name: str
    needed: bool
    pieces: list[tuple[str, str | None]]
    about: str


@dataclass(frozen=True)
class _Shape:
    """What a body or an answer of some content type holds."""

    media: str
    pieces: list[tuple[str, str | None]]


@dataclass(frozen=True)
class _Route:
    """A route."""

    method: str
    path: str
    about: str
    parameters: list[_Field]
    bodies: list[_Shape]
    answers: list[_Shape]


@dataclass(frozen=True)
class _Schema:
    """A schema that others name."""

    name: str
    about: str
    fields: list[_Field]


def docs_page(description: _Tree) -> bytes:
    """Return the page of a description.

    Args:
        description: OpenAPI of the service, as :func:`mmrec.serving.http.openapi.describe` makes it.
    """
    schemas = [
        _Schema(name, str(schema.get("description", "")), _fields(schema))
        for name, schema in sorted(description["components"]["schemas"].items())
    ]
    pages = Environment(
        loader=PackageLoader("mmrec.serving.http", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pages.filters["codes"] = _codes
    about = description["info"]
    return (
        pages.get_template("docs_page.html.j2")
        .render(
            title=about["title"],
            version=about["version"],
            # Not escaped; its hash lets it in.
            style=Markup(_STYLE),
            routes=list(_routes(description["paths"])),
            schemas=schemas,
        )
        .encode("utf-8")
    )


def _codes(text: str) -> Markup:
    """Escape a text, and mark what stands between double backticks."""
    pieces = text.split("``")
    marked = [
        Markup("<code>{}</code>").format(piece) if place % 2 else escape(piece) for place, piece in enumerate(pieces)
    ]
    return Markup("").join(marked)


def _routes(paths: _Tree) -> Iterator[_Route]:
    for path, methods in paths.items():
        for method, operation in methods.items():
            parameters = [
                _Field(
                    one["name"],
                    bool(one.get("required")),
                    list(_pieces(one["schema"])),
                    _about(one["schema"], one["in"]),
                )
                for one in operation.get("parameters", [])
            ]
            answers = [
                shape
                for status, answer in operation["responses"].items()
                if status != "default"
                for shape in _shapes(answer, f"{status} ")
            ]
            about = str(operation.get("description", "")).partition("\n")[0]
            bodies = _shapes(operation.get("requestBody", {}), "")
            yield _Route(method.upper(), path, about, parameters, bodies, answers)


def _shapes(holder: _Tree, prefix: str) -> list[_Shape]:
    content = holder.get("content", {})
    return [_Shape(prefix + media, list(_pieces(value.get("schema", {})))) for media, value in content.items()]


def _fields(schema: _Tree) -> list[_Field]:
    needed = schema.get("required", [])
    return [
        _Field(name, name in needed, list(_pieces(value)), _about(value))
        for name, value in schema.get("properties", {}).items()
    ]


def _about(schema: _Tree, *notes: str) -> str:
    """Return what is said of a value, and its bounds."""
    bounds = [text.format(json.dumps(schema[name])) for name, text in _BOUNDS.items() if name in schema]
    return " ".join(filter(None, [str(schema.get("description", "")), "; ".join([*notes, *bounds])]))


def _pieces(schema: _Tree) -> Iterator[tuple[str, str | None]]:
    """Yield the type of a value in pieces of text, each with the schema that it names, or None."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REFERENCE)
        yield name, name
    elif "anyOf" in schema:
        for number, one in enumerate(schema["anyOf"]):
            if number:
                yield " or ", None
            yield from _pieces(one)
    elif "enum" in schema or "const" in schema:
        yield " | ".join(map(json.dumps, schema.get("enum", [schema.get("const")]))), None
    elif schema.get("type") == "array":
        yield "list of ", None
        yield from _pieces(schema.get("items", {}))
    elif schema.get("type") == "object" and "properties" in schema:
        for number, (name, value) in enumerate(schema["properties"].items()):
            yield f"{', ' if number else ''}{name}: ", None
            yield from _pieces(value)
        if isinstance(schema.get("additionalProperties"), Mapping):
            yield ", and further parts", None
    else:
        yield str(schema.get("type", "any JSON")), None
