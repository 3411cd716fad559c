"""Who starts processes, keeps their number and ends them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mmrec.errors import ConfigError
from mmrec.serving import supervisor
from mmrec.serving.supervisor import Supervisor
from tests.serving import supervised


def told_to_end(when: Callable[[], bool]) -> threading.Thread:
    """Send this process SIGTERM as soon as something is so."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not when() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def starts(folder: Path, number: int) -> int:
    path = folder / f"starts-{number}"
    return len(path.read_text()) if path.exists() else 0


def test_one_that_dies_is_started_again_and_all_end_gracefully(tmp_path: Path) -> None:
    said: list[str] = []

    def kill_one() -> None:
        while starts(tmp_path, 1) < 1:
            time.sleep(0.02)
        (victim,) = [child for child in multiprocessing.active_children() if child.name == "mmrec-worker-1"]
        victim.kill()

    killer = threading.Thread(target=kill_one)
    ender = told_to_end(lambda: starts(tmp_path, 1) >= 2)
    whole = Supervisor(partial(supervised.serve, tmp_path), workers=2, grace=30.0, notify=said.append)
    whole.run(on_ready=killer.start)
    killer.join()
    ender.join()
    assert said[0] == "worker 0 prepares", "the first alone, and before the others"
    assert "worker 1 ended with code -9 and is started again" in said
    assert [starts(tmp_path, number) for number in (0, 1)] == [1, 2]
    assert (tmp_path / "finished-0").exists()
    assert (tmp_path / "finished-1").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_one_that_keeps_dying_is_not_started_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE", 1000.0)
    monkeypatch.setattr(supervisor, "_LONGEST_PAUSE", 1000.0)
    said: list[str] = []
    ender = told_to_end(lambda: any("code 0" in line for line in said))
    whole = Supervisor(partial(supervised.fall, tmp_path), workers=2, grace=30.0, notify=said.append)
    whole.run(on_ready=lambda: None)
    ender.join()
    assert (tmp_path / "falls").read_text() == "."


def test_what_keeps_the_first_from_starting_is_told(tmp_path: Path) -> None:
    whole = Supervisor(partial(supervised.refuse, tmp_path), workers=2, grace=30.0, notify=print)
    with pytest.raises(ConfigError, match=r"expected a run, got none, in here\. Train one\."):
        whole.run(on_ready=lambda: None)
    whole = Supervisor(partial(supervised.vanish, tmp_path), workers=2, grace=30.0, notify=print)
    with pytest.raises(ConfigError, match="ended with code 3"):
        whole.run(on_ready=lambda: None)
    assert not multiprocessing.active_children()
