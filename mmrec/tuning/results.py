"""What a tune came to: all trials, the best of them, how much each setting mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmrec.tuning.space import Value

State = Literal["complete", "pruned", "failed", "cut off", "running", "waiting"]
"""cut off: the process ended in the middle; the same settings are tried again under another number."""
LEAST_FOR_IMPORTANCE = 20
"""Complete trials before importance is told: it compares the best tenth with all, and one trial is no tenth."""
MOST_MESSAGE = 160


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Args:
        number: of its folder.
        state: what became of it.
        params: settings by key.
        values: validation metric by epochs done.
        seconds: from start to end; None while it has none.
        message: why it failed.
        own: whether it is the configuration as it was given.
    """

    number: int
    state: State
    params: Mapping[str, Value]
    values: Mapping[int, float]
    seconds: float | None
    message: str = ""
    own: bool = False

    @property
    def value(self) -> float | None:
        """Best validation metric so far."""
        return max(self.values.values(), default=None)

    @property
    def epochs(self) -> int:
        """Epochs done at the last evaluation."""
        return max(self.values, default=0)

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON can hold it."""
        return {
            "number": self.number,
            "state": self.state,
            "value": self.value,
            "epochs": self.epochs,
            "seconds": self.seconds,
            "params": dict(self.params),
            "values": [{"epoch": epoch, "value": value} for epoch, value in sorted(self.values.items())],
            "message": self.message,
            "own": self.own,
        }


@dataclass(frozen=True)
class TuneResult:
    """All trials of a tune.

    Args:
        metric: validation metric that ranks them.
        records: the trials, in order.
        importance: share of each setting in what separates the best tenth of complete trials from the rest; None where
            they are too few, or too equal, to tell.
    """

    metric: str
    records: Sequence[TrialRecord]
    importance: Mapping[str, float] | None

    @property
    def best(self) -> TrialRecord | None:
        """The best complete trial, the earliest of equals."""
        complete = [record for record in self.records if record.state == "complete"]
        return max(complete, key=lambda record: (record.value or 0.0, -record.number), default=None)

    @property
    def ranked(self) -> list[TrialRecord]:
        """Trials, best first: complete, then those that were stopped early, then those without a value."""
        places = {"complete": 0, "pruned": 1, "running": 2, "failed": 3, "cut off": 4, "waiting": 5}
        return sorted(self.records, key=lambda r: (places[r.state], -(r.value or 0.0), r.number))

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON can hold it."""
        return {
            "metric": self.metric,
            "part": "validation",
            "best": None if self.best is None else self.best.number,
            "importance": None if self.importance is None else dict(self.importance),
            "trials": [record.to_dict() for record in self.records],
        }

    def notes(self) -> list[str]:
        """Return what the table does not say."""
        found = []
        if self.importance is None:
            found.append(
                f"Which settings matter cannot be told of fewer than {LEAST_FOR_IMPORTANCE} complete trials of different values."
            )
        if self.best is not None:
            found.append(
                f"Best: trial {self.best.number}.  Its {self.metric} is the highest of {len(self.records)} on the "
                "validation cases, hence flattering: report what mmrec evaluate --split test measures, once, at the end."
            )
        own = next((record for record in self.ranked if record.own and record.value is not None), None)
        if own is not None:
            found.append(
                f"Without a tune: trial {own.number}, the configuration as given, {self.metric} {own.value:.4f}."
            )
        return found

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Return header and rows, best first; trials that were cut off and those not begun are left out."""
        shown = [record for record in self.ranked if record.state not in ("cut off", "waiting")]
        keys = list(dict.fromkeys(key for record in shown for key in record.params))
        header = ["trial", "state", self.metric, "epochs", "seconds", *short_names(keys).values()]
        rows: list[list[object]] = [
            [r.number, r.state, r.value, r.epochs, _seconds(r), *(cell(r.params.get(key)) for key in keys)]
            for r in shown
        ]
        return header, rows

    def failures(self) -> list[list[object]]:
        """Return rows of trials and why they failed, those that failed alike together."""
        numbers: dict[str, list[str]] = {}
        for record in self.records:
            if record.state == "failed":
                numbers.setdefault(record.message, []).append(str(record.number))
        return [[", ".join(trials), message] for message, trials in numbers.items()]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return for each dotted key the shortest end of it that no other key has."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        names[key] = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    return names


def shortened(message: str) -> str:
    """Cut a long message; the whole of it is in tune.json."""
    return message if len(message) <= MOST_MESSAGE else message[: MOST_MESSAGE - 1] + "…"


def _seconds(record: TrialRecord) -> str:
    return "" if record.seconds is None else f"{record.seconds:,.1f}"


def cell(value: Value) -> str:
    """Write a setting so that 0.00031 keeps its digits, which a column of metrics would round away."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if value is None else str(value)
