"""Jobs of many threads in few batches; none is lost, and none spoils another."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmrec.serving.model.batcher import Batcher
from mmrec.serving.problems import ProblemError


class Doubler:
    """Doubles numbers; refuses negative ones; can be held up."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        if not held:
            self.go.set()

    def __call__(self, jobs: Sequence[int]) -> Sequence[int]:
        self.go.wait(10)
        if any(job < 0 for job in jobs):
            raise ZeroDivisionError("negative")
        return [2 * job for job in jobs]

    def batcher(
        self, *, most: int = 8, seconds: float = 0.2, waiting: int = 100, budget: int = 1 << 40
    ) -> Batcher[int, int]:
        """A job costs what it is."""
        return Batcher(
            self, most=most, budget=budget, cost=abs, seconds=seconds, waiting=waiting, on_batch=self.batches.append
        )


def test_jobs_that_wait_together_run_together() -> None:
    run = Doubler()
    batcher = run.batcher(most=8)
    futures = [batcher.submit(job) for job in range(8)]
    assert [future.result(5) for future in futures] == [2 * job for job in range(8)]
    batcher.close()
    assert run.batches == [8]


def test_who_comes_alone_does_not_wait_again() -> None:
    batcher = Doubler().batcher(most=1000, seconds=60.0, budget=10)
    assert batcher.submit(10).result(timeout=20) == 20, "enough for a batch"
    assert batcher.submit(1).result(timeout=20) == 2, "nobody came meanwhile, so nobody is waited for"
    batcher.close()


def test_jobs_of_one_caller_are_no_company() -> None:
    batcher = Doubler().batcher(most=1000, seconds=60.0, budget=10)
    assert [future.result(20) for future in batcher.submit_all([5, 5])] == [10, 10], "enough for a batch"
    assert [future.result(20) for future in batcher.submit_all([1, 1])] == [2, 2], "no other caller is waited for"
    batcher.close()


def test_a_batch_costs_no_more_than_the_budget() -> None:
    run = Doubler(held=True)
    batcher = run.batcher(most=4, seconds=0.0, budget=10)
    first = batcher.submit(1)
    while batcher.depth:  # until the thread holds it
        pass
    futures = [batcher.submit(job) for job in (5, 5, 3, 25, 4, 1, 1, 1, 1)]
    run.go.set()
    assert [future.result(5) for future in (first, *futures)] == [2, 10, 10, 6, 50, 8, 2, 2, 2, 2]
    batcher.close()
    assert run.batches == [1, 2, 1, 1, 4, 1], "of 1, of 5 + 5, of 3, of 25 alone, of four at the most"


def test_what_nobody_waits_for_any_more_is_not_done() -> None:
    run = Doubler(held=True)
    batcher = run.batcher(most=2, seconds=0.0)
    first = batcher.submit(1)
    while batcher.depth:  # until the thread holds it
        pass
    ends = {2: 0.0, 3: math.inf, 4: 0.0, 5: 0.0, 6: math.inf}
    futures = {job: batcher.submit(job, until=lambda job=job: ends[job]) for job in ends}  # type: ignore[misc]
    ends[5] = math.inf  # somebody else has come to wait for it
    run.go.set()
    assert [future.result(5) for future in (first, futures[3], futures[5], futures[6])] == [2, 6, 10, 12]
    for job in (2, 4):
        with pytest.raises(ProblemError, match="a turn in time"):
            futures[job].result(5)
    batcher.close()
    assert sum(run.batches) == 4


def test_a_batch_that_costs_enough_waits_for_no_more() -> None:
    batcher = Doubler().batcher(most=1000, seconds=60.0, budget=10)
    assert [future.result(10) for future in [batcher.submit(4), batcher.submit(6)]] == [8, 12]
    batcher.close()


def test_a_lone_job_does_not_wait_for_a_full_batch() -> None:
    batcher = Doubler().batcher(most=1000, seconds=0.01)
    assert batcher.submit(3).result(1) == 6
    batcher.close()


def test_many_threads_lose_nothing() -> None:
    run = Doubler()
    batcher = run.batcher(most=7, seconds=0.001, waiting=10_000)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: batcher.submit(job).result(5), range(500)))
    assert results == [2 * job for job in range(500)]
    assert sum(run.batches) == 500
    assert max(run.batches) <= 7
    batcher.close()


def test_a_bad_job_spoils_no_other_and_the_thread_goes_on() -> None:
    batcher = Doubler().batcher(most=3, seconds=1.0)
    good, bad, other = (batcher.submit(job) for job in (1, -1, 2))
    assert (good.result(5), other.result(5)) == (2, 4)
    with pytest.raises(ZeroDivisionError):
        bad.result(5)
    assert batcher.alive
    batcher.close()


def test_who_is_told_of_batches_may_fail_and_the_next_one_runs() -> None:
    told: list[int] = []

    def tell(size: int) -> None:
        told.append(size)
        if len(told) in (1, 3):
            raise ZeroDivisionError("no place for figures")

    batcher: Batcher[int, int] = Batcher(
        Doubler(), most=8, budget=1 << 40, cost=abs, seconds=0.0, waiting=100, on_batch=tell
    )
    with pytest.raises(ZeroDivisionError):
        batcher.submit(1).result(5)
    assert batcher.submit(2).result(5) == 4
    assert (batcher.alive, len(told)) == (True, 2), "the thread goes on, and nobody is at work"
    with pytest.raises(ZeroDivisionError):
        batcher.do(3).result(5)
    assert batcher.submit(4).result(5) == 8, "who failed in the calling thread left"
    closing = threading.Thread(target=batcher.close, daemon=True)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()


def test_a_result_too_few_is_an_error_of_its_jobs() -> None:
    batcher: Batcher[int, int] = Batcher(
        lambda jobs: [], most=8, budget=1 << 40, cost=abs, seconds=0.0, waiting=100, on_batch=lambda size: None
    )
    with pytest.raises(ValueError, match="zip"):
        batcher.submit(1).result(5)
    assert batcher.alive
    batcher.close()


def test_a_full_queue_refuses() -> None:
    run = Doubler(held=True)
    batcher = run.batcher(most=1, seconds=0.0, waiting=2)
    first = batcher.submit(0)
    while batcher.depth:  # until the thread holds it
        pass
    futures = [first, batcher.submit(1), batcher.submit(2)]
    with pytest.raises(ProblemError) as refused:
        batcher.submit(3)
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    run.go.set()
    assert [future.result(5) for future in futures] == [0, 2, 4]
    batcher.close()


def test_jobs_of_one_caller_are_run_together_and_queued_all_or_none() -> None:
    run = Doubler(held=True)
    batcher = run.batcher(most=8, seconds=0.0, waiting=5)
    first = batcher.submit(0)
    while batcher.depth:  # until the thread holds it
        pass
    together = batcher.submit_all([1, 2, 3])
    with pytest.raises(ProblemError):
        batcher.submit_all([4, 5, 6])
    more = batcher.submit_all([7, 8])
    run.go.set()
    assert [future.result(5) for future in [first, *together, *more]] == [0, 2, 4, 6, 14, 16]
    assert run.batches == [1, 5]
    batcher.close()


def test_closing_finishes_what_waits_and_takes_no_more() -> None:
    run = Doubler(held=True)
    batcher = run.batcher(most=2, seconds=0.0)
    futures = [batcher.submit(job) for job in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    run.go.set()
    closing.join(5)
    assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8]
    assert not batcher.alive
    with pytest.raises(ProblemError, match="stopping"):
        batcher.submit(1)


def test_who_is_alone_does_the_work_himself_and_others_wait_for_him() -> None:
    run, threads = Doubler(), []
    batcher = Batcher(
        lambda jobs: (threads.append(threading.current_thread()), run(jobs))[1],
        most=8,
        budget=1 << 40,
        cost=abs,
        seconds=0.0,
        waiting=100,
        on_batch=run.batches.append,
    )
    assert [batcher.do(job).result(5) for job in (1, 2)] == [2, 4]
    here = threading.current_thread()
    assert (threads[0] is here, threads[1] is here) == (False, True), "nobody came beside the first"
    with pytest.raises(ZeroDivisionError):
        batcher.do(-1).result(5)
    assert threads.pop() is here
    run.go.clear()
    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(batcher.do, 3)
        while len(threads) < 3:
            pass
        others = [batcher.do(job) for job in (4, 5)]
        assert batcher.depth == 2, "one batch at a time"
        run.go.set()
        assert [future.result(5) for future in (alone.result(5), *others)] == [6, 8, 10]
    batcher.close()
    assert run.batches == [1, 1, 1, 1, 2]
    assert threads[-1] is not here
    with pytest.raises(ProblemError, match="stopping"):
        batcher.do(1)


def test_many_threads_that_do_lose_nothing() -> None:
    run = Doubler()
    batcher = run.batcher(most=7, seconds=0.0, waiting=10_000)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: batcher.do(job).result(5), range(500)))
    batcher.close()
    assert results == [2 * job for job in range(500)]
    assert sum(run.batches) == 500
