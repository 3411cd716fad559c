"""How many requests a second a caller may make: one bucket of tokens for each key."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from mmrec.serving.http.keys import Key
from mmrec.serving.limits import Limits
from mmrec.serving.problems import ProblemError


class TokenBucket:
    """Holds up to ``burst`` tokens, and gains ``rate`` of them a second; a request takes one.

    Args:
        rate: tokens a second, above 0.
        burst: tokens at most, at least 1.
        clock: seconds of a clock that never goes back.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = float(burst), clock()

    def take(self) -> float:
        """Take a token and return 0 or, where there is none, the seconds until there will be one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class Rates:
    """The buckets of one process; to be used from one thread.

    Args:
        limits: of the service; a key may have a rate of its own.
        clock: seconds of a clock that never goes back.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._buckets: dict[str | None, TokenBucket] = {}

    def check(self, key: Key | None) -> None:
        """Count a request.

        Args:
            key: whose; None: of a caller who needs none.

        Raises:
            ProblemError: 429, there were too many of late.
        """
        limits = self._limits
        if key is None:
            rate, burst = limits.loopback_rate, limits.burst
        else:
            rate = limits.rate if key.rate is None else key.rate
            burst = limits.burst if key.burst is None else key.burst
        if rate == 0:
            return
        name = None if key is None else key.name
        bucket = self._buckets.setdefault(name, TokenBucket(rate, burst, self._clock))
        seconds = bucket.take()
        if seconds > 0:
            raise ProblemError(
                429,
                f"at most {rate:g} requests a second, {burst} at once",
                got="one more",
                fix="Try again after the time in Retry-After.",
                headers={"Retry-After": str(math.ceil(seconds))},
            )
