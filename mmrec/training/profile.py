"""What a profile of a training says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Row:
    """One section of a training.

    Args:
        name: what is done in it.
        seconds: time that belongs to it and to no other.
        backward_seconds: of these, in the backward pass.
        count: how often it was entered.
    """

    name: str
    seconds: float
    backward_seconds: float = 0.0
    count: int = 0


@dataclass(frozen=True)
class Profile:
    """Where the time of a training went.

    Args:
        seconds: wall time.
        steps: optimiser steps.
        rows: sections, the longest first, what none of them claims last; their seconds add up to ``seconds``.
        loader_rows: the same of threads that prepare batches beside the training; no part of the sum.
        figures: further numbers by name.
        about: device and the like.
    """

    seconds: float
    steps: int
    rows: tuple[Row, ...]
    loader_rows: tuple[Row, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    def with_figures(self, figures: Mapping[str, float], about: Mapping[str, str]) -> Profile:
        """Return a copy that says more."""
        return replace(self, figures={**self.figures, **figures}, about={**self.about, **about})

    def to_dict(self) -> dict[str, object]:
        """Return what ``profile.json`` holds."""
        return {
            **self.about,
            "seconds": self.seconds,
            "steps": self.steps,
            "sections": [self._row(row) for row in self.rows],
            "loader_thread": [self._row(row) for row in self.loader_rows],
            "figures": dict(self.figures),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows as text: milliseconds a step, share of the wall time and count by section."""
        rows = [*map(self._cells, self.rows), self._cells(Row("sum", self.seconds))]
        return _aligned(["section", "ms per step", "of it backward", "share", "count", "ms each"], rows)

    def loader_table(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows of what was done beside the training."""
        rows = [self._cells(row) for row in self.loader_rows]
        return _aligned(["section", "ms per step", "share", "count", "ms each"], [[*row[:2], *row[3:]] for row in rows])

    def _cells(self, row: Row) -> list[str]:
        return [
            row.name,
            f"{self._per_step(row.seconds):,.2f}",
            f"{self._per_step(row.backward_seconds):,.2f}" if row.backward_seconds else "",
            f"{self._share(row):.1%}",
            f"{row.count:,}" if row.count else "",
            f"{1000 * row.seconds / row.count:,.2f}" if row.count else "",
        ]

    def _row(self, row: Row) -> dict[str, object]:
        return {
            "section": row.name,
            "seconds": row.seconds,
            "backward_seconds": row.backward_seconds,
            "share": self._share(row),
            "count": row.count,
            "ms_per_step": self._per_step(row.seconds),
        }

    def _per_step(self, seconds: float) -> float:
        return 1000 * seconds / max(self.steps, 1)

    def _share(self, row: Row) -> float:
        return row.seconds / max(self.seconds, 1e-9)


def _aligned(columns: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Move numbers to the right of their columns."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [[line[0], *map(str.rjust, line[1:], widths[1:])] for line in (columns, *rows)]
    return lines[0], lines[1:]
