"""Entries made ahead by a thread: all of them, in order, with the thread's errors, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mmrec.ahead import ahead

NAME = "mmrec-test-ahead"


def running() -> int:
    return sum(thread.name == NAME for thread in threading.enumerate())


def test_everything_comes_in_order() -> None:
    assert list(ahead(iter(range(20)), 2, name=NAME)) == list(range(20))


def test_no_more_is_made_than_may_wait() -> None:
    made: list[int] = []

    def entries() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    waiting = ahead(entries(), 2, name=NAME)
    assert next(waiting) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    # One is taken, two wait, one is held by the thread.
    assert len(made) == 4
    waiting.close()


def test_an_error_reaches_whoever_wants_the_next() -> None:
    def entries() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    waiting = ahead(entries(), 1, name=NAME)
    assert next(waiting) == 1
    with pytest.raises(ValueError, match="no more"):
        next(waiting)


def test_the_thread_ends_with_its_reader() -> None:
    waiting = ahead(iter(range(10**6)), 1, name=NAME)
    next(waiting)
    waiting.close()
    deadline = time.monotonic() + 5
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running()
