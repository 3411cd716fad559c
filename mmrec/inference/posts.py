"""Posts that no feed knows: a caption, pictures and attributes as they come, checked and decoded."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmrec.errors import RequestError
from mmrec.preprocessing.attributes import attribute_text
from mmrec.preprocessing.pictures import PictureError, fit_within, load_picture
from mmrec.storage import content_hash

Picture = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"})


@dataclass(frozen=True)
class Post:
    """A post as its readers see it.

    Args:
        caption: its text, or None.
        image: a path, encoded bytes, a Pillow image, or an array (height, width, 3) uint8; or several of them.
        name: what it is called in results; it need not be known to anyone.
        attributes: by column of the feed, such as ``{"colour": "red", "price": 12.5}``: text, numbers, or lists of them.
            Those that are not given are missing, those that the model does not read are left alone.
    """

    caption: str | None = None
    image: Picture | Sequence[Picture] | None = None
    name: str | None = None
    attributes: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.caption is not None and not isinstance(self.caption, str):
            raise RequestError("a caption as text", got=type(self.caption).__name__, where="Post(caption=...)")
        if not isinstance(self.attributes, Mapping):
            raise RequestError("attributes by name", got=type(self.attributes).__name__, where="Post(attributes=...)")
        texts = attribute_texts(self.attributes)
        if not (self.caption and self.caption.strip()) and not _pictures(self.image) and not texts:
            raise RequestError("a caption, an image or attributes", got="neither", where="Post(...)")
        for name, text in (("caption", self.caption or ""), ("attributes", json.dumps(texts, ensure_ascii=False))):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise RequestError(
                    f"{name} of whole characters", got=str(error)[:200], where=f"Post({name}=...)"
                ) from error


@dataclass(frozen=True)
class DecodedPost:
    """A post ready for preprocessing.

    Args:
        caption: its text, or None where it has none.
        pictures: its pictures, each (height, width, 3) uint8.
        picture_keys: hash of each picture.
        key: hash of everything, by which the same post is recognised again.
        attributes: its attributes as a prepared feed would hold them, by name.
    """

    caption: str | None
    pictures: tuple[npt.NDArray[np.uint8], ...]
    picture_keys: tuple[str, ...]
    key: str
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the modalities it has."""
        has = {"text": self.caption, "image": self.pictures, "attributes": self.attributes}
        return tuple(name for name, content in has.items() if content)


def attribute_texts(attributes: Mapping[str, object]) -> dict[str, str]:
    """Return attributes as a prepared feed would hold them, in the order of their names; empty ones are left out.

    Raises:
        RequestError: a value that is neither text, number, truth value, nor a list of these.
    """
    texts = {str(name): attribute_text(value) for name, value in attributes.items()}
    return {name: text for name, text in sorted(texts.items()) if text is not None}


def _pictures(image: Picture | Sequence[Picture] | None) -> list[Picture]:
    if image is None:
        return []
    if isinstance(image, str | Path | bytes | Image.Image | np.ndarray):
        return [image]
    return list(image)


def _decode(picture: Picture, *, side: int, root: Path | None) -> npt.NDArray[np.uint8]:
    if isinstance(picture, Image.Image):
        return load_picture(_as_file(picture), side=side)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise RequestError(
                "a picture array (height, width, 3) of uint8", got=f"{picture.shape} {picture.dtype}", where="Post"
            )
        return fit_within(picture, side)
    if isinstance(picture, bytes):
        return load_picture(picture, side=side)
    return load_picture(Path(picture) if root is None else root / picture, side=side)


def _as_file(picture: Image.Image) -> bytes:
    """Write a Pillow image as a file, so that rotation, transparency and depth are treated as everywhere else."""
    buffer = io.BytesIO()
    try:
        plain = picture
        if picture.mode not in _PNG_MODES:
            plain = picture.convert("I;16" if picture.mode == "I" else "RGB")
        plain.save(buffer, format="PNG", compress_level=1, exif=picture.getexif())
    except Exception as error:  # a file that Pillow opened is only read here, and may be damaged in any way
        cut = "truncat" in str(error).lower()
        got = f"{type(error).__name__}: {error}"
        raise PictureError("truncated" if cut else "unreadable", got=got, where="a Pillow image") from error
    return buffer.getvalue()


def source_key(post: Post, *, max_images: int) -> str | None:
    """Hash what a post is made of before anything is decoded; None where that is no cheaper than decoding.

    Two posts of one key decode to the same pictures.  A file is known by its place, length and time of change: one that
    changes within a tick of the clock and keeps its length goes unnoticed.
    """
    pieces: list[str | bytes] = [post.caption or "", *_attribute_pieces(attribute_texts(post.attributes))]
    for picture in _pictures(post.image)[:max_images]:
        if isinstance(picture, bytes):
            pieces += ["bytes", picture]
        elif isinstance(picture, str | Path):
            try:
                path = Path(picture).absolute()
                status = path.stat()
            except (OSError, ValueError):  # ValueError: a NUL in the path
                return None
            pieces += ["file", os.fsencode(path), f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"]
        else:
            return None
    return content_hash(*pieces)


def decode_post(post: Post, *, side: int, max_images: int, root: Path | None = None) -> DecodedPost:
    """Decode a post's pictures, as a prepared feed would hold them.

    Args:
        post: the post.
        side: longest side in pixels that pictures are shrunk to, that of the prepared feed.
        max_images: pictures used, the first ones.
        root: folder that relative paths start from; None takes the working folder.

    Raises:
        PictureError: a picture cannot be read; the reason is in the message.
        RequestError: a picture array of the wrong shape.
    """
    pictures = tuple(_decode(picture, side=side, root=root) for picture in _pictures(post.image)[:max_images])
    caption = post.caption if post.caption and post.caption.strip() else None
    keys = tuple(content_hash(repr(picture.shape), np.ascontiguousarray(picture).tobytes()) for picture in pictures)
    attributes = attribute_texts(post.attributes)
    key = content_hash(caption or "", *_attribute_pieces(attributes), *keys)
    return DecodedPost(caption, pictures, keys, key, attributes)


def _attribute_pieces(attributes: Mapping[str, str]) -> list[str]:
    """Return what attributes add to a hash: nothing where there are none."""
    return ["attributes", json.dumps(attributes, sort_keys=True)] if attributes else []
