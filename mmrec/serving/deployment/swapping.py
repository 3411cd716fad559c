"""Another model in the place of the one that answers: loaded, checked, given what was published, switched to."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Literal

from mmrec.errors import MmrecError
from mmrec.process import set_aside_again
from mmrec.serving.answers.service import Service
from mmrec.serving.deployment.carry_over import Carried, carry_over, keep_vectors
from mmrec.serving.deployment.choice import Choice, Names
from mmrec.serving.deployment.deployment import Active, Deployment
from mmrec.serving.deployment.model_folder import ModelFolder
from mmrec.serving.deployment.self_check import Checked, check
from mmrec.serving.problems import ProblemError, places_of
from mmrec.serving.stores.store import StoreFailureError
from mmrec.serving.trace import Trace, now_ms

Step = Literal["loading", "checking", "carrying over", "switching", "done", "failed"]
Outcome = Literal["switched", "rolled_back", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("switched", "rolled_back", "failed")
_CHECK_SECONDS = 120.0
_STORE_SECONDS = 30.0
"""Between two tries of what another process chose, where the store failed: each loads a model."""
_LOG = logging.getLogger("mmrec.serving")


@dataclass(frozen=True)
class Swap:
    """One swap, as far as it has come.

    Args:
        choice: what is put in place.
        back: whether it is what answered before.
        step: what it is doing.
        began: milliseconds since 1970.
        checked: what the checks came to.
        carried: what became of the published posts.
        problem: why it failed.
        ended: milliseconds since 1970, None while it goes on.
    """

    choice: Choice
    back: bool
    step: Step
    began: int
    checked: Checked | None = None
    carried: Carried | None = None
    problem: str | None = None
    ended: int | None = None


@dataclass(frozen=True)
class Models:
    """What a service may be given in the place of what answers.

    Args:
        folder: where models come from.
        load: makes a service of a pair by its names, None for the pair that the process was started with; slow.
        choice: the pair that answers at first.
    """

    folder: ModelFolder
    load: Callable[[Names | None], Service]
    choice: Choice


class Swaps:
    """Swaps models, one at a time; whatever goes wrong, what answered goes on answering.

    Args:
        deployment: what answers.
        models: what may take its place.
        on_swap: told the outcome of every swap.
    """

    def __init__(self, deployment: Deployment, models: Models, *, on_swap: Callable[[Outcome], None]) -> None:
        self.deployment, self.folder = deployment, models.folder
        self._load, self._base, self._on_swap = models.load, models.choice.base, on_swap
        self._store = deployment.current.service.store
        self._busy = threading.Lock()
        self._last: Swap | None = None
        self._closing = False
        self._refused: str | None = None
        self._put_off: tuple[str, float] | None = None
        self._thread: threading.Thread | None = None

    @property
    def last(self) -> Swap | None:
        """The swap in progress, or the last one."""
        return self._last

    def begin(self, names: Names) -> Future[Swap]:
        """Start to put a pair in place.

        Raises:
            ProblemError: nothing of these names, or another swap is in progress.
        """
        self.folder.places(names)
        return self._start(Choice(names, secrets.token_hex(8), self._base), back=False, record=True)

    def back(self, model_hash: str | None = None) -> Future[Swap]:
        """Start to put in place what answered before.

        Args:
            model_hash: what that must be.

        Raises:
            ProblemError: there is nothing, or another model than was named, or another swap is in progress.
        """
        previous = self.deployment.previous
        if previous is None:
            raise ProblemError(
                409, "a model that answered before", got="none since the start", fix="Name one: POST /admin/model."
            )
        if model_hash not in {None, previous.service.model_hash}:
            raise ProblemError(
                409, "the hash of the model before", got="another", where="model", fix="Look: GET /admin/model."
            )
        return self._start(previous.choice, back=True, record=True)

    def follow(self) -> None:
        """Start to put in place what another process chose, where that is not what answers here already."""
        chosen = Choice.recorded(self._store, base=self._base)
        if chosen is None or chosen.token in {self.deployment.current.choice.token, self._refused}:
            return
        if self._put_off is not None:
            token, failed = self._put_off
            if token == chosen.token and time.monotonic() < failed + _STORE_SECONDS:
                return
        previous = self.deployment.previous
        back = previous is not None and previous.choice.token == chosen.token
        try:
            self._start(chosen, back=back, record=False)
        except ProblemError:  # this process swaps already; it looks again when that is over
            return

    def close(self) -> None:
        """Let no swap go further than it is, and wait until it has noticed."""
        self._closing = True
        if self._thread is not None:
            self._thread.join()

    def _start(self, choice: Choice, *, back: bool, record: bool) -> Future[Swap]:
        if not self._busy.acquire(blocking=False):
            raise ProblemError(
                409,
                "one swap at a time",
                got="one more",
                fix="Wait for the other one: GET /admin/model.",
                headers={"Retry-After": "5"},
            )
        future: Future[Swap] = Future()
        self._last = Swap(choice, back, "carrying over" if back else "loading", now_ms())
        self._thread = threading.Thread(
            target=self._work, args=(self._last, record, future), name="mmrec-swap", daemon=True
        )
        self._thread.start()
        return future

    def _work(self, swap: Swap, record: bool, future: Future[Swap]) -> None:
        try:
            done = self._swapped(swap, record)
        except Exception as error:  # whatever a pair holds, what answers goes on answering
            problem = self._problem(error)
            if isinstance(error, StoreFailureError):
                self._put_off = swap.choice.token, time.monotonic()
            else:
                self._refused = swap.choice.token
            self._last = replace(self._last or swap, step="failed", problem=str(problem), ended=now_ms())
            self._on_swap("failed")
            self._busy.release()
            future.set_exception(problem)
            return
        self._last = done
        self._on_swap("rolled_back" if swap.back else "switched")
        _LOG.info("model %s answers", self.deployment.current.service.model_hash)
        set_aside_again()
        self._busy.release()
        future.set_result(done)

    def _swapped(self, swap: Swap, record: bool) -> Swap:
        previous = self.deployment.previous
        if swap.back:
            assert previous is not None
            return self._put(previous, swap, record)
        known = max((number for number, _ in self._store.changes(0)), default=0)
        to = Active(self._load(swap.choice.names), swap.choice)
        try:
            self._go_on(swap := replace(swap, step="checking"))
            swap = replace(swap, checked=check(to.service, Trace("swap", seconds=_CHECK_SECONDS)))
            self._go_on(swap := replace(swap, step="carrying over"))
            before, after = self.deployment.current.service.items.exported, to.service.items.exported

            def has(number: int, item_id: str) -> bool:
                """Tell posts that have become part of the export; one published since, or over an item, stays."""
                return number <= known and after.row_of(item_id) >= 0 and before.row_of(item_id) < 0

            swap = replace(swap, carried=carry_over(to.service, has=has))
            return self._put(to, swap, record)
        except BaseException:
            if self.deployment.current is not to:
                to.retire()
            raise

    def _put(self, to: Active, swap: Swap, record: bool) -> Swap:
        carried = swap.carried or Carried()
        if swap.back:  # its own posts are still there; those since need not hold up the writes
            carried += carry_over(to.service)
        self._go_on(swap := replace(swap, step="switching"))
        carried += self.deployment.switch(to, before=(lambda: to.choice.record(self._store)) if record else None)
        if record:
            self._keep_vectors(to.service)
        return replace(swap, step="done", carried=carried, ended=now_ms())

    def _keep_vectors(self, service: Service) -> None:
        """Save the next start the work; where that fails, it has the work."""
        try:
            keep_vectors(service)
        except Exception as error:  # the service answers already
            _LOG.warning("vectors of published posts could not be kept: %s", type(error).__name__)

    def _go_on(self, swap: Swap) -> None:
        """Note how far a swap is.

        Raises:
            ProblemError: the service is stopping.
        """
        self._last = swap
        if self._closing:
            raise ProblemError(503, "a service that runs", got="one that is stopping")

    def _problem(self, error: Exception) -> ProblemError:
        """Return what is told of a failure."""
        if isinstance(error, ProblemError):
            return error
        if isinstance(error, MmrecError):
            _LOG.warning("the swap failed: %s", error)
            expected, got, where, fix = map(self.folder.told, (error.expected, error.got, error.where, error.fix))
            return ProblemError(422, expected, got=got, where=where, fix=fix)
        _LOG.error("the swap failed: %s at %s", type(error).__name__, places_of(error))
        if isinstance(error, StoreFailureError):
            return ProblemError(503, "a store that answers", got="a failure of it", fix="Try again.")
        return ProblemError(500, "a pair that can be loaded", got=type(error).__name__, fix="Its log has the place.")
