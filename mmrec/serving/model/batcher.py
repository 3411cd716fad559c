"""The work of many requests done together: dynamic batches behind a bounded queue, one at a time."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from mmrec.serving.problems import ProblemError, overloaded, too_late

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")
Until = Callable[[], float]
"""When nobody waits for a job any more, on the clock of ``time.monotonic``; asked again when its turn comes."""


def never() -> float:
    """Return a time that does not come."""
    return math.inf


@dataclass(frozen=True)
class _Entry(Generic[_Job, _Result]):
    """A job that waits, the number of the call that brought it, and how long anybody waits for it."""

    job: _Job
    future: Future[_Result]
    cost: int
    call: int
    until: Until


class Batcher(Generic[_Job, _Result]):
    """Gathers jobs for a moment, or until there are enough or they cost enough, and runs them together.

    Where a batch fails its jobs are run one by one, so that one that cannot be done spoils no other, and the thread goes
    on whatever a job does.

    Args:
        run: does several jobs and returns one result each.
        most: jobs of a batch.
        budget: what the jobs of a batch may cost together; one that costs more runs alone.
        cost: of a job.
        seconds: how long the first of them waits for those of other callers; where the last one found none, it does not
            wait.
        waiting: jobs that may wait; more are refused.
        on_batch: told the size of every batch; where it fails, so do the batch's jobs.
        begin: called by the thread before its first batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[_Job]], Sequence[_Result]],
        *,
        most: int,
        budget: int,
        cost: Callable[[_Job], int],
        seconds: float,
        waiting: int,
        on_batch: Callable[[int], None],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._begin = begin
        self._run, self._most, self._seconds, self._limit, self._on_batch = run, most, seconds, waiting, on_batch
        self._budget, self._cost_of = budget, cost
        self._queue: deque[_Entry[_Job, _Result]] = deque()
        self._waiting_cost, self._calls, self._company, self._busy = 0, 0, True, False
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="mmrec-model", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    def submit(self, job: _Job, *, until: Until = never) -> Future[_Result]:
        """Queue a job; see :meth:`submit_all`."""
        return self.submit_all([job], until=[until])[0]

    def submit_all(self, jobs: Sequence[_Job], *, until: Sequence[Until] | None = None) -> list[Future[_Result]]:
        """Queue jobs, all or none of them; they are run together where they fit a batch.

        Args:
            jobs: to do.
            until: of each; one whose turn comes later is not done, or after a moment of too much work all that follow
                would be late as well.  For ever by default.

        Raises:
            ProblemError: too many wait, or the service is stopping.
        """
        costs = [self._cost_of(job) for job in jobs]
        with self._changed:
            if self._closed:
                raise ProblemError(503, "a service that runs", got="one that is stopping", fix="Ask another replica.")
            if len(self._queue) + len(jobs) > self._limit:
                raise overloaded("posts that wait to be encoded", limit=self._limit)
            self._calls += 1
            entries: list[_Entry[_Job, _Result]] = [
                _Entry(job, Future(), cost, self._calls, end)
                for job, cost, end in zip(jobs, costs, until or [never] * len(jobs), strict=True)
            ]
            self._queue += entries
            self._waiting_cost += sum(costs)
            self._changed.notify()
        return [entry.future for entry in entries]

    def do(self, job: _Job) -> Future[_Result]:
        """Do a job at once, in the calling thread, where nobody came beside the last one; queue it otherwise.

        That spares two changes of thread, which a job of a millisecond or two would notice.

        Raises:
            ProblemError: too many wait, or the service is stopping.
        """
        with self._changed:
            alone = not (self._company or self._busy or self._queue or self._closed)
            self._busy = self._busy or alone
        if not alone:
            return self.submit(job)
        future: Future[_Result] = Future()
        self._answer([(job, future)])
        return future

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        self._begin()
        while taken := self._gather():
            now, in_time, late = time.monotonic(), list[_Entry[_Job, _Result]](), list[_Entry[_Job, _Result]]()
            for entry in taken:
                (in_time if entry.until() > now else late).append(entry)
            self._answer([(entry.job, entry.future) for entry in in_time])
            for entry in late:
                entry.future.set_exception(too_late())

    def _gather(self) -> list[_Entry[_Job, _Result]]:
        """Return the next jobs; none when there will be no more."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            until = time.monotonic() + (self._seconds if self._company else 0.0)
            while self._queue and not self._enough and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            while self._busy:
                self._changed.wait()
            taken = self._taken()
            self._company = len({entry.call for entry in [*taken, *self._queue]}) > 1
            self._busy = bool(taken)
            return taken

    @property
    def _enough(self) -> bool:
        """Whether what waits fills a batch."""
        return len(self._queue) >= self._most or self._waiting_cost >= self._budget

    def _taken(self) -> list[_Entry[_Job, _Result]]:
        """Take the jobs of the next batch out of the queue, in their order."""
        taken: list[_Entry[_Job, _Result]] = []
        spent = 0
        while self._queue and len(taken) < self._most:
            if taken and spent + self._queue[0].cost > self._budget:
                break
            taken.append(self._queue.popleft())
            spent += taken[-1].cost
        self._waiting_cost -= spent
        return taken

    def _answer(self, batch: Sequence[tuple[_Job, Future[_Result]]]) -> None:
        """Run a batch; the next one may begin before anybody hears of this one, and so finds nobody at work."""
        outcomes: Sequence[tuple[_Result | None, Exception | None]] = []
        try:
            if batch:
                self._on_batch(len(batch))
                outcomes = self._outcomes([job for job, _ in batch])
        except Exception as failure:  # nobody may wait for ever, whoever failed
            outcomes = [(None, failure)] * len(batch)
        finally:
            with self._changed:
                self._busy = False
                if self._queue or self._closed:  # else there is nothing for the thread to wake up for
                    self._changed.notify()
        for (_, future), (result, error) in zip(batch, outcomes, strict=True):
            if error is None:
                future.set_result(cast("_Result", result))
            else:
                future.set_exception(error)

    def _outcomes(self, jobs: Sequence[_Job]) -> list[tuple[_Result | None, Exception | None]]:
        """Return the result of each job, or its error."""
        try:
            return [(result, None) for _, result in zip(jobs, self._run(jobs), strict=True)]
        except Exception as error:  # whatever a job holds, the thread must live
            if len(jobs) == 1:
                return [(None, error)]
            return [self._outcomes([job])[0] for job in jobs]
