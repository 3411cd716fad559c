"""Settings of the process itself."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MALLOC = {
    # Larger blocks are few in a step, and of a size that differs from batch to batch: kept, they would leave holes.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 26),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
SWITCH = "MMREC_KEEP_FREED_MEMORY"


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count() or 1


def thread_share(processes: int) -> dict[str, str]:
    """Return the environment that gives each of several processes its share of this one's threads, at least one.

    Where OMP_NUM_THREADS is set, that many are shared; otherwise all cores this process may use.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, (int(given) if given.isdigit() else usable_cores()) // processes)
    return dict.fromkeys(THREADS, str(share))


def launched_rank() -> int:
    """Return this process's number among those that a launcher (torchrun) started; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def launched_processes() -> int:
    """Return how many processes a launcher (torchrun) started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is over; only the main thread ever meets one.

    Raises:
        KeyboardInterrupt: it came meanwhile; or whatever else was to be done then.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(signal.SIGINT, came[0])


def set_objects_aside() -> None:
    """Collect garbage, then have no later collection look at what there is now.

    Python walks through every object when a quarter of them is new.  A loaded model's libraries have half a million, which
    halts all threads of a service for .25 s.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def set_aside_again() -> None:
    """Collect what was set aside and is garbage since, as a model that another took the place of, where any was."""
    if gc.get_freeze_count():
        set_objects_aside()


def use_plain_arrow_memory() -> None:
    """Let Arrow take its memory where everything else does, so that what a service holds stays as it is.

    Its own allocator keeps what tables of a start or a swap took, and asks for huge pages: the kernel fills the gaps in them
    within minutes, and a service that does nothing seems to grow.  A choice in ARROW_DEFAULT_MEMORY_POOL is kept.
    """
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        import pyarrow as pa  # the command line starts without it

        pa.set_memory_pool(pa.system_memory_pool())


def keep_freed_memory() -> None:
    """Start the process again with an allocator that keeps large freed blocks.

    glibc gives large tensors back to the kernel at every step and asks for them again at the next, which can take
    longer than the arithmetic.  Its thresholds are read from the environment before Python starts, hence the restart.
    Set MMREC_KEEP_FREED_MEMORY=0 to leave the allocator alone; values of your own are kept.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) is not None:
        return
    environment = _MALLOC | os.environ | {SWITCH: "1"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
