"""One thread that does the work of many requests together: dynamic batches behind a bounded queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from mmrec.serving.problems import ProblemError, overloaded

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class Batcher(Generic[_Job, _Result]):
    """Gathers jobs for a moment, or until there are enough, and runs them together.

    Where a batch fails its jobs are run one by one, so that one that cannot be done spoils no other, and the thread goes
    on whatever a job does.

    Args:
        run: does several jobs and returns one result each.
        most: jobs of a batch.
        seconds: how long the first of them waits for others.
        waiting: jobs that may wait; more are refused.
        on_batch: told the size of every batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[_Job]], Sequence[_Result]],
        *,
        most: int,
        seconds: float,
        waiting: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self._run, self._most, self._seconds, self._limit, self._on_batch = run, most, seconds, waiting, on_batch
        self._queue: deque[tuple[_Job, Future[_Result]]] = deque()
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

    def submit(self, job: _Job) -> Future[_Result]:
        """Queue a job.

        Raises:
            ProblemError: too many wait, or the service is stopping.
        """
        future: Future[_Result] = Future()
        with self._changed:
            if self._closed:
                raise ProblemError(503, "a service that runs", got="one that is stopping", fix="Ask another replica.")
            if len(self._queue) >= self._limit:
                raise overloaded("posts that wait to be encoded", limit=self._limit)
            self._queue.append((job, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._gather():
            self._on_batch(len(batch))
            self._answer(batch)

    def _gather(self) -> list[tuple[_Job, Future[_Result]]]:
        """Return the next jobs; none when there will be no more."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            until = time.monotonic() + self._seconds
            while self._queue and len(self._queue) < self._most and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return [self._queue.popleft() for _ in range(min(self._most, len(self._queue)))]

    def _answer(self, batch: Sequence[tuple[_Job, Future[_Result]]]) -> None:
        try:
            results = self._run([job for job, _ in batch])
        except Exception as error:  # whatever a job holds, the thread must live
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:
                for one in batch:
                    self._answer([one])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
