"""Pictures to the square of pixels that an image encoder wants; colours are normalised later, on the device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mmrec.errors import ArtifactError
from mmrec.storage import content_hash

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class ImagePreprocessor:
    """Fits a picture into a square, whole: scaled, never cropped, the rest filled with one colour.

    Example:
        >>> ImagePreprocessor(side=2)(np.zeros((4, 2, 3), np.uint8)).shape
        (3, 2, 2)

    Args:
        side: side of the square in pixels.
        fill: colour around pictures that are not square.
    """

    side: int
    fill: tuple[int, int, int] = WHITE

    def __call__(self, picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "3 side side"]:
        """Return the pixels; bicubic with antialiasing."""
        height, width = picture.shape[:2]
        scale = self.side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = Image.fromarray(np.ascontiguousarray(picture))
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        canvas = np.empty((self.side, self.side, 3), np.uint8)
        canvas[:] = self.fill
        left, top = (self.side - size[0]) // 2, (self.side - size[1]) // 2
        canvas[top : top + size[1], left : left + size[0]] = np.asarray(image)
        return np.ascontiguousarray(canvas.transpose(2, 0, 1))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides the pixels."""
        return content_hash("fit in square, bicubic", json.dumps(self.to_dict()))

    def to_dict(self) -> dict[str, object]:
        """Return the settings as plain values for JSON."""
        return asdict(self) | {"fill": list(self.fill)}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ImagePreprocessor:
        """Read what :meth:`to_dict` gave.

        Raises:
            ArtifactError: settings of another kind.
        """
        match values:
            case {"side": int(side), "fill": [int(red), int(green), int(blue)]}:
                return cls(side=side, fill=(red, green, blue))
            case _:
                raise ArtifactError("the settings of an image preprocessor", got=repr(dict(values)))
