"""Posts that no feed knows: a caption and pictures as they come, checked and decoded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmrec.errors import RequestError
from mmrec.preprocessing.pictures import fit_within, load_picture
from mmrec.storage import content_hash

Picture = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Post:
    """A post as its readers see it.

    Args:
        caption: its text, or None.
        image: a path, encoded bytes, a Pillow image, or an array (height, width, 3) uint8; or several of them.
        name: what it is called in results; it need not be known to anyone.
    """

    caption: str | None = None
    image: Picture | Sequence[Picture] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.caption is not None and not isinstance(self.caption, str):
            raise RequestError("a caption as text", got=type(self.caption).__name__, where="Post(caption=...)")
        if not (self.caption and self.caption.strip()) and self.image is None:
            raise RequestError("a caption or an image", got="neither", where="Post(...)")


@dataclass(frozen=True)
class DecodedPost:
    """A post ready for preprocessing.

    Args:
        caption: its text, or None where it has none.
        pictures: its pictures, each (height, width, 3) uint8.
        key: hash of both, by which the same post is recognised again.
    """

    caption: str | None
    pictures: tuple[npt.NDArray[np.uint8], ...]
    key: str

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the modalities it has."""
        return tuple(name for name, has in (("text", self.caption), ("image", self.pictures)) if has)


def _pictures(image: Picture | Sequence[Picture] | None) -> list[Picture]:
    if image is None:
        return []
    if isinstance(image, str | Path | bytes | Image.Image | np.ndarray):
        return [image]
    return list(image)


def _decode(picture: Picture, *, side: int, root: Path | None) -> npt.NDArray[np.uint8]:
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        # Through a file, so that rotation, transparency and depth are treated as everywhere else.
        picture.save(buffer, format="PNG", exif=picture.getexif())
        return load_picture(buffer.getvalue(), side=side)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise RequestError(
                "a picture array (height, width, 3) of uint8", got=f"{picture.shape} {picture.dtype}", where="Post"
            )
        return fit_within(picture, side)
    if isinstance(picture, bytes):
        return load_picture(picture, side=side)
    return load_picture(Path(picture) if root is None else root / picture, side=side)


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
    pieces: list[bytes | str] = [caption or ""]
    for picture in pictures:
        pieces += [repr(picture.shape), np.ascontiguousarray(picture).tobytes()]
    return DecodedPost(caption, pictures, content_hash(*pieces))
