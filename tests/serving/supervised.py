"""Work of processes that a supervisor starts; apart from the tests, for these processes load nothing else."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from mmrec.errors import ConfigError

Notify = Callable[[str], None]


def serve(folder: Path, number: int, notify: Notify, ready: Callable[[], None]) -> None:
    """Work until told to end, and finish what was begun."""
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: ending.append(signum))
    notify(f"worker {number} prepares")
    ready()
    starts = folder / f"starts-{number}"
    starts.write_text((starts.read_text() if starts.exists() else "") + ".")
    while not ending:
        time.sleep(0.01)
    (folder / f"finished-{number}").touch()


def refuse(folder: Path, number: int, notify: Notify, ready: Callable[[], None]) -> None:
    """Find nothing to serve."""
    raise ConfigError("a run", got="none", where="here", fix="Train one.")


def fall(folder: Path, number: int, notify: Notify, ready: Callable[[], None]) -> None:
    """End without a word; all but the first, which serves."""
    if number == 0:
        serve(folder, number, notify, ready)
    else:
        with (folder / "falls").open("a") as file:
            file.write(".")


def vanish(folder: Path, number: int, notify: Notify, ready: Callable[[], None]) -> None:
    """End without a word before anything is ready."""
    raise SystemExit(3)
