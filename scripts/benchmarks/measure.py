"""Timing two things in turns, watching memory, and saying what was found."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

Bound = Literal["at least", "at most"]
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        part: part of the benchmark.
        what: what was compared, with its size.
        values: the figure in every round.
        bound: whether the figure must be at least or at most ``target``.
        target: None where nothing is asked.
        unit: of the figure; a ratio has none.
        details: further figures, by name.
    """

    part: str
    what: str
    values: tuple[float, ...]
    bound: Bound = "at least"
    target: float | None = None
    unit: str = "x"
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        return self.median >= self.target if self.bound == "at least" else self.median <= self.target

    def as_dict(self) -> dict[str, object]:
        """Return everything as plain values."""
        return {
            "part": self.part,
            "what": self.what,
            "median": self.median,
            "lowest": min(self.values),
            "highest": max(self.values),
            "rounds": len(self.values),
            "unit": self.unit,
            "bound": self.bound,
            "target": self.target,
            "met": self.met,
            "details": dict(self.details),
        }

    def __str__(self) -> str:
        """Say it in a line, and the details in another."""
        spread = f" [{_short(min(self.values))}, {_short(max(self.values))}]" if len(self.values) > 1 else ""
        asked = "" if self.target is None else f"  ({self.bound} {self.target:g}: {'yes' if self.met else 'NO'})"
        line = f"{self.part:9} {self.what}: {_short(self.median)} {self.unit}{spread}{asked}"
        notes = ", ".join(f"{name} {_short(value)}" for name, value in self.details.items())
        return f"{line}\n{'':10}{notes}" if notes else line


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def alternate(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: str = "cpu",
    warm_up: int = 1,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time each side once a round, in turns whose order is reversed every other round.

    Args:
        sides: by name.
        rounds: turns of each.
        device: a CUDA device is waited for.
        warm_up: turns that do not count.
        before: done before every turn, and not timed.

    Returns:
        Seconds by name, one for each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        names = list(sides)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            before()
            wait(device)
            start = time.perf_counter()
            sides[name]()
            wait(device)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(numerator: list[float], denominator: list[float]) -> tuple[float, ...]:
    """Divide round by round."""
    return tuple(above / below for above, below in zip(numerator, denominator, strict=True))


def give_free_memory_back() -> None:
    """Let go of what nobody refers to, and give free heap back to the kernel, as far as glibc does so."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def wait(device: str) -> None:
    """Wait until a CUDA device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@contextmanager
def extra_memory(device: str) -> Iterator[dict[str, float]]:
    """Watch how far memory rises above where it was; ``found["mb"]`` holds it after the block.

    On a CPU the resident memory of the process is read every few milliseconds by a thread.  What was freed before and is
    used again does not show: free heap is given back first, as far as glibc does so, which leaves what other threads
    freed.  A fresh process (:func:`benchmarks.processes.afresh`) has freed next to nothing.
    """
    found = {"mb": 0.0}
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        torch.cuda.synchronize()
        found["mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        return
    give_free_memory_back()
    before, stop, peak = _resident(), threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], _resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        peak[0] = max(peak[0], _resident())  # of a block that was over before the first look
        stop.set()
        thread.join()
    found["mb"] = max(peak[0] - before, 0) / 1e6


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def describe_machine(device: str) -> str:
    """Name the processor or the card, and the versions that matter."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}; {versions}"
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{torch.get_num_threads()} cores of {model}; {versions}"
