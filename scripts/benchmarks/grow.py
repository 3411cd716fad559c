"""How time and memory grow with the feed, of parts that run no encoder: as n to which power."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.measure import Row
from benchmarks.processes import run_python

SIZES = {"small": (1_000, 10_000), "cpu": (10_000, 100_000, 1_000_000), "gpu": (10_000, 100_000, 1_000_000)}
HIGHEST = 1.1
"""Between 10^4 and 10^6, n log n looks like n to the power of 1.09."""
LEAST_MB = 1.0
"""Less is not told from nothing."""
LAST = "exponent of the last two"
CODE = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from benchmarks.growing_parts import main; main()"


def exponent(sizes: Sequence[int], values: Sequence[float], *, least: float) -> float:
    """Return the slope of a straight line through the logarithms; values below ``least`` count as ``least``."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, least)), 1)[0])


def grow(*, size: str, device: str, rounds: int, sizes: Sequence[int] | None = None) -> Iterator[Row]:
    """Run every part once at each size, each size in a fresh process.

    Args:
        size: small, cpu or gpu.
        device: not used.
        rounds: not used: one run a size, whose noise is small beside a hundredfold.
        sizes: numbers of items, in place of the size's.
    """
    sizes = sizes or SIZES[size]
    seconds: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    for items in sizes:
        with TemporaryDirectory() as folder:
            output = run_python(CODE, folder, str(items)).output
        for cost in json.loads(output.splitlines()[-1]):
            seconds.setdefault(cost["part"], []).append(cost["seconds"])
            memory.setdefault(cost["part"], []).append(cost["mb"])
    span = f"{sizes[0]:,} to {sizes[-1]:,} items"
    for part in seconds:
        for what, values, least, unit in (("time", seconds[part], 1e-3, "s"), ("memory", memory[part], LEAST_MB, "MB")):
            yield Row(
                "grow",
                f"exponent of {what}, {part}, {span}",
                (exponent(sizes, values, least=least),),
                bound="at most",
                target=None if size == "small" else HIGHEST,
                unit="",
                # What a part takes whatever the size holds the line down, less so between the two largest.
                details={f"{items:,} items {unit}": value for items, value in zip(sizes, values, strict=True)}
                | {LAST: exponent(sizes[-2:], values[-2:], least=least)},
            )
