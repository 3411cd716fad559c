"""The last refusals of a service, for whoever looks after it: what was expected and where, never what was sent."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from mmrec.serving.problems import ProblemError
from mmrec.serving.trace import Trace, now_ms

KEPT = 50


@dataclass(frozen=True)
class Refusal:
    """A request that got another answer than 200.

    Args:
        at: milliseconds since 1970.
        request_id: by which its line of the log is found.
        route: which was asked.
        status: of the answer.
        reason: what was expected, or the class of a fault; holds nothing of the request.
    """

    at: int
    request_id: str
    route: str
    status: int
    reason: str


class RecentProblems:
    """A ring of refusals; safe to use from many threads.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int = KEPT) -> None:
        self._kept: deque[Refusal] = deque(maxlen=most)
        self._lock = threading.Lock()
        self.total = 0

    def add(self, trace: Trace, status: int, error: Exception) -> None:
        """Keep a refusal.  Of errors that are no refusals of the service's own only the class is kept."""
        reason = f"expected {error.expected}" if isinstance(error, ProblemError) else type(error).__name__
        refusal = Refusal(now_ms(), trace.request_id, trace.route, status, reason)
        with self._lock:
            self._kept.append(refusal)
            self.total += 1

    def newest(self) -> list[Refusal]:
        """Return what is kept, the newest first."""
        with self._lock:
            return list(reversed(self._kept))
