"""Where the time of training steps goes, found out from outside: the model knows nothing of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmrec.training.backward_order import BackwardOrder
from mmrec.training.operations import operation_counter
from mmrec.training.profile import Profile, Row
from mmrec.training.profiler import BANK, CHECKPOINT, OPTIMISER, VALIDATION
from mmrec.training.sections import OTHER, Beside, Sections, Spent, Stopwatch

REST = "rest of the model"
AGAIN = "computed again"
COUNTING = "batches counted"
OWN = "the profile itself"
ASIDE = frozenset({BANK, VALIDATION, CHECKPOINT, COUNTING, OWN})
"""Sections that are no part of a step; the batches whose operations are counted are slow and stand apart."""
COUNT_FIRST, COUNT_FACTOR = 2, 4
"""Operations are counted on the second batch and then on every fourth power's: 2, 8, 32, 128, ..."""


@dataclass
class _Counted:
    """Batches so far: all, and those whose operations were counted."""

    batches: int = 0
    next: int = COUNT_FIRST
    targets: int = 0
    counted_targets: int = 0
    operations: int = 0


class StepProfiler:
    """Times the sections of a training from the moment it is made to :meth:`finish`, in the thread that makes it.

    Args:
        stopwatch: of the device, see :func:`mmrec.training.sections.open_stopwatch`.
        clock: seconds on the host: of the whole, and of the threads that prepare batches.
    """

    def __init__(self, stopwatch: Stopwatch, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._stopwatch, self._clock = stopwatch, clock
        self._thread = threading.get_ident()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._order: BackwardOrder | None = None
        self._in_backward = self._goes_on = False
        self._counted = _Counted()
        self._beside = Beside(clock)
        stopwatch.settle()
        self._began = clock()
        self._sections = Sections(stopwatch)

    def watch(self, module: nn.Module, name: str, *, counted: bool = True) -> None:
        """Time a module's forward pass, and the backward pass of what it computes, as a section.

        Args:
            module: any part of the model; what it gives may be of any type.
            name: of the section.
            counted: whether a call counts as one more time; False for a further part of the same section.
        """
        depths: list[int] = []

        def before(module: nn.Module, inputs: object) -> None:
            depths.append(self._enter(name, counted=counted))

        def after(module: nn.Module, inputs: object, output: object) -> None:
            self._leave(depths.pop())

        self._handles.append(module.register_forward_pre_hook(before))
        self._handles.append(module.register_forward_hook(after, always_call=True))

    @contextmanager
    def section(self, name: str, *, whole: bool = False) -> Iterator[None]:
        """Time the block; with ``whole`` nothing within it is told apart."""
        depth = self._enter(name, whole=whole)
        try:
            yield
        finally:
            self._leave(depth)

    @contextmanager
    def batch(self, *, targets: int) -> Iterator[None]:
        """Time the forward and backward pass of one batch; now and then count its operations instead."""
        counted = self._counted
        counted.batches += 1
        counted.targets += targets
        if counted.batches < counted.next:
            self._order = BackwardOrder()
            try:
                with self.section(REST):
                    yield
            finally:
                self._order = None
            return
        counted.next *= COUNT_FACTOR
        with self.section(COUNTING, whole=True), operation_counter() as counter:
            yield
        counted.counted_targets += targets
        counted.operations += int(counter.get_total_flops())

    @contextmanager
    def backward(self, loss: Tensor) -> Iterator[None]:
        """Time a block that runs the backward pass of ``loss``, by the section that computed forward."""
        order, self._order = self._order, None
        if order is not None:
            with self.section(OWN):
                order.watch(loss, self._turn)
        depth = self._sections.enter(REST, backward=True, counted=False)
        self._in_backward, self._goes_on = True, False
        try:
            yield
        finally:
            self._in_backward = False
            self._sections.leave(depth)

    def loading(self, name: str) -> AbstractContextManager[object]:
        """Time a block that prepares a batch: a section of the training only where that is what the training does."""
        return self.section(name) if threading.get_ident() == self._thread else self._beside.section(name)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def finish(self) -> Profile:
        """Return the profile so far."""
        spent = self._sections.read()
        self._stopwatch.settle()
        seconds = self._clock() - self._began
        rows = _rows({name: entry for name, entry in spent.items() if name != OTHER})
        rows.append(Row(OTHER, seconds=seconds - sum(row.seconds for row in rows)))
        stepping = seconds - sum(row.seconds for row in rows if row.name in ASIDE)
        counted = self._counted
        figures = {"targets_per_second": (counted.targets - counted.counted_targets) / max(stepping, 1e-9)}
        if counted.counted_targets:
            figures["operations_per_target"] = counted.operations / counted.counted_targets
            figures["operations_per_second"] = figures["operations_per_target"] * figures["targets_per_second"]
        steps = spent[OPTIMISER].count if OPTIMISER in spent else 0
        return Profile(seconds, steps, tuple(rows), tuple(_rows(self._beside.read())), figures)

    def _enter(self, name: str, *, whole: bool = False, counted: bool = True) -> int:
        if self._in_backward:
            # A part of the forward pass whose activations were not kept: no section's time twice.  What lies between
            # its modules belongs to it, for the backward pass has not come to another section meanwhile.
            return self._sections.enter(AGAIN, whole=True, backward=True, counted=False, goes_on=self._goes_on)
        depth = self._sections.enter(name, whole=whole, counted=counted)
        if self._order is not None:
            self._order.border(self._sections.name)
        return depth

    def _turn(self, name: str) -> None:
        self._goes_on = False
        self._sections.turn(name)

    def _leave(self, depth: int) -> None:
        self._goes_on = self._in_backward
        self._sections.leave(depth)
        if self._order is not None:
            self._order.border(self._sections.name)


def _rows(spent: dict[str, Spent]) -> list[Row]:
    """Return rows, the longest first."""
    rows = [
        Row(name, seconds=entry.forward + entry.backward, backward_seconds=entry.backward, count=entry.count)
        for name, entry in spent.items()
    ]
    return sorted(rows, key=lambda row: -row.seconds)
