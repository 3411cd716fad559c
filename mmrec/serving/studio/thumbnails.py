"""Small pictures of items: of the feed as it keeps them, of published posts as they were sent, made small once."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmrec.preprocessing.pictures import PictureError, fit_within, load_picture
from mmrec.serving.answers.service import Service
from mmrec.serving.problems import ProblemError
from mmrec.storage import bytes_hash

SIDE = 320
MEDIA_TYPE = "image/jpeg"
_QUALITY = 85
_ROOM = 48 << 20


@dataclass(frozen=True)
class Thumbnail:
    """A small picture.

    Args:
        tag: changes with the picture.
        data: JPEG; None where the caller has it already.
    """

    tag: str
    data: bytes | None


class Thumbnails:
    """Small pictures by content; the most recently used ones are kept.

    Args:
        service: what has the items.
        room: bytes that are kept.
    """

    def __init__(self, service: Service, room: int = _ROOM) -> None:
        self._service, self._room = service, room
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def of(self, item_id: str, *, known_tags: str = "") -> Thumbnail:
        """Return the first picture of an item, also of one that was taken back.

        Args:
            item_id: whose.
            known_tags: the header If-None-Match.

        Raises:
            ProblemError: no such item, or one without a picture that can be shown.
        """
        item = self._service.items.remember(item_id)
        if item is None:
            raise _no_picture("no such item")
        if item.published is not None:
            pictures = self._service.store.pictures(item_id)
            if not pictures:
                raise _no_picture("a post without")
            return self._made(bytes_hash(pictures[0]), known_tags, pictures[0])
        catalogue = self._service.catalogue
        rows = catalogue.item_images[item.row]
        if not len(rows):
            raise _no_picture("an item without")
        tag = catalogue.pictures.hashes[int(rows[0])].tobytes().hex()
        return self._made(tag, known_tags, catalogue.pictures[int(rows[0])])

    def _made(self, tag: str, known_tags: str, picture: bytes | npt.NDArray[np.uint8]) -> Thumbnail:
        tag = f'"{tag}-{SIDE}"'
        if tag in known_tags:
            return Thumbnail(tag, None)
        with self._lock:
            data = self._kept.get(tag)
            if data is not None:
                self._kept.move_to_end(tag)
                return Thumbnail(tag, data)
        try:
            if isinstance(picture, bytes):
                picture = load_picture(picture, side=SIDE, max_pixels=self._service.limits.pixels)
        except PictureError:
            raise _no_picture("one that cannot be read") from None
        file = io.BytesIO()
        Image.fromarray(fit_within(np.asarray(picture), SIDE)).save(file, format="JPEG", quality=_QUALITY)
        return Thumbnail(tag, self._keep(tag, file.getvalue()))

    def _keep(self, tag: str, data: bytes) -> bytes:
        with self._lock:
            self._size += len(data) - len(self._kept.pop(tag, b""))
            self._kept[tag] = data
            while self._size > self._room and len(self._kept) > 1:
                self._size -= len(self._kept.popitem(last=False)[1])
        return data


def _no_picture(got: str) -> ProblemError:
    return ProblemError(404, "an item with a picture", got=got, where="the path")
