"""Where time goes: every moment belongs to exactly one section, the innermost that is open, so that they add up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

OTHER = "other"
"""Whatever no section claims."""
MOST_PENDING = 2048
"""Stretches whose length is not read yet, at most: to read them waits for the device."""

Mark = float | torch.cuda.Event
"""A moment: of the host's clock in seconds, or of the device's stream of work."""


@runtime_checkable
class Stopwatch(Protocol):
    """Marks moments and measures what lies between them."""

    def mark(self) -> Mark:
        """Mark this moment."""
        ...

    def seconds(self, start: Mark, stop: Mark) -> float:
        """Return the time between two marks; may wait for the second."""
        ...

    def settle(self) -> None:
        """Wait until the device has done all that it was given."""
        ...


@dataclass(frozen=True)
class HostStopwatch:
    """The host's clock, which is right where the host itself computes.

    Args:
        clock: seconds.
        settle_device: waits for a device that works by itself, before every mark: exact, but host and device no longer
            work at the same time.
    """

    clock: Callable[[], float] = time.perf_counter
    settle_device: Callable[[], None] = lambda: None

    def mark(self) -> Mark:
        """Return the time."""
        self.settle_device()
        return self.clock()

    def seconds(self, start: Mark, stop: Mark) -> float:
        """Return the difference."""
        assert isinstance(start, float)
        assert isinstance(stop, float)
        return stop - start

    def settle(self) -> None:
        """Wait for the device."""
        self.settle_device()


class CudaStopwatch:
    """Events in the stream of a GPU, which cost a few microseconds each and make nobody wait.

    A stretch lasts from the moment the GPU has done what was asked before it to the moment it has done what was asked
    within it.  Work of the host that the GPU does not have to wait for lasts nothing; where it starves, the section
    that kept it waiting pays.
    """

    def mark(self) -> Mark:
        """Record an event in the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: Mark, stop: Mark) -> float:
        """Wait for the second event and return what lies between the two."""
        assert isinstance(start, torch.cuda.Event)
        assert isinstance(stop, torch.cuda.Event)
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1000

    def settle(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()


def open_stopwatch(device: torch.device) -> Stopwatch:
    """Return the stopwatch of a device; one that has no events is waited for at every border of a section."""
    match device.type:
        case "cpu":
            return HostStopwatch()
        case "cuda":
            return CudaStopwatch()
        case _:
            return HostStopwatch(settle_device=torch.accelerator.synchronize)


@dataclass
class Spent:
    """What a section took: seconds, those of its backward pass, and how often it was entered."""

    forward: float = 0.0
    backward: float = 0.0
    count: int = 0


@dataclass(frozen=True)
class _Open:
    name: str
    whole: bool = False
    backward: bool = False


class Sections:
    """Time by section, as one thread at a time opens and closes them.

    Args:
        stopwatch: measures.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._open = [_Open(OTHER)]
        self._last = stopwatch.mark()
        self._pending: list[tuple[_Open, Mark, Mark]] = []
        self._spent: dict[str, Spent] = {}

    @property
    def name(self) -> str:
        """The section that is open."""
        return self._open[-1].name

    @property
    def whole(self) -> bool:
        """Whether everything goes to the section that is open, whatever is opened within."""
        return self._open[-1].whole

    def enter(
        self, name: str, *, whole: bool = False, backward: bool = False, counted: bool = True, goes_on: bool = False
    ) -> int:
        """Open a section and return what :meth:`leave` needs.

        Args:
            name: of the section.
            whole: sections within are not told apart.
            backward: its time is that of a backward pass.
            counted: whether this is one more time; False for a further part of what is counted already.
            goes_on: what passed since the last border belongs to it too.
        """
        depth = len(self._open)
        if self.whole:
            self._open.append(self._open[-1])
            return depth
        entry = _Open(name, whole, backward)
        self._charge(entry if goes_on else self._open[-1])
        self._open.append(entry)
        if counted:
            self._spent.setdefault(name, Spent()).count += 1
        return depth

    def leave(self, depth: int) -> None:
        """Close a section, and what an exception left open within."""
        if not self._open[depth - 1].whole:
            self._charge(self._open[-1])
        del self._open[depth:]

    def turn(self, name: str) -> None:
        """Let the backward pass that is going on be that of another section."""
        self._charge(self._open[-1])
        self._open[-1] = _Open(name, backward=True)

    def read(self) -> dict[str, Spent]:
        """Return what every section took so far; waits for the device."""
        self._charge(self._open[-1])
        self._resolve()
        return self._spent

    def _charge(self, entry: _Open) -> None:
        """Give the time since the last mark to a section."""
        now = self._stopwatch.mark()
        self._pending.append((entry, self._last, now))
        self._last = now
        if len(self._pending) >= MOST_PENDING:
            self._resolve()

    def _resolve(self) -> None:
        for entry, start, stop in self._pending:
            spent, seconds = self._spent.setdefault(entry.name, Spent()), self._stopwatch.seconds(start, stop)
            if entry.backward:
                spent.backward += seconds
            else:
                spent.forward += seconds
        self._pending.clear()


class _Nested(threading.local):
    """Time that sections within the open one of this thread have taken."""

    seconds: float = 0.0


@dataclass
class Beside:
    """Time by section of threads that work beside the training; any number of them at once.

    Args:
        clock: seconds.
    """

    clock: Callable[[], float] = time.perf_counter
    _spent: dict[str, Spent] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _nested: _Nested = field(default_factory=_Nested)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count the block; what a section within it takes is not counted twice."""
        outer, self._nested.seconds = self._nested.seconds, 0.0
        start = self.clock()
        try:
            yield
        finally:
            took, inner = self.clock() - start, self._nested.seconds
            self._nested.seconds = outer + took
            with self._lock:
                spent = self._spent.setdefault(name, Spent())
                spent.forward += took - inner
                spent.count += 1

    def read(self) -> dict[str, Spent]:
        """Return what every section that has ended took so far."""
        with self._lock:
            return {name: Spent(spent.forward, spent.backward, spent.count) for name, spent in self._spent.items()}
