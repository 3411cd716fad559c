"""Draw the picture of a post: cut-out shapes in the look's palette and pattern, on a neutral ground.

The shape, its place, size and turn, the ground and the noise say nothing about the post.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from data_tools.synthesis.patterns import LOOKS, Look

Outline = list[tuple[float, float]]
"""Corners of a polygon within [-1, 1] squared."""
SHARPER = 2
"""Masks are drawn at this multiple of the side and scaled down, for smooth edges."""


def _polar(corners: int, radii: tuple[float, ...]) -> Outline:
    angles = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    return [
        (float(radii[i % len(radii)] * np.cos(a)), float(radii[i % len(radii)] * np.sin(a)))
        for i, a in enumerate(angles)
    ]


def _heart() -> Outline:
    t = 2 * np.pi * np.arange(40) / 40
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _blob() -> Outline:
    angles = 2 * np.pi * np.arange(48) / 48
    radius = 0.78 + 0.16 * np.sin(3 * angles) + 0.08 * np.cos(5 * angles)
    return list(zip((radius * np.cos(angles)).tolist(), (radius * np.sin(angles)).tolist(), strict=True))


OUTLINES: Final[tuple[Outline, ...]] = (
    _polar(48, (0.9,)),
    _polar(4, (1.0,)),
    _polar(3, (1.0,)),
    _polar(6, (0.95,)),
    _polar(10, (1.0, 0.5)),
    _polar(16, (1.0, 0.75)),
    _heart(),
    _blob(),
    [(-0.9, -0.6), (0.9, -0.6), (0.9, 0.6), (-0.9, 0.6)],
    [(-0.3, -1), (0.3, -1), (0.3, -0.4), (0.7, 0), (0.7, 1), (-0.7, 1), (-0.7, 0), (-0.3, -0.4)],
    [(-0.35, -0.9), (0.35, -0.9), (0.9, -0.45), (0.65, -0.1), (0.5, -0.25), (0.5, 0.9), (-0.5, 0.9), (-0.5, -0.25)]
    + [(-0.65, -0.1), (-0.9, -0.45)],
)


def draw_picture(look: int, *, looks: int, side: int, difficulty: float, generator: np.random.Generator) -> Image.Image:
    """Draw a picture that shows a look.

    Args:
        look: index in ``LOOKS``.
        looks: looks of the feed; some pictures borrow the pattern of another one, never its palette.
        side: pixels a side.
        difficulty: 0 is plain; 1 has strong noise, small shapes, off colours and a third of the patterns borrowed.
        generator: source of everything else.
    """
    pattern = LOOKS[int(generator.integers(looks)) if generator.random() < 0.3 * difficulty else look]
    canvas = _ground(side, generator)
    count = int(generator.choice([1, 1, 2, 2, 3]))
    for _ in range(count):
        largest = 0.5 if count == 1 else 0.38
        size = side * generator.uniform(largest * (0.85 - 0.4 * difficulty), largest)
        mask = _mask(side, size, generator)
        fill = _fill(side, LOOKS[look], pattern, difficulty=difficulty, generator=generator)
        canvas += mask[:, :, None] * (fill - canvas)
    canvas *= generator.uniform(1 - 0.2 * difficulty, 1 + 0.1 * difficulty)
    canvas += generator.normal(0.0, 2 + 16 * difficulty, canvas.shape)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def _ground(side: int, generator: np.random.Generator) -> Float[np.ndarray, "height width 3"]:
    """Return a nearly grey ground with a gradient across it and, at times, a floor."""
    x, y = _plane(side, generator.uniform(0, 2 * np.pi))
    tint = generator.uniform(165, 235) + generator.uniform(-10, 10, 3)
    ground = tint + (generator.uniform(5, 35) * x / side)[:, :, None]
    if generator.random() < 0.4:
        ground = ground - (y > generator.uniform(0.1, 0.4) * side)[:, :, None] * generator.uniform(15, 45)
    return ground


def _plane(side: int, angle: float) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Return turned coordinates of every pixel, in pixels from the middle."""
    axis = np.arange(side) - (side - 1) / 2
    x, y = axis[None, :], axis[:, None]
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _mask(side: int, size: float, generator: np.random.Generator) -> Float[np.ndarray, "height width"]:
    outline = np.array(OUTLINES[int(generator.integers(len(OUTLINES)))])
    angle = generator.uniform(-0.6, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    room = max(side / 2 - 0.9 * size, 0.0)
    centre = side / 2 + generator.uniform(-room, room, 2)
    corners = (centre + size * (outline @ turn.T)) * SHARPER
    image = Image.new("L", (side * SHARPER, side * SHARPER))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in corners], fill=255)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float64) / 255


def _fill(
    side: int, look: Look, pattern: Look, *, difficulty: float, generator: np.random.Generator
) -> Float[np.ndarray, "height width 3"]:
    period = side * generator.uniform(0.18, 0.32)
    u, v = _plane(side, generator.uniform(0, 2 * np.pi))
    shift = generator.uniform(0, 1, 2)
    inks = pattern.pattern(u / period + shift[0], v / period + shift[1])
    colours = np.array(look.colours, dtype=np.float64) + generator.normal(0.0, 4 + 22 * difficulty, (3, 3))
    return np.asarray(colours[inks])
