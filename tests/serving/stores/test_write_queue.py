"""Writes that nobody waits for are gathered; those that somebody waits for are not held up by them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from mmrec.serving.stores.store import StoreFailureError
from mmrec.serving.stores.write_queue import TOGETHER, WAITING, WriteQueue

LONG = 60.0
"""Seconds, longer than any test may take."""


def taken_by(queue: WriteQueue[int]) -> tuple[list[list[int]], threading.Thread]:
    """What a thread takes until the queue is closed."""
    taken: list[list[int]] = []

    def work() -> None:
        while entries := queue.take():
            taken.append(entries)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return taken, thread


def put(queue: WriteQueue[int], entries: Sequence[int], *, hurry: bool = False) -> None:
    for entry in entries:
        queue.put(entry, hurry=hurry)


def test_one_in_a_hurry_takes_those_before_it_along() -> None:
    queue = WriteQueue[int](linger=LONG)
    put(queue, [1, 2, 3])
    queue.put(4, hurry=True)
    assert queue.take() == [1, 2, 3, 4]


def test_without_hurry_they_wait_a_moment_only() -> None:
    queue = WriteQueue[int](linger=0.05)
    taken, thread = taken_by(queue)
    put(queue, [1, 2])
    while not taken:
        thread.join(0.01)
    assert taken == [[1, 2]], "together, though the thread was waiting when the first one came"
    queue.close()


def test_one_in_a_hurry_wakes_a_thread_that_lingers() -> None:
    queue = WriteQueue[int](linger=LONG)
    taken, thread = taken_by(queue)
    queue.put(1, hurry=False)
    thread.join(0.1)
    assert taken == [], "it lingers"
    queue.put(2, hurry=True)
    for _ in range(1000):
        if not taken:
            thread.join(0.01)
    assert taken == [[1, 2]]
    queue.close()


def test_many_do_not_wait() -> None:
    queue = WriteQueue[int](linger=LONG)
    put(queue, range(TOGETHER + 1))
    assert queue.take() == list(range(TOGETHER))
    assert queue.take() == [TOGETHER], "what is left of a hurry"


def test_what_is_there_is_taken_after_the_end_and_nothing_more_put() -> None:
    queue = WriteQueue[int](linger=LONG)
    taken, thread = taken_by(queue)
    put(queue, [1, 2])
    queue.close()
    thread.join(10)
    assert [entry for some in taken for entry in some] == [1, 2]
    with pytest.raises(StoreFailureError, match="closed"):
        queue.put(3, hurry=True)


def test_no_more_than_there_is_room_for() -> None:
    queue = WriteQueue[int](linger=LONG)
    put(queue, range(WAITING))
    with pytest.raises(StoreFailureError, match=f"{WAITING} writes wait"):
        queue.put(0, hurry=False)
    queue.put(0, hurry=True)


def test_many_threads_lose_nothing_and_keep_their_order() -> None:
    queue = WriteQueue[int](linger=0.001)
    taken, thread = taken_by(queue)
    threads = [
        threading.Thread(target=lambda number=number: put(queue, range(number, 2000, 8), hurry=number % 2 == 0))
        for number in range(8)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join(10)
    queue.close()
    thread.join(10)
    flat = [entry for some in taken for entry in some]
    assert sorted(flat) == list(range(2000))
    for number in range(8):
        own = [entry for entry in flat if entry % 8 == number]
        assert own == sorted(own)
