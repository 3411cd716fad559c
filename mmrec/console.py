"""What both command lines share: errors to exit codes, a progress bar, tables and JSON.

Exit codes: 0 done, 1 failed, 2 wrong use.  Results go to stdout, everything else to stderr.  Nothing heavy is
imported before it is used, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from mmrec.errors import MmrecError

FAILED: Final = 1
STOPPED: Final = 130
STOPPED_MESSAGE: Final = (
    "stopped; what was finished is kept, the same command goes on with it (mmrec train: with --resume)"
)
PATIENCE_SECONDS: Final = 1.0
PLAIN_WIDTH: Final = 140


def run_app(app: Callable[..., object], *, name: str) -> None:
    """Run a typer app; an error that the user can mend becomes one paragraph on stderr and exit code 1.

    Any other exception keeps its traceback: it is a fault of the program, not of its input.

    Args:
        app: the typer app.
        name: the command's name, as its usage line shows it.
    """
    try:
        app(prog_name=name)
    except MmrecError as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        _fail(str(error))
    except (KeyboardInterrupt, SystemExit) as ended:
        # Inside a command typer turns Ctrl-C into this exit code and says nothing.
        if isinstance(ended, SystemExit) and ended.code != STOPPED:
            raise
        sys.stderr.write(f"{STOPPED_MESSAGE}\n")
        sys.exit(STOPPED)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(FAILED)


def print_json(value: Mapping[str, object]) -> None:
    """Print a JSON object to stdout; keys stay in order, NaN and infinity are refused."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_text(text: str) -> None:
    """Print a line of plain text to stdout."""
    sys.stdout.write(text + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to stdout: numbers to the right and with separators, long text wrapped, nothing cut off."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(columns):
        numeric = all(isinstance(row[position], int | float) for row in rows)
        table.add_column(name, justify="right" if rows and numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(format_cell(value)) for value in row))
    console = Console(file=sys.stdout, width=_width(terminal=sys.stdout.isatty()))
    console.print(Text(title, style="bold"))
    console.print(table)


def format_cell(value: object) -> str:
    """Return a value as a table shows it: 1,234 and .0567 and 12.3 and text as it is; None is empty."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _width(*, terminal: bool) -> int:
    return shutil.get_terminal_size().columns if terminal else PLAIN_WIDTH


@dataclass(frozen=True)
class _Bar:
    """A drawn bar: what to call when something is done, and at the end."""

    update: Callable[[int, int | None], None]
    stop: Callable[[], None]


class Meter:
    """Counts what is done and, once that has taken a second, draws a bar with rate and time left on stderr.

    Args:
        description: what is being done, in a few words.
        total: number of steps; None if unknown.
    """

    def __init__(self, description: str, total: int | None) -> None:
        self.description, self.total, self.done = description, total, 0
        self._bar: _Bar | None = None
        self._began, self._closed = time.monotonic(), False
        self._lock = threading.Lock()
        self._timer = threading.Timer(PATIENCE_SECONDS, self._show)
        self._timer.daemon = True
        self._timer.start()

    def __call__(self, steps: int = 1) -> None:
        """Advance by ``steps``; may be called from any thread."""
        with self._lock:
            self.done += steps
            if self._bar is not None:
                self._bar.update(self.done, self.total)

    def at(self, done: int, total: int) -> None:
        """Say how many of how many steps are done, for callers that report both."""
        with self._lock:
            self.done, self.total = done, total
            if self._bar is not None:
                self._bar.update(done, total)

    def close(self) -> None:
        """Stop the bar and leave its last state on the screen."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.stop()

    def _show(self) -> None:
        with self._lock:
            if not self._closed:
                self._bar = _start_bar(self.description, self.done, self.total, began=self._began)


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Meter]:
    """Yield a meter to call with the number of steps just done.

    Example:
        >>> with progress("pictures", 3) as advance:
        ...     advance(3)
    """
    meter = Meter(description, total)
    try:
        yield meter
    finally:
        meter.close()


class StageProgress(Protocol):
    """Told how far each stage of some work has come."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report ``done`` of ``total`` steps of a stage."""


@contextmanager
def stages() -> Iterator[StageProgress]:
    """Yield a function to call with stage, steps done and steps in all; each stage gets a bar of its own."""
    meters: dict[str, Meter] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in meters:
            for meter in meters.values():
                meter.close()
            meters[stage] = Meter(stage, total)
        meters[stage].at(done, total)

    try:
        yield report
    finally:
        for meter in meters.values():
            meter.close()


def _start_bar(description: str, done: int, total: int | None, *, began: float) -> _Bar:
    from rich import progress as parts
    from rich.console import Console

    def rate(count: int) -> str:
        value = count / max(time.monotonic() - began, 1e-9)
        return f"{value:,.0f}/s" if value >= 10 else f"{value:.2f}/s"

    bar = parts.Progress(
        parts.TextColumn("{task.description}"),
        parts.BarColumn(),
        parts.MofNCompleteColumn(),
        parts.TextColumn("{task.fields[rate]}"),
        parts.TimeElapsedColumn(),
        parts.TextColumn("left"),
        parts.TimeRemainingColumn(),
        console=Console(file=sys.stderr, width=_width(terminal=sys.stderr.isatty())),
    )
    task = bar.add_task(description, total=total, completed=done, rate=rate(done))
    bar.start()
    return _Bar(
        lambda count, whole: bar.update(task, completed=count, total=whole, rate=rate(count)),
        bar.stop,
    )
