"""Fresh processes, watched from outside: what they print, how long they take, how much memory they and theirs hold."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import PAGE
from mmrec.process import SWITCH

PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between two looks at a process, at first and at most."""
RARER = 0.01
"""Share of the time since the start that a pause grows to: a look takes a millisecond or two of a core that what is watched
may need."""
NEW_SECONDS = 0.1
"""Age at which a child begins to count: between its fork and what it then runs, it seems to hold all that its parent does."""

CALL = """
import sys
sys.path.insert(0, {scripts!r})
from {module} import {name}
print({name}(*sys.argv[1:]))
"""


@dataclass(frozen=True)
class Finished:
    """A process that ended well.

    Args:
        output: what it printed.
        seconds: from start to end.
        peak_mb: most resident memory of it and its children together; pages they share count once for each.
    """

    output: str
    seconds: float
    peak_mb: float


def run_python(code: str, *arguments: str) -> Finished:
    """Run code in a fresh interpreter and watch it.

    Raises:
        RuntimeError: it failed; the message is what it wrote to stderr.
    """
    # The allocator of this process is set up for ratios of long runs; a fresh process gets what a user's has.
    plain = {name: value for name, value in os.environ.items() if name != SWITCH and not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", code, *arguments]
    start = time.perf_counter()
    with subprocess.Popen(command, env=plain, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak = watch(process)
        seconds = time.perf_counter() - start
        output, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(errors)
    return Finished(output, seconds, peak / 1e6)


def afresh(measure: Callable[..., float], *arguments: str, device: str) -> float:
    """Return what a function of a module measures in a fresh process, or on a GPU here.

    On a CPU memory that this process has freed and uses again would count as none; a GPU's allocator counts what is in use.

    Args:
        measure: takes ``arguments`` and the device.
        arguments: texts.
        device: where to compute.

    Raises:
        RuntimeError: the process failed; the message is what it wrote to stderr.
    """
    if device.startswith("cuda"):
        return measure(*arguments, device)
    code = CALL.format(scripts=str(Path(__file__).parents[1]), module=measure.__module__, name=measure.__name__)
    return float(run_python(code, *arguments, device).output.splitlines()[-1])


def watch(process: subprocess.Popen[str], *, pause: float = PAUSE) -> int:
    """Wait for a process and return the most resident memory of it and its children together, in bytes.

    Args:
        process: just started.
        pause: seconds between the first looks.
    """
    peak, start = 0, time.perf_counter()
    ended = os.pidfd_open(process.pid)
    try:
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            grown = min(LONGEST_PAUSE, RARER * (time.perf_counter() - start))
            select.select([ended], [], [], max(pause, grown))
    finally:
        os.close(ended)
    return peak


def memory(pid: int) -> int:
    """Return the resident memory of a process and of all that descend from it, but those just begun, in bytes."""
    return sum(_resident(one) for one in _family(pid))


def _family(pid: int) -> list[int]:
    """Return a process and all that descend from it, but those just begun."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                these = [int(child) for child in children.read_text(encoding="ascii").split()]
            except OSError:  # it has just ended
                continue
            waiting += [child for child in these if not _is_new(child)]
    return found


def _is_new(pid: int) -> bool:
    """Return whether a process has just begun; one that has just ended holds nothing and may pass for one."""
    try:
        about = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    # Behind the name, which may hold anything, the twentieth field: ticks from the machine's start to the process's.
    fields = about.rpartition(")")[2].split()
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began < NEW_SECONDS


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE
    except (OSError, IndexError):
        return 0
