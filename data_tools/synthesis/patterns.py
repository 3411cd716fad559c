"""Looks: a palette and a pattern that belong together, as functions of the plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

Plane = Float[np.ndarray, "height width"]
"""A coordinate of every pixel, in periods of the pattern."""
Inks = Int[np.ndarray, "height width"]
"""Which of a palette's three colours every pixel has."""


def _cycle(x: Plane, inks: int) -> Inks:
    return np.asarray(np.floor(x) % inks, dtype=np.int64)


def _stripes(u: Plane, v: Plane) -> Inks:
    return _cycle(3 * u, 3)


def _waves(u: Plane, v: Plane) -> Inks:
    return _cycle(3 * (v + 0.25 * np.sin(2 * np.pi * u)), 3)


def _dots(u: Plane, v: Plane) -> Inks:
    radius = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    return np.where(radius < 0.18, 2, np.where(radius < 0.36, 1, 0))


def _checks(u: Plane, v: Plane) -> Inks:
    return np.asarray(_cycle(2 * u, 2) + _cycle(2 * v, 2))


def _rings(u: Plane, v: Plane) -> Inks:
    return _cycle(2.5 * np.hypot(u, v), 3)


def _triangles(u: Plane, v: Plane) -> Inks:
    upper = (u % 1) > (v % 1)
    return np.where(upper, _cycle(u, 2), 2)


def _bricks(u: Plane, v: Plane) -> Inks:
    row, across = np.floor(2 * v), (2 * v) % 1
    shifted = u + 0.5 * (row % 2)
    mortar = (shifted % 1 < 0.12) | (across < 0.2)
    return np.where(mortar, 2, _cycle(np.floor(shifted) + row, 2))


def _zigzag(u: Plane, v: Plane) -> Inks:
    return _cycle(3 * (v + 0.6 * np.abs(u % 1 - 0.5)), 3)


def _crosses(u: Plane, v: Plane) -> Inks:
    across, along = np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)
    cross = ((across < 0.12) & (along < 0.4)) | ((along < 0.12) & (across < 0.4))
    return np.where(cross, 1 + _cycle(np.floor(u) + np.floor(v), 2), 0)


def _diamonds(u: Plane, v: Plane) -> Inks:
    size = np.abs(u % 1 - 0.5) + np.abs(v % 1 - 0.5)
    return np.where(size < 0.2, 2, np.where(size < 0.42, 1, 0))


@dataclass(frozen=True)
class Look:
    """A palette of three colours and its pattern.

    Args:
        name: for the truth and for reports; never in a caption.
        colours: three RGB colours in 0..255.
        pattern: which colour each point of the plane has.
    """

    name: str
    colours: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]
    pattern: Callable[[Plane, Plane], Inks]


LOOKS: Final = (
    Look("ember stripes", ((208, 32, 32), (245, 120, 10), (252, 196, 80)), _stripes),
    Look("ocean waves", ((4, 50, 130), (0, 140, 205), (150, 222, 244)), _waves),
    Look("meadow dots", ((24, 92, 48), (90, 190, 80), (214, 244, 190)), _dots),
    Look("grape checks", ((72, 16, 128), (150, 78, 214), (226, 178, 255)), _checks),
    Look("charcoal rings", ((18, 18, 20), (126, 126, 126), (242, 242, 240)), _rings),
    Look("petal triangles", ((240, 20, 110), (255, 140, 175), (255, 228, 236)), _triangles),
    Look("clay bricks", ((88, 48, 22), (150, 92, 52), (224, 196, 150)), _bricks),
    Look("wasp zigzag", ((24, 22, 16), (250, 208, 10), (255, 240, 140)), _zigzag),
    Look("lagoon crosses", ((12, 110, 112), (255, 122, 84), (255, 236, 214)), _crosses),
    Look("frost diamonds", ((190, 214, 232), (250, 252, 255), (70, 96, 150)), _diamonds),
)
"""Every look that a feed can have; a feed with fewer takes the first ones."""
