"""Parts of the benchmark, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from benchmarks.evaluate import evaluate
from benchmarks.measure import Row
from benchmarks.softmax import softmax
from benchmarks.train import train


class Part(Protocol):
    """Yields its rows as they are found."""

    def __call__(self, *, size: str, device: str, rounds: int) -> Iterator[Row]:
        """Measure."""
        ...


PARTS: dict[str, Part] = {"train": train, "softmax": softmax, "evaluate": evaluate}
