"""Whether scores are what they were: those shown now beside the first ones after the start."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass

REFERENCE = 1000
"""Scores of a route that make up what is compared with; and about so many make up what is now."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of scores."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Figures:
    """Scores of one route.

    Args:
        start: of the first ones with this model, up to ``REFERENCE``.
        now: of the last ones, older ones counting less and less; the same as ``start`` until that is whole.
    """

    start: Spread
    now: Spread

    @property
    def shift(self) -> float:
        """How far the mean has moved, in deviations of the start."""
        return (self.now.mean - self.start.mean) / max(self.start.deviation, 1e-9)


class _Route:
    """Running sums of one route."""

    def __init__(self, model_hash: str) -> None:
        self.model_hash = model_hash
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._now_mean, self._now_variance = 0.0, 0.0

    def add(self, score: float) -> None:
        """Take a score in."""
        if self._count < REFERENCE:
            # Welford 1962: no difference of large sums.
            self._count += 1
            change = score - self._mean
            self._mean += change / self._count
            self._squares += change * (score - self._mean)
            self._now_mean, self._now_variance = self._mean, self._squares / self._count
            return
        share = 1 / REFERENCE
        change = score - self._now_mean
        self._now_mean += share * change
        self._now_variance = (1 - share) * (self._now_variance + share * change * change)

    def figures(self) -> Figures:
        """Return what there is."""
        start = Spread(self._mean, math.sqrt(self._squares / max(self._count, 1)))
        return Figures(start, Spread(self._now_mean, math.sqrt(self._now_variance)))


class ScoreDrift:
    """Scores by route; another model starts anew."""

    def __init__(self) -> None:
        self._routes: dict[str, _Route] = {}
        self._lock = threading.Lock()

    def add(self, route: str, model_hash: str, scores: Iterable[float]) -> None:
        """Take in the finite ones of some scores that a route showed."""
        with self._lock:
            found = self._routes.get(route)
            if found is None or found.model_hash != model_hash:
                found = self._routes[route] = _Route(model_hash)
            for score in scores:
                if math.isfinite(score):
                    found.add(score)

    def figures(self) -> dict[str, Figures]:
        """Return the figures of every route that showed scores."""
        with self._lock:
            return {route: found.figures() for route, found in self._routes.items()}
