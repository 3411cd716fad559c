"""Posts as requests carry them to contents; nothing is fetched, and no path is opened."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence

from mmrec.errors import RequestError
from mmrec.serving.limits import Limits
from mmrec.serving.posts.post_vectors import Content
from mmrec.serving.schemas import Attribute, Image

Parts = Mapping[str, bytes]
"""The pictures of a multipart request, by name."""
PART = "part:"
_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


def content_of(
    caption: str | None,
    image: Image | str | Sequence[Image | str] | None,
    parts: Parts,
    limits: Limits,
    attributes: Mapping[str, Attribute] | None = None,
) -> Content:
    """Return a post as it is encoded.

    Args:
        caption: its text, or None.
        image: pictures in base64 or names of parts.
        parts: the pictures of a multipart request, by name.
        limits: of the service.
        attributes: by name.

    Raises:
        RequestError: pictures that are not there, too many, or no base64; or neither caption nor picture.
    """
    images = [image] if isinstance(image, Image | str) else list(image or [])
    if len(images) > limits.pictures:
        raise RequestError(f"at most {limits.pictures} pictures", got=str(len(images)))
    if caption is not None and not caption.strip():
        caption = None
    if caption is None and not images:
        raise RequestError("a caption or an image", got="neither")
    return Content(caption, tuple(_picture(one, parts) for one in images), attributes or {})


def is_data_url(text: str) -> bool:
    """Return whether a text is a picture."""
    return _DATA.match(text) is not None


def name_of(item_id: str | int | None, position: int) -> str | int:
    """Return what the answer calls an entry."""
    return item_id if item_id is not None else f"new:{position}"


def _picture(image: Image | str, parts: Parts) -> bytes:
    if isinstance(image, Image):
        return _decoded(image.base64)
    data = _DATA.match(image)
    if data:
        return _decoded(image[data.end() :])
    name = image.removeprefix(PART)
    if name == image or name not in parts:
        got = "no part of that name" if name != image else "other text"
        raise RequestError(
            f'a picture as {{"base64": ...}}, "data:image/...;base64,..." or "{PART}NAME"',
            got=got,
            fix="Send the picture along: nothing is fetched.",
        )
    return parts[name]


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("a picture in base64", got="other text") from error
