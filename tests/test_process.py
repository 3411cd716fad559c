"""Settings of the process itself."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmrec.process import set_aside_again, set_objects_aside, uninterrupted


class Ring:
    """Refers to itself, so that only a collection lets go of it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_there_is_looked_at_no_more() -> None:
    before = Ring()
    kept = weakref.ref(before)
    set_objects_aside()
    del before
    gc.collect()
    assert kept() is not None, "it was set aside"
    later = Ring()
    collected = weakref.ref(later)
    del later
    gc.collect()
    assert collected() is None


def test_what_has_become_garbage_is_collected_before_the_rest_is_set_aside_again() -> None:
    before = Ring()
    kept = weakref.ref(before)
    set_objects_aside()
    del before
    set_aside_again()
    assert kept() is None
    assert gc.get_freeze_count()


def test_where_nothing_was_set_aside_nothing_is() -> None:
    garbage = Ring()
    there = weakref.ref(garbage)
    gc.disable()
    try:
        del garbage
        set_aside_again()
        assert there() is not None
    finally:
        gc.enable()
    assert not gc.get_freeze_count()


class TestUninterrupted:
    def test_ctrl_c_waits_for_the_end_of_the_block(self) -> None:
        done: list[str] = []

        def work() -> None:
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                done.append("the rest of the block")
            done.append("what follows")

        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == ["the rest of the block"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_without_one_nothing_happens(self) -> None:
        with uninterrupted():
            pass
        with pytest.raises(KeyError), uninterrupted():
            raise KeyError("an error of the block")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_one_that_is_ignored_stays_ignored(self) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_other_threads_go_on(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: uninterrupted().__enter__()).result(10)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("chosen", "pool"), [(None, "system"), ("mimalloc", "mimalloc")])
def test_arrow_takes_memory_from_the_system_unless_told_otherwise(chosen: str | None, pool: str) -> None:
    name = "ARROW_DEFAULT_MEMORY_POOL"
    environment = {key: value for key, value in os.environ.items() if key != name} | ({name: chosen} if chosen else {})
    code = (
        "from mmrec.process import use_plain_arrow_memory; use_plain_arrow_memory(); import pyarrow as pa;"
        "table = pa.array(range(10_000)); pool = pa.default_memory_pool(); print(pool.backend_name, pool.bytes_allocated() > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [pool, "True"]
