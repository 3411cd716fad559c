"""Parts of the benchmark, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from benchmarks.encode import encode
from benchmarks.evaluate import evaluate
from benchmarks.export import export
from benchmarks.grow import grow
from benchmarks.measure import Row
from benchmarks.memory import memory
from benchmarks.prepare import prepare
from benchmarks.score import score
from benchmarks.search import search
from benchmarks.serve import serve
from benchmarks.softmax import softmax
from benchmarks.start import start
from benchmarks.train import train


class Part(Protocol):
    """Yields its rows as they are found."""

    def __call__(self, *, size: str, device: str, rounds: int) -> Iterator[Row]:
        """Measure."""
        ...


PARTS: dict[str, Part] = {
    "start": start,
    "prepare": prepare,
    "encode": encode,
    "train": train,
    "memory": memory,
    "softmax": softmax,
    "evaluate": evaluate,
    "score": score,
    "export": export,
    "search": search,
    "grow": grow,
    "serve": serve,
}
