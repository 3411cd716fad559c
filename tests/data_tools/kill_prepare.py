"""Prepare a feed and die by SIGKILL at a chosen moment: run by the tests as a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from data_tools.prepare import PrepareOptions, prepare


def main(feed: Path, out: Path, workers: int, moment: str) -> None:
    """Die when the call numbered ``moment``, or the stage of that name, is reported."""
    calls = 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if moment in (stage, str(calls)):
            os.kill(os.getpid(), signal.SIGKILL)

    options = PrepareOptions(split=None, workers=workers, block_size=4)
    prepare(feed, out, options=options, progress=progress)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
