"""Requests about models: what answers, another one in its place, and back."""

from __future__ import annotations

from concurrent.futures import Future

from mmrec.serving.deployment.admin_schemas import (
    AdminModelAnswer,
    Available,
    PairState,
    RollbackRequest,
    SwapRequest,
    SwapState,
)
from mmrec.serving.deployment.choice import Names
from mmrec.serving.deployment.deployment import Active
from mmrec.serving.deployment.swapping import Swap, Swaps
from mmrec.serving.posts.references import Parts
from mmrec.serving.trace import Trace, now_ms

WAIT_SECONDS = 600.0
"""How long a call waits for a swap to be over; the swap goes on without it."""


class Admin:
    """Answers about models.

    Args:
        swaps: swaps them.
        wait_seconds: how long a call waits for a swap to be over.
    """

    def __init__(self, swaps: Swaps, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._swaps, self._wait_seconds = swaps, wait_seconds

    def model(self, trace: Trace) -> AdminModelAnswer:
        """Return what answers, what answered before, and how far a swap is."""
        deployment, folder, swap = self._swaps.deployment, self._swaps.folder, self._swaps.last
        previous = deployment.previous
        return AdminModelAnswer(
            request_id=trace.request_id,
            current=_pair(deployment.current),
            previous=None if previous is None else _pair(previous),
            swap=None if swap is None else _swap(swap),
            available=Available(runs=folder.runs(), vectors=folder.exports(), feeds=folder.feeds()),
        )

    def swap(self, request: SwapRequest, parts: Parts, trace: Trace) -> AdminModelAnswer:
        """Put a run and its export in the place of what answers.

        Raises:
            ProblemError: nothing of these names, another swap is in progress, or the pair failed; what answered goes on.
        """
        coming = self._swaps.begin(Names(request.run, request.vectors, request.feed))
        return self._told(coming, trace, wait=request.wait)

    def rollback(self, request: RollbackRequest, parts: Parts, trace: Trace) -> AdminModelAnswer:
        """Put back what answered before.

        Raises:
            ProblemError: there is nothing, or another model than was named, or another swap is in progress.
        """
        return self._told(self._swaps.back(request.model), trace, wait=request.wait)

    def _told(self, coming: Future[Swap], trace: Trace, *, wait: bool) -> AdminModelAnswer:
        try:
            coming.result(timeout=self._wait_seconds if wait else 0.0)
        except TimeoutError:
            trace.status = 202
        return self.model(trace)


def _pair(active: Active) -> PairState:
    service = active.service
    return PairState(
        model=service.model_hash,
        run=service.recommender.run.path.name,
        vectors=service.vectors_name,
        since=active.since,
        items=len(service.items),
        published=len(service.items.published),
    )


def _swap(swap: Swap) -> SwapState:
    names, checked, carried = swap.choice.names, swap.checked, swap.carried
    return SwapState(
        step=swap.step,
        back=swap.back,
        run=None if names is None else names.run,
        vectors=None if names is None else names.vectors,
        feed=None if names is None else names.feed,
        began=swap.began,
        seconds=((swap.ended or now_ms()) - swap.began) / 1000,
        searched=None if checked is None else checked.searched,
        found=None if checked is None else checked.found,
        encoded=None if checked is None else checked.encoded,
        carried_over=None if carried is None else carried.offered,
        left_out=None if carried is None else carried.left_out,
        problem=swap.problem,
    )
