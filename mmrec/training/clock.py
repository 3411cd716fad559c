"""Wall time of a training: how long, how fast, how much of it spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Wall time in seconds: of the session, and of the window since the last log."""

    lap_start: float = field(default_factory=time.perf_counter)
    window_start: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    targets: int = 0

    def lap(self) -> float:
        """Return the time since the last call."""
        now = time.perf_counter()
        passed, self.lap_start = now - self.lap_start, now
        return passed

    def restart(self) -> None:
        """Begin a new window."""
        self.window_start, self.waited, self.targets = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def speeds(self) -> dict[str, float]:
        """Return speeds of the window and begin a new one."""
        passed = max(time.perf_counter() - self.window_start, 1e-9)
        speeds = {"targets_per_second": self.targets / passed, "data_wait_share": self.waited / passed}
        self.restart()
        return speeds
