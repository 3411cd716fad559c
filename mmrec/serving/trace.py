"""One request on its way through the service: its number, its time left, and where its time went; and the clock."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from mmrec.serving.problems import too_slow

_T = TypeVar("_T")


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Trace:
    """What the service knows of a request beside its content.

    Args:
        route: name of the route, without any id.
        seconds: how long it may take.

    Attributes:
        request_id: comes back with the answer and is kept with what was shown.
        stages: seconds by stage.
        user_id: who asked, where that is known.
        status: of the answer, where there is no refusal.
        posts: the modalities of each post that it brought along.
        scores: that it was shown, by the model with ``model_hash``.
    """

    def __init__(self, route: str, *, seconds: float) -> None:
        self.route, self._seconds = route, seconds
        self.request_id = secrets.token_hex(16)
        self.stages: dict[str, float] = {}
        self.user_id: str | None = None
        self.status = 200
        self.posts: list[tuple[str, ...]] = []
        self.scores: list[float] = []
        self.model_hash = ""
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self._began

    @property
    def came(self) -> float:
        """When it came, on the clock of ``time.monotonic``."""
        return self._began

    @property
    def until(self) -> float:
        """When it must be answered, on the same clock."""
        return self._began + self._seconds

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            ProblemError: none are.
        """
        left = self.until - time.monotonic()
        if left <= 0:
            raise too_slow(self._seconds)
        return left

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - start

    def show(self, scores: Iterable[float | None], *, model_hash: str) -> None:
        """Note scores that are shown."""
        self.model_hash = model_hash
        self.scores += [score for score in scores if score is not None]

    def wait(self, future: Future[_T]) -> _T:
        """Return what a future brings, within the time left.

        Raises:
            ProblemError: it takes longer.
        """
        try:
            return future.result(timeout=self.left())
        except TimeoutError:
            raise too_slow(self._seconds) from None
