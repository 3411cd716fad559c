"""Pictures to the square of pixels that an image encoder wants; colours are normalised later, on the device."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
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
        pixels: npt.NDArray[np.uint8] = self.batch([picture])[0]
        return pixels

    def batch(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> UInt8[np.ndarray, "pictures 3 side side"]:
        """Return the pixels of pictures, each of shape (height, width, 3)."""
        pixels = np.empty((len(pictures), 3, self.side, self.side), np.uint8)
        for channel, value in enumerate(self.fill):
            pixels[:, channel] = value
        for square, picture in zip(pixels, pictures, strict=True):
            fitted = self._fit(picture)
            height, width = fitted.shape[:2]
            top, left = (self.side - height) // 2, (self.side - width) // 2
            square[:, top : top + height, left : left + width] = fitted.transpose(2, 0, 1)
        return pixels

    def _fit(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Scale a picture so that its longer side is that of the square."""
        height, width = picture.shape[:2]
        scale = self.side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if size == (width, height):
            return picture
        return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BICUBIC))

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
