"""Batches on their way to the device, while it still computes the one before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmrec.ahead import ahead
from mmrec.batch import HistoryBatch

DEPTH = 1
"""Batches that wait on the device beside the one in work: each takes its room there."""


@dataclass(frozen=True)
class SentBatch:
    """A batch, and its copy on the device.

    Args:
        host: as the loader made it.
        copy: the same on the device, perhaps not all there yet; None where nothing was sent ahead.
        arrived: event after which it is all there.
    """

    host: HistoryBatch
    copy: HistoryBatch | None = None
    arrived: torch.cuda.Event | None = None

    def receive(self, device: torch.device) -> HistoryBatch:
        """Return the batch on the device, for work in the current stream."""
        if self.copy is None or self.arrived is None:
            return self.host.to(device)
        stream = torch.cuda.current_stream(device)
        stream.wait_event(self.arrived)

        def used_here(tensor: Tensor) -> Tensor:
            # It was made in another stream, whose memory is free again as soon as nobody holds the tensor.
            tensor.record_stream(stream)
            return tensor

        return self.copy.map(used_here)


def send_ahead(batches: Iterator[HistoryBatch], device: torch.device) -> Iterator[SentBatch]:
    """Yield batches whose copy to a GPU began before they were wanted; elsewhere there is nothing to gain.

    A thread puts each batch into page-locked memory, from which a stream of its own copies it beside the computation.
    """
    if device.type != "cuda":
        return (SentBatch(batch) for batch in batches)
    return ahead(_sent(batches, device), DEPTH, name="mmrec-sender")


def _sent(batches: Iterator[HistoryBatch], device: torch.device) -> Iterator[SentBatch]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(stream):
            sent = batch.map(Tensor.pin_memory).to(device, non_blocking=True)
            copy = replace(sent, host=batch)  # nobody keeps the page-locked memory
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(stream)
        yield SentBatch(batch, copy, arrived)
