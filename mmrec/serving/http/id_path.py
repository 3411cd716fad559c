"""Ids in paths: they may hold slashes, which the server has decoded before it looks for a route."""

from __future__ import annotations

from mmrec.errors import MissingExtraError

try:
    from starlette.convertors import Convertor, register_url_convertor
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error


class _Id(Convertor[str]):
    # Starlette's own for paths takes no line break, and would leave one off at the end: the id of another item.
    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", _Id())
ITEM = "/v1/items/{item_id:id}"
"""Path of an item."""
USER = "/v1/users/{user_id:id}"
"""Path of a user."""
